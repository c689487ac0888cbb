"""The losses that tie a policy to the dataset: flow matching, self-consistency, a Gaussian's likelihood."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from shortcutrl import _checks
from shortcutrl._call import encoded, like_x, times_of
from shortcutrl._path import draw_flow_matching, draw_self_consistency, interpolate
from shortcutrl._typed import typed
from shortcutrl._types import ActionLike, Integer, Obs, Scalar, ScalarLike, Velocity


class ShortcutInfo(NamedTuple):
    """The two terms of [`shortcut_loss`][shortcutrl.shortcut_loss] before weighting.

    - `flow_matching`, `self_consistency`: scalars.
    """

    flow_matching: Scalar
    self_consistency: Scalar


@typed
def flow_matching_loss(
    velocity: Velocity, obs: Obs, action: ActionLike, noise: ActionLike, t: ScalarLike, *, h: ScalarLike
) -> Scalar:
    r"""Match the smallest jump to the data's velocity: $\tfrac1d \lVert s_\theta(x_t, t, h \mid s) - (a - z) \rVert^2$.

    Here $x_t = (1 - t)\, z + t\, a$ for noise $z$ and action $a$ of dimension $d$. The minimiser is the tangent
    velocity $E[a - z \mid x_t, s]$ at `t`. For `h = 0` this is exact. For `h > 0` the policy learns Euler steps of that
    size, with their discretisation error.

    **Arguments:**

    - `velocity`: as in [`shortcut_step`][shortcutrl.shortcut_step]. Gradients flow into it.
    - `obs`: one observation, any pytree.
    - `action`: the dataset's action for this observation, shape `(action,)`. Gradients flow through it and `noise`.
    - `noise`: a draw from the standard normal, shape `(action,)`.
    - `t`: the time, in [0, 1].
    - `h`: the step size that `velocity` is called with, in [0, 1 - t]: 0 for the instantaneous velocity, or the
      smallest step that is ever taken.

    **Returns:** the mean square over the action's dimensions, a scalar.

    **Raises:** as [`shortcut_step`][shortcutrl.shortcut_step].

    !!! Example

        ```python
        import jax.numpy as jnp
        from shortcutrl import flow_matching_loss

        action, noise = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
        straight = lambda obs, x, t, h: jnp.array([1.0, -1.0])
        assert flow_matching_loss(straight, None, action, noise, 0.25, h=0.125) == 0
        ```

    Source: the flow-matching term of SORL ([arXiv 2505.22866](https://arxiv.org/abs/2505.22866)).
    """
    action, noise = _checks.as_same_dtype(action=action, noise=noise)
    t, h = _checks.as_times(t, h, action.dtype)
    x = interpolate(noise, action, t)
    predicted = like_x("velocity", velocity, obs, x, t, h)
    return jnp.mean(jnp.square(predicted - (action - noise)))


@typed
def self_consistency_loss(
    velocity: Velocity,
    teacher: Velocity,
    obs: Obs,
    action: ActionLike,
    noise: ActionLike,
    t: ScalarLike,
    h: ScalarLike,
) -> Scalar:
    r"""Make a jump land where two half as long land: $\tfrac1d \lVert s_\theta(x_t, t, h \mid s) - \bar s \rVert^2$.

    The target is the mean velocity of two jumps of $h/2$ by the teacher, $\bar s = \tfrac12 (s_{\bar\theta}(x_t, t,
    \tfrac h2) + s_{\bar\theta}(x', t + \tfrac h2, \tfrac h2))$ with
    $x' = x_t + \tfrac h2 s_{\bar\theta}(x_t, t, \tfrac h2)$. No gradient flows into it. It inherits the error of the
    teacher's two jumps, and is exact where they are.

    **Arguments:**

    - `velocity`: the policy that learns. Gradients flow into it.
    - `teacher`: the policy that it learns from: usually a moving average of `velocity`, or `velocity` itself. The
      gradient with respect to it is zero.
    - `obs`, `action`, `noise`, `t`: as in [`flow_matching_loss`][shortcutrl.flow_matching_loss].
    - `h`: the size of the whole jump, in [0, 1 - t].

    **Returns:** the mean square over the action's dimensions, a scalar.

    **Raises:** as [`shortcut_step`][shortcutrl.shortcut_step].

    !!! Example

        ```python
        import jax.numpy as jnp
        from shortcutrl import self_consistency_loss

        exact = lambda obs, x, t, h: x * jnp.expm1(h) / h  # the mean velocity of dx/dt = x
        action, noise = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
        assert self_consistency_loss(exact, exact, None, action, noise, 0.5, 0.5) < 1e-12
        ```

    Source: the self-consistency term of SORL ([arXiv 2505.22866](https://arxiv.org/abs/2505.22866)).
    """
    action, noise = _checks.as_same_dtype(action=action, noise=noise)
    t, h = _checks.as_times(t, h, action.dtype)
    x, half = interpolate(noise, action, t), h / 2
    taught = encoded(teacher, obs)
    first = like_x("teacher", teacher, taught, x, t, half)
    second = like_x("teacher", teacher, taught, x + half * first, t + half, half)
    target = jax.lax.stop_gradient((first + second) / 2)
    predicted = like_x("velocity", velocity, obs, x, t, h)
    return jnp.mean(jnp.square(predicted - target))


@typed
def shortcut_loss(
    velocity: Velocity,
    teacher: Velocity,
    obs: Obs,
    action: ActionLike,
    *,
    num_steps: Integer,
    flow_matching_weight: ScalarLike = 1.0,
    self_consistency_weight: ScalarLike = 1.0,
    flow_matching_times: Callable[..., tuple[ScalarLike, ScalarLike]] | None = None,
    self_consistency_times: Callable[..., tuple[ScalarLike, ScalarLike]] | None = None,
    key: PRNGKeyArray,
) -> tuple[Scalar, ShortcutInfo]:
    r"""Train a shortcut policy on one transition: $w_1 L_\text{flow matching} + w_2 L_\text{self-consistency}$.

    It draws standard normal noise and a pair (t, h) for each term, all independent. It adds
    [`flow_matching_loss`][shortcutrl.flow_matching_loss] and
    [`self_consistency_loss`][shortcutrl.self_consistency_loss] with their weights.

    **Arguments:**

    - `velocity`: the policy that learns. Gradients flow into it.
    - `teacher`: the policy that makes the two jumps of half the size. The gradient with respect to it is zero.
    - `obs`: one observation, any pytree.
    - `action`: the dataset's action for this observation, shape `(action,)`.
    - `num_steps`: M, the largest number of jumps, a power of two. With 1 there is nothing to halve and only flow
      matching remains. Static.
    - `flow_matching_weight`, `self_consistency_weight`: non-negative.
    - `flow_matching_times`: a function `key -> (t, h)`; by default
      [`draw_flow_matching`][shortcutrl.draw_flow_matching] with `num_steps`. Static. If it returns `h = 0`, make the
      policy with `smallest_step=1 / num_steps`: otherwise nothing trains the jump of size 1/M, from which
      self-consistency starts.
    - `self_consistency_times`: a function `key -> (t, h)`; by default
      [`draw_self_consistency`][shortcutrl.draw_self_consistency] with `num_steps`. Static.
    - `key`: a JAX random key.

    **Returns:** the loss, a scalar, and [`ShortcutInfo`][shortcutrl.ShortcutInfo].

    **Raises:** `ValueError` if `num_steps` is not a power of two or a weight is negative; otherwise as
    [`shortcut_step`][shortcutrl.shortcut_step].

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from shortcutrl import shortcut_loss

        zero = lambda obs, x, t, h: jnp.zeros_like(x)
        loss, info = shortcut_loss(zero, zero, None, jnp.ones(2), num_steps=8, key=jax.random.key(0))
        assert info.self_consistency == 0 and loss == info.flow_matching

        logit_normal = lambda key: (jax.nn.sigmoid(jax.random.normal(key)), 0.0)  # t, and h = 0 for the tangent
        shortcut_loss(
            zero, zero, None, jnp.ones(2), num_steps=8, flow_matching_times=logit_normal, key=jax.random.key(0)
        )
        ```

    Source: the two regularisers of SORL ([arXiv 2505.22866](https://arxiv.org/abs/2505.22866)).
    """
    num_steps = _checks.as_power_of_two("num_steps", num_steps)
    _checks.check_range("flow_matching_weight", flow_matching_weight, 0, float("inf"))
    _checks.check_range("self_consistency_weight", self_consistency_weight, 0, float("inf"))
    (action,) = _checks.as_same_dtype(action=action)
    flow_matching_weight = jnp.asarray(flow_matching_weight, action.dtype)
    self_consistency_weight = jnp.asarray(self_consistency_weight, action.dtype)
    noise_key, times_key, sc_noise_key, sc_times_key = jax.random.split(key, 4)
    seen = encoded(velocity, obs)

    times = flow_matching_times or partial(draw_flow_matching, num_steps=num_steps)
    t, h = times_of("flow_matching_times", times, times_key, action.dtype)
    noise = jax.random.normal(noise_key, action.shape, action.dtype)
    flow_matching = flow_matching_loss(velocity, seen, action, noise, t, h=h)
    if num_steps == 1:
        return flow_matching_weight * flow_matching, ShortcutInfo(flow_matching, jnp.zeros_like(flow_matching))

    times = self_consistency_times or partial(draw_self_consistency, num_steps=num_steps)
    t, h = times_of("self_consistency_times", times, sc_times_key, action.dtype)
    noise = jax.random.normal(sc_noise_key, action.shape, action.dtype)
    student = lambda _, *at: velocity(seen, *at)  # the teacher encodes `obs` itself
    self_consistency = self_consistency_loss(student, teacher, obs, action, noise, t, h)
    loss = flow_matching_weight * flow_matching + self_consistency_weight * self_consistency
    return loss, ShortcutInfo(flow_matching, self_consistency)


@typed
def gaussian_nll(mean: ActionLike, action: ActionLike) -> Scalar:
    r"""Compute $-\log \mathcal N(a; \mu, I) = \tfrac12 \lVert a - \mu \rVert^2 + \tfrac d2 \log 2\pi$.

    **Arguments:**

    - `mean`: the mean $\mu$ of a Gaussian policy of unit standard deviation, shape `(action,)`. Gradients flow into it.
    - `action`: the dataset's action, shape and dtype of `mean`.

    **Returns:** minus the log-likelihood of `action`, a scalar: a sum over the dimensions $d$ of the action.

    **Raises:** `TypeError` for shapes or dtypes that differ.

    !!! Example

        ```python
        import jax.numpy as jnp
        from shortcutrl import gaussian_nll

        mean, action = jnp.zeros(2), jnp.array([3.0, 4.0])
        assert jnp.allclose(gaussian_nll(mean, action) - gaussian_nll(mean, mean), 25 / 2)
        ```

    Source: behaviour cloning, as in IQL ([arXiv 2110.06169](https://arxiv.org/abs/2110.06169)).
    """
    action, mean = _checks.as_same_dtype(action=action, mean=mean)
    return (jnp.sum(jnp.square(action - mean)) + action.size * math.log(2 * math.pi)) / 2
