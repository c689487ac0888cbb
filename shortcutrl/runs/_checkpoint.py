"""Checkpoints: the arrays of a state in one file, with checksums, written whole or not at all."""

import io
import os
import shutil
import warnings
import zipfile
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shortcutrl._checks import named_leaves
from shortcutrl._files import as_path
from shortcutrl._typed import is_key, show, typed

KEPT = 2
"""The checkpoints that stay, so that there is an older one if the last is damaged."""


@typed
def load_checkpoint(folder: str | os.PathLike[str], state: Any) -> Any:
    """Load the last checkpoint of a run; with a warning, the one before if the last is damaged.

    **Arguments:**

    - `folder`: of a [`Run`][shortcutrl.runs.Run].
    - `state`: a pytree with the structure, shapes and dtypes of what was saved; its values are not used. Parts that are
      `None` are not loaded. Leaves that are neither arrays nor numbers, such as activation functions, are kept. Make
      the state of an algorithm by its `init`.

    **Returns:** a pytree like `state` with the saved values, on the devices of `state`.

    **Raises:** `ValueError` if the folder has no checkpoint, if all are damaged, or if `state` does not match.

    !!! Example

        ```python
        import tempfile
        import jax.numpy as jnp
        from shortcutrl.runs import Run, load_checkpoint

        with tempfile.TemporaryDirectory() as folder:
            with Run(folder, {"seed": 0}) as run:
                run.save(10, {"policy": jnp.ones(3), "critic": jnp.ones(2)})
            loaded = load_checkpoint(folder, {"policy": jnp.zeros(3), "critic": None})
        assert loaded["policy"].sum() == 3
        ```
    """
    folder = as_path("folder", folder)
    while (step := last_step(folder)) is not None:
        try:
            return read(folder, step, state)
        except ValueError:
            if step in _steps(folder):  # otherwise a training has replaced it meanwhile
                raise
    raise ValueError(f"`folder`: {folder} has no checkpoint. Train there first.")


def last_step(folder: Path) -> int | None:
    """The step of the last whole checkpoint, or `None` if there is none at all."""
    damage: list[str] = []
    for step in reversed(_steps(folder)):
        try:
            _load(_path(folder, step))
        except ValueError as error:
            if step not in _steps(folder):  # a training has replaced it meanwhile
                return last_step(folder)
            damage.append(str(error))
            continue
        if damage:
            text = f"{' '.join(damage)} Using the checkpoint of step {step} instead."
            warnings.warn(text, stacklevel=6)  # the caller of the function that `typed` wraps
        return step
    if damage:
        raise ValueError(f"`folder`: {' '.join(damage)} No other checkpoint is left: train again in another folder.")
    return None


def read(folder: Path, step: int, state: Any) -> Any:
    """A pytree like `state` with the values of a checkpoint."""
    path = _path(folder, step)
    arrays, like = _load(path), dict(_leaves(state))
    for name, leaf in like.items():
        saved = arrays.get(name)
        if saved is None or not _alike(saved, leaf):
            nearest = get_close_matches(name, arrays, n=1, cutoff=0)
            found = f"no such array; the nearest is `{nearest[0]}`" if saved is None else show(saved)
            raise ValueError(f"`{name}` is {show(_plain(leaf))}, but {path} holds {found}. {_REMEDY}")
    omitted = [name for name, leaf in named_leaves("state", state, is_leaf=lambda x: x is None) if leaf is None]
    within = tuple(name + separator for name in omitted for separator in (".", "["))
    if left := [name for name in arrays.keys() - like.keys() if name not in omitted and not name.startswith(within)]:
        raise ValueError(f"`state` has no `{min(left)}`, but {path} holds it. {_REMEDY}")
    filled = [_like(arrays[name], leaf) if name in like else leaf for name, leaf in named_leaves("state", state)]
    return jax.tree.unflatten(jax.tree.structure(state), filled)


_REMEDY = "Make the state with the settings of the run."


def write(folder: Path, step: int, state: Any) -> None:
    """Save a checkpoint and remove all but the last two, and any later one, which is damaged."""
    arrays = {name: _storable(np.asarray(_plain(leaf))) for name, leaf in _leaves(state)}
    if not arrays:
        raise ValueError(f"`state` must be a pytree of arrays, got {show(state)}.")
    path = _path(folder, step)
    partial = path.with_suffix(".partial")
    _remove(partial)
    try:
        partial.mkdir(parents=True)
        with (partial / "state.npz").open("wb") as file:
            np.savez(file, **arrays, count=np.array(len(arrays)))  # pyright: ignore[reportArgumentType]
            file.flush()
            os.fsync(file.fileno())
        _remove(path)
        partial.replace(path)
    except BaseException:  # such as a full disk, which the part would keep full
        _remove(partial)
        raise
    steps = _steps(folder)
    kept = [each for each in steps if each <= step][-KEPT:]
    for each in steps:
        if each not in kept:
            _remove(_path(folder, each))


def remove_partial(folder: Path) -> None:
    """Remove what a process that was killed has left of its last checkpoint."""
    for path in (folder / "checkpoints").glob("*.partial"):
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_file():
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def _path(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / str(step)


def _steps(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in (folder / "checkpoints").glob("*") if path.name.isdecimal())


def _load(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint. Reads each to its end, which compares its checksum."""
    try:
        with zipfile.ZipFile(path / "state.npz") as archive:
            members = {name.removesuffix(".npy"): io.BytesIO(archive.read(name)) for name in archive.namelist()}
        arrays = {name: np.lib.format.read_array(member, allow_pickle=False) for name, member in members.items()}
        if arrays.pop("count", None) != len(arrays):  # zipfile does not notice that its directory lost an entry
            raise ValueError("arrays are missing")
        return {name: array.view(jnp.dtype((array.dtype.names or [array.dtype])[0])) for name, array in arrays.items()}
    except Exception as error:  # of zipfile, zlib or NumPy: whatever damage causes
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}).") from error


def _leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    """The arrays and numbers of a pytree by their paths."""
    for name, leaf in named_leaves("state", tree):
        if isinstance(leaf, np.ndarray | np.generic) and not _is_numeric(leaf.dtype):
            raise TypeError(f"`{name}` must be an array of numbers, got {show(leaf)}.")
        if isinstance(leaf, int) and not -(2**63) <= leaf < 2**63:
            raise TypeError(f"`{name}` must fit into int64, got {show(leaf)}. Save it as an array of its parts.")
        if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct | np.ndarray | np.generic | bool | int | float | complex):
            yield name, leaf


def _is_numeric(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, np.number) or jnp.issubdtype(dtype, np.bool_)


def _plain(leaf: Any) -> Any:
    """A leaf as it is saved: of random keys, their data."""
    if not is_key(leaf):
        return leaf
    return jax.random.key_data(leaf) if isinstance(leaf, jax.Array) else jax.eval_shape(jax.random.key_data, leaf)


def _storable(array: np.ndarray) -> np.ndarray:
    """NumPy's format does not know bfloat16: the name of such a dtype becomes that of a field."""
    dtype = array.dtype
    return array.view([(dtype.name, f"V{dtype.itemsize}")]) if dtype.kind == "V" else array


def _alike(saved: np.ndarray, leaf: Any) -> bool:
    leaf = _plain(leaf)
    dtype = np.dtype(leaf.dtype) if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
    return saved.dtype == dtype and saved.shape == np.shape(leaf)


def _like(saved: np.ndarray, leaf: Any) -> Any:
    """A copy in the type of `leaf`, on its devices."""
    if isinstance(leaf, np.ndarray | np.generic):
        return saved if isinstance(leaf, np.ndarray) else saved[()]
    if isinstance(leaf, bool | int | float | complex):
        return type(leaf)(saved.item())
    if is_key(leaf):
        impl: list[Any] = []
        jax.eval_shape(lambda key: impl.append(jax.random.key_impl(key)), leaf)  # of a ShapeDtypeStruct, too
        array = jax.random.wrap_key_data(jnp.array(saved), impl=impl[0])
    else:
        array = jnp.array(saved)
    return jax.device_put(array, leaf.sharding) if isinstance(leaf, jax.Array) and leaf.committed else array
