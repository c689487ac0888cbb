"""Rollouts: from noise to action exactly, by any number of jumps, with the gradient through all of them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from assertions import assert_caught, assert_to_rounding, each, seeds, wide
from hypothesis import given
from hypothesis import strategies as st
from oracles import GAUSSIAN, Mixture, euler, fixed, jumps, kinds, wrong_velocities

from shortcutrl import rollout_k, shortcut_step


@partial(jax.jit, static_argnames=("rollout", "ks"))
def rollout_errors(rollout, velocity, flow, noise, ks):
    """For each k how far from the exact transport; and one rounding at every sixteenth of the way, each stretched."""
    (start,) = wide(noise)
    exact = flow.transport(start, 0.0, 1.0)
    actions = jnp.stack([rollout(velocity, None, noise, k=k) for k in ks])
    roundings = jax.vmap(lambda t: flow.rounding(flow.transport(start, 0.0, t), t, 1 - t))(jnp.arange(16) / 16)
    return actions, (actions - exact[None]).astype(actions.dtype), roundings.sum() / 4


def assert_rolls_out_exactly(rollout, velocity, jump, *, slack=1.0):
    ks = (1, 4, 16) if isinstance(jump.flow, Mixture) else (1, 2, 4, 8, 16)  # a mixture compiles slowly
    actions, errors, rounding = rollout_errors(rollout, velocity, jump.flow, jump.x, ks)
    assert actions.dtype == jump.x.dtype
    assert_to_rounding(errors, rounding, slack=slack)


@kinds
@given(data=st.data())
def test_rollouts_of_every_k_arrive_exactly(kind, data):
    jump = data.draw(jumps(kind))
    assert_rolls_out_exactly(rollout_k, jump.flow, jump)


# ------------------------------------------------------------- what is wrong is caught


@wrong_velocities()
def test_a_wrong_velocity_arrives_elsewhere(flow, velocity):
    assert_caught(assert_rolls_out_exactly, rollout_k, velocity, fixed(flow))


def wrong_rollout(time=lambda i, k: i / k, told=lambda k: 1 / k, jumps=lambda k: k, size=lambda k: 1 / k, keep=1.0):
    def rollout(s, obs, noise, *, k):
        x = keep * noise
        for i in range(jumps(k)):
            t, h = (jnp.asarray(a, x.dtype) for a in (time(i, k), told(k)))
            x = x + size(k) * s(obs, x, t, h)
        return x

    return rollout


WRONG_ROLLOUTS = {
    "times from h to 1": wrong_rollout(time=lambda i, k: (i + 1) / k),
    "every jump from t = 0": wrong_rollout(time=lambda i, k: 0.0),
    "times backwards": wrong_rollout(time=lambda i, k: 1 - (i + 1) / k),
    "told h = 1": wrong_rollout(told=lambda k: 1.0),
    "one jump too few": wrong_rollout(jumps=lambda k: k - 1),
    "forgot the factor h": wrong_rollout(size=lambda k: 1.0),
    "started from nothing": wrong_rollout(keep=0.0),
}


@each(WRONG_ROLLOUTS)
def test_a_wrong_rollout_is_caught(mutant):
    assert_caught(assert_rolls_out_exactly, mutant, GAUSSIAN, fixed(GAUSSIAN))


# -------------------------------------------------------------------------- the gradient


@partial(jax.jit, static_argnames=("rollout", "k"))
def euler_and_gradients(rollout, k, rate, noise):
    total = lambda rate, noise: jnp.sum(rollout(euler(rate), None, noise, k=k))
    return jax.value_and_grad(total, argnums=(0, 1))(rate, noise)


def assert_gradient_through_every_jump(rollout, k, rate, noise, *, slack=1.0):
    value, (rate_grad, noise_grad) = euler_and_gradients(rollout, k, jnp.asarray(rate), noise)
    factor = 1 + rate / k
    rounding = 16 * (1 + abs(rate)) * max(1, abs(factor)) ** k * (1 + jnp.abs(noise).sum())
    assert_to_rounding(value - factor**k * noise.sum(), rounding, slack=slack)
    assert_to_rounding(noise_grad - factor**k, rounding, slack=slack)
    assert_to_rounding(rate_grad - factor ** (k - 1) * noise.sum(), rounding, slack=slack)


@given(k=st.sampled_from([1, 2, 4, 8, 16]), rate=st.floats(-2, 2), seed=seeds)
def test_the_gradient_flows_through_every_jump(k, rate, seed):
    noise = jnp.asarray(np.random.default_rng(seed).normal(size=3))
    assert_gradient_through_every_jump(rollout_k, k, rate, noise)


def without_gradient_between_jumps(s, obs, noise, *, k):
    x = noise
    for i in range(k):
        x = jax.lax.stop_gradient(x) + s(obs, jax.lax.stop_gradient(x), i / k, 1 / k) / k
    return x


def test_a_gradient_cut_between_jumps_is_caught():
    assert_caught(assert_gradient_through_every_jump, without_gradient_between_jumps, 4, 1.0, jnp.ones(3))


# ------------------------------------------------------------------------------ clipping


def there_and_back(obs, x, t, h):
    """4 in the first half of the time, -4 in the second: out of [-1, 1] half-way, and home in the end."""
    return jnp.full_like(x, jnp.where(t < 0.5, 4.0, -4.0))


def test_only_the_final_action_is_clipped():
    noise = jnp.array([0.0, 0.5, 3.0])
    assert jnp.array_equal(rollout_k(there_and_back, None, noise, k=2, clip=(-1, 1)), jnp.array([0.0, 0.5, 1.0]))
    each_jump = shortcut_step(there_and_back, None, jnp.clip(noise + 2, -1, 1), 0.5, 0.5)
    assert not jnp.array_equal(each_jump.clip(-1, 1), jnp.array([0.0, 0.5, 1.0]))  # what clipping each jump gives


def test_nothing_is_clipped_unasked():
    noise = jnp.array([-7.0, 0.0, 7.0])
    assert jnp.array_equal(rollout_k(there_and_back, None, noise, k=2), noise)


def test_no_gradient_where_it_clips():
    noise = jnp.array([-2.0, 0.5, 2.0])
    gradient = jax.grad(lambda noise: rollout_k(there_and_back, None, noise, k=2, clip=(-1.0, 1.0)).sum())(noise)
    assert jnp.array_equal(gradient, jnp.array([0.0, 1.0, 0.0]))
