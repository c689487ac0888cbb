"""Jumps along the flow, and the law that they obey."""

import jax
import jax.numpy as jnp
from jax.core import Tracer

from shortcutrl import _checks
from shortcutrl._call import encoded, like_x
from shortcutrl._sharding import vary_like
from shortcutrl._typed import typed
from shortcutrl._types import Action, ActionLike, Clip, Integer, Obs, ScalarLike, Velocity


@typed
def shortcut_step(velocity: Velocity, obs: Obs, x: ActionLike, t: ScalarLike, h: ScalarLike) -> Action:
    r"""Jump from time `t` to `t + h`: $x_{t+h} = x_t + h\, s_\theta(x_t, t, h \mid s)$.

    A jump of any size is exact if `velocity` is the mean velocity over $[t, t + h]$ along the trajectory through `x`.
    If `velocity` is the tangent (the velocity at `t` alone), the jump is an Euler step, whose error grows with $h^2$.

    **Arguments:**

    - `velocity`: `velocity(obs, x, t, h)`, the same shape as `x`. Gradients flow into it.
    - `obs`: one observation, any pytree; passed to `velocity` untouched.
    - `x`: where the flow is at time `t`, shape `(action,)`, float. Gradients flow through it.
    - `t`: the time, in [0, 1]; 0 is noise, 1 the action.
    - `h`: the size of the jump, in [0, 1 - t].

    **Returns:** where the flow is at `t + h`: shape and dtype of `x`, not clipped.

    **Raises:** `TypeError` for a wrong shape or dtype; `ValueError` for `t` or `h` out of range where their values are
    known (under `jit` they are not), and for a `velocity` that returns another shape.

    !!! Example

        ```python
        import jax.numpy as jnp
        from shortcutrl import shortcut_step

        # dx/dt = x, whose mean velocity over [t, t + h] is x (exp(h) - 1) / h
        velocity = lambda obs, x, t, h: x * jnp.expm1(h) / h
        x = shortcut_step(velocity, None, jnp.ones(2), 0.0, 1.0)
        assert jnp.allclose(x, jnp.e)
        ```

    Source: section 3 of shortcut models ([arXiv 2410.12557](https://arxiv.org/abs/2410.12557)).
    """
    (x,) = _checks.as_same_dtype(x=x)
    t, h = _checks.as_times(t, h, x.dtype)
    return x + h * like_x("velocity", velocity, obs, x, t, h)


@typed
def rollout_k(
    velocity: Velocity, obs: Obs, noise: ActionLike, *, k: Integer, clip: Clip = None, remat: bool = False
) -> Action:
    r"""Turn noise into an action by `k` equal jumps: $x_{t+h} = x_t + h\, s_\theta(x_t, t, h \mid s)$ with $h = 1/k$.

    More jumps cost more and follow the learned flow more closely (sequential scaling). For an exact mean velocity
    every `k` gives the same action. `functools.partial(rollout_k, policy, k=4, clip=(-1.0, 1.0))` is an
    [`Actor`][shortcutrl.Actor].

    **Arguments:**

    - `velocity`, `obs`: as in [`shortcut_step`][shortcutrl.shortcut_step]. If `velocity` has a method `encode(obs)`
      that returns [`nn.Features`][shortcutrl.nn.Features], it is called once, and each jump gets them instead of `obs`.
    - `noise`: a draw from the standard normal, shape `(action,)`. Gradients flow through it.
    - `k`: the number of jumps, from 1 to 4096; to 1024 in float16 and to 128 in bfloat16. A shortcut policy is trained
      for powers of two up to its `num_steps`; a flow model takes any number. Static.
    - `clip`: `(low, high)`, two numbers or two arrays of the action's shape, to clip the final action to. `None` leaves
      it unchanged. No gradient flows where it clips.
    - `remat`: whether the backward pass computes each jump again instead of storing its activations. The gradient is
      the same; it takes less memory and more time (`jax.checkpoint`). Static.

    **Returns:** the action at time 1, shape and dtype of `noise`. Gradients flow through all `k` jumps.

    **Raises:** `ValueError` if `k` is out of range for the noise or `clip` is empty; otherwise as
    [`shortcut_step`][shortcutrl.shortcut_step].

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from functools import partial
        from shortcutrl import rollout_k

        velocity = lambda obs, x, t, h: obs - x  # an Euler step towards `obs`
        obs, noise = jnp.zeros((5, 3)), jnp.ones((5, 3))
        actions = jax.vmap(partial(rollout_k, velocity, k=4, clip=(-1.0, 1.0)))(obs, noise)
        assert jnp.allclose(actions, 0.75**4)
        ```

    Source: the sampling procedure of SORL ([arXiv 2505.22866](https://arxiv.org/abs/2505.22866)).
    """
    k = _checks.as_count("k", k)
    (noise,) = _checks.as_same_dtype(noise=noise)
    if k > (most := round(1 / float(jnp.finfo(noise.dtype).eps))):  # a jump would vanish in rounding
        raise ValueError(f"`k` must be at most {most} for {noise.dtype}, got {k}. Convert the noise to float32.")
    bounds = _checks.as_clip("clip", clip, noise)
    obs = encoded(velocity, obs)

    def jump(x, t):
        return shortcut_step(velocity, obs, x, t, 1 / k)

    if remat:  # jumps must not stand side by side, because the compiler would merge what they repeat
        once, unroll, before, action = jax.checkpoint(jump), 1, 0, vary_like(jump(noise, 0.0), noise)
    else:
        once, unroll, action = jump, 8, noise
        before = (k - 1) % unroll + 1 if is_long(k) else k
    for i in range(before):  # the compiler fuses across these jumps
        action = once(action, i / k)
    if before < k:  # after a jump, the carry varies over devices as those of later jumps do
        times = jnp.arange(before, k, dtype=noise.dtype) / k
        action, _ = jax.lax.scan(lambda x, t: (once(x, t), None), action, times, unroll=unroll)
    return action if bounds is None else jnp.clip(action, *bounds)


def is_long(steps: int) -> bool:
    """Whether a loop of so many steps should be a scan, which compiles sooner, but outside of `jit` at every call."""
    compiling = isinstance(jnp.zeros(()), Tracer)  # in an eager `vmap` or `grad`, arguments are traced, and this is not
    return steps > (8 if compiling else 128)


@typed
def consistency_gap(velocity: Velocity, obs: Obs, x: ActionLike, t: ScalarLike, h: ScalarLike) -> Action:
    r"""Measure how far one jump of `h` lands from two jumps of `h / 2`: zero for an exact shortcut model.

    $$x_t + h\, s_\theta(x_t, t, h) - \big(x' + \tfrac h2 s_\theta(x', t + \tfrac h2, \tfrac h2)\big),
    \qquad x' = x_t + \tfrac h2 s_\theta(x_t, t, \tfrac h2).$$

    Use it for monitoring and tests. Gradients flow through all three evaluations. To train, use
    [`self_consistency_loss`][shortcutrl.self_consistency_loss], whose target is held fixed.

    **Arguments:** as in [`shortcut_step`][shortcutrl.shortcut_step].

    **Returns:** the difference of the two landing points, shape and dtype of `x`.

    **Raises:** as [`shortcut_step`][shortcutrl.shortcut_step].

    !!! Example

        ```python
        import jax.numpy as jnp
        from shortcutrl import consistency_gap

        tangent = lambda obs, x, t, h: x  # the tangent of dx/dt = x, not its mean velocity
        gap = consistency_gap(tangent, None, jnp.ones(2), 0.0, 1.0)
        assert jnp.allclose(gap, 2.0 - 1.5**2)
        ```

    Source: section 3 of shortcut models ([arXiv 2410.12557](https://arxiv.org/abs/2410.12557)).
    """
    (x,) = _checks.as_same_dtype(x=x)
    t, h = _checks.as_times(t, h, x.dtype)
    obs, half = encoded(velocity, obs), h / 2
    middle = shortcut_step(velocity, obs, x, t, half)
    return shortcut_step(velocity, obs, x, t, h) - shortcut_step(velocity, obs, middle, t + half, half)
