"""A dataset: transitions in the order in which they happened, with each observation stored once."""

import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Shaped

from shortcutrl._checks import named_leaves
from shortcutrl._typed import show, typed
from shortcutrl._types import Limit, Obs
from shortcutrl.data._arrays import (
    as_flags,
    as_float32,
    as_stored,
    check_alike,
    check_leaves,
    check_rows,
    copied,
    refuse,
)
from shortcutrl.data._scale import ActionScale, as_bounds, in_words

SMALL = 0.2
"""Actions that nowhere reach this size are probably in units of their own."""


class Dataset(NamedTuple):
    """Steps in the order in which they happened, one a row. A pytree of arrays with one leading axis.

    The successor of a row is the next row, unless `next_obs` is given. The last row of an episode that did not end in a
    terminal state has no known successor without `next_obs`. Such a row is never the start of a sample: it only serves
    as the successor of the row before.

    - `obs`: any pytree of arrays, each of shape `(rows, ...)`.
    - `action`: shape `(rows, action)`.
    - `reward`: shape `(rows,)`.
    - `mask`: shape `(rows,)`; 0 where the step ended in a terminal state, else 1.
    - `episode_end`: shape `(rows,)`; whether the row is the last of its episode. The last row always is.
    - `next_obs`: like `obs`, the observation after each step, or `None`.
    """

    obs: Obs
    action: Shaped[Array | np.ndarray, "rows action"]
    reward: Shaped[Array | np.ndarray, " rows"]
    mask: Shaped[Array | np.ndarray, " rows"]
    episode_end: Shaped[Array | np.ndarray, " rows"]
    next_obs: Obs | None = None


@typed
def from_arrays(
    *,
    observations: Obs,
    actions: Any,
    rewards: Any,
    terminals: Any = None,
    timeouts: Any = None,
    terminations: Any = None,
    truncations: Any = None,
    next_observations: Obs | None = None,
    action_range: tuple[Limit, Limit] | list[Any] = (-1.0, 1.0),
    rescale: bool | None = None,
    **ignored: Any,
) -> Dataset:
    """Check arrays once, on the host, and make a [`Dataset`][shortcutrl.data.Dataset] of copies on the device.

    Takes the names of D4RL, so that `from_arrays(**env.get_dataset())` works, and those of Minari and Gymnasium.
    Actions and rewards become float32. Observations keep their dtype, such as uint8, except that float64 becomes
    float32.

    **Arguments:**

    - `observations`: any pytree of arrays of shape `(rows, ...)`.
    - `actions`: shape `(rows, action)`, within `action_range`.
    - `rewards`: shape `(rows,)`.
    - `terminals` or `terminations`: shape `(rows,)`; 1 where the step ended in a terminal state, else 0.
    - `timeouts` or `truncations`: shape `(rows,)`; 1 where the episode ended for another reason, else 0. Without them,
      an episode ends at a terminal state and wherever `next_observations`, if given, are not those of the next row. A
      warning says so if most rows are such ends, or if there are such rows, but all timeouts are 0. For rows that are
      single steps, pass ones.
    - `next_observations`: like `observations`, the observation after each step. If they are `None`, the observation
      after a step is that of the next row, and a row that ends an episode by a timeout is never sampled.
    - `action_range`: `(low, high)`, two numbers, or two arrays, lists or tuples of shape `(action,)`.
    - `rescale`: whether to map the actions from `action_range` to [-1, 1], by
      [`ActionScale`][shortcutrl.data.ActionScale]. By default not, with a warning if actions lie outside [-1, 1], the
      default `clip` of the algorithms, or if all are smaller than 0.2: policies would not reach them, or learn them
      slowly. `True` gives a warning if they use less than a fifth of `action_range`, and `False` none.
    - `ignored`: D4RL's `infos/...` and `metadata/...`. Other names are refused.

    **Returns:** the [`Dataset`][shortcutrl.data.Dataset]. A warning says so if images seem to have channels first.

    **Raises:** `TypeError` for anything that is not an array of real numbers; `ValueError` for bad values. The error
    names the array, such as `observations['camera']`, the first bad index, the value and the number of such values.

    !!! Example

        ```python
        import numpy as np
        from shortcutrl import data

        dataset = data.from_arrays(
            observations={"camera": np.zeros((10, 8, 8, 3), np.uint8), "joints": np.zeros((10, 3))},
            actions=np.full((10, 2), 2.0),
            rewards=np.ones(10),
            terminals=np.arange(10) == 4,
            action_range=(-2.0, 2.0),
            rescale=True,
        )
        assert dataset.obs["camera"].dtype == np.uint8
        assert dataset.action.max() == 1
        assert dataset.episode_end.sum() == 2
        ```
    """
    if unknown := [name for name in ignored if not name.startswith(("infos/", "metadata/"))]:
        raise TypeError(
            f"`{unknown[0]}` is not an argument of `from_arrays`. Leave it out, or rename it: ends of episodes are "
            "`terminals` and `timeouts`."
        )
    terminals = _either("terminals", terminals, "terminations", terminations, required=True)
    timeouts = _either("timeouts", timeouts, "truncations", truncations, required=False)
    reward = as_float32("rewards", rewards, rank=1)
    action = as_float32("actions", actions, rank=2)
    obs = _observations("observations", observations)
    next_obs = None if next_observations is None else _observations("next_observations", next_observations)
    flags = {name: as_flags(name, value) for name, value in (terminals | timeouts).items()}
    check_rows({"observations": obs, "actions": action, "rewards": reward, **flags}, "rewards")
    if next_obs is not None:
        check_alike("next_observations", next_obs, "observations", obs)
    terminal, *timeout = flags.values()
    end = terminal.copy()
    known = bool(timeout) and timeout[0].any()
    breaks = np.zeros_like(end) if next_obs is None or known else _breaks(obs, next_obs)
    end |= timeout[0] if timeout else breaks
    end[-1] = True
    if next_obs is None and not (terminal | ~end).any():
        raise ValueError(
            f"`observations`: no successor is known, because each of the {len(end)} rows ends an episode without a "
            "terminal state. Pass `next_observations`."
        )
    action = _in_range(action, action_range, rescale)
    broken = 0 if timeout else (breaks & ~terminal)[:-1].sum()
    for doubt in _doubts(obs, action, rescale, joined=(breaks & ~end).sum(), broken=broken):
        warnings.warn(doubt, stacklevel=5)  # the caller of the function that `typed` wraps
    return jax.tree.map(copied, Dataset(obs, action, reward, (~terminal).astype(np.float32), end, next_obs))


def _either(name: str, value: Any, other: str, other_value: Any, *, required: bool) -> dict[str, Any]:
    given = {n: v for n, v in ((name, value), (other, other_value)) if v is not None}
    if len(given) == 2 or (required and not given):
        count = "one" if required else "at most one"
        raise ValueError(f"Pass {count} of `{name}` and `{other}`, got {'both' if given else 'neither'}.")
    return given


def _observations(name: str, tree: Obs) -> Obs:
    check_leaves(name, tree)
    return jax.tree.unflatten(jax.tree.structure(tree), [as_stored(*leaf) for leaf in named_leaves(name, tree)])


def _breaks(obs: Obs, next_obs: Obs) -> np.ndarray:
    """Whether the observation after each row differs from that of the next row."""
    pairs = zip(jax.tree.leaves(obs), jax.tree.leaves(next_obs), strict=True)
    differ = [(new[:-1] != old[1:]).any(axis=tuple(range(1, old.ndim))) for old, new in pairs]
    return np.append(np.any(differ, axis=0), True)


def _in_range(action: np.ndarray, action_range: Any, rescale: bool | None) -> np.ndarray:
    if len(action_range) != 2:
        raise ValueError(f"`action_range` must be (low, high), got {show(action_range)}.")
    low, high = as_bounds("`action_range`", *action_range)
    if low.shape not in ((), action.shape[1:]):
        raise ValueError(f"`action_range` has bounds of shape {low.shape} but `actions` has shape {action.shape}.")
    why = f"lies outside `action_range`, {in_words(low)} to {in_words(high)}"
    remedy = " Pass `action_range=(low, high)`, and `rescale=True` to train in [-1, 1]."
    refuse("actions", action, (action < low) | (action > high), why, remedy)
    if rescale:
        return np.asarray(ActionScale(low, high).to_unit(action))
    return action


def _doubts(obs: Obs, action: np.ndarray, rescale: bool | None, *, joined: int, broken: int) -> Iterator[str]:
    """What is probably a mistake.

    `joined` rows without an end have another successor than the next row. `broken` rows are an end for that reason.
    """
    if broken > len(action) / 2:
        yield (
            f"`next_observations` are not the `observations` of the next row in {broken} of {len(action)} rows, so "
            "each of these rows ends an episode. Scale both alike and keep rows in order; if rows are single steps, "
            "say so by `timeouts` of ones."
        )
    if joined:
        yield (
            f"`next_observations` are not the `observations` of the next row in {joined} rows where no episode ends. "
            "If more than rounding differs, episodes are joined: mark their ends in `timeouts`, or pass no timeouts."
        )
    largest = np.abs(action).max()
    if rescale is None and largest > 1 + 1e-6:  # more than rounding
        yield (
            f"`actions` reach {largest:g}, but policies act in [-1, 1] by default. Pass `rescale=True`, or "
            "`rescale=False` to train with another `clip`."
        )
    if rescale and 0 < (used := np.ptp(action, axis=0).max() / 2) < SMALL:
        yield (
            f"`actions` use at most {used:.2%} of `action_range`, but flow policies learn such actions slowly. If the "
            "actions have another unit than `action_range`, convert one of them."
        )
    if rescale is None and 0 < largest < SMALL:
        yield (
            f"`actions` reach only {largest:g}, but flow policies start from noise of standard deviation 1 and learn "
            "such actions slowly. Pass their own `action_range` and `rescale=True`, or `rescale=False` to keep them."
        )
    for name, leaf in named_leaves("observations", obs):
        if leaf.dtype == np.uint8 and leaf.ndim == 4 and leaf.shape[1] in (1, 3, 4) and min(leaf.shape[2:]) > 4:
            yield (
                f"`{name}` looks like images with channels first, got {show(leaf)}. Frame stacks, `random_crop` and "
                "`nn.Impala` take them to be last: pass `np.moveaxis(images, 1, -1)`."
            )
