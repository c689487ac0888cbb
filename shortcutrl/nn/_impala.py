"""The encoder of images."""

import itertools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from shortcutrl import _checks
from shortcutrl._typed import show, typed
from shortcutrl._types import Integer
from shortcutrl.nn._mlp import as_layer
from shortcutrl.nn._residual import Dense

Image = Float[Array, "height width channels"]


class Convolution(eqx.Module):
    """A convolution of 3 x 3 that keeps the size, and a bias of zeros. Channels are last, as in images."""

    weight: Float[Array, "3 3 inputs outputs"]
    bias: Float[Array, " outputs"]

    def __init__(self, inputs: int, outputs: int, *, key: PRNGKeyArray):
        self.weight = jax.nn.initializers.glorot_uniform()(key, (3, 3, inputs, outputs))
        self.bias = jnp.zeros(outputs)

    def __call__(self, x: Image) -> Image:
        layout = ("NHWC", "HWIO", "NHWC")
        (x,) = jax.lax.conv_general_dilated(x[None], self.weight, (1, 1), "SAME", dimension_numbers=layout)
        return x + self.bias[None, None]


class Stack(eqx.Module):
    """A convolution, the maxima of 3 x 3 pixels at every second pixel, and residual blocks of ReLU and convolution."""

    first: Convolution
    blocks: tuple[tuple[Convolution, Convolution], ...]

    def __init__(self, inputs: int, outputs: int, *, blocks: int, key: PRNGKeyArray):
        first_key, *keys = jax.random.split(key, 1 + 2 * blocks)
        self.first = Convolution(inputs, outputs, key=first_key)
        inner = [Convolution(outputs, outputs, key=key) for key in keys]
        self.blocks = tuple(zip(inner[::2], inner[1::2], strict=True))

    def __call__(self, x: Image) -> Image:
        x = jax.lax.reduce_window(self.first(x), -jnp.inf, jax.lax.max, (3, 3, 1), (2, 2, 1), "SAME")
        for one, two in self.blocks:
            x = x + two(jax.nn.relu(one(jax.nn.relu(x))))
        return x


class Impala(eqx.Module):
    r"""An encoder of images: three residual stacks of convolutions and a layer, unbatched.

    Pixels are divided by 255. Each stack halves the height and the width. A ReLU and one layer with GELU follow. With
    the default sizes it is `impala_small` of the published code; `blocks=2` is `impala`.

    Pass it as `encoder` to the networks of `nn`: `nn.ShortcutPolicy(512, 5, encoder=encoder, key=key)`.

    **Arguments:**

    - `shape`: the shape of one image, `(height, width, channels)`. Frame stacks and cameras add channels.
    - `channels`: the number of channels of each stack.
    - `blocks`: the number of residual blocks in each stack.
    - `width`: the length of the vector that it returns.
    - `key`: a JAX random key for the initial weights.

    **Returns:** when called with one uint8 image of this shape, a vector of shape `(width,)`.

    **Raises:** `ValueError` for a size below 1. A call raises `TypeError` or `ValueError` for anything but a uint8
    image of its shape.

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from shortcutrl import nn, rollout_k

        key = jax.random.key(0)
        encoder = nn.Impala((16, 16, 3), channels=(4, 4), width=32, key=key)
        policy = nn.ShortcutPolicy(32, 2, width=32, depth=2, encoder=encoder, key=key)
        action = rollout_k(policy, jnp.zeros((16, 16, 3), jnp.uint8), jnp.zeros(2), k=4)
        assert action.shape == (2,)
        ```

    Source: IMPALA ([arXiv 1802.01561](https://arxiv.org/abs/1802.01561)), with the sizes, the last layer and the
    initial weights of FQL's code ([arXiv 2502.02538](https://arxiv.org/abs/2502.02538)).
    """

    stacks: tuple[Stack, ...]
    last: Dense
    shape: tuple[int, ...] = eqx.field(static=True)

    @typed
    def __init__(
        self,
        shape: tuple[Integer, ...] | list[Integer],
        *,
        channels: tuple[Integer, ...] | list[Integer] = (16, 32, 32),
        blocks: Integer = 1,
        width: Integer = 512,
        key: PRNGKeyArray,
    ):
        if len(shape) != 3:
            raise ValueError(f"`shape` must be (height, width, channels), got {show(shape)}.")
        self.shape = tuple(_checks.as_size("shape", size, maximum=2**12) for size in shape)
        height, wide, inputs = self.shape
        sizes = [inputs, *(as_layer("channels", size) for size in channels)]
        last_key, *keys = jax.random.split(key, len(sizes))
        pairs = zip(itertools.pairwise(sizes), keys, strict=True)
        blocks, width = as_layer("blocks", blocks), as_layer("width", width)
        self.stacks = tuple(Stack(*pair, blocks=blocks, key=key) for pair, key in pairs)
        shrunk = [math.ceil(size / 2 ** len(self.stacks)) for size in (height, wide)]
        flat = math.prod(shrunk) * sizes[-1]
        self.last = Dense(flat, width, init=jax.nn.initializers.glorot_uniform(), key=last_key)

    @typed
    def __call__(self, image: Shaped[Array | np.ndarray, "height width channels"]) -> Float[Array, " features"]:
        if image.dtype != np.uint8:
            raise TypeError(f"`image` must be uint8, from 0 to 255, got {show(image)}. Keep images in uint8.")
        if image.shape != self.shape:
            raise ValueError(f"`image` must have shape {self.shape}, as the encoder was made for, got {image.shape}.")
        x = jnp.asarray(image, self.last.bias.dtype) / 255
        for stack in self.stacks:
            x = stack(x)
        return jax.nn.gelu(self.last(jax.nn.relu(x).reshape(-1)))
