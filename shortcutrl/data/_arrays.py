"""Checks of a dataset's arrays, on the host. Each error names the array, its first bad index and the remedy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from shortcutrl._checks import is_real, named_leaves
from shortcutrl._typed import show


def check_array(name: str, value: Any) -> None:
    """`value` is an array of real numbers."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"`{name}` is a masked array. Drop its masked rows, or fill them by `filled(...)`.")
    if not isinstance(value, jax.Array | np.ndarray):
        raise TypeError(f"`{name}` must be an array, got {show(value)}. Convert it by `np.asarray(...)`.")
    if not is_real(value):
        raise TypeError(f"`{name}` must hold real numbers, got {show(value)}. Convert it by `astype(np.float32)`.")


def as_host_array(name: str, value: Any) -> np.ndarray:
    """An array of real numbers on the host."""
    check_array(name, value)
    if isinstance(value, Tracer):
        raise TypeError(f"`{name}` must be concrete, got {show(value)}. Call the function outside of `jit` and `vmap`.")
    return np.asarray(value)


def as_float32(name: str, value: Any, *, rank: int) -> np.ndarray:
    """A finite float32 array of this rank, shape `(rows,)` or `(rows, action)`."""
    values = as_host_array(name, value)
    if values.ndim != rank:
        shape, remedy = ("(rows,)", "squeeze(-1)") if rank == 1 else ("(rows, action)", "reshape(rows, -1)")
        raise ValueError(f"`{name}` must have shape {shape}, got {values.shape}. Use `{name}.{remedy}`.")
    if 0 in values.shape[1:]:
        raise ValueError(f"`{name}` must have at least one column, got {values.shape}.")
    return as_finite(name, values, np.float32)


def as_stored(name: str, value: Any) -> np.ndarray:
    """A finite array in the dtype that it is stored in: its own, or the next narrower that JAX has."""
    values = as_host_array(name, value)
    if jnp.issubdtype(values.dtype, jnp.floating):
        return as_finite(name, values, np.float32 if values.dtype.itemsize > 4 else values.dtype)
    dtype = jax.dtypes.canonicalize_dtype(values.dtype)
    if dtype != values.dtype:
        limits = np.iinfo(dtype)
        refuse(name, values, (values < limits.min) | (values > limits.max), f"does not fit into {dtype}")
    return values.astype(dtype, copy=False)


def as_flags(name: str, value: Any) -> np.ndarray:
    """A bool array from zeros and ones."""
    values = as_float32(name, value, rank=1)
    refuse(name, values, (values != 0) & (values != 1), "is neither 0 nor 1")
    return values.astype(bool)


def copied(values: np.ndarray) -> jax.Array:
    """One copy on the device, complete when this returns: afterwards the caller may change `values`.

    On a CPU, JAX keeps the memory of an aligned array, even with `may_alias=False`, and copies another one later.
    `jnp.array` makes two copies of that one, because it copies what JAX has copied.
    """
    with jax.ensure_compile_time_eval():  # also inside of `jit`, where the arrays become constants
        array = jax.block_until_ready(jax.device_put(values))
        (device,) = array.devices()
        shared = device.platform == "cpu" and array.unsafe_buffer_pointer() == values.ctypes.data
        return jax.block_until_ready(jnp.copy(array)) if shared else array


def check_leaves(name: str, tree: Any) -> None:
    """`tree` holds arrays of real numbers, at least one, and nothing else."""
    try:
        leaves = named_leaves(name, tree)
    except Exception as error:  # such as keys that cannot be sorted
        raise TypeError(f"`{name}` must be an array or a pytree of arrays, got {show(tree)}: {error}") from error
    if not leaves:
        raise TypeError(f"`{name}` holds no array, got {show(tree)}. Pass an array or a pytree of arrays.")
    for path, leaf in leaves:
        if not any(isinstance(leaf, jax.Array | np.ndarray) for _, leaf in leaves) and isinstance(tree, list | tuple):
            check_array(name, tree)  # numbers, not meant as a pytree
        check_array(path, leaf)


def check_rows(fields: dict[str, Any], like: str) -> None:
    """Every array of `fields` has as many rows as the one named `like`, at least one."""
    rows = np.shape(fields[like])[0]
    for field, tree in sorted(fields.items()):
        for name, leaf in named_leaves(field, tree):
            if leaf.ndim == 0:
                raise ValueError(f"`{name}` must have one row for each step, got {show(leaf)}.")
            if leaf.shape[0] != rows:
                hint = " Stack a list of steps by `np.stack(...)`." if isinstance(tree, list | tuple) else ""
                raise ValueError(f"`{name}` has {leaf.shape[0]} rows but `{like}` has {rows}.{hint}")
    if rows == 0:
        raise ValueError(f"`{like}` is empty. A dataset needs at least one transition.")


def check_alike(name: str, tree: Any, other_name: str, other: Any) -> None:
    """`tree` has the structure of `other`, and its arrays have the same shapes and dtypes."""
    structure, expected = jax.tree.structure(tree), jax.tree.structure(other)
    if structure != expected:
        raise ValueError(f"`{name}` must have the structure of `{other_name}`, {expected}, got {structure}.")
    for (path, leaf), like in zip(named_leaves(name, tree), jax.tree.leaves(other), strict=True):
        if (leaf.shape, leaf.dtype) != (like.shape, like.dtype):
            raise ValueError(f"`{path}` must be like `{other_name}`, {show(like)}, got {show(leaf)}.")


def refuse(name: str, values: np.ndarray, bad: np.ndarray, why: str, remedy: str = "") -> None:
    """Raise for the first value that is `bad`."""
    if bad.any():
        index = np.unravel_index(np.argmax(bad), bad.shape)
        where = f"[{', '.join(map(str, map(int, index)))}]" if index else ""
        raise ValueError(f"`{name}{where}` = {values[index]} {why} ({bad.sum()} such values of {bad.size}).{remedy}")


def as_finite(name: str, values: np.ndarray, dtype: Any) -> np.ndarray:
    """An array in `dtype`, in which all values must be finite."""
    with np.errstate(over="ignore"):  # what overflows is infinite
        converted = values.astype(dtype, copy=False)
    refuse(name, values, ~np.isfinite(converted), f"is not finite in {np.dtype(dtype)}; repair or drop its episode")
    return converted
