"""Batches by index: successors, n-step returns, chunks and frame stacks, inside `jit`."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, PRNGKeyArray

from shortcutrl._checks import as_size, check_range, named_leaves
from shortcutrl._typed import show, typed
from shortcutrl._types import Integer, Number, Transition
from shortcutrl.data._arrays import as_stored, check_alike, check_array, check_leaves, check_rows, refuse
from shortcutrl.data._dataset import Dataset
from shortcutrl.data._index import is_start, look_ahead, rows_after, rows_from, stack, stack_after

MAX_BATCH = 2**20
"""A larger batch is a mistake that would exhaust the memory."""

MIN_DRAWS = 512
"""Rows that one round draws at least, so that a small batch also meets valid starts among many others."""


@typed
def sample(
    dataset: Dataset,
    key: PRNGKeyArray,
    *,
    batch_size: Integer,
    n_step: Integer = 1,
    chunk: Integer = 1,
    frame_stack: Integer = 1,
    discount: Number | None = None,
) -> Transition:
    r"""Draw a batch uniformly, with replacement: $\sum_{i<m} \gamma^i r_{t+i}$ and the observation $m$ steps later.

    A sample looks ahead $m$ = `n_step * chunk` steps, or fewer where a terminal state or the end of the episode comes
    first. It bootstraps from the last known successor. Pure, for use inside `jit`, `scan` and `vmap`.

    The draw is uniform over the valid starts. A row is not a valid start if its successor is unknown (see
    [`Dataset`][shortcutrl.data.Dataset]), or if the episode ends within the chunk without a terminal state. A chunk
    that reaches a terminal state is valid: rewards and `mask` end there, as they do where the chunk is carried out.

    **Arguments:**

    - `dataset`: a [`Dataset`][shortcutrl.data.Dataset] of JAX or NumPy arrays. Each call transfers NumPy arrays to
      the device, and may read them later: do not change them. `jax.device_put(dataset)` transfers them once.
    - `key`: a JAX random key.
    - `batch_size`: from 1 to 2^20. Static, like all the following.
    - `n_step`: the number of actions, or chunks, before the bootstrap. Values travel `n_step` times as far in one
      update. More than 1 is biased towards the behaviour policy.
    - `chunk`: H, the number of consecutive actions that become one. A policy of chunks carries out H actions for each
      decision: evaluate it in [`ChunkedActions`][shortcutrl.evaluate.ChunkedActions].
    - `frame_stack`: F, the number of observations that become one, concatenated on their last axis, oldest first. At
      the start of an episode the first observation is repeated. Give images without channels a last axis,
      `x[..., None]`, or their widths are concatenated.
    - `discount`: γ of the losses that use the batch, in [0, 1]. Required where `n_step * chunk` exceeds 1.

    **Returns:** a [`Transition`][shortcutrl.Transition] with a leading axis of `batch_size`.

    - `obs`, `next_obs`: in their own dtypes, with F times the last axis.
    - `action`: shape `(batch_size, H * action)`, in the order of time: beyond a terminal state, those of the rows that
      follow in the episode; beyond the end of the episode, its last action again.
    - `reward`: the discounted sum, in float32 or wider.
    - `mask`: $\gamma^{m-1}$ times the masks of the $m$ steps, so that losses still multiply by `discount * mask`.
    - `next_action`: the dataset's actions after the last step, like `action`. Beyond a terminal state or the end of the
      episode, its last action is repeated.

    If `dataset` is traced and has no valid start, `reward` is NaN.

    **Raises:** `TypeError` or `ValueError` for fields that are not arrays of real numbers or differ in length;
    `ValueError` for `n_step * chunk` or a `frame_stack` above the number of rows, a `chunk` without a valid start
    (where the values are known), and a stack of uint8 images without channels.

    !!! Example

        ```python
        import jax, numpy as np
        from shortcutrl import data

        dataset = data.from_arrays(
            observations=np.zeros((9, 3)), actions=np.zeros((9, 2)), rewards=np.ones(9), terminals=np.arange(9) == 8
        )
        batch = data.sample(dataset, jax.random.key(0), batch_size=4, n_step=3, frame_stack=2, discount=0.5)
        assert batch.obs.shape == (4, 6)
        assert batch.reward.max() == 1 + 0.5 + 0.25
        ```

    Source of chunks: Q-chunking ([arXiv 2507.07969](https://arxiv.org/abs/2507.07969)). Its code leaves out each
    chunk that the end of an episode cuts short, also where that is a terminal state.
    """
    batch_size = as_size("batch_size", batch_size, maximum=MAX_BATCH)
    n_step, chunk, frame_stack = as_size("n_step", n_step), as_size("chunk", chunk), as_size("frame_stack", frame_stack)
    if discount is not None:
        check_range("discount", discount, 0, 1)
    elif n_step * chunk > 1:
        raise ValueError(
            f"`discount` is required for n_step = {n_step} and chunk = {chunk}. Pass the discount of the losses."
        )
    _check_fields(dataset, frame_stack)
    _check_lengths(dataset, n_step, chunk, frame_stack)
    powers = float(1 if discount is None else discount) ** np.arange(n_step * chunk)
    return _sample(_on_device(dataset), key, powers, batch_size, chunk, frame_stack)


@partial(jax.jit, static_argnames=("batch_size", "chunk", "frame_stack"))
def _sample(dataset: Dataset, key: Array, powers: Array, batch_size: int, chunk: int, frame_stack: int) -> Transition:
    rows, found = _draw(dataset, key, batch_size, chunk)
    last, reward, mask = look_ahead(dataset, rows, powers)
    one = found.astype(reward.dtype)
    one = one / one  # NaN if no row is found; a constant NaN would stop `jax.debug_nans` without `jit`
    return Transition(
        obs=stack(dataset, rows, frame_stack),
        action=dataset.action[rows_from(dataset, rows, chunk)].reshape(batch_size, -1),
        reward=reward * one,
        mask=mask,
        next_obs=stack_after(dataset, last, frame_stack),
        next_action=dataset.action[rows_after(dataset, last, chunk)].reshape(batch_size, -1),
    )


def _draw(dataset: Dataset, key: Array, batch_size: int, chunk: int) -> tuple[Array, Array]:
    """Rows that are valid starts, uniform and independent, and whether there is one at all.

    Draws rows and keeps the valid ones in order, until the batch is full or every row has been drawn 32 times on
    average. In the second case those that were found are repeated.
    """
    size, draws = len(dataset.reward), max(2 * batch_size, MIN_DRAWS)

    def fill(state):
        round, count, rows = state
        drawn = jax.random.randint(jax.random.fold_in(key, round), (draws,), 0, size, jnp.int32)
        valid = is_start(dataset, drawn, chunk)
        place = jnp.where(valid, count + jnp.cumsum(valid, dtype=jnp.int32) - 1, batch_size)
        return round + 1, count + valid.sum(dtype=jnp.int32), rows.at[place].set(drawn, mode="drop")

    def unfilled(state):
        round, count, _ = state
        return (count < batch_size) & (round < 1 + 32 * size // draws)

    start = jnp.int32(0), jnp.int32(0), jnp.zeros(batch_size, jnp.int32)
    _, count, rows = jax.lax.while_loop(unfilled, fill, start)
    return rows[jnp.arange(batch_size) % jnp.clip(count, 1, batch_size)], count > 0


def _check_fields(dataset: Dataset, frame_stack: int) -> None:
    """The fields are arrays of real numbers with one length."""
    fields = {f"dataset.{name}": field for name, field in dataset._asdict().items()}
    if dataset.next_obs is None:
        del fields["dataset.next_obs"]
    for name, field in fields.items():
        if name.endswith("obs"):
            check_leaves(name, field)
            continue
        check_array(name, field)
        rank = 2 if name == "dataset.action" else 1
        if field.ndim != rank:
            shape = "(rows, action)" if rank == 2 else "(rows,)"
            raise ValueError(f"`{name}` must have shape {shape}, got {field.shape}. Use `data.from_arrays`.")
    check_rows(fields, "dataset.reward")
    if dataset.next_obs is not None:
        check_alike("dataset.next_obs", dataset.next_obs, "dataset.obs", dataset.obs)
    for name, leaf in named_leaves("dataset.obs", dataset.obs):
        if frame_stack > 1 and leaf.ndim < 2:
            raise ValueError(f"`frame_stack` needs an axis to concatenate on, got {show(leaf)} for `{name}`.")
        if frame_stack > 1 and leaf.dtype == np.uint8 and leaf.ndim == 3:
            raise ValueError(
                f"`{name}` looks like images without channels, got {show(leaf)}, which `frame_stack` would "
                "join on their width. Give images a last axis, `x[..., None]`, and anything else another dtype."
            )


def _on_device(dataset: Dataset) -> Dataset:
    """NumPy's arrays as JAX's, if their values fit."""
    named = named_leaves("dataset", dataset)
    leaves = [leaf if isinstance(leaf, jax.Array) else jnp.asarray(as_stored(name, leaf)) for name, leaf in named]
    return jax.tree.unflatten(jax.tree.structure(dataset), leaves)


def _check_lengths(dataset: Dataset, n_step: int, chunk: int, frame_stack: int) -> None:
    """There is a valid start, as far as the values are known, and no window is longer than the data."""
    longest, what = len(dataset.reward), "row(s) of the dataset"
    for name, length in {"frame_stack": frame_stack, "n_step * chunk": n_step * chunk}.items():
        if length > longest:
            raise ValueError(f"`{name}` must be at most {longest}, the {what}, got {length}.")
    if not isinstance(dataset.mask, Tracer) and not isinstance(dataset.episode_end, Tracer):
        longest, what = _longest(dataset), "transition(s) of the longest episode"
    if longest == 0:
        raise ValueError(
            "`dataset` has no transition with a known successor. Make it by `data.from_arrays`, or add steps to the "
            "replay buffer first."
        )
    if chunk > longest:
        raise ValueError(f"`chunk` must be at most {longest}, the {what}, got {chunk}.")


def _longest(dataset: Dataset) -> int:
    """The length of the longest chunk that has a valid start, on the host."""
    mask, end = np.asarray(dataset.mask), np.array(dataset.episode_end)
    refuse("dataset.mask", mask, ~((mask >= 0) & (mask <= 1)), "is not in [0, 1]")
    refuse("dataset.episode_end", end, (end != 0) & (end != 1), "is neither 0 nor 1")
    terminal, end[-1] = mask == 0, True
    if terminal.any():
        return len(mask)  # a terminal state ends a chunk of any length
    return int(np.diff(np.flatnonzero(end), prepend=-1).max()) - (dataset.next_obs is None)
