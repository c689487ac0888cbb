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
from losses import aggregated

from shortcutrl import BestOfN, best_of_n, bon_select, rollout_k

stay = lambda obs, noise: noise
towards = lambda obs, x, t, h: obs - x
near = lambda obs, action: -jnp.sum(jnp.square(action - obs))[None]


# ----------------------------------------------------------------------- the highest Q wins


def table(q):
    """A critic that knows the Q, one column for each member, of candidates that are numbered."""
    return lambda obs, action: q[action[0].astype(int)]


@partial(jax.jit, static_argnames=("select", "aggregate"))
def chosen(select, q, aggregate):
    numbers = jnp.arange(len(q), dtype=float)[:, None]
    return select(stay, table(q), None, numbers, aggregate=aggregate)


def low_estimate(q):
    """The mean minus rho times the standard deviation: an aggregate of the user's own."""
    return q.mean() - 0.5 * q.std()


def assert_chooses_the_first_best(select, q, aggregate):
    """The first of the highest that are numbers."""
    action, info = chosen(select, q, aggregate)
    by_hand = {"min": min, "mean": lambda row: sum(row) / len(row), low_estimate: low_estimate}[aggregate]
    estimates = [float(by_hand(row)) for row in (q if aggregate is low_estimate else q.tolist())]
    estimates = [np.nan if np.isnan(row).any() else estimate for row, estimate in zip(q, estimates, strict=True)]
    numbers = [estimate for estimate in estimates if not np.isnan(estimate)]
    right = estimates.index(max(numbers)) if numbers else 0
    assert info.best == right, f"chose {info.best}, not {right} of {estimates}"
    assert action == right, f"chose {action}, not {right} of {estimates}"
    np.testing.assert_allclose(info.q, estimates, rtol=1e-12)
    assert jnp.array_equal(info.candidates[:, 0], jnp.arange(len(q)))


few = st.sampled_from([-2.0, -1.0, 0.0, 1.0, np.inf, np.nan])  # so that ties and NaN are common


@given(
    q=st.sampled_from([1, 2, 5]).flatmap(lambda n: arrays(float, (n, 2), elements=few)),
    aggregate=st.sampled_from(["min", "mean"]),
)
def test_the_first_of_the_highest_wins_and_nan_never(q, aggregate):
    assert_chooses_the_first_best(bon_select, q, aggregate)


@given(seed=seeds, aggregate=st.sampled_from(["min", "mean", low_estimate]))
def test_the_highest_wins(seed, aggregate):
    assert_chooses_the_first_best(bon_select, np.random.default_rng(seed).normal(size=(16, 3)), aggregate)


def test_nan_does_not_beat_minus_infinity():
    assert_chooses_the_first_best(bon_select, np.array([[np.nan], [-np.inf], [np.nan]]), "mean")


def another_selection(best=jnp.nanargmax, aggregated=aggregated):
    """The selection with its parts free; as they stand here it is right but where all are NaN."""

    def select(actor, critic, obs, noise, *, aggregate):
        candidates = jax.vmap(partial(actor, obs))(noise)
        q = jax.vmap(lambda action: aggregated(critic(obs, action), aggregate))(candidates)
        return candidates[best(q)], BestOfN(best(q), q, candidates)

    return select


WRONG_SELECTIONS = {
    "the lowest": another_selection(best=jnp.nanargmin),
    "NaN wins": another_selection(best=jnp.argmax),
    "the last of equals": another_selection(best=lambda q: len(q) - 1 - jnp.nanargmax(q[::-1])),
    "always the first": another_selection(best=lambda q: 0),
    "always the mean": another_selection(aggregated=lambda q, aggregate: q.mean()),
    "the maximum of the ensemble": another_selection(aggregated=lambda q, aggregate: q.max()),
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
    return jax.vmap(partial(bon_select, stay, near))(obs, noise)[0]


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


@pytest.mark.parametrize("k", [1, 3, 16])
def test_candidates_are_the_actors(k):
    obs, noise = jnp.array([0.5, 3.0]), jax.random.normal(jax.random.key(0), (4, 2))
    actor = partial(rollout_k, towards, k=k, clip=(-1.0, 1.0))
    action, info = bon_select(actor, near, obs, noise)
    for row, candidate in zip(noise, info.candidates, strict=True):
        assert jnp.allclose(candidate, actor(obs, row))
    assert jnp.array_equal(action, info.candidates[info.best])


def test_noise_may_be_any_pytree():
    """Here a mode and a deviation from it, one row of each for each candidate."""
    noise = {"mode": jnp.array([0, 1, 1]), "deviation": jnp.array([[0.1], [0.3], [0.0]])}
    actor = lambda obs, noise: jnp.array([0.0, 1.0])[noise["mode"]][None] + noise["deviation"]
    action, info = bon_select(actor, near, jnp.ones(1), noise)
    assert jnp.allclose(info.candidates[:, 0], jnp.array([0.1, 1.3, 1.0]))
    assert (info.best, action) == (2, 1.0)


def test_best_of_n_is_an_actor():
    """Whose noise has a row for each candidate; of its candidates it chooses as `bon_select` does."""
    obs, noise = jnp.array([0.5, 3.0]), jax.random.normal(jax.random.key(0), (2, 4, 2))
    actor = partial(best_of_n, stay, near)
    assert jnp.array_equal(actor(obs, noise[0]), bon_select(stay, near, obs, noise[0])[0])
    best, info = bon_select(actor, near, obs, noise)  # the best of the best of four
    flat, _ = bon_select(stay, near, obs, noise.reshape(8, 2))
    assert jnp.array_equal(best, flat)
    assert info.candidates.shape == (2, 2)


@pytest.mark.parametrize("aggregate", ["min", "mean", low_estimate])
def test_best_of_n_aggregates_as_it_is_told(aggregate):
    q = jnp.asarray(np.random.default_rng(3).normal(size=(16, 3)))
    numbers = jnp.arange(16.0)[:, None]
    action = best_of_n(stay, table(q), None, numbers, aggregate=aggregate)
    assert action == bon_select(stay, table(q), None, numbers, aggregate=aggregate)[1].best


def test_the_gradient_flows_through_the_chosen_action_alone():
    noise = jnp.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
    gradient = jax.grad(lambda noise: bon_select(stay, near, jnp.ones(2), noise)[0].sum())(noise)
    assert jnp.array_equal(gradient, jnp.array([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]]))


def test_a_single_candidate_costs_no_critic():
    """In the compiled program of the action alone there is the actor's product and no other."""
    actor, critic = (lambda obs, noise: noise @ jnp.ones((2, 2))), (lambda obs, a: a @ jnp.ones((2, 3)))

    def products(n):
        act = jax.jit(lambda noise: best_of_n(actor, critic, None, noise))
        program = act.lower(jnp.ones((n, 2))).compile().as_text()
        return program.count(" dot(")

    assert (products(1), products(2)) == (1, 2)


def test_noise_may_be_random_keys_and_errors_of_the_actor_stay_its_own():
    draw = lambda obs, key: jax.random.uniform(key, (2,))
    _, info = bon_select(draw, lambda obs, action: action, None, jax.random.split(jax.random.key(0), 4))
    assert info.candidates.shape == (4, 2)
    with pytest.raises(jax.errors.TracerBoolConversionError):
        bon_select(lambda obs, z: jnp.ones(2) if z > 0 else jnp.zeros(2), lambda obs, a: a, None, jnp.ones(4))
