"""Consistency models: for Gaussian data the law of each is known, and a wrong one is caught."""

import itertools
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from assertions import assert_caught, each, seeds
from gaussian import SIZE, Affine, Data, close
from hypothesis import given
from hypothesis import strategies as st

from shortcutrl import (
    consistency_function,
    consistency_loss,
    consistency_sample,
    nn,
    noise_level,
)

SEED = 3
times = st.floats(0.01, 1)
dtypes = st.sampled_from(["float32", "float64"])
same = lambda x: x


# ------------------------------------------------------------------------------------- noise levels


@given(u=st.floats(0, 1), dtype=dtypes)
def test_the_noise_levels(u, dtype):
    expected = (0.002 ** (1 / 7) + u * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7
    got = noise_level(jnp.asarray(u, dtype))
    assert got.dtype == dtype
    close(got, expected, 10 * expected)


def test_the_ends_of_the_noise_levels():
    np.testing.assert_allclose(jax.vmap(noise_level)(np.array([0.0, 1.0])), [0.002, 80.0], rtol=1e-12)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_noise_levels_stay_in_their_range(dtype):
    """Rounding the position would be magnified by the power: 81.5 in bfloat16."""
    levels = jax.vmap(noise_level)(jnp.linspace(0, 1, 200).astype(dtype))
    assert levels.dtype == dtype
    assert (jnp.diff(levels) >= 0).all()
    assert levels[0] == pytest.approx(float(jnp.asarray(0.002, dtype)), rel=1e-6)
    assert levels[-1] == pytest.approx(80, rel=1e-6)
    assert levels[-1] <= 80
    consistency_function(lambda obs, x, u: x, None, jnp.ones(2, dtype), levels[-1])


# ------------------------------------------------------------------------------------- consistency functions

levels = st.floats(0.002, 80)


class Tilt(eqx.Module):
    """A network that shows what it is asked."""

    weight: jax.Array
    tilt: jax.Array

    def __call__(self, obs, x, u):
        return self.weight * x + self.tilt * u


def assert_function(function, seed, level, *, slack=1.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=SIZE) * (1 + level)
    network = Tilt(jnp.asarray(rng.normal(size=SIZE)), jnp.asarray(rng.normal(size=SIZE)))
    u = (level ** (1 / 7) - 0.002 ** (1 / 7)) / (80 ** (1 / 7) - 0.002 ** (1 / 7))
    c_skip = 0.25 / ((level - 0.002) ** 2 + 0.25)
    c_out = 0.5 * (level - 0.002) / np.sqrt(level**2 + 0.25)
    inside = network.weight * x / np.sqrt(level**2 + 0.25) + network.tilt * u
    got = function(network, None, jnp.asarray(x), level)
    close(got, c_skip * x + c_out * inside, 100 * (1 + level), slack=slack)


@given(seed=seeds, level=levels)
def test_the_consistency_function(seed, level):
    assert_function(consistency_function, seed, level)


def another_function(above=0.002, out=0.5, spread=lambda level: jnp.sqrt(level**2 + 0.25), scaled=True, power=1 / 7):
    def function(network, obs, x, level):
        u = (level**power - 0.002**power) / (80**power - 0.002**power)
        inside = network(obs, x / spread(level) if scaled else x, u)
        return 0.25 / ((level - above) ** 2 + 0.25) * x + out * (level - above) / spread(level) * inside

    return function


def test_the_copy_of_the_consistency_function_is_right():
    assert_function(another_function(), SEED, 0.7)


WRONG_FUNCTIONS = {
    "the boundary at zero": another_function(above=0.0),
    "no scale of the data": another_function(out=1.0),
    "no root": another_function(spread=lambda level: level**2 + 0.25),
    "the input is not scaled": another_function(scaled=False),
    "another position": another_function(power=1.0),
}


@each(WRONG_FUNCTIONS)
def test_a_wrong_consistency_function_is_caught(mutant):
    assert_caught(assert_function, mutant, SEED, 0.7)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_boundary_holds_for_every_network(dtype):
    network = nn.ResidualDenoiser(1, SIZE, width=8, blocks=1, key=jax.random.key(0))
    x = jnp.array([0.3, -1.7], dtype)
    np.testing.assert_array_equal(consistency_function(network, jnp.ones(1), x, 0.002), x)


# ------------------------------------------------------------------------------------- consistency training


@partial(jax.jit, static_argnums=0)
def expected_consistency(loss, models, pairs, low, high):
    """The mean over pairs of an action and its noise, and its gradient into both models."""

    def mean(models):
        of = partial(loss, *models, None)
        return jax.vmap(of, in_axes=(0, 0, None, None))(*pairs, low, high).mean()

    return jax.value_and_grad(mean)(models)


def assert_euler(loss, seed, low, high, *, slack=1.0):
    """With the identity as the teacher, the minimiser is an Euler step of the probability flow: E[x_1 | x_2].

    Over the data and the noise it is affine, mean + (std² + σ₁ σ₂) / (std² + σ₂²) (x - mean). What is left of the loss
    is Var[x_1 | x_2].
    """
    data = Data.random(np.random.default_rng(seed))
    slope = (data.std**2 + low * high) / (data.std**2 + high**2)
    model = Affine(slope, (1 - slope) * data.mean)
    teacher = Affine(np.ones(SIZE), np.zeros(SIZE))
    value, (grad, into) = expected_consistency(loss, (model, teacher), data.exactly(), low, high)
    left = data.std**2 + low**2 - (data.std**2 + low * high) ** 2 / (data.std**2 + high**2)
    rounding = 1e3 * (1 + high) ** 2
    close(value, left.mean(), rounding, slack=slack)
    for leaf in jax.tree.leaves((grad, into)):
        close(leaf, 0, rounding, slack=slack)


@given(seed=seeds, low=st.floats(0.002, 4), ratio=st.floats(1.01, 2))
def test_consistency_training_takes_euler_steps_of_the_flow(seed, low, ratio):
    assert_euler(consistency_loss, seed, low, ratio * low)


def another_consistency_loss(
    noise_of_target=same, stop=jax.lax.stop_gradient, swap=False, of=same, reduce=jnp.mean, power=1
):
    def loss(model, teacher, obs, action, noise, low, high):
        low, high = (high, low) if swap else (low, high)
        target = stop(teacher(obs, action + low**power * noise_of_target(noise), low))
        return reduce(jnp.square(model(obs, action + high**power * noise, high) - target))

    return loss


def test_the_copy_of_the_consistency_loss_is_right():
    assert_euler(another_consistency_loss(), SEED, 0.5, 0.8)


WRONG_CONSISTENCY = {
    "other noise in the target": another_consistency_loss(noise_of_target=lambda noise: jnp.roll(noise, 1)),
    "a gradient into the target": another_consistency_loss(stop=same),
    "levels exchanged": another_consistency_loss(swap=True),
    "a sum over the dimensions": another_consistency_loss(reduce=jnp.sum),
    "variances for levels": another_consistency_loss(power=2),
}


@each(WRONG_CONSISTENCY)
def test_a_wrong_consistency_loss_is_caught(mutant):
    assert_caught(assert_euler, mutant, SEED, 0.5, 0.8)


def test_training_between_close_levels_gives_the_exact_function():
    """Euler steps through 2,000 levels: the composed map is that of the flow, with an error that shrinks as 1 / N."""
    data = Data(np.array([0.4, -0.7]), np.array([0.3, 0.9]))

    def error(n):
        sigma = np.asarray(jax.vmap(noise_level)(np.arange(n) / (n - 1)))
        slope = np.ones(SIZE)
        for low, high in itertools.pairwise(sigma):
            slope = slope * (data.std**2 + low * high) / (data.std**2 + high**2)
        exact = data.consistent(None, data.mean + 1, 80.0) - data.mean
        return np.abs(slope / exact - 1).max()

    assert error(4000) < 0.52 * error(2000) < 0.03


# ------------------------------------------------------------------------------------- samples in few steps


@partial(jax.jit, static_argnums=0)
def few_step_moments(sample, data, levels):
    """The mean and the variance of samples that are affine in the noise."""
    sampler = partial(sample, data.consistent, None, levels=levels)
    flat = jnp.zeros((len(levels), SIZE))
    jacobian = jax.jacobian(sampler)(flat)
    return sampler(flat), jnp.einsum("atb,atb->a", jacobian, jacobian)


def assert_samples(sample, seed, levels, *, slack=1.0):
    """The mean and the variance of samples of the exact model, by recursion."""
    data = Data.random(np.random.default_rng(seed))
    mean, variance = np.zeros(SIZE), np.zeros(SIZE)
    for i, level in enumerate(levels):
        variance = level**2 * np.ones(SIZE) if i == 0 else variance + level**2 - 0.002**2
        shrink = (data.std**2 + 0.002**2) / (data.std**2 + level**2)
        mean, variance = data.mean + np.sqrt(shrink) * (mean - data.mean), shrink * variance
    got_mean, got_variance = few_step_moments(sample, data, levels)
    close(got_mean, mean, 4, slack=slack)
    close(got_variance, variance, 4, slack=slack)


@given(seed=seeds, levels=st.lists(levels, min_size=1, max_size=3).map(tuple))
def test_the_distribution_of_few_step_samples(seed, levels):
    assert_samples(consistency_sample, seed, levels)


def another_few_steps(first=True, smallest=0.002, again=True, root=jnp.sqrt, late=0):
    def sample(model, obs, noise, *, levels):
        action = jnp.zeros_like(noise[0])
        for i, (level, row) in enumerate(zip(levels, noise, strict=True)):
            spread = level if i == 0 and first else root(level**2 - smallest**2)
            action = model(obs, (action if again else 0) + spread * row, levels[max(i - late, 0)])
        return action

    return sample


def test_the_copy_of_the_few_steps_is_right():
    assert_samples(another_few_steps(), SEED, (80.0, 0.5))


WRONG_FEW_STEPS = {
    "the noise of the first step is too small": another_few_steps(first=False),
    "the smallest level is forgotten": another_few_steps(smallest=0.0),
    "starts again": another_few_steps(again=False),
    "no root": another_few_steps(root=same),
    "the level of the step before": another_few_steps(late=1),
}


@each(WRONG_FEW_STEPS)
def test_wrong_few_steps_are_caught(mutant):
    assert_caught(assert_samples, mutant, SEED, (0.02, 0.01))


def test_few_steps_are_clipped_at_the_end_alone():
    model = lambda obs, x, level: x / level * 3
    noise = jnp.array([[1.0, -0.1], [0.0, 0.0]])
    got = consistency_sample(model, None, noise, levels=(80.0, 2.0), clip=(-1.0, 1.0))
    np.testing.assert_allclose(got, [1.0, -0.45])  # 3 times 3 / 2 of the noise


# ------------------------------------------------------------------------------------- bad input

X = jnp.ones(2)
KEEP = lambda obs, x, t: x
BAD = {
    "levels exchanged": (
        lambda: consistency_loss(KEEP, KEEP, None, X, X, 0.2, 0.1),
        ValueError,
        "`low` must be below `high`",
    ),
    "a level that is too large": (lambda: consistency_function(KEEP, None, X, 100.0), ValueError, "`level` must be in"),
    "no levels": (lambda: consistency_sample(KEEP, None, jnp.ones((1, 2)), levels=()), ValueError, "`levels` must"),
    "a level that is no number": (
        lambda: consistency_sample(KEEP, None, jnp.ones((1, 2)), levels=(float("nan"),)),
        ValueError,
        "`levels` must be in",
    ),
    "a position beyond the end": (lambda: noise_level(1.1), ValueError, "`position` must be in"),
}


@pytest.mark.parametrize(("call", "kind", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused_by_name(call, kind, message):
    with pytest.raises(kind, match=f"^{message}"):
        call()
