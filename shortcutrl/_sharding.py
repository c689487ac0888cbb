"""Give arrays that all devices share the sharding of others, or their type in `jax.shard_map`."""

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


def vary_like(made: Array, tree: T) -> T:
    """The same arrays, with the type of those that vary over the devices of `jax.shard_map` where `made` does.

    The carry of a scan, and parameters that branches of a switch differentiate, must have it. Only the type
    of `made` is used: under `jit`, the compiler removes it.
    """
    made = jax.lax.stop_gradient(jnp.ravel(made)[0])
    zero = jnp.where(made == made, 0, 0)
    return jax.tree.map(lambda leaf: leaf + zero.astype(leaf.dtype), tree)
