"""Jumps: a mean velocity jumps exactly, and two half-jumps are one jump."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from assertions import assert_caught, assert_to_rounding, each, seeds, wide
from hypothesis import given
from hypothesis import strategies as st
from oracles import GAUSSIAN, euler, fixed, jumps, kinds, wrong_velocities

from shortcutrl import consistency_gap, shortcut_step

# ------------------------------------------------------------------------------ the laws


@partial(jax.jit, static_argnames="step")
def landing_error(step, velocity, flow, x, t, h):
    landed = step(velocity, None, x, t, h)
    exact = flow.transport(*wide(x, t, h))
    return landed, (landed.astype(exact.dtype) - exact).astype(landed.dtype), flow.rounding(x, t, h)


def assert_lands_exactly(step, velocity, jump, *, slack=1.0):
    landed, error, rounding = landing_error(step, velocity, *jump)
    assert landed.dtype == jump.x.dtype
    assert_to_rounding(error, rounding, slack=slack)


@partial(jax.jit, static_argnames="gap")
def gap_and_rounding(gap, velocity, flow, x, t, h):
    x_wide, t_wide, h_wide = wide(x, t, h)
    middle = flow.transport(x_wide, t_wide, h_wide / 2)
    rounding = flow.rounding(x, t, h) + flow.rounding(middle, t_wide + h_wide / 2, h_wide / 2)
    return gap(velocity, None, x, t, h), rounding


def assert_no_gap(gap, velocity, jump, *, slack=1.0):
    error, rounding = gap_and_rounding(gap, velocity, *jump)
    assert error.dtype == jump.x.dtype
    assert_to_rounding(error, rounding, slack=slack)


@kinds
@given(data=st.data())
def test_a_jump_lands_exactly(kind, data):
    jump = data.draw(jumps(kind))
    assert_lands_exactly(shortcut_step, jump.flow, jump)


@kinds
@given(data=st.data())
def test_two_half_jumps_are_one(kind, data):
    jump = data.draw(jumps(kind))
    assert_no_gap(consistency_gap, jump.flow, jump)


# --------------------------------------------------------------- wrong velocities are caught


@wrong_velocities()
def test_a_wrong_velocity_lands_elsewhere(flow, velocity):
    assert_caught(assert_lands_exactly, shortcut_step, velocity, fixed(flow))


@wrong_velocities()
def test_a_wrong_velocity_has_a_gap(flow, velocity):
    assert_caught(assert_no_gap, consistency_gap, velocity, fixed(flow))


# --------------------------------------------------------------- wrong functions are caught


WRONG_STEPS = {
    "forgot the factor h": lambda s, obs, x, t, h: x + s(obs, x, t, h),
    "wrong sign": lambda s, obs, x, t, h: x - h * s(obs, x, t, h),
    "told the end, not the start": lambda s, obs, x, t, h: x + h * s(obs, x, t + h, h),
    "told the end, not the size": lambda s, obs, x, t, h: x + h * s(obs, x, t, t + h),
    "only the displacement": lambda s, obs, x, t, h: h * s(obs, x, t, h),
}


def wrong_gap(first=0.5, second=0.5, told=0.5, start=0.5):
    """Jumps of `first h` and `second h`, the second at `t + start h`, the network told `told h`."""

    def gap(s, obs, x, t, h):
        middle = x + first * h * s(obs, x, t, told * h)
        return shortcut_step(s, obs, x, t, h) - (middle + second * h * s(obs, middle, t + start * h, told * h))

    return gap


WRONG_GAPS = {
    "second half at t": wrong_gap(start=0.0),
    "second half at t + h": wrong_gap(start=1.0),
    "half-jumps told the whole h": wrong_gap(told=1.0),
    "half-jumps told a quarter": wrong_gap(told=0.25),
    "two whole jumps": wrong_gap(first=1.0, second=1.0),
    "no second half": wrong_gap(second=0.0),
}


@each(WRONG_STEPS)
def test_a_wrong_step_is_caught(mutant):
    assert_caught(assert_lands_exactly, mutant, GAUSSIAN, fixed(GAUSSIAN))


@each(WRONG_GAPS)
def test_a_wrong_gap_is_caught(mutant):
    assert_caught(assert_no_gap, mutant, GAUSSIAN, fixed(GAUSSIAN))


# -------------------------------------------------- what velocities that are not exact give


def assert_gap_of_euler(gap, rate, x, h, *, slack=1.0):
    """(1 + rate h) - (1 + rate h / 2)² = -(rate h / 2)²: a gap that is always zero would pass the law above."""
    error = gap(euler(rate), None, x, jnp.zeros(()), h) + (rate * h / 2) ** 2 * x
    assert_to_rounding(error, jnp.max(jnp.abs(x)) * (1 + abs(rate)) ** 2, slack=slack)


@given(rate=st.floats(-3, 3), h=st.floats(0, 1), seed=seeds)
def test_the_gap_of_an_euler_step(rate, h, seed):
    x = jnp.asarray(np.random.default_rng(seed).normal(size=3))
    assert_gap_of_euler(consistency_gap, rate, x, jnp.asarray(h))


@each({"always zero": lambda s, obs, x, t, h: jnp.zeros_like(x), "wrong sign": lambda *a: -consistency_gap(*a)})
def test_a_wrong_gap_of_an_euler_step_is_caught(mutant):
    assert_caught(assert_gap_of_euler, mutant, 1.5, jnp.ones(3), jnp.asarray(0.5))
