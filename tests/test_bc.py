"""BC: its loss is that of a plain oracle and its minimiser the mean action; what is subtly wrong is caught."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import ring
from algorithms import assert_update
from assertions import assert_caught, each, seeds
from hypothesis import given
from losses import LinearPolicy, assert_loss, mean, random_batch, rows

from shortcutrl import bc, gaussian_nll, noiseless

CONFIG = bc.Config()


def problem(seed):
    rng = np.random.default_rng(seed)
    return bc.State(LinearPolicy.random(rng), None), random_batch(rng)


def oracle(policy, state, batch, draws, config):
    def term(row):
        error = policy.w @ row.obs - row.action
        density = np.prod(np.exp(-(error**2) / 2) / np.sqrt(2 * np.pi))
        return -np.log(density), LinearPolicy(np.outer(error, row.obs))

    return mean([term(row) for row in rows(batch)])


def check(loss, seed, *, slack=1.0):
    state, batch = problem(seed)
    assert_loss(loss, oracle, state.policy, state, batch, bc.Draws(), CONFIG, slack=slack)


@given(seed=seeds)
def test_the_loss_is_the_oracles(seed):
    check(bc.policy_loss, seed)


TWO_CONSTANTS = float(np.log(2 * np.pi))


def another_loss(noise=0.0, reduce=jnp.sum, constant=TWO_CONSTANTS, action="action", variance=1.0):
    """The loss with its parts free; as they stand here it is right."""

    def loss(policy, state, batch, draws, *, config):
        def one(row):
            distance = reduce((getattr(row, action) - policy(row.obs, noise + jnp.zeros(2))) ** 2)
            return distance / (2 * variance) + constant

        return jnp.mean(jax.vmap(one)(batch)), None

    return loss


def test_the_mutants_differ_from_a_right_loss():
    check(another_loss(), 0)


WRONG = {
    "the mean is a sample": another_loss(noise=1.0),
    "a mean over the dimensions": another_loss(reduce=jnp.mean),
    "the square alone": another_loss(constant=0.0, variance=0.5),
    "one dimension's constant": another_loss(constant=TWO_CONSTANTS / 2),
    "the next action": another_loss(action="next_action"),
}


@each(WRONG)
def test_a_wrong_loss_is_caught(mutant):
    assert_caught(check, mutant, 0)


def test_the_likelihood_of_several_dimensions_is_a_product():
    mean_, action = jnp.array([0.1, -0.4, 2.0]), jnp.array([0.3, 0.3, -1.0])
    expected = sum(gaussian_nll(mean_[i : i + 1], action[i : i + 1]) for i in range(3))
    np.testing.assert_allclose(gaussian_nll(mean_, action), expected, rtol=1e-15)
    np.testing.assert_allclose(-gaussian_nll(mean_, action), jax.scipy.stats.norm.logpdf(action - mean_).sum())


def test_likelihoods_of_other_shapes_or_dtypes_are_refused():
    with pytest.raises(TypeError, match=r"^`mean`|^`action`"):
        gaussian_nll(jnp.zeros(2), jnp.zeros(3))
    with pytest.raises(TypeError, match=r"^`mean`|^`action`"):
        gaussian_nll(jnp.zeros(2, jnp.float32), jnp.zeros(2, jnp.float64))


def test_an_update_steps_the_policy_by_its_loss():
    assert_update(bc, *problem(0), CONFIG)


def test_training_reaches_the_mean_between_two_modes():
    state, batch = problem(0)
    batch = batch._replace(obs=np.ones((6, 3)), action=np.array([[1.0, 0.5], [-1.0, 0.5]] * 3))
    state = bc.init(bc.Networks(state.policy), config=CONFIG, optimizers=bc.Networks(optax.sgd(0.3)))
    update = jax.jit(
        lambda state: bc.update(state, batch, config=CONFIG, optimizers=[optax.sgd(0.3)], key=jax.random.key(0))
    )
    for _ in range(50):
        state, info = update(state)
    action = bc.actor(state, config=CONFIG)(jnp.ones(3), jnp.ones(2))
    np.testing.assert_allclose(action, [0.0, 0.5], atol=1e-9)
    np.testing.assert_allclose(info.nll, 0.5 + np.log(2 * np.pi), rtol=1e-9)


def test_the_agent_acts_by_its_mean_or_by_a_sample():
    state = bc.State(LinearPolicy(jnp.array([[0.5], [2.0]])), None)
    obs, noise = jnp.ones(1), jnp.array([0.25, -0.5])
    assert bc.actor(state, config=CONFIG)(obs, noise).tolist() == [0.5, 1.0]
    assert bc.actor(state, config=CONFIG, sample=True)(obs, noise).tolist() == [0.75, 1.0]
    assert bc.actor(state, config=bc.Config(clip=None), sample=True)(obs, noise).tolist() == [0.75, 1.5]


def test_noise_of_any_structure_is_set_to_zero():
    act = lambda obs, noise: obs + noise["a"] + noise["b"].sum()
    noise = {"a": jnp.ones(2), "b": jnp.ones((3, 2))}
    assert noiseless(act, jnp.zeros(2), noise).tolist() == [0.0, 0.0]
    assert act(jnp.zeros(2), noise).tolist() == [7.0, 7.0]
    with pytest.raises(ValueError, match=r"^`actor` must return an action"):
        noiseless(lambda obs, noise: jnp.ones(()), None, noise)


def test_a_policy_of_float64_fits_data_of_float32():
    state, batch = problem(0)
    batch = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), batch)
    loss, _ = bc.policy_loss(jax.tree.map(jnp.asarray, state.policy), state, batch, bc.Draws(), config=CONFIG)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, oracle(state.policy, state, batch, bc.Draws(), CONFIG)[0], rtol=1e-5)


def test_the_published_defaults():
    assert bc.Config() == bc.Config((-1.0, 1.0))


# ------------------------------------------------------------------- on the ring of five modes


def test_its_mean_falls_between_the_modes_of_the_ring():
    state = ring.train(bc, CONFIG, updates=500)
    actions = ring.act(bc.actor(state, config=CONFIG))
    assert jnp.abs(actions).max() < 0.2
    assert ring.strays(actions) == 1.0
    noisy = ring.act(bc.actor(state, config=bc.Config(clip=None), sample=True))
    assert jnp.abs(noisy.std(axis=0) - 1).max() < 0.1
