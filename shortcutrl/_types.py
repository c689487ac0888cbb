"""The words that every signature is written in."""

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple, Protocol, TypeVar, cast, runtime_checkable

import numpy as np
from beartype import beartype
from jaxtyping import Array, Float, PyTree, Shaped, TypeCheckError, jaxtyped

T = TypeVar("T", bound=Callable[..., Any])

_REMEDY = (
    "One dimension too many is a batch: use `jax.vmap`. A static option, such as `k`, must be a Python number: bind "
    "it by `functools.partial`, outside of `jit` and `vmap`."
)


def typed(function: T) -> T:
    """Check the shapes, dtypes and kinds of arguments at each call; under `jit`, only while tracing."""
    checked = jaxtyped(function, typechecker=beartype)
    if isinstance(function, type):
        return cast(T, checked)

    @wraps(function)
    def call(*args, **kwargs):
        try:
            return checked(*args, **kwargs)
        except TypeCheckError as error:
            if _REMEDY not in getattr(error, "__notes__", []):
                error.add_note(_REMEDY)
            raise

    return cast(T, call)


Obs = PyTree
"""One observation: whatever the user's own callables take. The library only passes it on."""

Action = Float[Array, " action"]
ActionLike = Float[Array | np.ndarray, " action"]
Scalar = Float[Array, ""]
ScalarLike = float | int | Float[Array | np.ndarray | np.generic, ""]
Number = float | int | np.floating | np.integer
Clip = tuple[Number, Number] | None


@runtime_checkable
class Velocity(Protocol):
    """`velocity(obs, x, t, h)`: the mean velocity over `[t, t + h]` of the flow that is at `x` at time `t`."""

    def __call__(self, obs: Obs, x: Action, t: Scalar, h: Scalar, /) -> Array: ...


@runtime_checkable
class Critic(Protocol):
    """`critic(obs, action)`: the estimates of Q by each member of an ensemble, shape `(ensemble,)`."""

    def __call__(self, obs: Obs, action: Action, /) -> Array: ...


class Transition(NamedTuple):
    """One step of experience, or many with a leading axis.

    - `obs`, `next_obs`: any pytree that the policy and the critic understand.
    - `action`: shape `(action,)`.
    - `reward`: shape `()`.
    - `mask`: shape `()`; 0 where the episode ended in a terminal state, else 1. It multiplies the discount, so an
      n-step transition may carry its further discounting here.
    """

    obs: PyTree
    action: Shaped[Array | np.ndarray, "*batch action"]
    reward: Shaped[Array | np.ndarray, "*batch"]
    mask: Shaped[Array | np.ndarray, "*batch"]
    next_obs: PyTree
