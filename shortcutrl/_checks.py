"""Every check that `typed` cannot express, each with a message that names the argument, its value and the remedy.

Values are checked where they are known: Python numbers and concrete arrays. A traced value has none yet.
"""

from numbers import Integral

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from shortcutrl._types import Clip


def same_dtype(**arrays: Array | np.ndarray) -> tuple[Array, ...]:
    """Convert NumPy arrays to the dtype of the first JAX array; refuse JAX arrays of another dtype."""
    reference = next((name for name, value in arrays.items() if isinstance(value, jax.Array)), next(iter(arrays)))
    dtype = jnp.asarray(arrays[reference]).dtype
    for name, value in arrays.items():
        if isinstance(value, jax.Array) and value.dtype != dtype:
            raise TypeError(
                f"`{name}` is {value.dtype} but `{reference}` is {dtype}. Convert one of them, for example "
                f"`{name}.astype({reference}.dtype)`."
            )
    return tuple(jnp.asarray(value, dtype) for value in arrays.values())


def action_field(name: str, action: Array | np.ndarray, noise: Array | np.ndarray) -> None:
    floats(name, action)
    if action.ndim > 1:
        raise TypeError(
            f"`{name}` has shape {action.shape}: a loss sees one transition. Use `jax.vmap` for a batch and its noise."
        )
    if action.shape != noise.shape:
        raise TypeError(f"`{name}` has shape {action.shape} but `noise` has {noise.shape}. Pass noise of its shape.")


def floats(name: str, action: Array | np.ndarray) -> None:
    if not jnp.issubdtype(action.dtype, jnp.floating):
        raise TypeError(f"`{name}` is {action.dtype}. Convert it: actions are floats.")


def leading_axis(name: str, tree) -> int:
    """The length of the axis that every array of `tree` begins with."""
    shapes = {"".join(map(str, path)): jnp.shape(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}
    lengths = {shape[:1] for shape in shapes.values()}
    if len(lengths) != 1 or lengths in ({()}, {(0,)}):
        listed = ", ".join(f"{path} {shape}" for path, shape in shapes.items())
        raise ValueError(
            f"`{name}` must have one leading axis, as long in each of its arrays and not empty, got {listed}."
        )
    return lengths.pop()[0]


def time_and_step(t, h, dtype) -> tuple[Array, Array]:
    """Times `t` and steps `h` as arrays of `dtype`, with 0 <= t, 0 <= h and t + h <= 1."""
    for name, value in {"t": t, "h": h}.items():
        if (known := _known(value)) is not None and not 0 <= known <= 1:
            raise ValueError(f"`{name}` must lie in [0, 1], where 0 is noise and 1 the action, got {known}.")
    known_t, known_h = _known(t), _known(h)
    if known_t is not None and known_h is not None and known_t + known_h > 1 + 4 * float(jnp.finfo(dtype).eps):
        raise ValueError(
            f"`t + h` must be at most 1, got t = {known_t} and h = {known_h}: the flow ends at 1, with the action. "
            "Pass a smaller `h`."
        )
    return jnp.asarray(t, dtype), jnp.asarray(h, dtype)


def power_of_two(name: str, value: int) -> None:
    if isinstance(value, bool) or value < 1 or value & (value - 1):
        raise ValueError(
            f"`{name}` must be a power of two (1, 2, 4, ...), got {value}: step sizes halve from 1 to 1/{name}, and no "
            "other size is trained."
        )


def clip_range(clip: Clip) -> None:
    if clip is not None and not clip[0] < clip[1]:
        raise ValueError(f"`clip` must be (low, high) with low < high, such as (-1.0, 1.0), got {clip}.")


def unit_interval(name: str, value) -> None:
    if (known := _known(value)) is not None and not 0 <= known <= 1:
        raise ValueError(f"`{name}` must lie in [0, 1], got {known}.")


def non_negative(name: str, value) -> None:
    if (known := _known(value)) is not None and not 0 <= known < float("inf"):
        raise ValueError(f"`{name}` must be finite and not negative, got {known}.")


def aggregate_name(aggregate: str) -> None:
    if aggregate not in ("min", "mean"):
        raise ValueError(f"`aggregate` must be 'min' or 'mean', got {aggregate!r}.")


def sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if not isinstance(size, Integral) or size < 1:
            raise ValueError(f"`{name}` must be an integer of at least 1, got {size!r}.")


def candidates(name: str, candidates) -> None:
    if len(candidates) < 1:
        raise ValueError(
            f"`{name}` must have shape (n, action) with n at least 1, got {jnp.shape(candidates)}: one row of "
            "noise for each candidate."
        )


def velocity_output(v: Array, x: Array, name: str = "velocity") -> Array:
    _one_array(name, v)
    if jnp.shape(v) != x.shape:
        raise ValueError(
            f"`{name}` returned shape {jnp.shape(v)} for an action of shape {x.shape}. It must return one velocity "
            "for one unbatched action: add the batch with `jax.vmap` around the library's function, not inside yours."
        )
    return jnp.asarray(v, x.dtype)


def input_size(name: str, value: Array | np.ndarray, expected: int) -> None:
    if len(value) != expected:
        raise ValueError(f"`{name}` must have shape ({expected},), as the network was made for, got {value.shape}.")


def one_of(name: str, value, allowed: list[int]) -> None:
    number = jnp.shape(value) == () and jnp.issubdtype(jnp.result_type(value), jnp.integer)
    if not number or ((known := _known(value)) is not None and known not in allowed):
        raise ValueError(f"`{name}` must be one of {', '.join(map(str, allowed))}, got {value}.")


def float_dtype(name: str, dtype) -> None:
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"`{name}` must be a dtype of floating-point numbers, such as `jnp.bfloat16`, got {dtype}.")


def trainable(name: str, leaves: list) -> None:
    """Networks are carried by `jit` and `scan`, so they must be made of arrays."""
    for leaf in leaves:
        if not isinstance(leaf, jax.Array | np.ndarray):
            raise ValueError(
                f"`{name}` has a leaf that is not an array, {leaf!r}, which `jax.jit` and `jax.lax.scan` cannot carry. "
                "Mark it `eqx.field(static=True)`, or pass only the arrays of `eqx.partition` and combine them in a "
                "Module of your own."
            )
    if not any(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves):
        raise ValueError(f"`{name}` has no parameters to train: pass a pytree of arrays that is callable.")


def critic_output(q: Array) -> Array:
    _one_array("critic", q)
    if jnp.ndim(q) != 1 or q.shape[0] == 0:
        raise ValueError(
            f"`critic` returned shape {jnp.shape(q)}; it must return `(ensemble,)`, one estimate for each member. "
            "For a single critic return shape (1,)."
        )
    return q


def scalar(name: str, value, dtype) -> Array:
    if jnp.shape(value) != ():
        raise ValueError(
            f"`{name}` must be a scalar, got shape {jnp.shape(value)}: a loss sees one transition. "
            "Use `jax.vmap` for a batch, and `squeeze(-1)` for a column."
        )
    return jnp.asarray(value, dtype)


def _one_array(name: str, value) -> None:
    if not isinstance(value, jax.Array | np.ndarray | np.generic | float | int):
        raise ValueError(f"`{name}` must return one array, got {type(value).__name__}.")


def _known(value) -> float | None:
    return None if isinstance(value, Tracer) else float(value)
