"""Observations and actions as their Gymnasium spaces describe them."""

import math
from collections.abc import Mapping
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from shortcutrl._typed import show

_ARRAYS = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def check_actions(space: Any) -> spaces.Box:
    """The action space, which must be a Box: actors return vectors of numbers."""
    if not isinstance(space, spaces.Box):
        raise ValueError(
            f"the action space of `env` must be a Box, got {show(space)}: actors return real numbers. Wrap the "
            "environment in `gymnasium.wrappers.TransformAction(env, function, box)`, whose function turns them into "
            "its actions."
        )
    return space


def zeros(space: Any, name: str = "observation_space") -> Any:
    """Zeros in the form of an observation: arrays in dictionaries and tuples."""
    if isinstance(space, spaces.Dict):
        return {key: zeros(inner, f"{name}[{key!r}]") for key, inner in space.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(zeros(inner, f"{name}[{i}]") for i, inner in enumerate(space))
    if not isinstance(space, _ARRAYS) or space.shape is None:
        raise ValueError(
            f"`{name}` must be a Box, Discrete, MultiDiscrete or MultiBinary, or a Dict or Tuple of them, got "
            f"{show(space)}. Wrap the environment in `gymnasium.wrappers.TransformObservation(env, function, space)`."
        )
    return np.zeros(space.shape, space.dtype)


def conform(space: gymnasium.Space, obs: Any, name: str = "observation") -> Any:
    """Copies of the arrays of an observation, each of its space's shape and dtype, in the form of `zeros`.

    Environments may reuse the arrays that they return, or share them.
    """
    if isinstance(space, spaces.Dict):
        if not isinstance(obs, Mapping) or obs.keys() != space.keys():
            got = sorted(map(str, obs)) if isinstance(obs, Mapping) else show(obs)
            raise ValueError(f"`{name}` must be a dictionary of {sorted(space)}, as its space says, got {got}.")
        return {key: conform(inner, obs[key], f"{name}[{key!r}]") for key, inner in space.items()}
    if isinstance(space, spaces.Tuple):
        if not isinstance(obs, tuple | list) or len(obs) != len(space):
            raise ValueError(f"`{name}` must be a tuple of {len(space)}, as its space says, got {show(obs)}.")
        return tuple(conform(inner, obs[i], f"{name}[{i}]") for i, inner in enumerate(space))
    array = as_numbers(obs)
    if array is None or array.shape != space.shape:
        raise ValueError(f"`{name}` must be an array of shape {space.shape}, as its space says, got {show(obs)}.")
    converted = convert(array, space.dtype)
    if converted is None:
        raise ValueError(
            f"`{name}` is {array.dtype} and would lose its values as {space.dtype}, the dtype of its space. Give the "
            "space the dtype of the observations."
        )
    if converted.dtype.kind == "f" and not (finite := np.isfinite(converted)).all():
        index = np.unravel_index(finite.argmin(), converted.shape)
        where = f" at index {tuple(map(int, index))}" if index else ""
        raise ValueError(f"`{name}` must be finite, got {converted[index]}{where}.")
    return converted


def as_numbers(value: Any) -> np.ndarray | None:
    """`value` as an array of real numbers or booleans, or `None` if it is not one."""
    if isinstance(value, np.ma.MaskedArray):
        return None
    try:
        array = np.asarray(value)
    except Exception:  # ragged lists, and whatever the user's object raises
        return None
    if array.dtype.kind in "fiub":
        return array
    return array.astype(np.float32) if jnp.issubdtype(array.dtype, jnp.floating) else None  # such as bfloat16


def convert(array: np.ndarray, dtype: Any) -> np.ndarray | None:
    """A writable copy in `dtype`; `None` where an integer dtype cannot hold the values."""
    if array.dtype == dtype:
        return array.copy()
    with np.errstate(all="ignore"):
        converted = array.astype(dtype)
    return converted if converted.dtype.kind == "f" or (converted == array).all() else None


def as_jax_has(path: Any, array: np.ndarray) -> np.ndarray:
    """A part of an observation in the dtype that JAX gives it. JAX itself would change values beyond its range."""
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    if dtype == array.dtype:
        return array
    converted = convert(array, dtype)
    if converted is None or not np.isfinite(converted).all():
        name = f"observation{jax.tree_util.keystr(path)}"
        raise ValueError(
            f"`{name}` has values from {array.min()} to {array.max()}, but JAX reads {array.dtype} as {dtype}, "
            "which cannot hold them. Scale them by `gymnasium.wrappers.TransformObservation`, as for the training."
        )
    return converted


def as_number(name: str, value: Any) -> float:
    """One finite number, also from an array of one element."""
    if isinstance(value, float):
        number = float(value)
    else:
        array = as_numbers(value)
        if array is None or array.size != 1:
            raise ValueError(f"`{name}` must be one number, got {show(value)}.")
        number = float(array.reshape(()))
    if not math.isfinite(number):
        raise ValueError(f"`{name}` must be finite, got {number}.")
    return number


def as_flag(name: str, value: Any) -> bool:
    """A boolean, also from 0 and 1 and from an array of one element."""
    if isinstance(value, bool):
        return value
    array = as_numbers(value)
    if array is None or array.size != 1 or array.reshape(()) not in (0, 1):
        raise ValueError(f"`{name}` must be true or false, or 0 or 1, got {show(value)}.")
    return bool(array.reshape(()))
