"""Draws that are split over devices as their batch is."""

from typing import TypeVar

import jax
from jax.sharding import NamedSharding, PartitionSpec

from shortcutrl._types import Transition

T = TypeVar("T")


def split_like(batch: Transition, draws: T) -> T:
    """The draws, with their first axes sharded like the batch's.

    JAX's types name only the axes of a mesh that are `AxisType.Explicit`, the default of `jax.make_mesh`. It does not
    map a function over arrays that differ there. XLA splits over other axes by itself.
    """
    sharding = jax.typeof(batch.reward).sharding
    split = sharding.spec[0]
    if split is None:
        return draws
    like = lambda leaf: NamedSharding(sharding.mesh, PartitionSpec(split, *[None] * (leaf.ndim - 1)))
    return jax.tree.map(lambda leaf: jax.sharding.reshard(leaf, like(leaf)) if leaf.ndim else leaf, draws)
