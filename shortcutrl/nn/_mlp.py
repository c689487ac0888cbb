"""The multilayer perceptron of the published code."""

import itertools
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from shortcutrl import _checks
from shortcutrl._call import call
from shortcutrl._typed import show
from shortcutrl._types import Encoder, Features, Integer, Obs

LARGEST = {"obs_size": 2**17, "action_size": 2**17, "width": 2**14, "depth": 2**10, "blocks": 2**10}
LARGEST |= {"ensemble": 2**10, "channels": 2**14}
"""A larger network is a mistake that would exhaust the memory."""


def as_layer(name: str, value: Any) -> int:
    """A size of a network, as a Python integer."""
    return _checks.as_size(name, value, maximum=LARGEST[name])


class MLP(eqx.Module):
    """Hidden layers of linear map, GELU and, if asked, LayerNorm, in this order; then a linear map.

    Not `eqx.nn.MLP`, which has no LayerNorm. Weights have the shape (inputs, outputs), not that of `eqx.nn.Linear`:
    XLA would transpose those at every call, which takes most of the time of an action on a CPU. Products between hidden
    layers, nearly all of the work, are computed in `matmul_dtype`, forwards and backwards. The rest stays in the dtype
    of the input, which keeps the small digits of an observation.
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
        width: Integer,
        depth: Integer,
        layer_norm: bool,
        matmul_dtype: Any,
        final_scale: float = 1.0,
        key: PRNGKeyArray,
    ):
        width, depth = as_layer("width", width), as_layer("depth", depth)
        self.matmul_dtype = None if matmul_dtype is None else _as_float_dtype("matmul_dtype", matmul_dtype)
        shapes = list(itertools.pairwise([in_size, *[width] * depth, out_size]))
        keys = jax.random.split(key, len(shapes))
        init = jax.nn.initializers.glorot_uniform()
        *weights, last = (init(key, shape) for key, shape in zip(keys, shapes, strict=True))
        self.weights = (*weights, final_scale**0.5 * last)
        self.biases = tuple(jnp.zeros(outputs) for _, outputs in shapes)
        self.norms = tuple(eqx.nn.LayerNorm(width, eps=1e-6) for _ in range(depth * layer_norm))

    @partial(jax.jit, inline=True)  # one program, so that a call without `jit` does not dispatch each operation
    def __call__(self, *inputs: Float[Array, "..."]) -> Float[Array, " outputs"]:
        """Of numbers and vectors, which are concatenated."""
        x = jnp.concatenate([jnp.atleast_1d(each) for each in inputs])
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


class Encodes(eqx.Module):
    """What every network does with its observation."""

    encoder: Encoder
    obs_size: int = eqx.field(static=True)

    def encode(self, obs: Obs) -> Features:
        """The observation as a vector of `obs_size` numbers: by the encoder, or as it is. Features stay as they are."""
        if isinstance(obs, Features):
            return Features(as_vector("obs", obs.vector, self.obs_size))
        if self.encoder is not None:
            return Features(as_vector("encoder", call("encoder", self.encoder, obs), self.obs_size))
        return Features(as_vector("obs", obs, self.obs_size))


def as_vector(name: str, value: Any, size: int) -> Float[Array, " size"]:
    """A vector of floats of this size: what the argument `name` is, or what the encoder returned."""
    array = isinstance(value, jax.Array | np.ndarray)
    if not array or value.ndim != 1 or not jnp.issubdtype(value.dtype, jnp.floating):
        expected = f"a float vector of shape ({size},), got {show(value)}."
        if name == "encoder":
            raise TypeError(f"`encoder` must return {expected}")
        other = " For anything else, pass an `encoder`." if name == "obs" else ""
        raise TypeError(f"`{name}` must be {expected} Convert it to float32; for a batch use `jax.vmap`.{other}")
    if len(value) != size:
        verb = "return" if name == "encoder" else "have"
        raise ValueError(f"`{name}` must {verb} shape ({size},), which the network was made for, got {value.shape}.")
    return _checks.as_array(value)


def _as_float_dtype(name: str, dtype: Any) -> np.dtype:
    try:
        found = np.dtype(dtype) if isinstance(dtype, type | np.dtype | str) else None
    except TypeError:
        found = None
    if found is None or not jnp.issubdtype(found, jnp.floating):
        raise ValueError(f"`{name}` must be a floating-point dtype, such as `jnp.bfloat16`, got {show(dtype)}.")
    return found
