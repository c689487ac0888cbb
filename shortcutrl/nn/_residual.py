"""The residual network of diffusion policies."""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from shortcutrl import _checks
from shortcutrl._typed import typed
from shortcutrl._types import ActionLike, Encoder, Integer, Obs, ScalarLike
from shortcutrl.nn._mlp import Encodes, as_layer, as_vector

TIME_FEATURES, TIME_WIDTH = 64, 128
"""Of the embedding of the time: sines and cosines, and the two layers behind them."""

EXPANSION = 4
"""How much wider the inside of a block is than the network."""


class Dense(eqx.Module):
    """A linear map and a bias of zeros, with weights as in the multilayer perceptron."""

    weight: Float[Array, "inputs outputs"]
    bias: Float[Array, " outputs"]

    def __init__(self, inputs: int, outputs: int, *, init: Callable[..., Array], key: PRNGKeyArray):
        self.weight = init(key, (inputs, outputs))
        self.bias = jnp.zeros(outputs)

    def __call__(self, x: Float[Array, " inputs"]) -> Float[Array, " outputs"]:
        return x @ self.weight + self.bias


class Block(eqx.Module):
    """LayerNorm, a layer four times as wide, Mish, and a layer back, added to the input."""

    norm: eqx.nn.LayerNorm
    wide: Dense
    narrow: Dense

    def __init__(self, width: int, *, key: PRNGKeyArray):
        wide_key, narrow_key = jax.random.split(key)
        init = jax.nn.initializers.lecun_normal()
        self.norm = eqx.nn.LayerNorm(width, eps=1e-6)
        self.wide = Dense(width, EXPANSION * width, init=init, key=wide_key)
        self.narrow = Dense(EXPANSION * width, width, init=init, key=narrow_key)

    def __call__(self, x: Float[Array, " width"]) -> Float[Array, " width"]:
        return x + self.narrow(jax.nn.mish(self.wide(self.norm(x))))


class ResidualDenoiser(Encodes):
    r"""A noise predictor $\epsilon_\theta(s, x, t)$: a residual network on `[x, obs, embedding of t]`, unbatched.

    A [`Denoiser`][shortcutrl.Denoiser] with three blocks of width 256. Each consists of LayerNorm, a layer of 4 x 256,
    Mish and a layer of 256. The time enters as 64 Fourier features of learned frequencies, then two layers of 128. This
    is the network of IDQL, with two differences. It has no dropout (published: 0.1), because a call takes no random
    key. Its time is in [0, 1] instead of the index of a step; the frequencies are as large as those of IDQL for five
    steps.

    **Arguments:**

    - `obs_size`: the length of one observation, or of what `encoder` returns.
    - `action_size`: the length of one action.
    - `width`: the width of the residual stream.
    - `blocks`: the number of residual blocks.
    - `encoder`: as in [`ShortcutPolicy`][shortcutrl.nn.ShortcutPolicy].
    - `key`: a JAX random key for the initial weights.

    **Raises:** `ValueError` for a size below 1. A call raises it for a `t` outside [0, 1] where it is known, and for
    sizes other than the network's.

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from functools import partial
        from shortcutrl import ddpm_sample, nn, vp_schedule

        denoiser = nn.ResidualDenoiser(obs_size=3, action_size=2, width=32, blocks=2, key=jax.random.key(0))
        act = partial(ddpm_sample, denoiser, steps=5, schedule=vp_schedule, clip=(-1.0, 1.0))
        assert act(jnp.ones(3), jnp.zeros((5, 2))).shape == (2,)
        ```

    Source: `LN_Resnet` of IDQL ([arXiv 2304.10573](https://arxiv.org/abs/2304.10573)), which SRPO uses too.
    """

    frequencies: Float[Array, " frequencies"]
    time: tuple[Dense, Dense]
    first: Dense
    blocks: tuple[Block, ...]
    last: Dense

    @typed
    def __init__(
        self,
        obs_size: Integer,
        action_size: Integer,
        *,
        width: Integer = 256,
        blocks: Integer = 3,
        encoder: Encoder = None,
        key: PRNGKeyArray,
    ):
        self.obs_size = as_layer("obs_size", obs_size)
        action_size, width = as_layer("action_size", action_size), as_layer("width", width)
        init = jax.nn.initializers.glorot_uniform()
        frequency_key, *time_keys, first_key, last_key, block_key = jax.random.split(key, 6)
        self.frequencies = jax.random.normal(frequency_key, (TIME_FEATURES // 2,))
        sizes = (TIME_FEATURES, TIME_WIDTH), (TIME_WIDTH, TIME_WIDTH)
        hidden, out = (Dense(*size, init=init, key=key) for size, key in zip(sizes, time_keys, strict=True))
        self.time = hidden, out
        self.first = Dense(action_size + self.obs_size + TIME_WIDTH, width, init=init, key=first_key)
        block_keys = jax.random.split(block_key, as_layer("blocks", blocks))
        self.blocks = tuple(Block(width, key=key) for key in block_keys)
        self.last = Dense(width, action_size, init=init, key=last_key)
        self.encoder = encoder

    @typed
    def __call__(self, obs: Obs, x: ActionLike, t: ScalarLike) -> Float[Array, " action"]:
        x = as_vector("x", x, len(self.last.bias))
        _checks.check_range("t", t, 0, 1)
        layers = self.frequencies, self.time, self.first, self.blocks, self.last  # an encoder may hold functions
        return _forward(layers, self.encode(obs).vector, x, jnp.asarray(t, x.dtype))


@partial(jax.jit, inline=True)
def _forward(layers: tuple[Any, ...], obs: Array, x: Array, t: Array) -> Array:
    """One program, so that a call without `jit` does not dispatch each operation."""
    frequencies, (hidden, out), first, blocks, last = layers
    angle = 2 * jnp.pi * t * frequencies
    embedding = out(jax.nn.mish(hidden(jnp.concatenate([jnp.cos(angle), jnp.sin(angle)]))))
    x = first(jnp.concatenate([x, obs, embedding]))
    for block in blocks:
        x = block(x)
    return last(jax.nn.mish(x))
