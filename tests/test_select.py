"""Best-of-N: the candidate of the highest Q, for its own observation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from assertions import each, seeds
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from shortcutrl import BestOfN, bon_select, rollout_k

stay = lambda obs, x, t, h: jnp.zeros_like(x)
towards = lambda obs, x, t, h: obs - x
near = lambda obs, action: -jnp.sum(jnp.square(action - obs))[None]


# ----------------------------------------------------------------------- the highest Q wins


def table(q):
    """A critic that knows the Q, one column for each member, of candidates that are numbered."""
    return lambda obs, action: q[action[0].astype(int)]


@partial(jax.jit, static_argnames=("select", "aggregate"))
def chosen(select, q, aggregate):
    numbers = jnp.arange(len(q), dtype=float)[:, None]
    return select(stay, table(q), None, numbers, k=1, aggregate=aggregate)


def assert_chooses_the_first_best(select, q, aggregate):
    """The first of the highest that are numbers."""
    action, info = chosen(select, q, aggregate)
    verdicts = [min(row) if aggregate == "min" else sum(row) / len(row) for row in q.tolist()]
    verdicts = [np.nan if np.isnan(row).any() else verdict for row, verdict in zip(q, verdicts, strict=True)]
    numbers = [verdict for verdict in verdicts if not np.isnan(verdict)]
    right = verdicts.index(max(numbers)) if numbers else 0
    assert info.best == right, f"chose {info.best}, not {right} of {verdicts}"
    assert action == right, f"chose {action}, not {right} of {verdicts}"
    np.testing.assert_allclose(info.q, verdicts, rtol=1e-12)
    assert jnp.array_equal(info.candidates[:, 0], jnp.arange(len(q)))


few = st.sampled_from([-2.0, -1.0, 0.0, 1.0, np.inf, np.nan])  # so that ties and NaN are common


@given(
    q=st.sampled_from([1, 2, 5]).flatmap(lambda n: arrays(float, (n, 2), elements=few)),
    aggregate=st.sampled_from(["min", "mean"]),
)
def test_the_first_of_the_highest_wins_and_nan_never(q, aggregate):
    assert_chooses_the_first_best(bon_select, q, aggregate)


@given(seed=seeds, aggregate=st.sampled_from(["min", "mean"]))
def test_the_highest_wins(seed, aggregate):
    assert_chooses_the_first_best(bon_select, np.random.default_rng(seed).normal(size=(16, 3)), aggregate)


def test_nan_does_not_beat_minus_infinity():
    assert_chooses_the_first_best(bon_select, np.array([[np.nan], [-np.inf], [np.nan]]), "mean")


def another_selection(best=jnp.nanargmax, verdict=lambda q, aggregate: q.min(1) if aggregate == "min" else q.mean(1)):
    """The selection with its parts free; as they stand here it is right but where all are NaN."""

    def select(velocity, critic, obs, noise, *, k, aggregate):
        candidates = jax.vmap(partial(rollout_k, velocity, obs, k=k))(noise)
        q = verdict(jax.vmap(partial(critic, obs))(candidates), aggregate)
        return candidates[best(q)], BestOfN(best(q), q, candidates)

    return select


WRONG_SELECTIONS = {
    "the lowest": another_selection(best=jnp.nanargmin),
    "NaN wins": another_selection(best=jnp.argmax),
    "the last of equals": another_selection(best=lambda q: len(q) - 1 - jnp.nanargmax(q[::-1])),
    "always the first": another_selection(best=lambda q: 0),
    "always the mean": another_selection(verdict=lambda q, aggregate: q.mean(1)),
    "the maximum of the ensemble": another_selection(verdict=lambda q, aggregate: q.max(1)),
}


@each(WRONG_SELECTIONS)
def test_a_wrong_selection_is_caught(mutant):
    q = np.array([[-1.0, 9.0], [3.0, 2.0], [2.0, 3.0], [np.nan, 5.0], [0.0, 0.0]])
    assert_chooses_the_first_best(another_selection(), q, "min")
    with pytest.raises(AssertionError, match="chose"):
        assert_chooses_the_first_best(mutant, q, "min")


# --------------------------------------------------- many observations, each its own candidates


def assert_pairs_rightly(select_many, obs, noise):
    """For observation i, the row of `noise[i]` that is nearest to it: what the critic likes best."""
    for one, rows, action in zip(obs, noise, select_many(obs, noise), strict=True):
        nearest = rows[np.argmin(np.square(rows - one).sum(axis=-1))]
        assert np.array_equal(action, nearest), "candidates of another observation"


@jax.jit
def by_vmap(obs, noise):
    return jax.vmap(partial(bon_select, stay, near, k=2))(obs, noise)[0]


@jax.jit
def as_published(obs, noise):
    """Candidates laid out (n, batch), observations repeated (batch, n): together only if the batch is 1."""
    batch, n, size = noise.shape
    candidates = jnp.swapaxes(noise, 0, 1).reshape(n * batch, size)
    repeated = jnp.repeat(obs, n, axis=0)
    q = jax.vmap(near)(repeated, candidates).reshape(batch, n)
    return candidates.reshape(batch, n, size)[jnp.arange(batch), q.argmax(axis=1)]


@given(seed=seeds, shape=st.sampled_from([(1, 1, 2), (7, 4, 2), (3, 8, 1)]))
def test_each_observation_has_its_own_candidates(seed, shape):
    rng = np.random.default_rng(seed)
    assert_pairs_rightly(by_vmap, rng.normal(size=(shape[0], shape[2])), rng.normal(size=shape))


def test_the_published_pairing_is_caught():
    rng = np.random.default_rng(0)
    assert_pairs_rightly(as_published, rng.normal(size=(1, 2)), rng.normal(size=(1, 4, 2)))
    with pytest.raises(AssertionError, match="another observation"):
        assert_pairs_rightly(as_published, rng.normal(size=(7, 2)), rng.normal(size=(7, 4, 2)))


# -------------------------------------------------------------------- candidates and gradients


@pytest.mark.parametrize("k", [1, 2, 16])
def test_candidates_are_rollouts(k):
    obs, noise = jnp.array([0.5, 3.0]), jax.random.normal(jax.random.key(0), (4, 2))
    action, info = bon_select(towards, near, obs, noise, k=k, clip=(-1.0, 1.0))
    for row, candidate in zip(noise, info.candidates, strict=True):
        assert jnp.allclose(candidate, rollout_k(towards, obs, row, k=k, clip=(-1.0, 1.0)))
    assert jnp.array_equal(action, info.candidates[info.best])


def test_the_gradient_flows_through_the_chosen_action_alone():
    noise = jnp.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
    gradient = jax.grad(lambda noise: bon_select(stay, near, jnp.ones(2), noise, k=1)[0].sum())(noise)
    assert jnp.array_equal(gradient, jnp.array([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]]))


def test_a_single_candidate_costs_no_critic():
    """In the compiled program of the action alone there is the policy's product and no other."""
    velocity, critic = (lambda obs, x, t, h: x @ jnp.ones((2, 2))), (lambda obs, a: a @ jnp.ones((2, 3)))

    def products(n):
        act = jax.jit(lambda noise: bon_select(velocity, critic, None, noise, k=1)[0])
        program = act.lower(jnp.ones((n, 2))).compile().as_text()
        return program.count(" dot(")

    assert (products(1), products(2)) == (1, 2)
