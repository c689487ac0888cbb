"""Arrays that are drawn without a batch, split over devices as the batch is."""

from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

T = TypeVar("T")


def split_like(array: Array, drawn: T) -> T:
    """The arrays in `drawn`, with their first axes sharded like that of `array`.

    `vmap` refuses arrays that differ there, if the axis of the mesh is `AxisType.Explicit`. Types name only such axes:
    over others, XLA splits by itself.
    """
    sharding = jax.typeof(array).sharding
    split = sharding.spec[0]
    if split is None:
        return drawn
    like = lambda leaf: NamedSharding(sharding.mesh, PartitionSpec(split, *[None] * (jnp.ndim(leaf) - 1)))
    return jax.tree.map(lambda leaf: jax.sharding.reshard(leaf, like(leaf)) if jnp.ndim(leaf) else leaf, drawn)
