"""Flows whose transport and mean velocity have a closed form.

A law is tested on these to rounding. That the test can fail is shown with mutants: wrong copies of the oracle or of the
function under test, on which the same assertion must fail by a wide margin.
"""

from abc import abstractmethod
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from assertions import wide
from hypothesis import strategies as st
from jax.scipy.special import erfc
from jax.scipy.stats import norm


class Flow(eqx.Module):
    """A flow whose `transport`, `tangent` and `mean_velocity` are exact, computed in float64 whatever `x` is.

    Called as a [`Velocity`][shortcutrl.Velocity], it is the perfectly trained shortcut policy.
    """

    @abstractmethod
    def transport(self, x, t, h):
        """Where a point that is at `x` at time `t` is at `t + h`."""

    @abstractmethod
    def tangent(self, x, t):
        """The velocity at time `t` of a point at `x`."""

    @abstractmethod
    def mean_velocity(self, x, t, h):
        """`(transport(x, t, h) - x) / h`, and its limit, the tangent, at `h = 0`."""

    @abstractmethod
    def stretch(self, x, t, h):
        """By how much the transport enlarges a small error in `x`."""

    def __call__(self, obs, x, t, h):
        return self.mean_velocity(*wide(x, t, h)).astype(x.dtype)

    def rounding(self, x, t, h):
        """One rounding error on the way from `t` to `t + h`, as large as it is at the end of that way."""
        x, t, h = wide(x, t, h)
        size = 1 + jnp.max(jnp.abs(x)) + jnp.max(jnp.abs(self.mean_velocity(x, t, h)))
        return size * jnp.maximum(1.0, self.stretch(x, t, h))


class Linear(Flow):
    """dx/dt = A x + b, with A = V diag(rates) V⁻¹: the mean velocity is φ(A h) (A x + b), φ(z) = (exp(z) - 1) / z."""

    vectors: jax.Array
    inverse: jax.Array
    rates: jax.Array
    b: jax.Array

    @staticmethod
    def random(rng, size):
        vectors = np.eye(size) + 0.2 * rng.uniform(-1, 1, (size, size))
        return Linear(vectors, np.linalg.inv(vectors), rng.uniform(-1.5, 1.5, size), rng.normal(size=size))

    def function_of_a(self, f):
        return (self.vectors * f(self.rates)[None]) @ self.inverse

    def transport(self, x, t, h):
        return self.function_of_a(lambda rates: jnp.exp(rates * h)) @ x + h * self.function_of_a(self.phi(h)) @ self.b

    def tangent(self, x, t):
        return self.function_of_a(lambda rates: rates) @ x + self.b

    def mean_velocity(self, x, t, h):
        return self.function_of_a(self.phi(h)) @ self.tangent(x, t)

    def stretch(self, x, t, h):
        return jnp.linalg.norm(self.function_of_a(lambda rates: jnp.exp(rates * h)))

    @staticmethod
    def phi(h):
        def phi(rates):
            z = rates * h
            return jnp.where(z == 0, 1.0, jnp.expm1(z) / jnp.where(z == 0, 1.0, z))

        return phi


class Gaussian(Flow):
    """The flow of the straight paths from N(0, 1) to N(mean, std²), each dimension on its own.

    At time t it is N(t mean, S_t²) with S_t² = (1 - t)² + t² std²; the map from t to t + h is linear.
    """

    mean: jax.Array
    std: jax.Array

    @staticmethod
    def random(rng, size):
        return Gaussian(rng.normal(size=size), rng.uniform(0.3, 1.5, size))

    @staticmethod
    def point(mean):
        """All data at `mean`: every path is straight and the velocity at each point is known for certain."""
        return Gaussian(mean, jnp.zeros_like(mean))

    def spread(self, t):
        return jnp.sqrt((1 - t) ** 2 + (t * self.std) ** 2)

    def transport(self, x, t, h):
        return (t + h) * self.mean + self.spread(t + h) / self.spread(t) * (x - t * self.mean)

    def tangent(self, x, t):
        return self.mean + (t * self.std**2 - (1 - t)) / self.spread(t) ** 2 * (x - t * self.mean)

    def mean_velocity(self, x, t, h):
        before, after = self.spread(t), self.spread(t + h)
        # (after² - before²) / h, divided out so that nothing cancels
        slope = self.std**2 * (2 * t + h) - (2 * (1 - t) - h)
        return self.mean + slope / (before * (before + after)) * (x - t * self.mean)

    def stretch(self, x, t, h):
        return jnp.max(self.spread(t + h) / self.spread(t))


class Mixture(Flow):
    """The flow of the straight paths from N(0, 1) to a mixture of Gaussians, the same in each dimension on its own.

    In one dimension a flow keeps order: the map from t to t + h is F_{t+h}⁻¹ ∘ F_t of the marginals' distributions.
    """

    weight: jax.Array
    mean: jax.Array
    std: jax.Array

    @staticmethod
    def random(rng, size, components=3):
        weight = rng.uniform(0.2, 1, components)
        return Mixture(weight / weight.sum(), rng.uniform(-1.5, 1.5, components), rng.uniform(0.4, 1, components))

    def component(self, x, t):
        """Each point standardised in each component of the marginal at `t`, and the components' spreads."""
        spread = jnp.sqrt((1 - t) ** 2 + (t * self.std) ** 2)[None]
        return (x[:, None] - t * self.mean[None]) / spread, spread

    def tail(self, x, t, side):
        """The share of the marginal at `t` below each point, or above it where `side` is -1."""
        return erfc(-side[:, None] * self.component(x, t)[0] / np.sqrt(2)) @ self.weight / 2

    def density(self, x, t):
        z, spread = self.component(x, t)
        return (norm.pdf(z) / spread) @ self.weight

    def transport(self, x, t, h):
        side = jnp.where(self.tail(x, t, jnp.ones_like(x)) < 0.5, 1.0, -1.0)  # the smaller tail loses no digits
        level = self.tail(x, t, side)

        def bisect(_, bracket):
            low, high = bracket
            middle = (low + high) / 2
            below = side * (self.tail(middle, t + h, side) - level) < 0
            return jnp.where(below, middle, low), jnp.where(below, high, middle)

        bracket = jnp.full_like(x, -30.0), jnp.full_like(x, 30.0)
        return sum(jax.lax.fori_loop(0, 60, bisect, bracket)) / 2

    def tangent(self, x, t):
        z, spread = self.component(x, t)
        density = norm.pdf(z) / spread * self.weight[None]
        each = self.mean[None] + (t * self.std[None] ** 2 - (1 - t)) / spread * z
        return jnp.sum(density * each, axis=1) / jnp.sum(density, axis=1)

    def mean_velocity(self, x, t, h):
        mean = (self.transport(x, t, h) - x) / jnp.where(h == 0, 1.0, h)
        return jnp.where(h == 0, self.tangent(x, t), mean)

    def stretch(self, x, t, h):
        return jnp.max(self.density(x, t) / self.density(self.transport(x, t, h), t + h))


FLOWS = {"linear": Linear, "gaussian": Gaussian, "mixture": Mixture}
SIZE = 3

GAUSSIAN = Gaussian.random(np.random.default_rng(7), SIZE)
"""The flow on which wrong functions are tried: it depends on time, and is cheap."""

kinds = pytest.mark.parametrize("kind", FLOWS)


class Wrong(eqx.Module):
    """A wrong velocity made of a right one: `scale · flow(x, time, step)`, each of them linear in what it should be.

    `scale` gives the factors of (1, h); `time` of (1, t, h); `step` of h.
    """

    flow: Flow
    scale: tuple[float, float] = (1.0, 0.0)
    time: tuple[float, float, float] = (0.0, 1.0, 0.0)
    step: float = 1.0

    def __call__(self, obs, x, t, h):
        wide_x, t, h = wide(x, t, h)
        time = self.time[0] + self.time[1] * t + self.time[2] * h
        v = (self.scale[0] + self.scale[1] * h) * self.flow.mean_velocity(wide_x, time, self.step * h)
        return v.astype(x.dtype)


WRONG = {
    "the tangent at t": {"step": 0.0},
    "the tangent at t + h / 2": {"time": (0.0, 1.0, 0.5), "step": 0.0},
    "the mean over half the step": {"step": 0.5},
    "the mean over twice the step": {"step": 2.0},
    "one step late": {"time": (0.0, 1.0, 1.0)},
    "one step early": {"time": (0.0, 1.0, -1.0)},
    "time runs backwards": {"time": (1.0, -1.0, 0.0)},
    "wrong sign": {"scale": (-1.0, 0.0)},
    "the displacement, not the velocity": {"scale": (0.0, 1.0)},
}

RIGHT_WITHOUT_TIME = {"one step late", "one step early", "time runs backwards"}
"""Not wrong for a field that does not depend on time, as the linear one."""


def wrong_velocities():
    """`(flow, velocity)` for `pytest.mark.parametrize`: each wrong velocity of each flow."""
    return pytest.mark.parametrize(
        ("flow", "velocity"),
        [
            pytest.param(flow, Wrong(flow, **WRONG[name]), id=f"{kind}-{name}")
            for kind, flow in {kind: FLOWS[kind].random(np.random.default_rng(7), SIZE) for kind in FLOWS}.items()
            for name in WRONG
            if kind != "linear" or name not in RIGHT_WITHOUT_TIME
        ],
    )


def euler(rate):
    """The tangent of dx/dt = rate x: each jump multiplies by 1 + rate h."""
    return lambda obs, x, t, h: rate * x


class Jump(NamedTuple):
    """A flow, a point of it, a time and a step."""

    flow: Flow
    x: jax.Array
    t: jax.Array
    h: jax.Array


@st.composite
def jumps(draw, flow):
    """Jumps of one kind of flow over drawn sizes, dtypes, times and steps."""
    dtype = draw(st.sampled_from(["bfloat16", "float32", "float64"]))
    size = draw(st.sampled_from([1, SIZE])) if flow == "linear" else SIZE  # in the others each dimension is alone
    rng = np.random.default_rng(draw(st.integers(0, 2**31 - 1)))
    if dtype == "bfloat16" or draw(st.booleans()):  # times that halve exactly in 8 bits
        steps = draw(st.integers(1, 64))
        t, h = draw(st.integers(0, 64 - steps)) / 64, steps / 64
    else:
        t = draw(st.floats(0, 0.99))
        h = draw(st.floats(0.01, 1)) * (1 - t)
    x = (1 - t) * rng.normal(size=size) + t * rng.uniform(-1, 1, size)
    return Jump(FLOWS[flow].random(rng, size), *(jnp.asarray(a, dtype) for a in (x, t, h)))


def fixed(flow):
    """A jump in the middle of things, in float64, on which mutants are tried."""
    return Jump(flow, jnp.array([0.3, -0.8, 1.1]), jnp.array(0.25), jnp.array(0.5))
