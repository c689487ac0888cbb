"""Steps, successors and frame stacks of a batch of rows, by index. Every window ends with its episode."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from shortcutrl._types import Obs
from shortcutrl.data._dataset import Dataset

MAX_ELEMENTS = 2**24
"""Elements that the windows of a whole batch may hold. Above, the rows are visited one by one."""


def is_start(dataset: Dataset, rows: Array, steps: int) -> Array:
    """Whether `steps` steps with a known successor follow each row, or fewer that lead to a terminal state."""

    def one(row):
        end, terminal = _flags(dataset, row, steps)
        count = _count(end, terminal, dataset.next_obs is not None)
        return (count >= steps) | ((count > 0) & terminal[count - 1])

    return _each(one, rows, steps)


def rows_from(dataset: Dataset, rows: Array, steps: int) -> Array:
    """The `steps` rows from each row on; the last one of the episode is repeated where it is too short."""
    one = lambda row: row + jnp.minimum(jnp.arange(steps), _first(_flags(dataset, row, steps)[0]))
    return _each(one, rows, steps)


def look_ahead(dataset: Dataset, rows: Array, powers: Array) -> tuple[Array, Array, Array]:
    """The last row of the steps from each row, their discounted reward, and the discount that remains.

    `powers` are those of the discount, from 0 on: one for each step.
    """
    dtype = jnp.promote_types(jnp.promote_types(dataset.reward.dtype, dataset.mask.dtype), jnp.float32)
    steps, powers = len(powers), jnp.asarray(powers, dtype)

    def one(row):
        window = _window(dataset, row, steps)
        count = _count(*_flags(dataset, row, steps), dataset.next_obs is not None)
        taken = jnp.arange(steps) < count
        masks = jnp.cumprod(jnp.where(taken, dataset.mask[window].astype(dtype), 1))
        weights = powers * jnp.concatenate([jnp.ones(1, dtype), masks[:-1]])
        reward = jnp.where(taken, weights * dataset.reward[window].astype(dtype), 0).sum()
        return row + count - 1, reward, powers[count - 1] * masks[-1]

    return _each(one, rows, steps)


def rows_after(dataset: Dataset, rows: Array, steps: int) -> Array:
    """The `steps` rows after each row; the last one of the episode is repeated where it is too short."""

    def one(row):
        end, terminal = _flags(dataset, row, steps)
        return row + jnp.minimum(1 + jnp.arange(steps), _first(end | terminal))

    return _each(one, rows, steps)


def stack(dataset: Dataset, rows: Array, frames: int) -> Obs:
    """The last `frames` observations up to each row, as one."""
    index = _history(dataset, rows, frames)
    return jax.tree.map(lambda leaf: _join(leaf[index]), dataset.obs)


def stack_after(dataset: Dataset, rows: Array, frames: int) -> Obs:
    """The last `frames` observations up to the successor of each row, as one."""
    if dataset.next_obs is None:
        return stack(dataset, rows + (~_is_end(dataset, rows)).astype(rows.dtype), frames)
    index = _history(dataset, rows, frames - 1)
    return jax.tree.map(
        lambda leaf, after: _join(jnp.concatenate([leaf[index], after[rows][:, None]], axis=1)),
        dataset.obs,
        dataset.next_obs,
    )


def _history(dataset: Dataset, rows: Array, frames: int) -> Array:
    """The rows of the last `frames` observations, shape `(batch, frames)`; the first of the episode is repeated."""

    def one(row):
        before = row - jnp.arange(1, frames)
        known = _first(_is_end(dataset, before) | (before < 0))
        return row - jnp.minimum(jnp.arange(frames)[::-1], known)

    return jax.vmap(one)(rows)


def _join(leaf: Array) -> Array:
    """Frames on axis 1 as one observation, concatenated on the last axis."""
    if leaf.shape[1] == 1:
        return leaf[:, 0]
    leaf = jnp.moveaxis(leaf, 1, -2)
    return leaf.reshape(*leaf.shape[:-2], -1)


def _count(end: Array, terminal: Array, known: bool) -> Array:
    """The steps of a window up to its first end, without that step if its successor is unknown."""
    first = _first(end | terminal)
    unknown = False if known else jnp.any((jnp.arange(len(end)) == first) & ~terminal)
    return jnp.minimum(first + 1 - jnp.asarray(unknown, first.dtype), len(end))


def _flags(dataset: Dataset, row: Array, steps: int) -> tuple[Array, Array]:
    """Whether each step from `row` on is the last of its episode, and whether it leads to a terminal state."""
    window = _window(dataset, row, steps)
    return _is_end(dataset, window), dataset.mask[window] == 0


def _window(dataset: Dataset, row: Array, steps: int) -> Array:
    return jnp.minimum(row + jnp.arange(steps), len(dataset.reward) - 1)


def _is_end(dataset: Dataset, rows: Array) -> Array:
    return dataset.episode_end[rows].astype(bool) | (rows == len(dataset.reward) - 1)


def _first(flags: Array) -> Array:
    """The index of the first flag that is set, or the number of flags."""
    return jnp.min(jnp.where(flags, jnp.arange(len(flags)), len(flags)), initial=len(flags))


def _each(function: Callable[[Array], Any], rows: Array, steps: int) -> Any:
    """`function` of each row: all at once, or one by one where their windows would not fit into memory."""
    return jax.vmap(function)(rows) if len(rows) * steps <= MAX_ELEMENTS else jax.lax.map(function, rows)
