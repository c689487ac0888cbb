"""Transitions on the device: checked once on the host, then drawn by key."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from shortcutrl._types import Transition


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
    fields = {name: np.asarray(values) for name, values in fields.items()}
    for name, values in fields.items():
        rank = 1 if name in ("reward", "mask") else 2
        if values.ndim != rank:
            raise ValueError(f"`{name}` must have {rank} dimensions, got shape {values.shape}.")
        if len(values) == 0:
            raise ValueError(f"`{name}` is empty: a dataset needs at least one transition.")
        if len(values) != len(fields["obs"]):
            raise ValueError(f"`{name}` has {len(values)} transitions but `obs` has {len(fields['obs'])}.")
        _refuse(name, values, ~np.isfinite(values), "is not finite")
    if fields["obs"].shape != fields["next_obs"].shape:
        raise ValueError(f"`obs` has shape {obs.shape} but `next_obs` has shape {next_obs.shape}.")
    low, high = action_range
    out_of_range = (fields["action"] < low) | (fields["action"] > high)
    _refuse(
        "action", fields["action"], out_of_range, f"lies outside [{low}, {high}]; rescale it or pass `action_range`"
    )
    _refuse("mask", fields["mask"], ~np.isin(fields["mask"], (0, 1)), "is neither 0 nor 1")
    return Transition(**{name: jnp.asarray(values, jnp.float32) for name, values in fields.items()})


def sample(dataset: Transition, key: PRNGKeyArray, *, batch_size: int) -> Transition:
    """Draw a batch uniformly, with replacement: pure, for use inside `jit` and `scan`.

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
    index = jax.random.randint(key, (batch_size,), 0, len(dataset.action))
    return jax.tree.map(lambda x: x[index], dataset)


def _refuse(name: str, values: np.ndarray, bad: np.ndarray, why: str) -> None:
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        where = ", ".join(map(str, index))
        raise ValueError(f"`{name}[{where}]` = {values[index]} {why} ({bad.sum()} such values of {bad.size}).")
