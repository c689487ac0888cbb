"""A loss for a number of jumps that may be traced: a switch with one branch for each, differentiated inside."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer

from shortcutrl import _checks
from shortcutrl._contract import fixed
from shortcutrl._sharding import vary_like
from shortcutrl._typed import show
from shortcutrl._types import Integer, Scalar


def at_drawn(
    loss: Callable[..., tuple[Scalar, Scalar]], learners: tuple[Any, ...], name: str, k: Any, max_jumps: Integer
) -> tuple[Scalar, Scalar]:
    """`loss(*learners, k)` for a k of 1, 2, 4, ..., `max_jumps` that may be traced, differentiable in the learners.

    The gradient of the loss is computed inside the branch: differentiating through the switch would keep the
    intermediate values of every branch. The terms beside the loss have no gradient.
    """
    allowed = [2**i for i in range(int(max_jumps).bit_length())]
    _check_one_of(name, k, allowed)
    if not isinstance(k, Tracer):
        result, terms = loss(*learners, int(k))
        return result, jax.lax.stop_gradient(terms)  # as in the switch
    params, static = eqx.partition(learners, eqx.is_inexact_array)
    branches = [lambda params, each=each: loss(*eqx.combine(params, static), each) for each in allowed]
    gradients = [jax.value_and_grad(branch, has_aux=True) for branch in branches]
    index = jnp.sum(jnp.array(allowed) < k)
    # In `shard_map`, parameters must vary over devices as the loss does, so that the branches do not sum gradients.
    params = vary_like(branches[0](fixed(params))[0], params)
    (result, terms), grads = jax.lax.stop_gradient(jax.lax.switch(index, gradients, fixed(params)))
    return _with_gradients(params, result, grads), terms


@jax.custom_jvp
def _with_gradients(params: Any, loss: Scalar, grads: Any) -> Scalar:
    """The loss, with these gradients in the parameters."""
    return loss


@_with_gradients.defjvp
def _along_gradients(primals: Any, tangents: Any) -> tuple[Scalar, Scalar]:
    params, loss, grads = primals
    pairs = zip(jax.tree.leaves(_once(grads, params)), jax.tree.leaves(tangents[0]), strict=True)
    return loss, sum((jnp.sum(grad * tangent) for grad, tangent in pairs), jnp.zeros_like(loss)).astype(loss.dtype)


@jax.custom_jvp
def _once(grads: Any, params: Any) -> Any:
    """The gradients. Differentiating them again would give zeros, so it fails."""
    return grads


@_once.defjvp
def _twice(primals: Any, tangents: Any) -> Any:
    raise NotImplementedError(
        "The losses of `sorl` have no second derivatives for numbers of jumps that `jit` traces. Bind static ones: "
        "`draws._replace(td_k=4, q_k=4)`."
    )


def _check_one_of(name: str, value: Any, allowed: list[int]) -> None:
    integer = _checks.is_number(value) and jnp.issubdtype(jnp.result_type(value), jnp.integer)
    if not integer or not (isinstance(value, Tracer) or int(value) in allowed):
        raise ValueError(f"`{name}` must be one of {', '.join(map(str, allowed))}, got {show(value)}.")
