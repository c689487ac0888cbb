"""A replay buffer: a dataset of fixed size that grows by one environment step at a time."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int, Shaped

from shortcutrl._checks import as_scalar, as_size, check_numbers, named_leaves
from shortcutrl._typed import show, typed
from shortcutrl._types import ActionLike, Integer, Number, Obs
from shortcutrl.data._arrays import as_finite, as_host_array, as_stored, check_leaves
from shortcutrl.data._dataset import Dataset


class Replay(NamedTuple):
    """The last environment steps, as a dataset for [`data.sample`][shortcutrl.data.sample].

    Each observation is stored once. The row after the newest step holds its successor, as the end of an episode, until
    the next step takes that row. So stored steps can be sampled at any time, also in the middle of an episode. The
    exception is a step in the last row that does not end in a terminal state. Frame stacks do not reach back beyond the
    first row or the oldest step: as at the start of an episode, they repeat the first observation.

    Empty rows are not sampled. [`data.sample`][shortcutrl.data.sample] draws rows until enough are valid, so a batch
    takes longer while few rows are filled.

    - `dataset`: a [`Dataset`][shortcutrl.data.Dataset] with one row for each step and one more for each episode.
    - `row`: where the next step is stored, an integer.
    """

    dataset: Dataset
    row: Int[Array, ""]


@typed
def empty_replay(example: Dataset, *, capacity: Integer) -> Replay:
    """Make a replay buffer without steps.

    **Arguments:**

    - `example`: a dataset with observations and actions of the same shapes and dtypes, such as the offline one.
    - `capacity`: the number of rows, at least 3. When they are full, each step replaces the oldest one.

    **Returns:** a [`Replay`][shortcutrl.data.Replay] of JAX arrays.

    **Raises:** `ValueError` for a `capacity` below 3.

    !!! Example

        ```python
        import jax, numpy as np
        from shortcutrl import data

        obs, action = np.zeros((10, 3), np.float32), np.zeros((10, 2), np.float32)
        offline = data.from_arrays(observations=obs, actions=action, rewards=obs[:, 0], terminals=obs[:, 0])
        replay = data.empty_replay(offline, capacity=1000)
        add_step = jax.jit(data.add_step, donate_argnums=0)
        replay = add_step(replay, np.ones(3), np.ones(2), 1.0, np.ones(3), terminated=False, truncated=False)
        batch = data.sample(replay.dataset, jax.random.key(0), batch_size=4)
        assert (batch.next_obs == 1).all()
        ```
    """
    capacity = as_size("capacity", capacity, 3)
    check_leaves("example.obs", example.obs)
    rows = lambda leaf: jnp.zeros((capacity, *leaf.shape[1:]), jax.dtypes.canonicalize_dtype(leaf.dtype))
    reward = jnp.zeros(capacity, jnp.float32)
    dataset = Dataset(
        jax.tree.map(rows, example.obs), rows(example.action), reward, reward + 1, jnp.ones(capacity, bool)
    )
    return Replay(dataset, jnp.int32(0))


@typed
def add_step(
    replay: Replay,
    obs: Obs,
    action: ActionLike,
    reward: Number | Shaped[Array | np.ndarray, ""],
    next_obs: Obs,
    *,
    terminated: bool | np.bool_ | Number | Shaped[Array | np.ndarray, ""],
    truncated: bool | np.bool_ | Number | Shaped[Array | np.ndarray, ""],
) -> Replay:
    """Add one environment step, in the place of the oldest one if the buffer is full.

    Add the steps of one environment in their order; several environments need a buffer each. If you reset it in the
    middle of an episode, the last step before needs `truncated=True`, or the two episodes become one. Store what the
    dataset stores: for example normalized observations, single frames, and the actions of single steps.

    Pure. Outside of `jit` each call copies the buffer, so use `jax.jit(data.add_step, donate_argnums=0)`.

    **Arguments:**

    - `replay`: from [`empty_replay`][shortcutrl.data.empty_replay] or the previous step.
    - `obs`, `next_obs`: the observations before and after the step, like one of the dataset.
    - `action`: in the range of the policy, shape `(action,)`.
    - `reward`: a scalar.
    - `terminated`: whether the step ends in a terminal state, which has no value: its mask is 0. A bool or a number.
    - `truncated`: whether the episode ends for another reason. A bool or a number.

    **Returns:** the [`Replay`][shortcutrl.data.Replay] with the step.

    **Raises:** `ValueError` for an observation or an action that is not like those of the buffer. Outside of `jit`,
    also for values of NumPy, and a reward, that are not finite or that the buffer's dtype cannot hold.

    !!! Example

        ```python
        import jax, numpy as np
        from shortcutrl import data

        obs, action = np.zeros((10, 3), np.float32), np.zeros((10, 2), np.float32)
        offline = data.from_arrays(observations=obs, actions=action, rewards=obs[:, 0], terminals=obs[:, 0])
        replay = data.empty_replay(offline, capacity=1000)
        replay = data.add_step(replay, obs[0], action[0], 1.0, obs[1], terminated=True, truncated=False)
        assert replay.dataset.mask[0] == 0
        ```
    """
    dataset, row = jax.tree.map(jnp.asarray, replay)
    after = (row + 1) % len(dataset.reward)
    _check_like("obs", obs, dataset.obs)
    _check_like("next_obs", next_obs, dataset.obs)
    _check_like("action", action, dataset.action)
    if not isinstance(reward, Tracer):
        as_finite("reward", as_host_array("reward", np.asarray(reward)), dataset.reward.dtype)
    put = lambda field, row, value: field.at[row].set(jnp.asarray(value).astype(field.dtype))
    observations = jax.tree.map(
        lambda field, before, then: put(put(field, row, before), after, then), dataset.obs, obs, next_obs
    )
    ended = jnp.logical_or(terminated, truncated).astype(row.dtype)
    dataset = Dataset(
        observations,
        put(put(dataset.action, row, action), after, action),  # the last action of an episode is repeated
        put(dataset.reward, row, as_scalar("reward", reward, dataset.reward.dtype)),
        put(put(dataset.mask, row, jnp.logical_not(terminated)), after, 1),
        put(put(dataset.episode_end, row, False), after, True),
    )
    return Replay(dataset, (row + 1 + ended) % len(dataset.reward))


def _check_like(name: str, value: Any, field: Any) -> None:
    """`value` can be stored as a row of `field`."""
    check_numbers(name, value)
    shapes = [jax.tree.map(jnp.shape, value), jax.tree.map(lambda leaf: leaf.shape[1:], field)]
    if shapes[0] != shapes[1] or jax.tree.structure(value) != jax.tree.structure(field):
        raise ValueError(f"`{name}` must have shape {shapes[1]}, as in the buffer, got {shapes[0]}.")
    for (path, leaf), like in zip(named_leaves(name, value), jax.tree.leaves(field), strict=True):
        floating = jnp.issubdtype(like.dtype, jnp.floating)
        if isinstance(leaf, np.ndarray | np.generic):
            leaf = as_finite(path, np.asarray(leaf), like.dtype) if floating else as_stored(path, np.asarray(leaf))
        if not floating and not np.can_cast(jnp.result_type(leaf), like.dtype):
            raise ValueError(f"`{path}` must be {like.dtype}, as in the buffer, got {show(leaf)}. Convert it.")
