"""Policy improvement: minus Q of the action, the gradient through every jump, at rest at the optimal policy."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from assertions import assert_caught, assert_to_rounding, each, seeds
from control import LQR
from hypothesis import given
from hypothesis import strategies as st
from oracles import euler

from shortcutrl import QInfo, q_loss, rollout_k

ks = st.sampled_from([1, 2, 4, 8])

# ------------------------------------------------------- minus Q, and its gradient, by hand

SLOPES = jnp.array([[1.0, -2.0, 0.5], [0.2, 0.3, -1.0]])


def linear_critic(obs, action):
    return SLOPES @ action + obs


@partial(jax.jit, static_argnames=("loss", "k", "aggregate"))
def value_and_slope(loss, rate, obs, noise, k, aggregate):
    def of_rate(rate):
        return loss(euler(rate), linear_critic, obs, noise, k=k, aggregate=aggregate)

    return jax.value_and_grad(of_rate, has_aux=True)(rate)


def assert_minus_q(loss, rate, obs, noise, k, *, slack=1.0):
    """Euler jumps along dx/dt = rate x make (1 + rate / k)^k noise, on which the critic is linear."""
    growth = 1 + rate / k
    action = growth**k * noise
    each_q = linear_critic(obs, action)
    lower = SLOPES[jnp.argmin(each_q)]
    rounding = 100 * (1 + jnp.abs(noise).max() + jnp.abs(obs).max()) * (1 + abs(rate)) ** k
    for aggregate, q, weight in [("min", each_q.min(), lower), ("mean", each_q.mean(), SLOPES.mean(axis=0))]:
        (value, info), slope = value_and_slope(loss, jnp.asarray(rate), obs, noise, k, aggregate)
        assert_to_rounding(value + q, rounding, slack=slack)
        assert_to_rounding(info.q - q, rounding, slack=slack)
        assert_to_rounding(info.action - action, rounding, slack=slack)
        assert_to_rounding(slope + growth ** (k - 1) * weight @ noise, rounding, slack=slack)


@given(rate=st.floats(-2, 2), k=ks, seed=seeds)
def test_the_loss_is_minus_q_of_the_action(rate, k, seed):
    rng = np.random.default_rng(seed)
    assert_minus_q(q_loss, rate, jnp.asarray(rng.normal(size=2)), jnp.asarray(rng.normal(size=3)), k)


def cut_rollout(velocity, obs, noise, *, k):
    """The gradient only of the last jump."""
    x = noise
    for i in range(k):
        x = jax.lax.stop_gradient(x)
        x = x + velocity(obs, x, i / k, 1 / k) / k
    return x


def another_q_loss(act=rollout_k, verdict=lambda q, aggregate: q.min() if aggregate == "min" else q.mean(), sign=-1):
    """The loss with its parts free; as they stand here it is right."""

    def loss(velocity, critic, obs, noise, *, k, aggregate="mean"):
        action = act(velocity, obs, noise, k=k)
        q = verdict(critic(obs, action), aggregate)
        return sign * q, QInfo(q, action)

    return loss


WRONG_Q_LOSSES = {
    "wrong sign": another_q_loss(sign=1),
    "only the last jump learns": another_q_loss(act=cut_rollout),
    "one jump too few": another_q_loss(act=lambda s, obs, noise, *, k: rollout_k(s, obs, noise, k=k // 2)),
    "no policy": another_q_loss(act=lambda s, obs, noise, *, k: noise),
    "no gradient": another_q_loss(act=lambda *args, k: jax.lax.stop_gradient(rollout_k(*args, k=k))),
    "always the mean": another_q_loss(verdict=lambda q, aggregate: q.mean()),
    "always the minimum": another_q_loss(verdict=lambda q, aggregate: q.min()),
}


@each(WRONG_Q_LOSSES)
def test_a_wrong_loss_is_caught(mutant):
    assert_caught(assert_minus_q, mutant, 0.7, jnp.array([0.1, -0.4]), jnp.array([1.0, -0.5, 2.0]), 4)


# --------------------------------------------------------------- at rest at the optimal policy


@partial(jax.jit, static_argnames=("loss", "k"))
def slope_of_the_gain(loss, policy, critic, obs, noise, k):
    def of_gain(gain):
        return loss(eqx.tree_at(lambda policy: policy.gain, policy, gain), critic, obs, noise, k=k)[0]

    return jax.grad(of_gain)(policy.gain)


def assert_at_rest(seed, k, offset=0.0, *, slack=1.0):
    """At the optimal gain, moved by `offset`, nothing is left to improve for any observation."""
    rng = np.random.default_rng(seed)
    policy, critic = LQR.random(rng).optimum([0.0, 0.0])
    policy = eqx.tree_at(lambda policy: policy.gain, policy, policy.gain + offset)
    obs, noise = jnp.asarray(rng.normal(size=3)), jnp.asarray(rng.normal(size=2))
    largest = max(np.abs(obs).max(), np.abs(noise).max()) * (1 + np.abs(policy.gain).max())
    rounding = 100 * np.abs(critic.hessian).sum() * (1 + largest) ** 2
    assert_to_rounding(slope_of_the_gain(q_loss, policy, critic, obs, noise, k), rounding, slack=slack)


@given(seed=seeds, k=ks)
def test_the_optimal_policy_of_a_control_problem_is_at_rest(seed, k):
    assert_at_rest(seed, k)


def test_another_policy_is_not():
    assert_caught(assert_at_rest, 7, 2, 0.01)


def test_descending_the_loss_finds_the_optimal_policy():
    """Policy improvement against the exact Q of each policy in turn ends at the Riccati solution."""
    rng = np.random.default_rng(3)
    lqr = LQR.random(rng)
    best, _ = lqr.optimum([0.0])
    policy = lqr.policy(rng)
    obs, noise = jnp.asarray(rng.normal(size=(64, 3))), jnp.asarray(rng.normal(size=(64, 2)))
    slopes = jax.jit(jax.vmap(partial(slope_of_the_gain, q_loss, k=2), in_axes=(None, None, 0, 0)))
    start = np.abs(policy.gain - best.gain).max()
    for _ in range(100):
        critic = lqr.critic(policy, [0.0])
        step = np.asarray(slopes(policy, critic, obs, noise).mean(axis=0)) / np.linalg.norm(critic.hessian, 2) / 4
        policy = eqx.tree_at(lambda policy: policy.gain, policy, policy.gain - step)
    assert np.abs(policy.gain - best.gain).max() < 1e-8 * start


# ------------------------------------------------------------------------------------ clipping


def test_no_gradient_where_the_action_is_clipped():
    push = lambda speed: q_loss(
        lambda obs, x, t, h: speed, linear_critic, jnp.zeros(2), jnp.zeros(3), k=2, aggregate="mean", clip=(-1, 1)
    )
    (loss, info), slope = jax.value_and_grad(push, has_aux=True)(jnp.array([2.0, -0.5, -2.0]))
    assert jnp.array_equal(info.action, jnp.array([1.0, -0.5, -1.0]))
    assert jnp.allclose(slope, jnp.array([0.0, 0.85, 0.0]))
    assert loss == -linear_critic(jnp.zeros(2), info.action).mean()
