"""Call the user's velocities, actors, critics and values, and check what they return."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from shortcutrl import _checks
from shortcutrl._typed import show
from shortcutrl._types import Action, Actor, Aggregate, Critic, Features, Noise, Obs, Scalar, Value


def encoded(function: Any, obs: Obs) -> Obs:
    """The features that `function` makes by its method `encode`, for several calls; without them, `obs`."""
    while isinstance(function, partial | eqx.Partial) and not function.args:
        function = function.func
    # The class says, because a field of that name is for the network itself.
    if isinstance(function, type | partial | eqx.Partial) or not hasattr(type(function), "encode"):
        return obs
    try:
        made = function.encode(obs)
    except Exception:  # it encodes something else, or the network's own call will fail, too
        return obs
    return made if isinstance(made, Features) else obs


def like_x(name: str, function: Callable[..., Array], obs: Obs, x: Action, *at: Scalar) -> Action:
    """`function(obs, x, *at)`, in the shape and dtype of `x`."""
    return _as_floats(name, call(name, function, obs, x, *at), x.shape, x.dtype)


def action_of(name: str, actor: Actor, obs: Obs, noise: Noise) -> Action:
    """The action of one observation, shape `(action,)`."""
    action = _as_floats(name, call(name, actor, obs, noise))
    if action.ndim != 1 or len(action) == 0:
        raise ValueError(f"`{name}` must return an action of shape (action,), got {action.shape}. {_ONE_INPUT}")
    return action


def ensemble_of(name: str, critic: Critic, obs: Obs, action: Action) -> Array:
    """Q by each member, shape `(ensemble,)`."""
    q = _as_floats(name, call(name, critic, obs, action))
    if q.ndim != 1 or len(q) == 0:
        raise ValueError(
            f"`{name}` must return shape (ensemble,), one estimate of Q for each member, got {q.shape}. For a single "
            "critic return shape (1,)."
        )
    return q


def q_of(name: str, critic: Critic, obs: Obs, action: Action, aggregate: Aggregate) -> Scalar:
    """The ensemble's estimate of Q: its lowest member (pessimistic), its mean, or a function of them."""
    q = ensemble_of(name, critic, obs, action)
    if isinstance(aggregate, str):
        return jnp.min(q) if aggregate == "min" else jnp.mean(q)
    return _as_floats("aggregate", call("aggregate", aggregate, q), (), remedy="Reduce the ensemble to one number.")


def value_of(name: str, value: Value, obs: Obs) -> Scalar:
    """V of one observation, a scalar."""
    return _as_floats(name, call(name, value, obs), ())


def times_of(name: str, times: Callable[..., Any], key: PRNGKeyArray, dtype: Any) -> tuple[Scalar, Scalar]:
    """The times and steps that a sampler draws."""
    pair = call(name, times, key)
    if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(map(_checks.is_number, pair)):
        raise TypeError(f"`{name}` must return a pair (t, h) of numbers, got {show(pair)}.")
    return _checks.as_times(pair[0], pair[1], dtype, source=name)


_ONE_INPUT = (
    "Its input is one unbatched observation: add the batch with `jax.vmap` around the library's function, not inside "
    "yours."
)


_SEES_K = "A critic that does not take the number of jumps `k` needs `condition_critic_on_k=False` in SORL's `Config`."


_ORDER = "Check the order in which you pass functions, and bind options of your own by `functools.partial`."


def call(name: str, function: Callable[..., Any], *args: Any, remedy: str = _ORDER, **keywords: Any) -> Any:
    """`function(*args, **keywords)`, or an error that says why it cannot be called so."""
    if isinstance(function, type):
        raise TypeError(f"`{name}` must be a function, got the class `{function.__name__}`. Pass an instance of it.")
    try:
        return function(*args, **keywords)
    except TypeError as error:
        function, args, keywords = _unwrapped(function, args, keywords)
        try:
            inspect.signature(function).bind(*args, **keywords)
        except (TypeError, ValueError) as mismatch:
            given = "1 positional argument" if len(args) == 1 else f"{len(args)} positional arguments"
            named = "".join(f" and `{keyword}`" for keyword in keywords)
            remedy = _SEES_K if "keyword argument 'k'" in str(mismatch) else remedy
            raise TypeError(f"`{name}` cannot be called with {given}{named} ({mismatch}). {remedy}") from error
        raise


def _unwrapped(function: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Any, tuple[Any, ...], Any]:
    """The user's function inside partials and the states of algorithms, and all of its arguments."""
    while True:
        if isinstance(function, partial | eqx.Partial):
            args, keywords = (*function.args, *args), {**function.keywords, **keywords}
            function = function.func
        elif callable(unwrap := getattr(function, "unwrap", None)):
            function = unwrap()
        else:
            return function, args, keywords


def _as_floats(
    name: str, value: Any, shape: tuple[int, ...] | None = None, dtype: Any = None, remedy: str = _ONE_INPUT
) -> Array:
    array = isinstance(value, jax.Array | np.ndarray | np.generic) and _checks.is_real(value)
    if not isinstance(value, float) and not (array and jnp.issubdtype(value.dtype, jnp.floating)):
        raise TypeError(f"`{name}` must return one float array, got {show(value)}.")
    if shape is not None and jnp.shape(value) != shape:
        raise ValueError(f"`{name}` must return shape {shape}, got {jnp.shape(value)}. {remedy}")
    return _checks.as_array(value, dtype)
