"""Augmentation of images: random crops, inside `jit`."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from shortcutrl._checks import as_size, check_leading_axis, check_range, named_leaves
from shortcutrl._sharding import split_like
from shortcutrl._typed import show, typed
from shortcutrl._types import Integer, ScalarLike, Transition
from shortcutrl.data._arrays import check_alike, check_leaves

MAX_PADDING = 2**12


@typed
def random_crop(
    batch: Transition, key: PRNGKeyArray, *, padding: Integer = 3, probability: ScalarLike = 0.5
) -> Transition:
    r"""Move the images of a batch by a few pixels: pixel $(i, j)$ becomes pixel $(i + u, j + v)$, or the nearest one.

    This is a crop at random of the image padded by its edge. Each transition draws one $(u, v)$, uniform on the
    integers from -`padding` to `padding`. All its images share it: those of `obs` and of `next_obs`, all frames of a
    stack and all cameras. The published code crops a whole batch or none of it, with probability 0.5.

    **Arguments:**

    - `batch`: from [`sample`][shortcutrl.data.sample]. The arrays of its observations with four axes are images,
      `(batch, height, width, channels)`, of any dtype; the others stay as they are. Give images without channels a last
      axis, `x[..., None]`, and a sequence of matrices three axes, `x.reshape(len(x), length, -1)`.
    - `key`: a JAX random key.
    - `padding`: the largest move in pixels, from 1 to 4096. Static.
    - `probability`: that the batch is cropped, in [0, 1].

    **Returns:** the batch, in its own dtypes.

    **Raises:** `ValueError` for a `batch` without images or with uint8 arrays of three, five or more axes, a `padding`
    below 1 or a `probability` outside [0, 1].

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from shortcutrl import Transition, data

        image = jnp.arange(2 * 8 * 8 * 3, dtype=jnp.uint8).reshape(2, 8, 8, 3)
        batch = Transition(image, jnp.ones((2, 1)), jnp.ones(2), jnp.ones(2), image)
        cropped = data.random_crop(batch, jax.random.key(0), padding=3, probability=1.0)
        assert cropped.obs.shape == image.shape and (cropped.obs == cropped.next_obs).all()
        ```

    Source: the augmentation of OGBench and of FQL's code ([arXiv 2502.02538](https://arxiv.org/abs/2502.02538)).
    """
    padding = as_size("padding", padding, maximum=MAX_PADDING)
    check_range("probability", probability, 0, 1)
    size = check_leading_axis("batch", batch)
    check_leaves("batch.next_obs", batch.next_obs)
    check_alike("batch.next_obs", batch.next_obs, "batch.obs", batch.obs)
    for name, leaf in named_leaves("batch.obs", batch.obs):
        if leaf.dtype == jnp.uint8 and leaf.ndim > 2 and not _is_image(leaf):
            raise ValueError(
                f"`{name}` looks like images but has {leaf.ndim} axes, got {show(leaf)}. Give images the "
                "shape (batch, height, width, channels), such as `x[..., None]`, and anything else another dtype."
            )
    observations = batch.obs, batch.next_obs
    if not any(map(_is_image, jax.tree.leaves(observations))):
        raise ValueError(
            "`batch` has no images: its observations need an array of shape (batch, height, width, channels), got "
            f"{jax.tree.map(jnp.shape, batch.obs)}."
        )
    crop_key, move_key = jax.random.split(key)
    move = jax.random.randint(move_key, (size, 2), -padding, padding + 1)
    move = jnp.where(jax.random.uniform(crop_key) < probability, move, 0)
    crop = lambda leaf: jax.vmap(_moved)(leaf, split_like(leaf, move)) if _is_image(leaf) else leaf
    obs, next_obs = jax.tree.map(crop, observations)
    return batch._replace(obs=obs, next_obs=next_obs)


def _is_image(leaf: Any) -> bool:
    return jnp.ndim(leaf) == 4


def _moved(image: Array, move: Array) -> Array:
    """Pixels beyond the edge are those of the edge."""
    rows, columns = (jnp.clip(jnp.arange(size) + m, 0, size - 1) for size, m in zip(image.shape[:2], move, strict=True))
    return jnp.asarray(image)[rows[:, None], columns[None]]
