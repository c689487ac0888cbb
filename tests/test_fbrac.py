"""FBRAC: its losses, and the gradient through ten Euler steps, are those of a plain oracle; mutants are caught."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import ring
from algorithms import assert_update
from assertions import assert_caught, assert_unrelated, each, seeds
from hypothesis import given
from losses import ACTION, BATCH, LinearVelocity, QuadraticCritic, assert_loss, mean, random_batch, rows, same
from scipy.stats import kstest

from shortcutrl import fbrac

CONFIG = fbrac.Config(alpha=0.7, discount=0.9)
PESSIMISTIC = fbrac.Config(alpha=0.7, discount=0.9, aggregate="min", flow_steps=3)
SEED = 0


def problem(seed):
    rng = np.random.default_rng(seed)
    networks = LinearVelocity.random(rng), QuadraticCritic.random(rng)
    draws = fbrac.Draws(*rng.normal(size=(3, BATCH, ACTION)), rng.uniform(size=BATCH))
    return fbrac.State(*networks, QuadraticCritic.random(rng), None, None), random_batch(rng), draws


def critic_oracle(critic, state, batch, draws, config):
    def term(row, draw):
        next_action = np.clip(state.policy.euler(draw.td_noise, config.flow_steps)[0], *config.clip)
        next_q = np.asarray(state.target_critic(row.next_obs, next_action))
        next_v = next_q.min() if config.aggregate == "min" else next_q.mean()
        error = critic(row.obs, row.action) - (row.reward + config.discount * row.mask * next_v)
        grad = QuadraticCritic(np.outer(error, row.obs), error[:, None] * (row.action - critic.goal))
        return np.mean(error**2), grad

    return mean([term(row, draw) for row, draw in zip(rows(batch), rows(draws), strict=True)])


def policy_oracle(policy, state, batch, draws, config):
    def term(row, draw):
        matching, grad = policy.matching(row.action, draw.flow_noise, draw.flow_t)
        end, by_rate, by_b = policy.euler(draw.q_noise, config.flow_steps)
        action, inside = np.clip(end, *config.clip), (config.clip[0] < end) & (end < config.clip[1])
        slope = (action - state.critic.goal.mean(axis=0)) * inside  # of minus Q
        both = LinearVelocity(config.alpha * grad.rate + slope @ by_rate, config.alpha * grad.b + slope * by_b)
        return config.alpha * matching - np.mean(state.critic(row.obs, action)), both

    return mean([term(row, draw) for row, draw in zip(rows(batch), rows(draws), strict=True)])


CHECKS = {"critic": (fbrac.critic_loss, critic_oracle), "policy": (fbrac.policy_loss, policy_oracle)}


def check(loss, name, seed, *, slack=1.0):
    state, batch, draws = problem(seed)
    for config in (CONFIG, PESSIMISTIC):
        assert_loss(loss, CHECKS[name][1], getattr(state, name), state, batch, draws, config, slack=slack)


@pytest.mark.parametrize("name", CHECKS)
@given(seed=seeds)
def test_the_losses_are_the_oracles(name, seed):
    check(CHECKS[name][0], name, seed)


def roll(policy, obs, noise, k, between=same):
    x = noise
    for i in range(k):
        x = between(x) + policy(obs, x, i / k, 1 / k) / k
    return x


def another_critic_loss(
    noise="td_noise",
    clip=lambda action, config: jnp.clip(action, *config.clip),
    critic="target_critic",
    aggregate=lambda q, config: q.min() if config.aggregate == "min" else q.mean(),
    stop=jax.lax.stop_gradient,
    steps=0,
):
    """The loss with its parts free; as they stand here it is right."""

    def loss(learning, state, batch, draws, *, config):
        def one(row, draw):
            action = clip(roll(state.policy, row.next_obs, getattr(draw, noise), config.flow_steps + steps), config)
            next_v = aggregate(getattr(state, critic)(row.next_obs, action), config)
            target = stop(row.reward + config.discount * row.mask * next_v)
            return jnp.mean((learning(row.obs, row.action) - target) ** 2)

        return jnp.mean(jax.vmap(one)(batch, draws)), None

    return loss


def another_policy_loss(
    noise="q_noise",
    between=same,
    clip=lambda action, config: jnp.clip(action, *config.clip),
    aggregate=jnp.mean,
    critic="critic",
    weight=lambda config: config.alpha,
    stop=jax.lax.stop_gradient,
    act=same,
):
    """The loss with its parts free; as they stand here it is right."""

    def loss(policy, state, batch, draws, *, config):
        def one(row, draw):
            x = (1 - draw.flow_t) * draw.flow_noise + draw.flow_t * row.action
            matching = jnp.mean((policy(row.obs, x, draw.flow_t, 0.0) - (row.action - draw.flow_noise)) ** 2)
            action = clip(roll(act(policy), row.obs, getattr(draw, noise), config.flow_steps, between), config)
            return weight(config) * matching - aggregate(stop(getattr(state, critic))(row.obs, action))

        return jnp.mean(jax.vmap(one)(batch, draws)), None

    return loss


def unclipped(action, config):
    return action


RIGHT = {"critic": another_critic_loss(), "policy": another_policy_loss()}
WRONG = {
    "critic: the policy's noise": ("critic", another_critic_loss(noise="q_noise")),
    "critic: action not clipped": ("critic", another_critic_loss(clip=unclipped)),
    "critic: the online critic": ("critic", another_critic_loss(critic="critic")),
    "critic: always the mean": ("critic", another_critic_loss(aggregate=lambda q, config: q.mean())),
    "critic: always the minimum": ("critic", another_critic_loss(aggregate=lambda q, config: q.min())),
    "critic: gradient into the target": ("critic", another_critic_loss(stop=same)),
    "critic: one step more": ("critic", another_critic_loss(steps=1)),
    "policy: the target's noise": ("policy", another_policy_loss(noise="td_noise")),
    "policy: gradient of the last step alone": ("policy", another_policy_loss(between=jax.lax.stop_gradient)),
    "policy: no gradient of Q": ("policy", another_policy_loss(act=jax.lax.stop_gradient)),
    "policy: action not clipped": ("policy", another_policy_loss(clip=unclipped)),
    "policy: the minimum of the ensemble": ("policy", another_policy_loss(aggregate=jnp.min)),
    "policy: the target critic": ("policy", another_policy_loss(critic="target_critic")),
    "policy: alpha divides": ("policy", another_policy_loss(weight=lambda config: 1 / config.alpha)),
    "policy: gradient into the critic": ("policy", another_policy_loss(stop=same)),
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
    action = fbrac.actor(state, config=CONFIG)(batch.obs[0], jnp.asarray(draws.q_noise[0]))
    np.testing.assert_allclose(action, np.clip(state.policy.euler(draws.q_noise[0], 10)[0], -1, 1), rtol=1e-12)


def test_an_update_steps_each_network_by_its_own_loss_and_then_the_average():
    assert_update(fbrac, *problem(SEED)[:2], fbrac.Config(alpha=0.7, tau=0.25))


def test_the_published_defaults():
    assert fbrac.Config() == fbrac.Config(100.0, 10, 0.99, "mean", 0.005, (-1.0, 1.0))


def test_the_draws_are_standard_normal_and_uniform():
    batch = jax.tree.map(lambda leaf: jnp.repeat(jnp.asarray(leaf), 1000, axis=0), problem(0)[1])
    draws = fbrac.draw(jax.random.key(0), batch, config=fbrac.Config())
    noises = draws.td_noise, draws.q_noise, draws.flow_noise
    assert all(kstest(np.ravel(noise), "norm").pvalue > 1e-3 for noise in noises)
    assert kstest(np.ravel(draws.flow_t), "uniform").pvalue > 1e-3
    assert_unrelated(draws.flow_t, *(row for noise in noises for row in noise.T))


# ------------------------------------------------------------------- on the ring of five modes


@pytest.mark.slow
def test_it_keeps_all_modes_and_moves_them_towards_q():
    config = fbrac.Config(alpha=3.0, flow_steps=5)
    actions = ring.act(fbrac.actor(ring.train(fbrac, config), config=config))
    assert ring.shares(actions).min() > 0.03
    assert actions[:, 0].mean() > 0.15  # the data's is 0
