"""What the losses ask their networks and what `shortcut_loss` draws, as heard by networks that take notes."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from assertions import assert_caught, assert_to_rounding, assert_uniform, assert_unrelated, each, seeds
from hypothesis import given
from hypothesis import strategies as st
from oracles import FLOWS, GAUSSIAN
from scipy.stats import kstest

from shortcutrl import _path, flow_matching_loss, self_consistency_loss, shortcut_loss

ACTION = jnp.array([0.3, -0.8, 1.1])
STUDENT, TEACHER = GAUSSIAN, FLOWS["linear"].random(np.random.default_rng(3), 3)

N = 4096


class Call(NamedTuple):
    """What a network was asked, once."""

    x: jax.Array
    t: jax.Array
    h: jax.Array

    def noise(self):
        return (self.x - self.t * ACTION) / (1 - self.t)


def listen(loss, velocities=(STUDENT, TEACHER)):
    """`loss(student, teacher)`, and the calls that each of the two was asked."""

    def notes(velocity, calls):
        return lambda obs, x, t, h: calls.append(Call(x, t, h)) or velocity(obs, x, t, h)

    student, teacher = [], []
    return loss(notes(velocities[0], student), notes(velocities[1], teacher)), student, teacher


# ------------------------------------------------------------- what the networks are asked


@partial(jax.jit, static_argnames="loss")
def heard(loss, noise, t, h):
    _, student, teacher = listen(lambda student, teacher: loss(student, teacher, None, ACTION, noise, t, h))
    return student, teacher


def assert_asked(calls, expected, *, slack=1.0):
    assert jax.tree.structure(calls) == jax.tree.structure(expected), f"asked {calls}"
    for asked, right in zip(jax.tree.leaves(calls), jax.tree.leaves(expected), strict=True):
        assert_to_rounding(asked - right, 10.0, slack=slack)


def assert_asked_for_two_halves(loss, noise, t, h, *, slack=1.0):
    x = (1 - t) * noise + t * ACTION
    middle = x + h / 2 * TEACHER(None, x, t, h / 2)
    expected = [Call(x, t, h)], [Call(x, t, h / 2), Call(middle, t + h / 2, h / 2)]
    assert_asked(heard(loss, noise, t, h), expected, slack=slack)


def flow_matching(student, teacher, obs, action, noise, t, h):
    return flow_matching_loss(student, obs, action, noise, t, h=h)


@given(seed=seeds, t=st.floats(0, 1), share=st.floats(0, 1))
def test_where_the_losses_ask(seed, t, share):
    noise = jnp.asarray(np.random.default_rng(seed).normal(size=3))
    t, h = jnp.asarray(t), jnp.asarray(share * (1 - t))
    assert_asked(heard(flow_matching, noise, t, h), ([Call((1 - t) * noise + t * ACTION, t, h)], []))
    assert_asked_for_two_halves(self_consistency_loss, noise, t, h)


def backwards(student, teacher, obs, action, noise, t, h):
    return self_consistency_loss(student, teacher, obs, noise, action, t, h)


def late(student, teacher, obs, action, noise, t, h):
    return self_consistency_loss(student, teacher, obs, action, noise, t + h, h)


def own_middle(student, teacher, obs, action, noise, t, h):
    x = (1 - t) * noise + t * action
    middle = x + h / 2 * STUDENT(obs, x, t, h / 2)
    return student(obs, x, t, h) - teacher(obs, x, t, h / 2) - teacher(obs, middle, t + h / 2, h / 2)


@each({"path backwards": backwards, "one step late": late, "half-way by the student": own_middle})
def test_asking_elsewhere_is_caught(mutant):
    assert_caught(assert_asked_for_two_halves, mutant, jnp.ones(3), jnp.array(0.25), jnp.array(0.5))


# ------------------------------------------------------------------ what shortcut_loss draws


@partial(jax.jit, static_argnames=("loss", "num_steps"))
def drawn(loss, num_steps, keys):
    still = lambda obs, x, t, h: jnp.zeros_like(x)

    def one(key):
        one_loss = lambda s, t: loss(s, t, None, ACTION.astype("float32"), num_steps=num_steps, key=key)
        return listen(one_loss, (still, still))[1:]

    return jax.vmap(one)(keys)


def assert_draws_as_documented(loss, num_steps):
    (fm, sc), (half, _) = drawn(loss, num_steps, jax.random.split(jax.random.key(num_steps), N))
    assert_uniform(fm.h, [1 / num_steps])
    assert_uniform(fm.t, np.arange(num_steps) / num_steps)
    steps = [2.0**-i for i in range(num_steps.bit_length() - 1)]
    assert_uniform(sc.h, steps)
    for h in steps:
        assert_uniform(sc.t[sc.h == h], np.arange(0, 1, h))
    assert np.all(sc.t + sc.h <= 1)
    assert np.array_equal(half.h, sc.h / 2)
    noises = [jax.vmap(Call.noise)(call).T for call in (fm, sc)]
    assert all(kstest(np.ravel(noise), "norm").pvalue > 1e-4 for noise in noises), "noise that is not normal"
    assert_unrelated(fm.t, sc.t + sc.h / 2, sc.h, *noises[0], *noises[1])  # a jump's middle does not depend on h


@pytest.mark.parametrize("num_steps", [2, 8, 32])
def test_the_draws_are_as_documented(num_steps):
    assert_draws_as_documented(shortcut_loss, num_steps)


def another_shortcut_loss(start=_path.draw_start, step=_path.draw_step, split=jax.random.split):
    """`shortcut_loss` with its draws free; as they stand here it is right."""

    def loss(velocity, teacher, obs, action, *, num_steps, key):
        keys = split(key, 5)
        noise, sc_noise = (jax.random.normal(key, action.shape, action.dtype) for key in keys[:2])
        h, sc_h = jnp.asarray(1 / num_steps, action.dtype), step(keys[2], num_steps, action.dtype)
        fm = flow_matching_loss(velocity, obs, action, noise, start(keys[3], h), h=h)
        return fm, self_consistency_loss(velocity, teacher, obs, action, sc_noise, start(keys[4], sc_h), sc_h)

    return loss


def too_late(key, h):
    return _path.draw_start(key, h) + h


def never_last(key, h):
    return h * jax.random.randint(key, jnp.shape(h), 0, jnp.maximum(1, jnp.round(1 / h) - 1))


def off_the_grid(key, h):
    return jax.random.uniform(key, jnp.shape(h), h.dtype) * (1 - h)


def to_the_smallest(key, num_steps, dtype):
    return _path.draw_step(key, 2 * num_steps, dtype)


def not_the_whole(key, num_steps, dtype):
    return _path.draw_step(key, num_steps, dtype) / 2


WRONG_DRAWS = {
    "t from h to 1": {"start": too_late},
    "t never 1 - h": {"start": never_last},
    "t anywhere": {"start": off_the_grid},
    "h down to 1/M": {"step": to_the_smallest},
    "h from 1/2": {"step": not_the_whole},
    "one key for everything": {"split": lambda key, n: [key] * n},
}


def test_the_copy_draws_as_documented():
    assert_draws_as_documented(another_shortcut_loss(), 8)


@each(WRONG_DRAWS)
def test_wrong_draws_are_caught(mutant):
    with pytest.raises(AssertionError, match=r"other values|equally often|related"):
        assert_draws_as_documented(another_shortcut_loss(**mutant), 8)


# -------------------------------------------------------------------- what it makes of them


@partial(jax.jit, static_argnames="num_steps")
def value_and_parts(num_steps, weights, key):
    loss = partial(shortcut_loss, flow_matching_weight=weights[0], self_consistency_weight=weights[1])
    (value, info), (fm, sc), _ = listen(lambda s, t: loss(s, t, None, ACTION, num_steps=num_steps, key=key))
    first = flow_matching_loss(STUDENT, None, ACTION, fm.noise(), fm.t, h=fm.h)
    second = self_consistency_loss(STUDENT, TEACHER, None, ACTION, sc.noise(), sc.t, sc.h)
    return value, info, first, second


@given(seed=seeds, num_steps=st.sampled_from([2, 8]), weights=st.tuples(st.floats(0, 20), st.floats(0, 20)))
def test_the_loss_is_the_weighted_sum_of_its_parts(seed, num_steps, weights):
    value, info, first, second = value_and_parts(num_steps, weights, jax.random.key(seed))
    assert_to_rounding(info.flow_matching - first, 100 * first)
    assert_to_rounding(info.self_consistency - second, 100 * second)
    assert_to_rounding(value - (weights[0] * first + weights[1] * second), 100 * (1 + value))


def test_with_one_step_there_is_nothing_to_halve():
    (loss, info), (fm,), teacher = listen(
        lambda s, t: shortcut_loss(s, t, None, ACTION, num_steps=1, key=jax.random.key(0))
    )
    assert teacher == []
    assert (fm.t, fm.h) == (0, 1)
    assert loss == info.flow_matching
    assert info.self_consistency == 0


def test_the_key_is_all_that_is_random():
    loss = jax.jit(lambda key: shortcut_loss(STUDENT, TEACHER, None, ACTION, num_steps=8, key=key)[0])
    assert loss(jax.random.key(0)) == loss(jax.random.key(0))
    assert loss(jax.random.key(0)) != loss(jax.random.key(1))


# ---------------------------------------------------------------------- the draws themselves


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("num_steps", [2, 8, 64])
def test_draws_in_every_dtype(num_steps, dtype):
    h_key, t_key = jax.random.split(jax.random.key(num_steps))
    h = jax.vmap(lambda key: _path.draw_step(key, num_steps, jnp.dtype(dtype)))(jax.random.split(h_key, N))
    t = jax.vmap(_path.draw_start)(jax.random.split(t_key, N), h)
    assert h.dtype == t.dtype == dtype
    h, t = np.asarray(h, np.float64), np.asarray(t, np.float64)
    assert_uniform(h, [2.0**-i for i in range(num_steps.bit_length() - 1)])
    assert_uniform(t[h == 1], [0.0])
    assert_uniform(t[h == 2 / num_steps], np.arange(0, 1, 2 / num_steps))
    assert np.all(t + h <= 1)
