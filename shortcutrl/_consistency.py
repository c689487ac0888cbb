"""Consistency models: one evaluation turns a noised action of any noise level into an action."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from shortcutrl import _checks
from shortcutrl._call import like_x
from shortcutrl._typed import show, typed
from shortcutrl._types import Action, ActionLike, Clip, Obs, Scalar, ScalarLike

SMALLEST_LEVEL, LARGEST_LEVEL = 0.002, 80.0
"""The noise levels of a consistency model."""

RHO = 7.0
"""How much denser the small noise levels lie than the large ones."""

LOW, HIGH = SMALLEST_LEVEL ** (1 / RHO), LARGEST_LEVEL ** (1 / RHO)
"""The ends of the scale on which the noise levels are equally dense."""

DATA_STD = 0.5
"""The standard deviation of actions that the scaling of a consistency model supposes."""


@runtime_checkable
class ConsistencyModel(Protocol):
    """`model(obs, x, level)`: the action that the noised action `x` came from; the same shape as `x`."""

    def __call__(self, obs: Obs, x: Action, level: Scalar, /) -> Array: ...


@typed
def noise_level(position: ScalarLike) -> Scalar:
    r"""Compute $\sigma(u) = \big(\sigma_\min^{1/\rho} + u\, (\sigma_\max^{1/\rho} - \sigma_\min^{1/\rho})\big)^\rho$.

    These are the noise levels of a consistency model. They range from 0.002 to 80 and are denser at small values
    ($\rho = 7$).

    **Arguments:**

    - `position`: u, in [0, 1].

    **Returns:** the standard deviation of the noise, a scalar.

    **Raises:** `ValueError` for a `position` outside [0, 1].

    !!! Example

        ```python
        import jax.numpy as jnp
        from shortcutrl import noise_level

        assert jnp.allclose(noise_level(0.0), 0.002) and jnp.allclose(noise_level(1.0), 80.0)
        ```

    Source: equation 5 of EDM ([arXiv 2206.00364](https://arxiv.org/abs/2206.00364)).
    """
    _checks.check_range("position", position, 0, 1)
    dtype = jnp.result_type(position, 1.0)
    u = jnp.asarray(position, jnp.promote_types(dtype, jnp.float32))  # the power magnifies rounding
    return ((LOW + u * (HIGH - LOW)) ** RHO).astype(dtype)


@typed
def consistency_function(network: Callable[..., Array], obs: Obs, x: ActionLike, level: ScalarLike) -> Action:
    r"""Make a network a consistency model: $f(x, \sigma) = c_\text{skip} x + c_\text{out} F(s, c_\text{in} x, u)$.

    With $d = 0.5$ and $\epsilon = 0.002$: $c_\text{skip} = \frac{d^2}{(\sigma - \epsilon)^2 + d^2}$, $c_\text{out} =
    \frac{d (\sigma - \epsilon)}{\sqrt{\sigma^2 + d^2}}$ and $c_\text{in} = \frac{1}{\sqrt{\sigma^2 + d^2}}$; $u$ is the
    `position` of $\sigma$ in [`noise_level`][shortcutrl.noise_level]. Hence $f(x, \epsilon) = x$ for every network.
    `functools.partial(consistency_function, network)` is the `model` of
    [`consistency_loss`][shortcutrl.consistency_loss].

    **Arguments:**

    - `network`: `network(obs, x, u)`, the same shape as `x`, with u in [0, 1]. Gradients flow into it.
    - `obs`: one observation, any pytree.
    - `x`: a noised action, shape `(action,)`. Gradients flow through it.
    - `level`: $\sigma$, the standard deviation of its noise, in [0.002, 80].

    **Returns:** the action, shape and dtype of `x`.

    **Raises:** `ValueError` for a `level` out of range where it is known, or a `network` that returns another shape.

    !!! Example

        ```python
        import jax.numpy as jnp
        from shortcutrl import consistency_function

        network = lambda obs, x, u: jnp.ones_like(x)
        assert consistency_function(network, None, jnp.array([0.3]), 0.002) == 0.3
        ```

    Source: appendix C of consistency models ([arXiv 2303.01469](https://arxiv.org/abs/2303.01469)).
    """
    (x,) = _checks.as_same_dtype(x=x)
    level = _as_level("level", level, x.dtype)
    position = jnp.clip((level ** (1 / RHO) - LOW) / (HIGH - LOW), 0, 1)  # rounding may leave the interval
    above, spread = level - SMALLEST_LEVEL, jnp.sqrt(level**2 + DATA_STD**2)
    output = like_x("network", network, obs, x / spread, position)
    return DATA_STD**2 / (above**2 + DATA_STD**2) * x + DATA_STD * above / spread * output


@typed
def consistency_loss(
    model: ConsistencyModel,
    teacher: ConsistencyModel,
    obs: Obs,
    action: ActionLike,
    noise: ActionLike,
    low: ScalarLike,
    high: ScalarLike,
) -> Scalar:
    r"""Train a consistency model to give the same action for two neighbouring noise levels.

    $$\tfrac1d \lVert f_\theta(s, a + \sigma_2 z, \sigma_2) - f_{\bar\theta}(s, a + \sigma_1 z, \sigma_1) \rVert^2.$$

    No gradient flows into the target. If the levels are close to each other, the target is nearly exact. The boundary
    condition $f(x, 0.002) = x$ anchors it.

    **Arguments:**

    - `model`: `model(obs, x, level)`, the same shape as `x`, such as
      [`consistency_function`][shortcutrl.consistency_function] of a network. Gradients flow into it.
    - `teacher`: the model that gives the target, usually a moving average. Its gradient is zero.
    - `obs`: one observation, any pytree.
    - `action`: the dataset's action for this observation, shape `(action,)`.
    - `noise`: z, a draw from the standard normal, shape and dtype of `action`.
    - `low`, `high`: $\sigma_1$ and $\sigma_2$, neighbouring noise levels, such as two of
      [`noise_level`][shortcutrl.noise_level].

    **Returns:** the mean square over the action's dimensions, a scalar.

    **Raises:** `ValueError` for a level outside [0.002, 80] or for levels that are not in ascending order, where they
    are known, and for a function that returns another shape.

    !!! Example

        ```python
        import jax.numpy as jnp
        from shortcutrl import consistency_loss

        zero = lambda obs, x, level: jnp.zeros_like(x)  # exact for data that is always zero
        assert consistency_loss(zero, zero, None, jnp.zeros(2), jnp.ones(2), 0.1, 0.2) == 0
        ```

    Source: consistency training ([arXiv 2303.01469](https://arxiv.org/abs/2303.01469)), algorithm 3.
    """
    action, noise = _checks.as_same_dtype(action=action, noise=noise)
    low, high = _as_level("low", low, action.dtype), _as_level("high", high, action.dtype)
    if not isinstance(low, Tracer) and not isinstance(high, Tracer) and low >= high:
        raise ValueError(f"`low` must be below `high`, got {low} and {high}. Swap them.")
    target = jax.lax.stop_gradient(like_x("teacher", teacher, obs, action + low * noise, low))
    return jnp.mean(jnp.square(like_x("model", model, obs, action + high * noise, high) - target))


@typed
def consistency_sample(
    model: ConsistencyModel,
    obs: Obs,
    noise: Float[Array | np.ndarray, "steps action"],
    *,
    levels: tuple[Any, ...] | list[Any],
    clip: Clip = None,
) -> Action:
    r"""Turn noise into an action in few steps: $a \leftarrow f(s, a + \sqrt{\sigma_i^2 - 0.002^2}\, z_i, \sigma_i)$.

    The first step starts from noise alone, $f(s, \sigma_1 z_1, \sigma_1)$. Each further step adds noise to the action
    again and improves it. `functools.partial(consistency_sample, model, levels=(80.0, 2.0))` is an
    [`Actor`][shortcutrl.Actor].

    **Arguments:**

    - `model`: as in [`consistency_loss`][shortcutrl.consistency_loss]. Gradients flow into it, through all steps.
    - `obs`: one observation, any pytree.
    - `noise`: standard normal, shape `(steps, action)`, one row for each level.
    - `levels`: the noise levels, one for each step, each in [0.002, 80], usually descending from 80. Static.
    - `clip`: `(low, high)`, two numbers or two arrays of the action's shape, to clip the final action to. `None` leaves
      it unchanged. No gradient flows where it clips.

    **Returns:** the action, shape `(action,)`.

    **Raises:** `ValueError` for noise of another shape, no level, a level out of range, an empty `clip`, or a `model`
    that returns another shape.

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from shortcutrl import consistency_sample

        shrink = lambda obs, x, level: x * 0.002 / level  # nearly exact for data that is always zero
        noise = jax.random.normal(jax.random.key(0), (2, 3))
        action = consistency_sample(shrink, None, noise, levels=(80.0, 2.0))
        assert jnp.abs(action).max() < 0.01
        ```

    Source: multistep sampling ([arXiv 2303.01469](https://arxiv.org/abs/2303.01469)), algorithm 1.
    """
    if not levels:
        raise ValueError("`levels` must have at least one noise level, such as (80.0, 2.0), got none.")
    rows = _checks.as_rows("noise", noise, len(levels))
    bounds = _checks.as_clip("clip", clip, rows[0])
    first, *others = (_as_level("levels", level, rows.dtype) for level in levels)
    action = like_x("model", model, obs, first * rows[0], first)
    for level, row in zip(others, rows[1:], strict=True):
        spread = jnp.sqrt(level**2 - jnp.asarray(SMALLEST_LEVEL, level.dtype) ** 2)
        action = like_x("model", model, obs, action + spread * row, level)
    return action if bounds is None else jnp.clip(action, *bounds)


def _as_level(name: str, value: Any, dtype: Any) -> Scalar:
    """A noise level in `dtype`, of which the smallest and the largest may have been rounded."""
    if not _checks.is_number(value):
        raise TypeError(f"`{name}` must be numbers, got {show(value)}.")
    if not isinstance(value, Tracer) and not 0.99 * SMALLEST_LEVEL <= float(value) <= 1.01 * LARGEST_LEVEL:
        raise ValueError(f"`{name}` must be in [{SMALLEST_LEVEL}, {LARGEST_LEVEL:g}], got {show(value)}.")
    return jnp.clip(jnp.asarray(value, dtype), SMALLEST_LEVEL, LARGEST_LEVEL)
