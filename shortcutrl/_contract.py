"""What every algorithm checks: its networks, its state, its batch, its draws and its config."""

import dataclasses
import inspect
import typing
from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from shortcutrl import _checks
from shortcutrl._call import call
from shortcutrl._sharding import split_like
from shortcutrl._typed import T, show, typed
from shortcutrl._types import Encoder, Transition


def checked(kind: Any, draw: Callable[..., Any] | None = None) -> Callable[[T], T]:
    """`typed` for a function of an algorithm, with checks of the state, the batch and the draws that it is given.

    `kind` names the networks. For a loss, whose first argument is what learns, pass `draw`, which makes its draws. They
    are split over devices as the batch is. No gradient flows into the other arguments.
    """

    def decorate(function: T) -> T:
        guarded, signature = typed(function), inspect.signature(function)
        needs = {"state", "batch", "draws", "config"} if draw is not None else set()
        if missing := needs - signature.parameters.keys():
            raise TypeError(f"`{function.__name__}` must have the arguments {', '.join(sorted(missing))}.")

        @wraps(function)
        def checked_call(*args, **kwargs):
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError:
                return guarded(*args, **kwargs)  # says which arguments there are
            given = bound.arguments
            if draw is not None:
                name, learner = next(iter(given.items()))
                for network in learner if isinstance(learner, tuple) else (learner,):
                    check_network(name, network)
            if hasattr(given.get("state"), "_asdict"):
                _check_state(kind, given["state"])
            for name, loss in given.items():
                own = signature.parameters[name].default
                if name.endswith("_loss") and callable(own) and callable(loss):
                    given[name] = _in_place_of(own, name, loss)
            if draw is not None:
                given |= {name: fixed(given[name]) for name in ("state", "batch", "draws")}
            if isinstance(given.get("batch"), Transition):
                _check_batch(given["batch"], hasattr(given.get("config"), "discount"))
                given["batch"] = jax.tree.map(lambda x: jnp.asarray(x) if _checks.is_real(x) else x, given["batch"])
                if draw is not None:
                    _check_draws(draw, given)
                    given["draws"] = split_like(given["batch"].action, given["draws"])
            return guarded(*bound.args, **bound.kwargs)

        return typing.cast(T, checked_call)

    return decorate


def _check_state(kind: Any, state: Any) -> None:
    for name, value in state._asdict().items():
        if name.removeprefix("target_") in kind._fields and value is not None:  # which not all use
            check_network(f"state.{name}", value)
        elif name == "updates":
            _checks.as_scalar("state.updates", value, jnp.int32)


def _in_place_of(own: Callable[..., Any], name: str, loss: Callable[..., Any]) -> Callable[..., Any]:
    """A loss in the place of an algorithm's `own`: it must return scalars in the form that `own` is annotated with."""
    hint = inspect.signature(own).return_annotation
    remedy = "It takes (network, state, batch, draws, *, config)."

    def form(hint: Any, scalar: Any) -> Any:
        is_tuple = typing.get_origin(hint) is tuple
        return tuple(form(part, scalar) for part in typing.get_args(hint)) if is_tuple else scalar

    def checked_loss(learner, state, batch, draws, *, config):
        args = learner, state, batch, split_like(batch.action, draws)
        result = call(name, loss, *args, config=config, remedy=remedy)
        for part, leaf in _checks.named_leaves(f"{name}(...)", result):
            if not _checks.is_numeric(leaf):
                raise TypeError(f"`{part}` must be a number, got {show(leaf)}.")
        shapes = jax.tree.map(jnp.shape, result)
        if typing.get_origin(hint) is tuple and shapes != form(hint, ()):
            words = str(form(hint, "scalar")).replace("'", "")
            raise TypeError(f"`{name}` must return a tuple {words}, as the library's does, got shapes {shapes}.")
        if not jnp.issubdtype(jnp.result_type(first := jax.tree.leaves(result)[0]), jnp.floating):
            raise TypeError(f"`{name}` must return a float as the loss, got {show(first)}.")
        return jax.tree.map(jnp.asarray, result)

    return loss if loss is own else checked_loss


def fixed(tree: Any) -> Any:
    """The same without gradients; functions among its leaves stay as they are."""
    return jax.tree.map(lambda leaf: jax.lax.stop_gradient(leaf) if isinstance(leaf, jax.Array) else leaf, tree)


def check_network(name: str, network: Any) -> None:
    if not callable(network) or isinstance(network, type):
        raise TypeError(f"`{name}` must be a callable pytree, such as an Equinox Module, got {show(network)}.")


def _check_batch(batch: Transition, needs_next_obs: bool) -> None:
    """A batch has one leading axis in each array, and the ranks of a batch of transitions."""
    for name in ("action", "reward", "mask"):
        value, rank = getattr(batch, name), 2 if name == "action" else 1
        if not isinstance(value, jax.Array | np.ndarray) or value.ndim != rank:
            shape = "(batch, action)" if rank == 2 else "(batch,)"
            raise ValueError(f"`batch.{name}` must have shape {shape}, got {show(value)}.")
        _checks.check_numbers(f"batch.{name}", value)
    if not jnp.issubdtype(batch.action.dtype, jnp.floating):
        raise TypeError(f"`batch.action` is {batch.action.dtype}. Convert it: actions are floats.")
    after = batch.next_action
    if after is not None and not (isinstance(after, jax.Array | np.ndarray) and after.shape == batch.action.shape):
        raise ValueError(f"`batch.next_action` must have shape {batch.action.shape} or be None, got {show(after)}.")
    _checks.check_leading_axis("batch", batch)
    shapes = [jax.tree.map(jnp.shape, obs) for obs in (batch.obs, batch.next_obs)]
    if shapes[0] != shapes[1] and (needs_next_obs or batch.next_obs is not None):
        raise ValueError(f"`batch.next_obs` must be like `batch.obs`, {show(batch.obs)}, got {show(batch.next_obs)}.")


def _check_draws(draw: Callable[..., Any], given: dict[str, Any]) -> None:
    """The draws have the shapes of those that `draw` makes for the batch."""
    expected = jax.eval_shape(lambda: draw(jax.random.key(0), given["batch"], config=given["config"]))
    if jax.tree.structure(given["draws"]) != jax.tree.structure(expected):
        raise TypeError(f"`draws` must be what `draw` makes for the batch, got {show(given['draws'])}.")
    leaves = _checks.named_leaves("draws", given["draws"])
    for (name, leaf), like in zip(leaves, jax.tree.leaves(expected), strict=True):
        _checks.check_numbers(name, leaf)
        if jnp.shape(leaf) != like.shape:
            raise ValueError(f"`{name}` must have shape {like.shape} for this batch, got {show(leaf)}. Use `draw`.")


def sizes_of(example: Transition, encoder: Encoder) -> tuple[int, int]:
    """The sizes that networks are made for: of an observation, encoded if there is an encoder, and of an action."""
    action, obs = example.action, example.obs
    if not isinstance(action, jax.Array | np.ndarray) or action.ndim not in (1, 2):
        raise ValueError(f"`example.action` must have shape (action,) or (batch, action), got {show(action)}.")
    _checks.check_numbers("example.action", action)
    _checks.check_numbers("example.obs", obs)
    if action.ndim == 2:
        _checks.check_leading_axis("example", example._replace(reward=None, mask=None, next_obs=None, next_action=None))
        obs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), obs)
    if encoder is not None:
        obs = eqx.filter_eval_shape(partial(call, "encoder", encoder), obs)
    array = isinstance(obs, jax.Array | np.ndarray | jax.ShapeDtypeStruct)
    if not array or len(obs.shape) != 1 or not jnp.issubdtype(obs.dtype, jnp.floating):
        raise ValueError(
            f"`example.obs` must be float vectors, got {show(obs)}. Convert them to float32, or pass an `encoder`."
            if encoder is None
            else f"`encoder` must return a float vector, got {obs}. Its input is one observation."
        )
    return obs.shape[0], action.shape[-1]


def validate(
    config: Any, *, non_negative: Sequence[str] = (), sizes: Sequence[str] = (), fractions: Sequence[str] = ()
) -> None:
    """Make a frozen Config plain data (Python numbers, tuples) and check its fields. For `__post_init__`."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, tuple | list):
            plain = lambda each: isinstance(each, np.generic | np.ndarray | jax.Array) and each.ndim == 0
            value = tuple(each.item() if plain(each) else each for each in value)
        object.__setattr__(config, field.name, value.item() if isinstance(value, np.generic) else value)
    for name in non_negative:
        _checks.check_range(name, getattr(config, name), 0, float("inf"))
    for name in sizes:
        _checks.as_count(name, getattr(config, name))
    for name in (*fractions, "discount", "tau"):
        if hasattr(config, name):  # behaviour cloning has no discount and no tau
            _checks.check_range(name, getattr(config, name), 0, 1, open_low=name == "tau")
    if getattr(config, "clip", None) is not None:
        _checks.check_clip("clip", config.clip)
