"""Where the losses evaluate their networks, and what is drawn: recorded by the networks themselves."""

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

from shortcutrl import (
    draw_flow_matching,
    draw_self_consistency,
    flow_matching_loss,
    interpolate,
    self_consistency_loss,
    shortcut_loss,
)

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


@partial(jax.jit, static_argnames=("loss", "num_steps", "dtype"))
def drawn(loss, num_steps, keys, dtype):
    still = lambda obs, x, t, h: jnp.zeros_like(x)

    def one(key):
        one_loss = lambda s, t: loss(s, t, None, ACTION.astype(dtype), num_steps=num_steps, key=key)
        return listen(one_loss, (still, still))[1:]

    return jax.vmap(one)(keys)


def assert_draws_as_documented(loss, num_steps, dtype="float32"):
    """Of a loss, by what its networks see."""
    (fm, sc), (half, _) = drawn(loss, num_steps, jax.random.split(jax.random.key(num_steps), N), dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves((fm, sc, half))} == {jnp.dtype(dtype)}
    fm, sc, half = (Call(*(np.asarray(leaf, np.float64) for leaf in call)) for call in (fm, sc, half))
    assert_uniform(fm.h, [1 / num_steps])
    assert_uniform(fm.t, np.arange(num_steps) / num_steps)
    steps = [2.0**-i for i in range(num_steps.bit_length() - 1)]
    assert_uniform(sc.h, steps)
    for h in steps:
        assert_uniform(sc.t[sc.h == h], np.arange(0, 1, h))
    assert np.all(sc.t + sc.h <= 1)
    assert np.array_equal(half.h, sc.h / 2)
    noises = [np.asarray(jax.vmap(Call.noise)(call)).T for call in (fm, sc)]
    if dtype != "bfloat16":  # in which noise near the action cannot be recovered from the point between them
        assert all(kstest(np.ravel(noise), "norm").pvalue > 1e-4 for noise in noises), "noise that is not normal"
    assert_unrelated(fm.t, sc.t + sc.h / 2, sc.h, *noises[0], *noises[1])  # a jump's middle does not depend on h


@pytest.mark.parametrize(
    ("num_steps", "dtype"), [(2, "float32"), (8, "float32"), (32, "float32"), (8, "float64"), (64, "bfloat16")]
)
def test_the_draws_are_as_documented(num_steps, dtype):
    assert_draws_as_documented(shortcut_loss, num_steps, dtype)


def start(key, h):
    return h * jax.random.randint(key, jnp.shape(h), 0, jnp.round(1 / h).astype(int))


def step(key, num_steps):
    return 0.5 ** jax.random.randint(key, (), 0, num_steps.bit_length() - 1).astype("float32")


def another_shortcut_loss(start=start, step=step, split=jax.random.split):
    """`shortcut_loss` with its draws free; as they stand here it is right."""

    def loss(velocity, teacher, obs, action, *, num_steps, key):
        keys = split(key, 5)
        noise, sc_noise = (jax.random.normal(key, action.shape, action.dtype) for key in keys[:2])
        h, sc_h = jnp.asarray(1 / num_steps, action.dtype), step(keys[2], num_steps)
        fm = flow_matching_loss(velocity, obs, action, noise, start(keys[3], h), h=h)
        return fm, self_consistency_loss(velocity, teacher, obs, action, sc_noise, start(keys[4], sc_h), sc_h)

    return loss


def too_late(key, h):
    return start(key, h) + h


def never_last(key, h):
    return h * jax.random.randint(key, jnp.shape(h), 0, jnp.maximum(1, jnp.round(1 / h) - 1))


def off_the_grid(key, h):
    return jax.random.uniform(key, jnp.shape(h), h.dtype) * (1 - h)


def to_the_smallest(key, num_steps):
    return step(key, 2 * num_steps)


def not_the_whole(key, num_steps):
    return step(key, num_steps) / 2


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


def assert_uniform_pairs(draw, num_steps, steps):
    """(t, h) with h uniform on `steps` and t uniform on the multiples of h, by a shape or by many keys."""
    many = jax.jit(jax.vmap(partial(draw, num_steps=num_steps)))(jax.random.split(jax.random.key(num_steps), N))
    for t, h in (many, draw(jax.random.key(7), num_steps=num_steps, shape=(64, N // 64))):
        assert t.dtype == h.dtype == "float32"
        t, h = np.ravel(t), np.ravel(h)
        assert_uniform(h, steps)
        for step in steps:
            assert_uniform(t[h == step], np.arange(0, 1, step))
        if len(steps) > 1:
            assert_unrelated(t + h / 2, h)  # a jump's middle does not depend on h


@pytest.mark.parametrize("num_steps", [1, 2, 8, 64])
def test_flow_matching_is_drawn_uniformly(num_steps):
    assert_uniform_pairs(draw_flow_matching, num_steps, [1 / num_steps])


@pytest.mark.parametrize("num_steps", [2, 8, 64])
def test_self_consistency_is_drawn_uniformly(num_steps):
    assert_uniform_pairs(draw_self_consistency, num_steps, [2.0**-i for i in range(num_steps.bit_length() - 1)])


def another_draw(start=start, step=step, split=jax.random.split):
    """The draw of self-consistency with its parts free; as they stand here it is right."""

    def one(key, num_steps):
        step_key, start_key = split(key)
        h = step(step_key, num_steps)
        return jnp.asarray(start(start_key, h), "float32"), jnp.asarray(h, "float32")

    def draw(key, *, num_steps, shape=()):
        keys = jax.random.split(key, shape)
        t, h = jax.vmap(lambda key: one(key, num_steps))(keys.ravel()) if shape else one(key, num_steps)
        return t.reshape(shape), h.reshape(shape)

    return draw


def test_the_copy_draws_uniformly():
    assert_uniform_pairs(another_draw(), 8, [1.0, 0.5, 0.25])


@each({name: mutant for name, mutant in WRONG_DRAWS.items() if "split" not in mutant})
def test_a_wrong_pair_is_caught(mutant):
    steps = [1.0, 0.5, 0.25]
    with pytest.raises(AssertionError, match=r"other values|equally often|related"):
        assert_uniform_pairs(another_draw(**mutant), 8, steps)


def test_draws_by_shape_are_independent():
    """One row does not tell the next."""
    for draw in (draw_flow_matching, draw_self_consistency):
        t, h = draw(jax.random.key(3), num_steps=8, shape=(4, N))
        assert_unrelated(*(t + h / 2))


@pytest.mark.parametrize("draw", [draw_flow_matching, draw_self_consistency])
@pytest.mark.parametrize("num_steps", [np.int64(8), np.uint8(8)], ids=["int64", "uint8"])
def test_numpy_integers_are_numbers_of_steps(draw, num_steps):
    key = jax.random.key(0)
    assert draw(key, num_steps=num_steps) == draw(key, num_steps=8)


# ---------------------------------------------------------------------- samplers of the user's own


def by_normal(key):
    """Logit-normal times, at h = 0."""
    return jax.nn.sigmoid(jax.random.normal(key)), 0.0


def by_uniform(key):
    """h uniform in [0, 1], t uniform in [0, 1 - h]."""
    h_key, t_key = jax.random.split(key)
    h = jax.random.uniform(h_key)
    return (1 - h) * jax.random.uniform(t_key), h


@partial(jax.jit, static_argnames="loss")
def drawn_by_own(loss, keys):
    def one(key):
        options = {"flow_matching_times": by_normal, "self_consistency_times": by_uniform}
        return listen(lambda s, t: loss(s, t, None, ACTION, num_steps=8, key=key, **options))[1:]

    return jax.vmap(one)(keys)


def assert_samples_as_told(loss):
    (fm, sc), (half, _) = drawn_by_own(loss, jax.random.split(jax.random.key(0), N))
    assert kstest(np.log(fm.t / (1 - fm.t)), "norm").pvalue > 1e-4, "other times than the sampler's"
    assert np.all(fm.h == 0), "another step than the sampler's"
    assert kstest(sc.h, "uniform").pvalue > 1e-4, "other steps than the sampler's"
    assert kstest(sc.t / (1 - sc.h), "uniform").pvalue > 1e-4, "other times than the sampler's"
    assert np.array_equal(half.h, sc.h / 2)
    noises = [jax.vmap(Call.noise)(call).T for call in (fm, sc)]
    assert_unrelated(fm.t, sc.t / (1 - sc.h), sc.h, *noises[0], *noises[1])


def test_samplers_decide_where_the_losses_look():
    assert_samples_as_told(shortcut_loss)


def swapped(*args, flow_matching_times, self_consistency_times, **options):
    times = {"flow_matching_times": self_consistency_times, "self_consistency_times": flow_matching_times}
    return shortcut_loss(*args, **times, **options)


def flow_matching_only(*args, self_consistency_times, **options):
    return shortcut_loss(*args, **options)


def one_key(*args, flow_matching_times, self_consistency_times, key, **options):
    """Each sampler with the key of the whole loss, which also makes the noise of some other call."""
    times = {
        "flow_matching_times": lambda _: flow_matching_times(key),
        "self_consistency_times": lambda _: (
            flow_matching_times(key)[0] * (1 - by_uniform(key)[1]),
            by_uniform(key)[1],
        ),
    }
    return shortcut_loss(*args, **times, key=key, **options)


@each({"swapped": swapped, "self-consistency by default": flow_matching_only, "one key for both": one_key})
def test_samplers_that_are_not_heeded_are_caught(mutant):
    with pytest.raises(AssertionError, match=r"the sampler's|related"):
        assert_samples_as_told(mutant)


# ------------------------------------------------------------------------------ the straight path


def assert_straight(path, noise, action, t, *, slack=1.0):
    """Between noise at 0 and action at 1, with velocity a - z, and symmetric in time."""
    point, velocity = jax.jvp(lambda t: path(noise, action, t), (t,), (jnp.ones_like(t),))
    size = 1 + jnp.abs(noise).max() + jnp.abs(action).max()
    assert_to_rounding(velocity - (action - noise), size, slack=slack)
    assert_to_rounding(point - (noise + t * (action - noise)), size, slack=slack)
    assert_to_rounding(point - path(action, noise, 1 - t), size, slack=slack)
    for end, exact in [(0.0, noise), (1.0, action)]:
        assert_to_rounding(path(noise, action, jnp.asarray(end)) - exact, size, slack=slack)


@given(seed=seeds, t=st.floats(0, 1))
def test_the_path_is_straight(seed, t):
    noise, action = jnp.asarray(np.random.default_rng(seed).normal(size=(2, 3)))
    assert_straight(interpolate, noise, action, jnp.asarray(t))


WRONG_PATHS = {
    "backwards": lambda z, a, t: (1 - t) * a + t * z,
    "keeps all the noise": lambda z, a, t: z + t * a,
    "on a circle": lambda z, a, t: jnp.cos(t * jnp.pi / 2) * z + jnp.sin(t * jnp.pi / 2) * a,
    "keeps a little noise": lambda z, a, t: (1 - (1 - 1e-5) * t) * z + t * a,
}


@each(WRONG_PATHS)
def test_a_wrong_path_is_caught(mutant):
    assert_caught(assert_straight, mutant, jnp.ones(3), jnp.array([0.3, -0.8, 1.1]), jnp.asarray(0.25))


def test_the_ends_of_the_path_are_exact():
    noise, action = jnp.array([0.1, 3.3]), jnp.array([-0.7, 1e-9])
    assert jnp.array_equal(interpolate(noise, action, 0.0), noise)
    assert jnp.array_equal(interpolate(noise, action, 1.0), action)
