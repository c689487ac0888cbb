"""The linear map between an action space and [-1, 1]."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Shaped

from shortcutrl._checks import is_numeric
from shortcutrl._typed import show, typed
from shortcutrl._types import Limit
from shortcutrl.data._arrays import as_host_array, check_array, refuse


@typed
@dataclasses.dataclass(frozen=True, eq=False)
class ActionScale:
    r"""Map actions from `[low, high]` to [-1, 1] and back: $u = 2 (a - \text{low}) / (\text{high} - \text{low}) - 1$.

    The map is linear in each dimension and clips nothing. The ends map to the ends exactly.

    It is not a pytree: nothing trains its bounds, and checkpoints do not contain them. Keep them with the settings of a
    run, for example as `{"low": scale.low.tolist(), "high": scale.high.tolist()}`.

    - `low`, `high`: two finite numbers, or two arrays, lists or tuples of shape `(action,)` with low < high, such as
      `space.low` and `space.high` of a Gymnasium action space. A dimension that never changes needs some width, too.
      Kept as float32.

    !!! Example

        ```python
        import numpy as np
        from shortcutrl import data

        scale = data.ActionScale(np.array([-2.0, 0.0]), np.array([2.0, 1.0]))
        assert scale.to_unit(np.array([2.0, 0.5])).tolist() == [1.0, 0.0]
        assert scale.from_unit(np.array([1.0, 0.0])).tolist() == [2.0, 0.5]
        ```
    """

    low: Limit
    high: Limit

    def __post_init__(self) -> None:
        low, high = as_bounds("`low` and `high`", self.low, self.high)
        with np.errstate(over="ignore", invalid="ignore"):
            finite = np.isfinite(high - low)
        if not finite.all():
            got = _first_bad(low, high, finite)
            raise ValueError(f"`low` and `high` must be finite, got {got}. Pass the data's own range.")
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)

    @typed
    def to_unit(self, action: Shaped[Array | np.ndarray, "..."]) -> Array | np.ndarray:
        """Map actions from `[low, high]` to [-1, 1], for training.

        **Arguments:**

        - `action`: shape `(..., action)`, finite.

        **Returns:** an array of the same shape and library, float64 for float64 and otherwise float32.

        **Raises:** `TypeError` or `ValueError` for an `action` that is not of numbers, finite, or of the bounds' size.
        """
        return self._map(action, _to_unit)

    @typed
    def from_unit(self, action: Shaped[Array | np.ndarray, "..."]) -> Array | np.ndarray:
        """Map actions from [-1, 1] to `[low, high]`, for `env.step`.

        **Arguments:**

        - `action`: shape `(..., action)`, finite.

        **Returns:** an array of the same shape and library, float64 for float64 and otherwise float32.

        **Raises:** `TypeError` or `ValueError` for an `action` that is not of numbers, finite, or of the bounds' size.
        """
        return self._map(action, lambda a, low, high: (1 - a) / 2 * low + (1 + a) / 2 * high)

    def _map(self, action: Any, formula: Callable[[Any, Any, Any], Any]) -> Any:
        check_array("action", action)
        size = np.shape(self.low)
        if action.shape[-len(size) or action.ndim :] != size:
            chunk = action.ndim > 0 and action.shape[-1] > size[0] and action.shape[-1] % size[0] == 0
            remedy = f" Split a chunk by `reshape(-1, {size[0]})`." if chunk else ""
            raise ValueError(f"`action` must have shape (..., {size[0]}) like the bounds, got {action.shape}.{remedy}")
        if not isinstance(action, Tracer):
            known = as_host_array("action", action)
            refuse("action", known, ~np.isfinite(known), "is not finite")
        if isinstance(action, jax.Array):
            dtype = jnp.promote_types(action.dtype, jnp.float32)
            low, high = (jnp.broadcast_to(jnp.asarray(bound, dtype), action.shape) for bound in (self.low, self.high))
            return formula(action.astype(dtype), low, high)
        dtype = np.float64 if action.dtype == np.float64 else np.float32
        wide = (np.asarray(each, np.float64) for each in (action, self.low, self.high))  # or rounding passes an end
        return np.asarray(formula(*wide), dtype)


def _to_unit(action: Any, low: Any, high: Any) -> Any:
    """From the nearer end, which is therefore exact: XLA may multiply by a rounded reciprocal instead of dividing."""
    above, below = 2 * ((action - low) / (high - low)), 2 * ((high - action) / (high - low))
    where = jnp.where if isinstance(action, jax.Array) else np.where
    return where(above < below, above - 1, 1 - below)


def as_bounds(name: str, low: Any, high: Any) -> tuple[np.ndarray, np.ndarray]:
    """Bounds as float32 arrays of one shape, `()` or `(action,)`, with low < high; infinity is allowed."""
    bounds = []
    for bound in (low, high):
        try:
            bound = np.asarray(bound) if isinstance(bound, list | tuple) else bound
        except ValueError as error:
            text = f"{name} must be numbers or arrays of shape (action,), got {show(bound)}: {error}"
            raise TypeError(text) from None
        if isinstance(bound, jax.Array | np.ndarray):
            bound = as_host_array(name.strip("`"), bound)
        number = isinstance(bound, int | float) and not isinstance(bound, bool)
        vector = is_numeric(bound) and np.ndim(bound) <= 1 and np.size(bound) > 0 and np.asarray(bound).dtype != bool
        if not (number or vector):
            raise TypeError(f"{name} must be two numbers or two arrays of shape (action,), got {show(bound)}.")
        try:
            with np.errstate(over="ignore"):
                bounds.append(np.array(bound, np.float32))
        except OverflowError:
            raise ValueError(f"{name} must fit into float32, got {show(bound)}. Pass `np.inf` for no bound.") from None
    try:
        low, high = (np.array(bound) for bound in np.broadcast_arrays(*bounds))
    except ValueError:
        raise ValueError(f"{name} must be bounds of one shape, got {bounds[0].shape} and {bounds[1].shape}.") from None
    if not (low < high).all():
        got = _first_bad(low, high, low < high)
        raise ValueError(
            f"{name} must have low < high in every dimension, got {got}. Pass the limits of the actions; a dimension "
            "that never changes needs some width, too."
        )
    low.flags.writeable = high.flags.writeable = False
    return low, high


def _first_bad(low: np.ndarray, high: np.ndarray, good: np.ndarray) -> str:
    bad = int(np.argmin(good))
    return f"{low.flat[bad]!s} and {high.flat[bad]!s}" + (f" in dimension {bad}" if low.ndim else "")


def in_words(bound: np.ndarray) -> str:
    """A bound in as few digits as float32 needs."""
    return f"[{', '.join(map(str, bound))}]" if bound.ndim else str(bound)
