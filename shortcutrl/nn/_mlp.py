"""The multilayer perceptron of the published code."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from shortcutrl import _checks


class MLP(eqx.Module):
    """Hidden layers of linear map, GELU and, if asked, LayerNorm, in this order; then a linear map.

    Not `eqx.nn.MLP`: that has no LayerNorm. Weights are stored as (in, out), so that a batch by `vmap` is one matrix
    product without a transposition. Products between hidden layers, nearly all of the work, are made in `matmul_dtype`,
    forwards and backwards. All else stays in the dtype of the input: what an observation says in its small digits is
    not lost.
    """

    weights: tuple[Float[Array, "inputs outputs"], ...]
    biases: tuple[Float[Array, " outputs"], ...]
    norms: tuple[eqx.nn.LayerNorm, ...]
    matmul_dtype: np.dtype | None = eqx.field(static=True)

    def __init__(
        self,
        in_size: int,
        out_size: int,
        *,
        width: int,
        depth: int,
        layer_norm: bool,
        matmul_dtype: DTypeLike | None,
        key: PRNGKeyArray,
    ):
        if matmul_dtype is not None:
            _checks.float_dtype("matmul_dtype", matmul_dtype)
        shapes = list(itertools.pairwise([in_size, *[width] * depth, out_size]))
        keys = jax.random.split(key, len(shapes))
        init = jax.nn.initializers.glorot_uniform()
        self.weights = tuple(init(key, shape) for key, shape in zip(keys, shapes, strict=True))
        self.biases = tuple(jnp.zeros(outputs) for _, outputs in shapes)
        self.norms = tuple(eqx.nn.LayerNorm(width, eps=1e-6) for _ in range(depth * layer_norm))
        self.matmul_dtype = None if matmul_dtype is None else np.dtype(matmul_dtype)

    def __call__(self, x: Float[Array, " inputs"]) -> Float[Array, " outputs"]:
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if self.matmul_dtype is not None and 0 < i < last:
                product = x.astype(self.matmul_dtype) @ weight.astype(self.matmul_dtype)
                x = product.astype(x.dtype) + bias
            else:
                x = x @ weight + bias
            if i < last:
                x = jax.nn.gelu(x)
                x = self.norms[i](x) if self.norms else x
        return x
