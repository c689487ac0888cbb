"""Checks that `typed` cannot express: `check_*` raise, `as_*` convert. Each message names value and remedy.

Values are checked where they are known: Python numbers and concrete arrays. A traced value is not known yet.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from shortcutrl._typed import show
from shortcutrl._types import Clip


def as_same_dtype(**arrays: Array | np.ndarray) -> tuple[Array, ...]:
    """Convert NumPy arrays to the dtype of the first JAX array; refuse JAX arrays of another dtype."""
    reference = next((name for name, value in arrays.items() if isinstance(value, jax.Array)), next(iter(arrays)))
    dtype = as_array(arrays[reference]).dtype
    for name, value in arrays.items():
        if value.size == 0:
            raise ValueError(f"`{name}` must have at least one number, got {show(value)}. Pass a non-empty array.")
        if isinstance(value, jax.Array) and value.dtype != dtype:
            raise TypeError(
                f"`{name}` is {value.dtype} but `{reference}` is {dtype}. Convert one of them, for example "
                f"`{name}.astype({reference}.dtype)`."
            )
    return tuple(as_array(value, dtype) for value in arrays.values())


def as_array(value: Any, dtype: Any = None) -> Array:
    """`jnp.asarray`, which takes longer than an operation, only where it changes something."""
    done = isinstance(value, jax.Array) and not value.weak_type and (dtype is None or value.dtype == dtype)
    return value if done else jnp.asarray(value, dtype)


def as_size(name: str, value: Any, minimum: int = 1, maximum: float = float("inf")) -> int:
    """An integer from `minimum` to `maximum`, NumPy's included, as a Python integer."""
    integer = isinstance(value, int | np.integer) and not isinstance(value, bool | np.timedelta64)
    if not integer or not minimum <= value <= maximum:
        bound = f"at most {maximum}" if integer and value > maximum else f"at least {minimum}"
        raise ValueError(f"`{name}` must be an integer of {bound}, got {show(value)}.")
    return int(value)


MAX_COUNT = 2**12


def as_count(name: str, value: Any) -> int:
    """A number of jumps, levels or candidates. A larger one is a mistake, for which the function would not end."""
    return as_size(name, value, maximum=MAX_COUNT)


def as_power_of_two(name: str, value: Any) -> int:
    size = as_count(name, value)
    if size & (size - 1):
        raise ValueError(
            f"`{name}` must be a power of two (1, 2, 4, ...), got {size}: shortcut training halves step sizes from 1 "
            "to the smallest."
        )
    return size


FLOAT32_MAX = float(np.finfo(np.float32).max)


def check_range(name: str, value: Any, low: float, high: float, *, open_low: bool = False) -> None:
    """`low <= value <= high`, or `low < value` where it is `open_low`. NaN and what float32 cannot hold are outside."""
    known = _known(value)
    if known is not None and not (low <= known <= min(high, FLOAT32_MAX) and (known > low or not open_low)):
        ends = f"in {'[('[open_low]}{low}, {high}]"
        if (low, high) == (0, float("inf")):
            ends = f"finite in float32 and {'positive' if open_low else 'not negative'}"
        raise ValueError(f"`{name}` must be {ends}, got {known}.")


def as_times(t: Any, h: Any, dtype: Any, *, source: str | None = None) -> tuple[Array, Array]:
    """Times `t` and steps `h` as arrays of `dtype`, with 0 <= t, 0 <= h and t + h <= 1; `source` is who drew them."""
    drawn = f"` of `{source}" if source else ""
    check_range(f"t{drawn}", t, 0, 1)
    check_range(f"h{drawn}", h, 0, 1)
    known_t, known_h = _known(t), _known(h)
    if known_t is not None and known_h is not None and known_t + known_h > 1 + 4 * float(jnp.finfo(dtype).eps):
        raise ValueError(
            f"`t + h{drawn}` must be at most 1, got t = {known_t} and h = {known_h}: the flow ends at 1, with the "
            "action. Pass a smaller `h`."
        )
    return as_array(t, dtype), as_array(h, dtype)


def as_clip(name: str, clip: Clip, like: Any) -> tuple[Array, Array] | None:
    """Bounds in the dtype of the action `like`: two numbers, or two arrays of its shape."""
    if clip is None:
        return None
    check_clip(name, clip, like.shape, like.dtype)
    low, high = (jnp.asarray(bound, like.dtype) for bound in clip)
    return low, high


def check_clip(name: str, clip: Any, shape: tuple[int, ...] = (), dtype: Any = np.float32) -> None:
    """A pair low < high: two numbers or two arrays of the action's shape. Makes no array of JAX."""
    if len(clip) != 2:
        raise ValueError(f"`{name}` must be a pair (low, high), got {show(clip)}.")
    for bound in clip:
        if not is_numeric(bound) or np.shape(bound) not in ((), shape):
            kinds = f"two numbers or two arrays of the action's shape {shape}" if shape else "two numbers"
            raise ValueError(f"`{name}` must be {kinds}, such as (-1.0, 1.0), got {show(bound)} in it.")
    with np.errstate(over="ignore"):
        known = [np.asarray(bound, dtype) for bound in clip if not isinstance(bound, Tracer)]
    if len(known) == 2 and not np.all(known[0] < known[1]):
        order = "low < high" + (f" in {np.dtype(dtype)}" if dtype != np.float32 else "")
        raise ValueError(f"`{name}` must be (low, high) with {order}, such as (-1.0, 1.0), got {show(clip)}.")


def check_numbers(name: str, tree: Any) -> None:
    """Every leaf of `tree` is a real number or an array of them."""
    for path, leaf in named_leaves(name, tree):
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic | float | int) or not is_real(leaf):
            raise TypeError(f"`{path}` must be an array of real numbers, got {show(leaf)}. Convert it.")


def check_leading_axis(name: str, tree: Any) -> int:
    """The length of the axis that every array of `tree` begins with."""
    leaves = dict(named_leaves(name, tree))
    for path, leaf in leaves.items():
        if not isinstance(leaf, jax.Array | np.ndarray):
            raise TypeError(f"`{path}` must be an array, got {show(leaf)}. Pass arrays, such as by `jnp.asarray(...)`.")
        if isinstance(leaf, np.ndarray):  # an array of JAX may hold random keys
            check_numbers(path, leaf)
    shapes = {path: np.shape(leaf) for path, leaf in leaves.items()}
    lengths = {shape[:1] for shape in shapes.values()}
    if len(lengths) != 1 or lengths in ({()}, {(0,)}):
        listed = ", ".join(f"`{path}` {shape}" for path, shape in list(shapes.items())[:5]) or "no array"
        raise ValueError(f"`{name}`: all arrays must share a non-empty leading axis, got {listed}.")
    return lengths.pop()[0]


def as_rows(name: str, value: Array | np.ndarray, rows: int) -> Array:
    """An array of this many rows."""
    if len(value) != rows:
        raise ValueError(f"`{name}` must have shape ({rows}, ...), one row for each step, got {show(value)}.")
    if value.size == 0:
        raise ValueError(f"`{name}` must have at least one number, got {show(value)}. Pass a non-empty array.")
    return jnp.asarray(value)


def as_scalar(name: str, value: Any, dtype: Any) -> Array:
    """A number of a transition, in `dtype`."""
    if not isinstance(value, jax.Array | np.ndarray | np.generic | float | int) or jnp.shape(value) != ():
        raise ValueError(
            f"`{name}` must be one number, got {show(value)}: the function takes one transition. Use `jax.vmap` for a "
            "batch, and `squeeze(-1)` for a column."
        )
    if not is_real(value):
        raise TypeError(f"`{name}` must be a real number, got {show(value)}.")
    return jnp.asarray(value, dtype)


def named_leaves(name: str, tree: Any, **options: Any) -> list[tuple[str, Any]]:
    """Each leaf of `tree` with its path, such as `observations['camera']`."""
    return [(f"{name}{jax.tree_util.keystr(path)}", leaf) for path, leaf in jax.tree.leaves_with_path(tree, **options)]


def _known(value: Any) -> float | None:
    return None if isinstance(value, Tracer) else float(value)


def is_numeric(value: Any) -> bool:
    """A number or an array of real numbers, other than `True` and `False`."""
    kinds = int | float | jax.Array | np.ndarray | np.generic
    return isinstance(value, kinds) and not isinstance(value, bool) and is_real(value)


def is_number(value: Any) -> bool:
    """A real number, or an array of shape `()`."""
    return is_numeric(value) and jnp.shape(value) == ()


def is_real(value: Any) -> bool:
    """Floats, integers and flags; not text, dates, objects, complex numbers or masked arrays."""
    if isinstance(value, int):
        return value.bit_length() < 128  # what float32 can hold
    if isinstance(value, float):
        return True
    numbers = any(jnp.issubdtype(value.dtype, kind) for kind in (jnp.bool_, jnp.integer, jnp.floating))
    return numbers and value.dtype.kind != "m" and not isinstance(value, np.ma.MaskedArray)  # "m": spans of time
