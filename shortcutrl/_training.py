"""What the algorithms share: networks that `jit` can carry, optimizers, moving averages, and terms of losses."""

import copy
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from shortcutrl import _contract
from shortcutrl._call import call, encoded, ensemble_of, q_of, value_of
from shortcutrl._typed import show
from shortcutrl._types import Aggregate, Number, Scalar, Transition
from shortcutrl._value import bellman_target, expectile_loss, td_loss


class _Same(jax.tree_util.GetAttrKey):
    """An entry of a path that adds nothing to it, so that arrays of a carried network keep the names of the user."""

    def __str__(self) -> str:
        return ""


class _Carried:
    """A network with leaves that are not arrays, such as activation functions, in a form that `jit` can carry.

    A pytree of the network's arrays, with `None` for the other leaves, which are static. A deep copy has the same
    static part, so `jit` does not compile again for it. For a copy by pickle, it does.
    """

    def __init__(self, arrays: Any, static: Any) -> None:
        self._arrays, self._static = arrays, static  # what is static: the leaves, and the structure of the network

    def __deepcopy__(self, memo: Any) -> "_Carried":
        return jax.tree.map(lambda leaf: copy.deepcopy(leaf, memo), self)

    def __reduce__(self) -> Any:
        leaves, structure = self._static
        return _unpickled, (self._listed(), leaves, jax.tree.unflatten(structure, range(len(leaves))))

    def _listed(self) -> list[Any]:
        return self._static[1].flatten_up_to(self._arrays)

    def unwrap(self) -> Any:
        """The network in the form in which the user made it."""
        leaves, structure = self._static
        merged = [leaf if array is None else array for array, leaf in zip(self._listed(), leaves, strict=True)]
        return jax.tree.unflatten(structure, merged)

    def __call__(self, *args, **kwargs):
        return self.unwrap()(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in ("_arrays", "_static") or name.startswith("__"):  # while a copy is made
            raise AttributeError(name)
        return getattr(self.unwrap(), name)

    def __repr__(self) -> str:
        return repr(self.unwrap())

    def encode(self, obs: Any) -> Any:
        return encoded(self.unwrap(), obs)


jax.tree_util.register_pytree_with_keys(
    _Carried,
    lambda network: (((_Same("_arrays"), network._arrays),), network._static),
    lambda static, children: _Carried(next(iter(children)), static),
)


def _unpickled(arrays: list[Array | None], leaves: tuple[Any, ...], network: Any) -> _Carried:
    structure = jax.tree.structure(network)
    return _Carried(jax.tree.unflatten(structure, arrays), (leaves, structure))


def _as_carried(name: str, network: Any) -> Any:
    """A copy of a network for a state: with its own arrays, so that the state may be donated."""
    _contract.check_network(name, network)
    leaves, structure = jax.tree.flatten(network)
    arrays = [leaf for leaf in leaves if isinstance(leaf, jax.Array | np.ndarray)]
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
        return jax.tree.map(_copied, network)
    split = [(_copied(leaf), None) if isinstance(leaf, jax.Array | np.ndarray) else (None, leaf) for leaf in leaves]
    arrays = jax.tree.unflatten(structure, [array for array, _ in split])
    return _Carried(arrays, (tuple(leaf for _, leaf in split), structure))


def _copied(leaf: jax.Array | np.ndarray) -> Array:
    return jnp.copy(np.array(leaf) if isinstance(leaf, np.ndarray) else leaf)  # JAX copies NumPy's later


def _as_group(kind: Any, name: str, values: Any) -> Any:
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
    return eqx.filter(network._arrays if isinstance(network, _Carried) else network, eqx.is_inexact_array)


def _apply(updates: Any, network: Any) -> Any:
    """The network after an update of its `parameters`."""
    if isinstance(network, _Carried):
        return _Carried(eqx.apply_updates(network._arrays, updates), network._static)
    return eqx.apply_updates(network, updates)


def start(kind: Any, state: Any, networks: Any, optimizers: Any, **others: Any) -> Any:
    """A new `state`, by the names of its fields: copies of the networks, target networks, and optimizers' states."""
    networks = _as_group(kind, "networks", networks)._asdict()
    optimizers = dict.fromkeys(networks) if optimizers is None else _as_optimizers(kind, optimizers)._asdict()
    fields: dict[str, Any] = {}
    for name, network in networks.items():
        fields[name] = _as_carried(f"networks.{name}", network)
        fields[f"{name}_opt_state"] = _init_optimizer(name, optimizers[name], fields[name])
        if f"target_{name}" in state._fields:
            fields[f"target_{name}"] = jax.tree.map(jnp.copy, fields[name])
    return state(**fields, **others)


def step(kind: Any, state: Any, optimizers: Any, **grads: Any) -> Any:
    """One step of the optimizer of each network that has gradients, by name: the state with both replaced."""
    optimizers = _as_optimizers(kind, optimizers)
    for name, grad in grads.items():
        optimizer, network = getattr(optimizers, name), getattr(state, name)
        opt_state = getattr(state, f"{name}_opt_state")
        params = parameters(network)
        if opt_state is None:
            raise ValueError(f"`state.{name}_opt_state` is None: the state was made without `optimizers`, to act only.")
        if not _alike(jax.eval_shape(optimizer.init, params), opt_state):
            raise ValueError(
                f"`state.{name}_opt_state` belongs to another optimizer than `optimizers.{name}`, or to another "
                f"network than `state.{name}`: pass a state of `init` or `update`, and the optimizers of `init`."
            )
        updates, opt_state = optimizer.update(parameters(grad), opt_state, params)
        state = state._replace(**{name: _apply(updates, network), f"{name}_opt_state": opt_state})
    return state


def _alike(one: Any, other: Any) -> bool:
    """The same structure, and arrays of the same shapes."""
    shapes = [[getattr(leaf, "shape", ()) for leaf in jax.tree.leaves(tree)] for tree in (one, other)]
    return jax.tree.structure(one) == jax.tree.structure(other) and shapes[0] == shapes[1]


def _as_optimizers(kind: Any, optimizers: Any) -> Any:
    group = _as_group(kind, "optimizers", optimizers)
    for name, optimizer in group._asdict().items():
        if not isinstance(optimizer, optax.GradientTransformation):
            raise TypeError(
                f"`optimizers.{name}` must be an optax transformation, got {show(optimizer)}. Pass one for each "
                "network, even if they are the same; of `MultiSteps`, its `gradient_transformation()`."
            )
    return group


def _init_optimizer(name: str, optimizer: optax.GradientTransformation | None, network: Any) -> optax.OptState | None:
    """A fresh state, if the optimizer needs no more than gradients and parameters."""
    if optimizer is None:
        return None
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


value_and_grad = partial(eqx.filter_value_and_grad, has_aux=True)
"""`loss(network, ...) -> (loss, aux)` to `((loss, aux), gradients)`."""


def move_targets(state: Any, tau: Number) -> Any:
    """Move each `target_x` of a state towards its `x`: `target + tau (online - target)`."""
    names = [name.removeprefix("target_") for name in state._fields if name.startswith("target_")]
    pairs = {name: (getattr(state, name), getattr(state, f"target_{name}")) for name in names}
    return state._replace(**{f"target_{name}": _polyak(name, *pair, tau) for name, pair in pairs.items()})


def _polyak(name: str, online: Any, target: Any, tau: Number) -> Any:
    if not _alike(online, target):
        raise ValueError(f"`state.target_{name}` must be like `state.{name}`. Make the state by `init`.")
    new = eqx.filter(online, eqx.is_inexact_array)
    old, rest = eqx.partition(target, eqx.is_inexact_array)  # not of `online`: a donated state has each array once
    return eqx.combine(optax.incremental_update(new, old, float(tau)), rest)


class _Sees(eqx.Module):
    """A network that sees its own of several encodings of an observation."""

    network: Any
    name: str = eqx.field(static=True)

    def __call__(self, obs: dict[str, Any], *args: Any, **keywords: Any) -> Any:
        return call(self.name, self.network, obs[self.name], *args, **keywords)


def encode_once(obs: Any, **networks: Any) -> tuple[Any, ...]:
    """The encodings of a batch of observations by each network, and networks that take them.

    All terms of a loss share the encodings. Otherwise each would go through the encoders, forwards and backwards.
    """
    encodings = {name: jax.vmap(partial(encoded, network))(obs) for name, network in networks.items()}
    return encodings, *(_Sees(network, name) for name, network in networks.items())


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


def fit_td(
    critic: Any, target_critic: Any, actor: Any, batch: Transition, noise: Array, config: Any
) -> tuple[Scalar, Scalar]:
    """The batch's mean of `td_loss`, and the mean Q."""
    options = {"discount": config.discount, "aggregate": config.aggregate}
    losses, info = jax.vmap(partial(td_loss, critic, target_critic, actor, **options))(batch, noise)
    return losses.mean(), info.q.mean()


def fit_critic(critic: Any, value: Any, batch: Transition, *, discount: Number) -> tuple[Scalar, Scalar]:
    """The squares of Q against `r + discount * mask * V(s')`, and the mean Q.

    A sum over the ensemble and a mean over the batch, as in the published code of IQL.
    """
    next_v = v_of_data("state.value", value, batch.next_obs)
    target = jax.vmap(partial(bellman_target, discount=discount))(batch, next_v)
    q = jax.vmap(partial(ensemble_of, "critic", critic))(batch.obs, jnp.asarray(batch.action))
    return jnp.square(q - target[:, None].astype(q.dtype)).sum(axis=1).mean(), q.mean()
