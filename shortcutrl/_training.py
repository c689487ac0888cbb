"""What the algorithms share: networks that `jit` can carry, optimizers, moving averages, and checks of their input."""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array

from shortcutrl import _checks, _contract
from shortcutrl._call import call, encoded, ensemble_of, q_of, value_of
from shortcutrl._typed import show
from shortcutrl._types import Aggregate, Integer, Number, Scalar, Transition
from shortcutrl._value import bellman_target, expectile_loss


class Carried(eqx.Module):
    """A network with leaves that are not arrays, such as activation functions, in a form that `jit` can carry."""

    arrays: list[Array | None]
    static: Any = eqx.field(static=True)

    def unwrap(self) -> Any:
        """The network in the form in which the user made it."""
        leaves, structure = self.static
        merged = [leaf if array is None else array for array, leaf in zip(self.arrays, leaves, strict=True)]
        return jax.tree.unflatten(structure, merged)

    def __call__(self, *args, **kwargs):
        return self.unwrap()(*args, **kwargs)

    def encode(self, obs: Any) -> Any:
        return encoded("network", self.unwrap(), obs)


def as_carried(name: str, network: Any) -> Any:
    """A copy of a network for a state: with its own arrays, so that the state may be donated."""
    _contract.check_network(name, network)
    leaves, structure = jax.tree.flatten(network)
    arrays = [leaf for leaf in leaves if eqx.is_array_like(leaf) and isinstance(leaf, jax.Array | np.ndarray)]
    floats = [leaf for leaf in arrays if jnp.issubdtype(leaf.dtype, jnp.floating)]
    if not floats:
        raise ValueError(f"`{name}` has no parameters to train: pass a pytree of arrays that is callable.")
    for leaf in floats:
        if jnp.finfo(leaf.dtype).bits < 32:
            raise ValueError(
                f"`{name}` has parameters of {leaf.dtype}, in which small updates and moving averages are lost. Keep "
                "them in float32; for faster products pass `matmul_dtype` to the networks of `nn`."
            )
    if len(arrays) == len(leaves):
        return jax.tree.map(jnp.copy, network)
    split = [(jnp.copy(leaf), None) if eqx.is_array(leaf) else (None, leaf) for leaf in map(_as_jax, leaves)]
    return Carried([array for array, _ in split], (tuple(leaf for _, leaf in split), structure))


def _as_jax(leaf: Any) -> Any:
    return jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf


def as_group(kind: Any, name: str, values: Any) -> Any:
    """One value for each network, such as `Networks(policy, critic)`; any tuple or list of that length."""
    fields = kind._fields
    if (
        not isinstance(values, tuple | list)
        or len(values) != len(fields)
        or getattr(values, "_fields", fields) != fields
    ):
        raise TypeError(f"`{name}` must be ({', '.join(fields)}), one for each network, got {show(values)}.")
    return kind(*values)


def parameters(network: Any) -> Any:
    """What optimizers see: the network as the user made it, with `None` for all but the floating-point arrays."""
    arrays = eqx.filter(network, eqx.is_inexact_array)
    return jax.tree.unflatten(network.static[1], arrays.arrays) if isinstance(network, Carried) else arrays


def _apply(updates: Any, network: Any) -> Any:
    """The network after an update of its `parameters`."""
    if isinstance(network, Carried):
        updates = Carried(network.static[1].flatten_up_to(updates), network.static)
    return eqx.apply_updates(network, updates)


def start(kind: Any, networks: Any, optimizers: Any) -> tuple[Any, list[optax.OptState]]:
    """Copies of the networks, and a fresh state of each optimizer."""
    networks, optimizers = as_group(kind, "networks", networks), _as_optimizers(kind, optimizers)
    carried = kind(*(as_carried(f"networks.{name}", value) for name, value in networks._asdict().items()))
    return carried, [_init_optimizer(*each) for each in zip(kind._fields, optimizers, carried, strict=True)]


def step(kind: Any, state: Any, optimizers: Any, **grads: Any) -> Any:
    """One step of the optimizer of each network that has gradients, by name: the state with both replaced."""
    optimizers = _as_optimizers(kind, optimizers)
    for name, grad in grads.items():
        optimizer, network = getattr(optimizers, name), getattr(state, name)
        opt_state = getattr(state, f"{name}_opt_state")
        params = parameters(network)
        if jax.tree.structure(jax.eval_shape(optimizer.init, params)) != jax.tree.structure(opt_state):
            raise ValueError(
                f"`state.{name}_opt_state` belongs to another optimizer than `optimizers.{name}`: pass the optimizers "
                "that the state was made with by `init`."
            )
        updates, opt_state = optimizer.update(parameters(grad), opt_state, params)
        state = state._replace(**{name: _apply(updates, network), f"{name}_opt_state": opt_state})
    return state


def _as_optimizers(kind: Any, optimizers: Any) -> Any:
    group = as_group(kind, "optimizers", optimizers)
    for name, optimizer in group._asdict().items():
        if not isinstance(optimizer, optax.GradientTransformation):
            raise TypeError(
                f"`optimizers.{name}` must be an optax transformation, got {show(optimizer)}. Pass one for each "
                "network, even if they are the same; of `MultiSteps`, its `gradient_transformation()`."
            )
    return group


def _init_optimizer(name: str, optimizer: optax.GradientTransformation, network: Any) -> optax.OptState:
    """A fresh state, if the optimizer needs no more than gradients and parameters."""
    params = parameters(network)
    try:
        state = optimizer.init(params)
        jax.eval_shape(optimizer.update, params, state, params)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(
            f"`optimizers.{name}` is not supported, because it fails on gradients and parameters alone ({reason}). "
            "Optimizers that need the loss (`lbfgs`, `reduce_on_plateau`) or pairs of parameters (`lookahead`) cannot "
            "be used. `multi_transform` and `masked` work with a function of the parameters that returns the tree of "
            "labels or of the mask."
        ) from error
    return jax.tree.map(jnp.copy, state)


learn = partial(eqx.filter_value_and_grad, has_aux=True)
"""`loss(network, ...) -> (loss, aux)` to `((loss, aux), gradients)`."""


def fixed(tree: Any) -> Any:
    """The same without gradients; functions among its leaves stay as they are."""
    return jax.tree.map(lambda leaf: jax.lax.stop_gradient(leaf) if eqx.is_array(leaf) else leaf, tree)


def average(state: Any, tau: Number) -> Any:
    """Move each `target_x` of a state towards its `x`: `target + tau (online - target)`."""
    names = [name.removeprefix("target_") for name in state._fields if name.startswith("target_")]
    pairs = {name: (getattr(state, name), getattr(state, f"target_{name}")) for name in names}
    return state._replace(**{f"target_{name}": _polyak(name, *pair, tau) for name, pair in pairs.items()})


def _polyak(name: str, online: Any, target: Any, tau: Number) -> Any:
    if jax.tree.structure(online) != jax.tree.structure(target):
        raise ValueError(f"`state.target_{name}` must have the structure of `state.{name}`. Make the state by `init`.")
    new, static = eqx.partition(online, eqx.is_inexact_array)
    old = eqx.filter(target, eqx.is_inexact_array)
    return eqx.combine(optax.incremental_update(new, old, float(tau)), static)


class Seeing(eqx.Module):
    """A network that sees its own part of observations that `encode_once` made."""

    network: Any
    name: str = eqx.field(static=True)

    def __call__(self, obs: Any, *args: Any, **options: Any) -> Array:
        return call(self.name, partial(self.network, **options), obs[self.name], *args)


def encode_once(state: Any, obs: Any, *names: str) -> tuple[Any, dict[str, Any]]:
    """What the networks of these names make of the observations of a batch once, for all that calls them.

    Returns a state whose networks take it in place of the observations.
    """
    networks = {name: Seeing(getattr(state, name), name) for name in names}
    encode = {name: partial(encoded, name, each.network) for name, each in networks.items()}
    return state._replace(**networks), {name: jax.vmap(each)(obs) for name, each in encode.items()}


def normalized(loss: Scalar, q: Array) -> Scalar:
    """The loss divided by the batch's mean |Q|, without a gradient into the divisor."""
    size = jax.lax.stop_gradient(jnp.abs(q).mean())
    return loss / jnp.where(size > 0, size, 1.0)  # a critic may start at zero


def q_of_data(name: str, critic: Any, batch: Transition, aggregate: Aggregate) -> Array:
    """The aggregated Q of each of the batch's actions."""
    return jax.vmap(partial(q_of, name, critic, aggregate=aggregate))(batch.obs, jnp.asarray(batch.action))


def v_of_data(name: str, value: Any, obs: Any) -> Array:
    """V of each observation of a batch."""
    return jax.vmap(partial(value_of, name, value))(obs)


def fit_value(
    value: Any, critic: Any, batch: Transition, *, expectile: Number, aggregate: Aggregate = "min"
) -> tuple[Scalar, Scalar]:
    """The batch's mean of `expectile_loss` for Q of the batch's actions by a target critic, and the mean V."""
    q = q_of_data("state.target_critic", critic, batch, aggregate)
    v = v_of_data("value", value, batch.obs)
    losses = jax.vmap(lambda v, q: expectile_loss(lambda _: v, None, q, expectile=expectile))(v, q)
    return losses.mean(), v.mean()


def fit_critic(critic: Any, value: Any, batch: Transition, *, discount: Number) -> tuple[Scalar, Scalar]:
    """The squares of Q against `r + discount * mask * V(s')`, and the mean Q.

    A sum over the ensemble and a mean over the batch, as in the published code of IQL.
    """
    next_v = v_of_data("state.value", value, batch.next_obs)
    target = jax.vmap(partial(bellman_target, discount=discount))(batch, next_v)
    q = jax.vmap(partial(ensemble_of, "critic", critic))(batch.obs, jnp.asarray(batch.action))
    return jnp.square(q - target[:, None].astype(q.dtype)).sum(axis=1).mean(), q.mean()


def at_drawn(
    loss: Callable[[Any, Any, int], tuple[Scalar, Scalar]],
    network: Any,
    obs: Any,
    name: str,
    k: Any,
    max_jumps: Integer,
) -> tuple[Scalar, Scalar]:
    """`loss(network, obs, k)` for a k of 1, 2, 4, ..., `max_jumps` that may be traced, differentiable in both others.

    The gradient of the loss is computed inside the branch: differentiating through the switch would keep the
    intermediate values of every branch. The terms beside the loss have no gradient.
    """
    allowed = [2**i for i in range(int(max_jumps).bit_length())]
    _checks.check_one_of(name, k, allowed)
    if not isinstance(k, Tracer):
        result, terms = loss(network, obs, int(k))
        return result, jax.lax.stop_gradient(terms)  # as in the switch
    params, static = eqx.partition((network, obs), eqx.is_inexact_array)
    branches = [lambda params, each=each: loss(*eqx.combine(params, static), each) for each in allowed]
    gradients = [jax.value_and_grad(branch, has_aux=True) for branch in branches]
    index = jnp.searchsorted(jnp.array(allowed), k)

    @jax.custom_vjp
    def switch(params):
        return jax.lax.switch(index, branches, params)

    def backward(grads, cotangents):
        return (jax.tree.map(lambda grad: cotangents[0] * grad, grads),)

    switch.defvjp(lambda params: jax.lax.switch(index, gradients, params), backward)
    return switch(params)
