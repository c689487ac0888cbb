"""The straight path from noise to action, and draws of the points at which the losses evaluate it."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from shortcutrl import _checks
from shortcutrl._typed import show, typed
from shortcutrl._types import Action, ActionLike, Integer, ScalarLike


@typed
def interpolate(noise: ActionLike, action: ActionLike, t: ScalarLike) -> Action:
    r"""Take the point at `t` of the straight path: $x_t = (1 - t)\, z + t\, a$. Its velocity is $a - z$ everywhere.

    **Arguments:**

    - `noise`: z, shape `(action,)`, float. Gradients flow through it.
    - `action`: a, shape and dtype of `noise`. Gradients flow through it.
    - `t`: the time, in [0, 1]; 0 is noise, 1 the action.

    **Returns:** the point, shape and dtype of `action`.

    **Raises:** `TypeError` for shapes or dtypes that differ; `ValueError` for `t` out of range where it is known.

    !!! Example

        ```python
        import jax.numpy as jnp
        from shortcutrl import interpolate

        assert jnp.allclose(interpolate(jnp.zeros(2), jnp.ones(2), 0.25), 0.25)
        ```

    Source: flow matching ([arXiv 2210.02747](https://arxiv.org/abs/2210.02747)).
    """
    action, noise = _checks.as_same_dtype(action=action, noise=noise)
    t, _ = _checks.as_times(t, 0, action.dtype)
    return (1 - t) * noise + t * action


@typed
def draw_flow_matching(
    key: PRNGKeyArray, *, num_steps: Integer, shape: tuple[Any, ...] | list[Any] = ()
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    r"""Draw (t, h) for flow matching: $h = 1/M$, t uniform on $\{0, h, \dots, 1 - h\}$, where M is `num_steps`.

    **Arguments:**

    - `key`: a JAX random key.
    - `num_steps`: M, the largest number of jumps, a power of two. Static.
    - `shape`: the shape of both results; `()` for one draw. Static.

    **Returns:** `t` and `h`, float32, each of `shape`.

    **Raises:** `ValueError` if `num_steps` is not a power of two.

    !!! Example

        ```python
        import jax
        from shortcutrl import draw_flow_matching

        t, h = draw_flow_matching(jax.random.key(0), num_steps=8, shape=(256,))
        assert (h == 0.125).all() and (t <= 0.875).all()
        ```

    Source: SORL ([arXiv 2505.22866](https://arxiv.org/abs/2505.22866)).
    """
    shape = _as_shape("shape", shape)
    h = jnp.full(shape, 1 / _checks.as_power_of_two("num_steps", num_steps), jnp.float32)
    return _draw_start(key, h), h


@typed
def draw_self_consistency(
    key: PRNGKeyArray, *, num_steps: Integer, shape: tuple[Any, ...] | list[Any] = ()
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    r"""Draw (t, h) for self-consistency: h uniform on $\{1, \tfrac12, \dots, \tfrac2M\}$, t on $\{0, h, \dots, 1-h\}$.

    These are the jumps whose halves are trained. With `num_steps` of 1 there is none, so this function raises an error.

    **Arguments:**

    - `key`: a JAX random key.
    - `num_steps`: M, the largest number of jumps, a power of two of at least 2. Static.
    - `shape`: the shape of both results; `()` for one draw. Static.

    **Returns:** `t` and `h`, float32, each of `shape`.

    **Raises:** `ValueError` if `num_steps` is 1 or not a power of two.

    !!! Example

        ```python
        import jax
        from shortcutrl import draw_self_consistency

        t, h = draw_self_consistency(jax.random.key(0), num_steps=8, shape=(256,))
        assert set(h.tolist()) == {1.0, 0.5, 0.25} and (t + h <= 1).all()
        ```

    Source: shortcut models ([arXiv 2410.12557](https://arxiv.org/abs/2410.12557)).
    """
    shape, num_steps = _as_shape("shape", shape), _checks.as_power_of_two("num_steps", num_steps)
    if num_steps == 1:
        raise ValueError("`num_steps` must be at least 2, got 1: the only jump has no trained half.")
    step_key, start_key = jax.random.split(key)
    halvings = jax.random.randint(step_key, shape, 0, num_steps.bit_length() - 1)
    h = jnp.ones(shape, jnp.float32)  # neither exp2, which rounds, nor a table, which JAX cannot map over sharded keys
    for i in range(num_steps.bit_length() - 2):
        h = jnp.where(halvings > i, h / 2, h)
    return _draw_start(start_key, h), h


def _draw_start(key: PRNGKeyArray, h: Array) -> Array:
    """A start for a jump of size `h`, where rollouts by that size pass."""
    return h * jnp.floor(jax.random.uniform(key, h.shape, h.dtype) / h)


def _as_shape(name: str, value: Any) -> tuple[int, ...]:
    """The shape of an array that fits into memory."""
    shape = tuple(_checks.as_size(name, size, 0) for size in value)
    if math.prod(shape) > 2**31:
        raise ValueError(f"`{name}` must have at most 2**31 elements, got {show(value)}.")
    return shape
