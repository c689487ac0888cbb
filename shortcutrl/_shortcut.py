"""The regularisers that tie a shortcut policy to the data: flow matching and self-consistency."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from shortcutrl import _checks, _path
from shortcutrl._types import ActionLike, Obs, Scalar, ScalarLike, Velocity, typed


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
    r"""Match the smallest step to the data's velocity: $\tfrac1d \lVert s_\theta(x_t, t, h \mid s) - (a - z) \rVert^2$.

    Here $x_t = (1 - t)\, z + t\, a$ for noise $z$ and action $a$ of dimension $d$. The minimiser is the tangent
    velocity $E[a - z \mid x_t, s]$ at `t`: exact for `h = 0`; for `h > 0` the policy learns to take Euler steps of
    that size, with their discretisation error.

    **Arguments:**

    - `velocity`: as in [`shortcut_step`][shortcutrl.shortcut_step]. Gradients flow into it.
    - `obs`: one observation, any pytree.
    - `action`: the action that the data took there, shape `(action,)`.
    - `noise`: a draw from the standard normal, shape `(action,)`.
    - `t`: the time, in [0, 1].
    - `h`: the step size at which the policy is asked, in [0, 1 - t]: 0 for the instantaneous velocity, or the
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
    action, noise = _checks.same_dtype(action=action, noise=noise)
    t, h = _checks.time_and_step(t, h, action.dtype)
    x = _path.interpolate(noise, action, t)
    predicted = _checks.velocity_output(velocity(obs, x, t, h), x)
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
    r"""Make one jump land where two half-jumps land: $\tfrac1d \lVert s_\theta(x_t, t, h \mid s) - \bar s \rVert^2$.

    The target is the mean velocity of two jumps of $h/2$ by the teacher, $\bar s = \tfrac12 (s_{\bar\theta}(x_t, t,
    \tfrac h2) + s_{\bar\theta}(x', t + \tfrac h2, \tfrac h2))$ with $x' = x_t + \tfrac h2 s_{\bar\theta}(x_t, t,
    \tfrac h2)$. No gradient flows into it. Exact where the teacher's half-jumps are; their error is inherited.

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
    action, noise = _checks.same_dtype(action=action, noise=noise)
    t, h = _checks.time_and_step(t, h, action.dtype)
    x, half = _path.interpolate(noise, action, t), h / 2
    first = _checks.velocity_output(teacher(obs, x, t, half), x, "teacher")
    second = _checks.velocity_output(teacher(obs, x + half * first, t + half, half), x, "teacher")
    target = jax.lax.stop_gradient((first + second) / 2)
    predicted = _checks.velocity_output(velocity(obs, x, t, h), x)
    return jnp.mean(jnp.square(predicted - target))


@typed
def shortcut_loss(
    velocity: Velocity,
    teacher: Velocity,
    obs: Obs,
    action: ActionLike,
    *,
    num_steps: int,
    flow_matching_weight: ScalarLike = 1.0,
    self_consistency_weight: ScalarLike = 1.0,
    key: PRNGKeyArray,
) -> tuple[Scalar, ShortcutInfo]:
    r"""Train a shortcut policy on one transition: $w_1 L_\text{flow matching} + w_2 L_\text{self-consistency}$.

    Draws, each independently: noise from the standard normal; for flow matching `h = 1 / num_steps` and `t` uniform
    on its multiples below 1; for self-consistency `h` uniform on `{1, 1/2, ..., 2 / num_steps}` and `t` uniform on
    the multiples of `h` below 1. Then [`flow_matching_loss`][shortcutrl.flow_matching_loss] and
    [`self_consistency_loss`][shortcutrl.self_consistency_loss], which are there to be called directly for any other
    choice of draws.

    **Arguments:**

    - `velocity`, `teacher`, `obs`, `action`: as in
      [`self_consistency_loss`][shortcutrl.self_consistency_loss].
    - `num_steps`: M, the largest number of jumps, a power of two. With 1 there is nothing to halve and only flow
      matching remains. Static.
    - `flow_matching_weight`, `self_consistency_weight`: non-negative.
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
        ```

    Source: the two regularisers of SORL ([arXiv 2505.22866](https://arxiv.org/abs/2505.22866)).
    """
    _checks.power_of_two("num_steps", num_steps)
    _checks.non_negative("flow_matching_weight", flow_matching_weight)
    _checks.non_negative("self_consistency_weight", self_consistency_weight)
    (action,) = _checks.same_dtype(action=action)
    flow_matching_weight = jnp.asarray(flow_matching_weight, action.dtype)
    self_consistency_weight = jnp.asarray(self_consistency_weight, action.dtype)
    noise_key, t_key, sc_noise_key, sc_t_key, sc_h_key = jax.random.split(key, 5)

    h = jnp.asarray(1 / num_steps, action.dtype)
    noise = jax.random.normal(noise_key, action.shape, action.dtype)
    flow_matching = flow_matching_loss(velocity, obs, action, noise, _path.draw_start(t_key, h), h=h)
    if num_steps == 1:
        return flow_matching_weight * flow_matching, ShortcutInfo(flow_matching, jnp.zeros_like(flow_matching))

    h = _path.draw_step(sc_h_key, num_steps, action.dtype)
    noise = jax.random.normal(sc_noise_key, action.shape, action.dtype)
    self_consistency = self_consistency_loss(velocity, teacher, obs, action, noise, _path.draw_start(sc_t_key, h), h)
    loss = flow_matching_weight * flow_matching + self_consistency_weight * self_consistency
    return loss, ShortcutInfo(flow_matching, self_consistency)
