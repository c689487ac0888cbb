"""FAWAC: its three losses are those of a plain oracle; what is subtly wrong is caught."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import ring
from algorithms import assert_update
from assertions import assert_caught, assert_unrelated, each, seeds
from hypothesis import given
from losses import (
    ACTION,
    BATCH,
    LinearValue,
    LinearVelocity,
    QuadraticCritic,
    assert_loss,
    mean,
    random_batch,
    rows,
    same,
)
from scipy.stats import kstest

from shortcutrl import fawac

CONFIG = fawac.Config(alpha=1.5, discount=0.9)
PESSIMISTIC = fawac.Config(alpha=1.5, discount=0.9, aggregate="min", flow_steps=3)
SEED = 23


def problem(seed):
    rng = np.random.default_rng(seed)
    networks = LinearVelocity.random(rng), QuadraticCritic.random(rng), LinearValue.random(rng)
    draws = fawac.Draws(*rng.normal(size=(2, BATCH, ACTION)), rng.uniform(size=BATCH))
    return fawac.State(*networks, QuadraticCritic.random(rng), None, None, None), random_batch(rng), draws


def aggregated(q, config):
    return np.min(q) if config.aggregate == "min" else np.mean(q)


def critic_oracle(critic, state, batch, draws, config):
    def term(row, draw):
        next_action = np.clip(state.policy.euler(draw.td_noise, config.flow_steps)[0], *config.clip)
        next_v = aggregated(state.target_critic(row.next_obs, next_action), config)
        error = critic(row.obs, row.action) - (row.reward + config.discount * row.mask * next_v)
        grad = QuadraticCritic(np.outer(error, row.obs), error[:, None] * (row.action - critic.goal))
        return np.mean(error**2), grad

    return mean([term(row, draw) for row, draw in zip(rows(batch), rows(draws), strict=True)])


def value_oracle(value, state, batch, draws, config):
    def term(row):
        error = value(row.obs) - np.mean(state.target_critic(row.obs, row.action))
        return error**2, LinearValue(2 * error * row.obs)

    return mean([term(row) for row in rows(batch)])


def policy_oracle(policy, state, batch, draws, config):
    def term(row, draw):
        advantage = np.mean(state.critic(row.obs, row.action)) - state.value(row.obs)
        weight = min(np.exp(config.alpha * advantage), 100.0)
        matching, grad = policy.matching(row.action, draw.flow_noise, draw.flow_t)
        return weight * matching, LinearVelocity(weight * grad.rate, weight * grad.b)

    return mean([term(row, draw) for row, draw in zip(rows(batch), rows(draws), strict=True)])


CHECKS = {
    "critic": (fawac.critic_loss, critic_oracle),
    "value": (fawac.value_loss, value_oracle),
    "policy": (fawac.policy_loss, policy_oracle),
}


def check(loss, name, seed, *, slack=1.0):
    state, batch, draws = problem(seed)
    for config in (CONFIG, PESSIMISTIC):
        assert_loss(loss, CHECKS[name][1], getattr(state, name), state, batch, draws, config, slack=slack)


@pytest.mark.parametrize("name", CHECKS)
@given(seed=seeds)
def test_the_losses_are_the_oracles(name, seed):
    check(CHECKS[name][0], name, seed)


def by_config(q, config):
    return q.min() if config.aggregate == "min" else q.mean()


def another_critic_loss(aggregate=by_config, policy=True, clip=True, stop=jax.lax.stop_gradient):
    """The loss with its parts free; as they stand here it is right."""

    def loss(critic, state, batch, draws, *, config):
        def one(row, draw):
            action = draw.td_noise
            for i in range(config.flow_steps):
                action += state.policy(row.next_obs, action, i / config.flow_steps, 0.0) / config.flow_steps
            action = jnp.clip(action, *config.clip) if clip else action
            q = state.target_critic(row.next_obs, action)
            next_v = aggregate(q, config) if policy else state.value(row.next_obs)
            target = stop(row.reward + config.discount * row.mask * next_v)
            return jnp.mean((critic(row.obs, row.action) - target) ** 2)

        return jnp.mean(jax.vmap(one)(batch, draws)), None

    return loss


def another_value_loss(
    aggregate=lambda q, config: q.mean(),
    critic="target_critic",
    factor=1.0,
    stop=jax.lax.stop_gradient,
    expectile=0.5,
):
    """The loss with its parts free; as they stand here it is right."""

    def loss(value, state, batch, draws, *, config):
        def one(row):
            error = stop(aggregate(getattr(state, critic)(row.obs, row.action), config)) - value(row.obs)
            return factor * 2 * jnp.where(error > 0, expectile, 1 - expectile) * error**2

        return jnp.mean(jax.vmap(one)(batch)), None

    return loss


def another_policy_loss(
    cap=100.0, sign=1, power=1, critic="critic", aggregate=jnp.mean, stop=jax.lax.stop_gradient, normalize=False
):
    """The loss with its parts free; as they stand here it is right."""

    def loss(policy, state, batch, draws, *, config):
        def one(row, draw):
            advantage = aggregate(getattr(state, critic)(row.obs, row.action)) - state.value(row.obs)
            weight = stop(jnp.minimum(jnp.exp(sign * config.alpha**power * advantage), cap))
            x = (1 - draw.flow_t) * draw.flow_noise + draw.flow_t * row.action
            matching = jnp.mean((policy(row.obs, x, draw.flow_t, 0.0) - (row.action - draw.flow_noise)) ** 2)
            return weight, matching

        weight, matching = jax.vmap(one)(batch, draws)
        return jnp.mean(weight * matching) / (weight.mean() if normalize else 1), None

    return loss


RIGHT = {"critic": another_critic_loss(), "value": another_value_loss(), "policy": another_policy_loss()}
WRONG = {
    "critic: always the mean": ("critic", another_critic_loss(aggregate=lambda q, config: q.mean())),
    "critic: always the minimum": ("critic", another_critic_loss(aggregate=lambda q, config: q.min())),
    "critic: bootstraps from V, as IQL": ("critic", another_critic_loss(policy=False)),
    "critic: action not clipped": ("critic", another_critic_loss(clip=False)),
    "critic: gradient into the target": ("critic", another_critic_loss(stop=same)),
    "value: half the square": ("value", another_value_loss(factor=0.5)),
    "value: an expectile, as IQL": ("value", another_value_loss(expectile=0.9)),
    "value: the online critic": ("value", another_value_loss(critic="critic")),
    "value: the minimum, where the TD target takes it": ("value", another_value_loss(aggregate=by_config)),
    "value: gradient into Q": ("value", another_value_loss(stop=same)),
    "policy: not capped": ("policy", another_policy_loss(cap=jnp.inf)),
    "policy: wrong sign": ("policy", another_policy_loss(sign=-1)),
    "policy: divides by alpha": ("policy", another_policy_loss(power=-1)),
    "policy: the target critic": ("policy", another_policy_loss(critic="target_critic")),
    "policy: the minimum of the ensemble": ("policy", another_policy_loss(aggregate=jnp.min)),
    "policy: gradient into the weight": ("policy", another_policy_loss(stop=same)),
    "policy: normalised weights": ("policy", another_policy_loss(normalize=True)),
}


@pytest.mark.parametrize("name", CHECKS)
def test_the_mutants_differ_from_a_right_loss(name):
    check(RIGHT[name], name, SEED)


@each(WRONG)
def test_a_wrong_loss_is_caught(mutant):
    name, loss = mutant
    assert_caught(check, loss, name, SEED)


def test_the_agent_takes_all_euler_steps():
    state, batch, draws = problem(SEED)
    action = fawac.actor(state, config=CONFIG)(batch.obs[0], jnp.asarray(draws.td_noise[0]))
    np.testing.assert_allclose(action, np.clip(state.policy.euler(draws.td_noise[0], 10)[0], -1, 1), rtol=1e-12)


def test_an_update_steps_each_network_by_its_own_loss_and_then_the_average():
    assert_update(fawac, *problem(SEED)[:2], fawac.Config(tau=0.25, aggregate="min"))


def test_the_published_defaults():
    assert fawac.Config() == fawac.Config(3.0, 10, 0.99, "mean", 0.005, (-1.0, 1.0))


def test_the_draws_are_standard_normal_and_uniform():
    batch = jax.tree.map(lambda leaf: jnp.repeat(jnp.asarray(leaf), 1000, axis=0), problem(0)[1])
    draws = fawac.draw(jax.random.key(0), batch, config=fawac.Config())
    noises = draws.td_noise, draws.flow_noise
    assert all(kstest(np.ravel(noise), "norm").pvalue > 1e-3 for noise in noises)
    assert kstest(np.ravel(draws.flow_t), "uniform").pvalue > 1e-3
    assert_unrelated(draws.flow_t, *(row for noise in noises for row in noise.T))


# ------------------------------------------------------------------- on the ring of five modes


@pytest.mark.slow
def test_each_mode_is_as_likely_as_its_weight():
    """The policy is the data's density times the weight, which is proportional to exp(alpha Q)."""
    config = fawac.Config(alpha=3.0)
    shares = ring.shares(ring.act(fawac.actor(ring.train(fawac, config), config=config)))
    expected = jax.nn.softmax(config.alpha * ring.MODES[:, 0])
    assert expected[0] > 0.7
    assert jnp.abs(shares - expected).max() < 0.1
