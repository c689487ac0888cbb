"""Gaussian data, for which the exact denoiser and the exact consistency function are known."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from assertions import assert_to_rounding

SIZE = 2


class Data(NamedTuple):
    """N(mean, std²), each dimension on its own, and what diffusion makes of it."""

    mean: np.ndarray
    std: np.ndarray

    @staticmethod
    def random(rng):
        return Data(rng.normal(size=SIZE), rng.uniform(0.2, 1.5, SIZE))

    def denoiser(self, schedule):
        """E[z | x_t]: with a = mean + std y, x_t is Gaussian of mean √ᾱ mean and variance ᾱ std² + 1 - ᾱ."""

        def predict(obs, x, t):
            signal = jnp.exp(schedule(t))
            spread = signal * self.std**2 + 1 - signal
            return jnp.sqrt(1 - signal) * (x - jnp.sqrt(signal) * self.mean) / spread

        return predict

    def consistent(self, obs, x, level):
        """Where the probability flow of noise levels, dx/dσ = σ (x - mean) / (std² + σ²), leads at the level 0.002."""
        ratio = (self.std**2 + 0.002**2) / (self.std**2 + level**2)
        return self.mean + jnp.sqrt(ratio) * (x - self.mean)

    def exactly(self):
        """Pairs (action, noise) and weights that have the moments of the data and the noise up to the second."""
        points = np.concatenate([np.eye(2 * SIZE), -np.eye(2 * SIZE)]) * np.sqrt(2 * SIZE)
        return self.mean + self.std * points[:, :SIZE], points[:, SIZE:]


def close(got, expected, size, *, slack=1.0):
    """As expected, up to a few rounding errors of numbers of this size, in the dtype of what was computed."""
    error = jnp.asarray(got, jnp.float64) - expected
    assert_to_rounding(error.astype(got.dtype), size, slack=slack)


class Affine(eqx.Module):
    """ε(x) = slope x + shift: the exact denoiser at one time is one of these."""

    slope: jax.Array
    shift: jax.Array

    def __call__(self, obs, x, t):
        return self.slope * x + self.shift
