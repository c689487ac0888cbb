"""Transitions on the device: checked once on the host, then drawn by key."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PRNGKeyArray

from shortcutrl import _checks
from shortcutrl._types import Number, Transition, typed


def transitions(
    *,
    obs: np.ndarray,
    action: np.ndarray,
    reward: np.ndarray,
    mask: np.ndarray,
    next_obs: np.ndarray,
    action_range: tuple[float, float] = (-1.0, 1.0),
) -> Transition:
    """Check a dataset's values once, on the host, and put it on the device as float32.

    **Arguments:**

    - `obs`, `next_obs`: shape `(size, obs)`.
    - `action`: shape `(size, action)`, within `action_range`.
    - `reward`: shape `(size,)`.
    - `mask`: shape `(size,)`; 0 where the episode ended in a terminal state, else 1.
    - `action_range`: `(low, high)`.

    **Returns:** a [`Transition`][shortcutrl.Transition] with one leading axis.

    **Raises:** `ValueError` that names the field and its first bad index: not finite, an action out of range, a mask
    other than 0 and 1, lengths that differ, nothing at all.

    !!! Example

        ```python
        import numpy as np
        from shortcutrl import data

        zeros = np.zeros((10, 3))
        dataset = data.transitions(
            obs=zeros, action=np.ones((10, 2)), reward=np.ones(10), mask=np.ones(10), next_obs=zeros
        )
        assert dataset.action.shape == (10, 2)
        ```
    """
    fields = {"obs": obs, "action": action, "reward": reward, "mask": mask, "next_obs": next_obs}
    fields = {name: _float32(name, values) for name, values in fields.items()}
    for name, values in fields.items():
        rank = 1 if name in ("reward", "mask") else 2
        if values.ndim != rank:
            remedy = ": `squeeze(-1)` a column" if rank == 1 else ""
            raise ValueError(f"`{name}` must have {rank} dimensions, got shape {values.shape}{remedy}.")
        if len(values) == 0:
            raise ValueError(f"`{name}` is empty: a dataset needs at least one transition.")
        if len(values) != len(fields["obs"]):
            raise ValueError(f"`{name}` has {len(values)} transitions but `obs` has {len(fields['obs'])}.")
        _refuse(name, values, ~np.isfinite(values), "is not finite")
    if fields["obs"].shape != fields["next_obs"].shape:
        raise ValueError(f"`obs` has shape {fields['obs'].shape} but `next_obs` has shape {fields['next_obs'].shape}.")
    low, high = action_range
    if not low < high:
        raise ValueError(f"`action_range` must be (low, high) with low < high, got {action_range}.")
    out_of_range = (fields["action"] < np.float32(low)) | (fields["action"] > np.float32(high))
    _refuse(
        "action", fields["action"], out_of_range, f"lies outside [{low}, {high}]; rescale it or pass `action_range`"
    )
    _refuse("mask", fields["mask"], ~np.isin(fields["mask"], (0, 1)), "is neither 0 nor 1")
    return Transition(**{name: jnp.asarray(values) for name, values in fields.items()})


@typed
def n_step(
    dataset: Transition, episode_end: Bool[Array | np.ndarray, " size"], *, n: int, discount: Number
) -> Transition:
    r"""Look `n` steps ahead: $r_t + \gamma r_{t+1} + \dots + \gamma^{n-1} r_{t+n-1}$, then Q at $s_{t+n}$.

    Values travel `n` times as far in one TD update. Exact where the data's actions are the policy's own, biased towards
    the data's behaviour elsewhere. The sum ends early at a terminal state and at the end of the data's episode, whose
    last state is then bootstrapped from; the further discounting travels in `mask`, so the losses need not know of `n`.

    **Arguments:**

    - `dataset`: transitions in the order in which they happened, episode after episode.
    - `episode_end`: whether each is the last of its episode in the data.
    - `n`: at least 1; 1 changes nothing. Static.
    - `discount`: the discount that the dataset will be used with, in [0, 1].

    **Returns:** a dataset of the same size with `reward`, `mask` and `next_obs` replaced.

    !!! Example

        ```python
        import jax.numpy as jnp
        from shortcutrl import Transition, data

        ones, time = jnp.ones(3), jnp.arange(3.0)[:, None]
        episode = Transition(time, time, ones, ones, time + 1)
        ahead = data.n_step(episode, jnp.array([False, False, True]), n=2, discount=0.5)
        assert ahead.reward.tolist() == [1.5, 1.5, 1.0]
        assert ahead.next_obs.tolist() == [[2.0], [3.0], [3.0]]
        assert ahead.mask.tolist() == [0.5, 0.5, 1.0]
        ```
    """
    if n < 1:
        raise ValueError(f"`n` must be at least 1, got {n}.")
    _checks.unit_interval("discount", discount)
    size = _checks.leading_axis("dataset", dataset)
    if len(episode_end) != size:
        raise ValueError(f"`episode_end` has {len(episode_end)} entries but `dataset` has {size}.")
    if jnp.ndim(dataset.reward) != 1:
        raise ValueError(
            f"`dataset.reward` must have one dimension, got {jnp.shape(dataset.reward)}: use `jax.vmap` over tasks."
        )
    index = jnp.arange(size)
    last = jax.lax.cummin(jnp.where(jnp.asarray(episode_end), index, len(index) - 1), reverse=True)
    reward, mask, final = jnp.asarray(dataset.reward), jnp.asarray(dataset.mask), index
    for ahead in range(1, n):
        inside = index + ahead <= last
        final = jnp.where(inside, index + ahead, final)
        weight = jnp.where(inside, discount * mask, 0)
        reward = reward + weight * dataset.reward[final]
        mask = jnp.where(inside, weight * dataset.mask[final], mask)
    next_obs = jax.tree.map(lambda x: x[final], dataset.next_obs)
    return dataset._replace(reward=reward, mask=mask, next_obs=next_obs)


@typed
def chunk(
    dataset: Transition, episode_end: Bool[Array | np.ndarray, " size"], *, length: int, discount: Number
) -> Transition:
    r"""Make `length` consecutive actions one action: $(a_t, \dots, a_{t+H-1})$, carried out before the next decision.

    A policy of such chunks commits to what the data did over several steps, and its TD targets look `length` steps
    ahead, like those of [`n_step`][shortcutrl.data.n_step], but of a critic that sees all the actions in between: exact
    where the dynamics are deterministic, biased where the data's later actions answered to chance. Evaluate
    it in an environment wrapped in [`ChunkedActions`][shortcutrl.evaluate.ChunkedActions].

    **Arguments:**

    - `dataset`, `episode_end`, `discount`: as in [`n_step`][shortcutrl.data.n_step].
    - `length`: H, at least 1; 1 changes nothing.

    **Returns:** the dataset with actions of shape `(length * action,)`, in the order of time, and reward, mask and next
    observation `length` steps ahead; without the starts from which the data's episode is too short.

    **Raises:** `ValueError` for a `length` below 1, or if no episode is that long.

    !!! Example

        ```python
        import jax.numpy as jnp
        from shortcutrl import Transition, data

        ones, time = jnp.ones(3), jnp.arange(3.0)[:, None]
        episode = Transition(time, time, ones, ones, time + 1)
        chunks = data.chunk(episode, jnp.array([False, False, True]), length=2, discount=0.5)
        assert chunks.action.tolist() == [[0.0, 1.0], [1.0, 2.0]]
        assert chunks.next_obs.tolist() == [[2.0], [3.0]]
        ```

    Source: Q-chunking ([arXiv 2507.07969](https://arxiv.org/abs/2507.07969)).
    """
    if length < 1:
        raise ValueError(f"`length` must be at least 1, got {length}.")
    ahead = n_step(dataset, episode_end, n=length, discount=discount)
    ends = np.flatnonzero(np.append(np.asarray(episode_end)[:-1], True))
    index = np.arange(len(dataset.action))
    starts = index[index + length - 1 <= ends[np.searchsorted(ends, index)]]
    if len(starts) == 0:
        raise ValueError(f"`length` must be at most the length of the longest episode, got {length}.")
    action = jnp.concatenate([dataset.action[starts + i] for i in range(length)], axis=-1)
    return jax.tree.map(lambda x: x[starts], ahead)._replace(action=action)


@typed
def sample(dataset: Transition, key: PRNGKeyArray, *, batch_size: int) -> Transition:
    """Draw a batch uniformly, with replacement: pure, for use inside `jit` and `scan`.

    **Arguments:**

    - `dataset`: transitions with one leading axis.
    - `key`: a JAX random key.
    - `batch_size`: at least 1. Static.

    **Returns:** as many transitions, with one leading axis.

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from shortcutrl import Transition, data

        dataset = Transition(jnp.ones((9, 3)), jnp.ones((9, 2)), jnp.ones(9), jnp.ones(9), jnp.ones((9, 3)))
        batch = data.sample(dataset, jax.random.key(0), batch_size=4)
        assert batch.reward.shape == (4,)
        ```
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
    index = jax.random.randint(key, (batch_size,), 0, _checks.leading_axis("dataset", dataset))
    return jax.tree.map(lambda x: x[index], dataset)


def _float32(name: str, values) -> np.ndarray:
    try:
        with np.errstate(over="ignore"):  # what overflows is infinite, which is refused
            return np.asarray(values, np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`{name}` must be an array of numbers, got {type(values).__name__}: {error}. For observations that are "
            "no vectors, build the `Transition` yourself."
        ) from error


def _refuse(name: str, values: np.ndarray, bad: np.ndarray, why: str) -> None:
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        where = ", ".join(map(str, index))
        raise ValueError(f"`{name}[{where}]` = {values[index]} {why} ({bad.sum()} such values of {bad.size}).")
