"""Rollouts: from noise to action exactly, by any number of jumps, with the gradient through all of them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
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
    ks = (1, 3, 4, 16) if isinstance(jump.flow, Mixture) else (1, 2, 3, 4, 8, 10, 16)  # a mixture compiles slowly
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


@given(k=st.sampled_from([1, 2, 3, 4, 8, 10, 16]), rate=st.floats(-2, 2), seed=seeds)
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


# ------------------------------------------------------------ every way to ask for the same


@pytest.mark.parametrize("k", [1, 7, 8, 9, 17, 40])
def test_eager_and_compiled_rollouts_agree(k):
    """Eagerly the jumps are a Python loop; compiled, more than 8 are a scan."""
    noise = jnp.array([0.3, -0.8, 1.1])
    eager, (compiled, _) = rollout_k(euler(0.7), None, noise, k=k), euler_and_gradients(rollout_k, k, 0.7, noise)
    assert_to_rounding(eager.sum() - compiled, 16 * jnp.abs(noise).sum())


@pytest.mark.parametrize("k", [np.int64(3), np.int32(3), np.uint8(3)], ids=lambda k: k.dtype.name)
def test_numpy_integers_are_numbers_of_jumps(k):
    noise = jnp.array([0.3, -0.8, 1.1])
    assert jnp.array_equal(rollout_k(GAUSSIAN, None, noise, k=k), rollout_k(GAUSSIAN, None, noise, k=3))


@pytest.mark.parametrize("k", [1, 3, 16])
def test_rematerialisation_changes_no_gradient(k):
    def gradient(remat):
        total = lambda rate, noise: rollout_k(euler(rate), None, noise, k=k, remat=remat).sum()
        return jax.jit(jax.grad(total, argnums=(0, 1)))(jnp.asarray(0.7), jnp.array([0.3, -0.8, 1.1]))

    for stored, computed_again in zip(gradient(False), gradient(True), strict=True):
        assert_to_rounding(stored - computed_again, 16.0)


# ------------------------------------------------------------------------------ clipping


def there_and_back(obs, x, t, h):
    """4 in the first half of the time, -4 in the second: outside [-1, 1] half-way, back at the start in the end."""
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


PER_DIMENSION = np.array([-1.0, -0.25, 0.5]), np.array([1.0, 0.25, 2.0])


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize(
    "kind",
    [
        tuple,
        list,
        lambda clip: tuple(jnp.asarray(bound) for bound in clip),
        lambda clip: (clip[0].astype("f4"), clip[1]),
    ],
    ids=["arrays", "a list", "JAX arrays", "mixed dtypes"],
)
def test_bounds_of_each_dimension(kind, dtype):
    """The action keeps its dtype, whatever the dtype of the bounds."""
    noise = jnp.array([-7.0, 0.5, 1.0], dtype)
    action = rollout_k(there_and_back, None, noise, k=2, clip=kind(PER_DIMENSION))
    assert action.dtype == dtype
    assert jnp.array_equal(action, jnp.array([-1.0, 0.25, 1.0], dtype))


@pytest.mark.parametrize(
    "number", [float, int, np.float32, np.float64, np.int64, jnp.float32, jnp.asarray], ids=lambda kind: kind.__name__
)
def test_bounds_of_every_kind_of_number(number):
    action = rollout_k(there_and_back, None, jnp.array([-7.0, 0.5], "bfloat16"), k=2, clip=(number(-1), number(1)))
    assert action.dtype == "bfloat16"
    assert jnp.array_equal(action, jnp.array([-1.0, 0.5], "bfloat16"))


def test_bounds_may_be_traced():
    roll = jax.jit(lambda clip: rollout_k(there_and_back, None, jnp.array([-7.0, 0.5, 1.0]), k=2, clip=clip))
    assert jnp.array_equal(roll(PER_DIMENSION), jnp.array([-1.0, 0.25, 1.0]))


@pytest.mark.parametrize(("dtype", "most"), [(jnp.bfloat16, 128), (jnp.float16, 1024)])
def test_more_jumps_than_a_dtype_can_tell_apart_are_refused(dtype, most):
    """With as many as are allowed, a velocity of 1 ends at 1."""
    noise = jnp.zeros(2, dtype)
    one = lambda obs, x, t, h: jnp.ones_like(x)
    np.testing.assert_allclose(rollout_k(one, None, noise, k=most), 1.0, atol=0.01)
    with pytest.raises(ValueError, match=rf"`k` must be at most {most} for {jnp.dtype(dtype)}, got {most + 1}"):
        rollout_k(one, None, noise, k=most + 1)
