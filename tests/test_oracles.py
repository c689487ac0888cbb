"""The oracles are right: their parts, derived apart from each other, agree."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from assertions import seeds
from hypothesis import given
from hypothesis import strategies as st
from oracles import FLOWS, Gaussian, Mixture, kinds


def draw(kind, seed, size=2):
    rng = np.random.default_rng(seed)
    return FLOWS[kind].random(rng, size), jnp.asarray(rng.normal(size=size))


@partial(jax.jit, static_argnames="steps")
def integrate(flow, x, t, h, steps=64):
    """Follow the tangent from `t` to `t + h` by classical Runge-Kutta: error of order h^4 / steps^4."""
    dt = h / steps

    def step(i, x):
        now = t + i * dt
        a = flow.tangent(x, now)
        b = flow.tangent(x + dt / 2 * a, now + dt / 2)
        c = flow.tangent(x + dt / 2 * b, now + dt / 2)
        d = flow.tangent(x + dt * c, now + dt)
        return x + dt / 6 * (a + 2 * b + 2 * c + d)

    return jax.lax.fori_loop(0, steps, step, x)


transport = jax.jit(lambda flow, x, t, h: flow.transport(x, t, h))
mean_velocity = jax.jit(lambda flow, x, t, h: flow.mean_velocity(x, t, h))


@kinds
@given(seed=seeds, t=st.floats(0, 0.9), share=st.floats(0.1, 1))
def test_the_transport_follows_the_tangent(kind, seed, t, share):
    flow, x = draw(kind, seed)
    h = share * (1 - t)
    assert jnp.allclose(transport(flow, x, t, h), integrate(flow, x, t, h), rtol=0, atol=1e-5)


@kinds
@given(seed=seeds, t=st.floats(0, 0.9), share=st.floats(0.1, 1))
def test_the_mean_velocity_is_the_transport_per_time(kind, seed, t, share):
    flow, x = draw(kind, seed)
    h = share * (1 - t)
    assert jnp.allclose(x + h * mean_velocity(flow, x, t, h), transport(flow, x, t, h), rtol=0, atol=1e-11)


@kinds
@given(seed=seeds, t=st.floats(0, 0.9))
def test_the_mean_velocity_over_no_time_is_the_tangent(kind, seed, t):
    flow, x = draw(kind, seed)
    tangent = flow.tangent(x, t)
    assert jnp.allclose(mean_velocity(flow, x, t, 0.0), tangent, rtol=0, atol=1e-13)
    assert jnp.allclose(mean_velocity(flow, x, t, 1e-6), tangent, rtol=0, atol=1e-4)


@given(seed=seeds, t=st.floats(0, 0.9), h=st.floats(0.01, 0.1))
def test_a_mixture_of_one_is_a_gaussian(seed, t, h):
    gaussian, x = draw("gaussian", seed, size=1)
    mixture = Mixture(jnp.ones(1), gaussian.mean, gaussian.std)
    assert jnp.allclose(transport(mixture, x, t, h), transport(gaussian, x, t, h), rtol=0, atol=1e-9)


def test_a_point_mass_is_reached_in_a_straight_line():
    mean, x = jnp.array([0.5, -1.0]), jnp.array([1.0, 2.0])
    flow = Gaussian.point(mean)
    for t, h in [(0.0, 1.0), (0.25, 0.5), (0.5, 0.0)]:
        assert jnp.allclose(flow.mean_velocity(x, t, h), (mean - x) / (1 - t))


@pytest.mark.parametrize("kind", ["gaussian", "mixture"])
def test_transport_carries_noise_to_the_data(kind):
    """Moments of 10,000 transported quantiles of the noise are the data's."""
    rng = np.random.default_rng(0)
    flow = FLOWS[kind].random(rng, 1)
    quantiles = jax.scipy.stats.norm.ppf((jnp.arange(10_000) + 0.5) / 10_000)
    end = (
        transport(flow, quantiles, 0.0, 1.0)
        if kind == "mixture"
        else jax.vmap(lambda x: flow.transport(x, 0.0, 1.0))(quantiles[:, None])
    )
    weight = getattr(flow, "weight", jnp.ones(1))
    mean = weight @ flow.mean
    variance = weight @ (flow.std**2 + flow.mean**2) - mean**2
    assert jnp.allclose(end.mean(), mean, atol=1e-3)
    assert jnp.allclose(end.var(), variance, rtol=5e-3)
