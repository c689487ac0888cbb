"""The multilayer perceptron of the published code."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


class MLP(eqx.Module):
    """Hidden layers of linear map, GELU and, if asked, LayerNorm, in this order; then a linear map.

    Not `eqx.nn.MLP`: that has no LayerNorm. Weights are stored as (in, out), so that a batch by `vmap` is one matrix
    product without a transposition.
    """

    weights: tuple[Float[Array, "inputs outputs"], ...]
    biases: tuple[Float[Array, " outputs"], ...]
    norms: tuple[eqx.nn.LayerNorm, ...]

    def __init__(self, in_size: int, out_size: int, *, width: int, depth: int, layer_norm: bool, key: PRNGKeyArray):
        shapes = list(itertools.pairwise([in_size, *[width] * depth, out_size]))
        keys = jax.random.split(key, len(shapes))
        init = jax.nn.initializers.glorot_uniform()
        self.weights = tuple(init(key, shape) for key, shape in zip(keys, shapes, strict=True))
        self.biases = tuple(jnp.zeros(outputs) for _, outputs in shapes)
        self.norms = tuple(eqx.nn.LayerNorm(width, eps=1e-6) for _ in range(depth * layer_norm))

    def __call__(self, x: Float[Array, " inputs"]) -> Float[Array, " outputs"]:
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = x @ weight + bias
            if i < len(self.weights) - 1:
                x = jax.nn.gelu(x)
                x = self.norms[i](x) if self.norms else x
        return x
