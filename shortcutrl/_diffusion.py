"""Diffusion models: noise an action, predict the noise, and turn noise into an action."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from shortcutrl import _checks
from shortcutrl._call import encoded, like_x, value_of
from shortcutrl._step import is_long
from shortcutrl._typed import typed
from shortcutrl._types import Action, ActionLike, Clip, Integer, Obs, Scalar, ScalarLike


@runtime_checkable
class Denoiser(Protocol):
    """`denoiser(obs, x, t)`: the noise in `x`, a noised action at the diffusion time `t`; the same shape as `x`."""

    def __call__(self, obs: Obs, x: Action, t: Scalar, /) -> Array: ...


@typed
def vp_schedule(t: ScalarLike, *, beta_min: ScalarLike = 0.1, beta_max: ScalarLike = 20.0) -> Scalar:
    r"""Compute $\log \bar\alpha(t) = -\beta_\min t - \tfrac12 (\beta_\max - \beta_\min)\, t^2$.

    This is the variance-preserving schedule: at the diffusion time `t` a noised action is $\sqrt{\bar\alpha}$ times the
    action plus $\sqrt{1 - \bar\alpha}$ times the noise. **The diffusion time is 0 at the action and 1 at the noise**,
    the reverse of the flow time. The logarithm keeps $1 - \bar\alpha$ accurate near the action.

    **Arguments:**

    - `t`: the diffusion time, in [0, 1].
    - `beta_min`, `beta_max`: the rate at which the signal decays at time 0 and at time 1, non-negative.

    **Returns:** the logarithm of $\bar\alpha$, a scalar of at most 0.

    **Raises:** `ValueError` for a `t` outside [0, 1] or a negative rate, where they are known.

    !!! Example

        ```python
        from functools import partial
        from shortcutrl import vp_schedule

        schedule = partial(vp_schedule, beta_max=10.0)
        assert schedule(0.0) == 0.0 and schedule(1.0) < -5.0
        ```

    Source: appendix C of score-based models by SDEs ([arXiv 2011.13456](https://arxiv.org/abs/2011.13456)). The
    discrete schedule of IDQL is this one at the times $i / T$.
    """
    _checks.check_range("t", t, 0, 1)
    _checks.check_range("beta_min", beta_min, 0, float("inf"))
    _checks.check_range("beta_max", beta_max, 0, float("inf"))
    dtype = jnp.result_type(t, 1.0)
    t, low, high = (jnp.asarray(value, dtype) for value in (t, beta_min, beta_max))
    return -(low + (high - low) * t / 2) * t


@typed
def diffuse(action: ActionLike, noise: ActionLike, t: ScalarLike, *, schedule: Callable[[Any], Array]) -> Action:
    r"""Noise an action: $x_t = \sqrt{\bar\alpha(t)}\, a + \sqrt{1 - \bar\alpha(t)}\, z$.

    **Arguments:**

    - `action`: a, shape `(action,)`, float. Gradients flow through it.
    - `noise`: z, a draw from the standard normal, shape and dtype of `action`. Gradients flow through it.
    - `t`: the diffusion time, in [0, 1]: 0 is the action, 1 is noise.
    - `schedule`: a function from `t` to the logarithm of $\bar\alpha$, such as
      [`vp_schedule`][shortcutrl.vp_schedule]. Static.

    **Returns:** the noised action, shape and dtype of `action`.

    **Raises:** `TypeError` for shapes or dtypes that differ; `ValueError` for `t` out of range where it is known.

    !!! Example

        ```python
        import jax.numpy as jnp
        from shortcutrl import diffuse, vp_schedule

        action, noise = jnp.array([0.5, -0.5]), jnp.array([1.0, 2.0])
        assert jnp.allclose(diffuse(action, noise, 0.0, schedule=vp_schedule), action)
        ```

    Source: denoising diffusion ([arXiv 2006.11239](https://arxiv.org/abs/2006.11239)), equation 4.
    """
    action, noise = _checks.as_same_dtype(action=action, noise=noise)
    log_signal = _log_signal(schedule, t, action.dtype)
    return jnp.exp(log_signal / 2) * action + jnp.sqrt(-jnp.expm1(log_signal)) * noise


@typed
def denoising_loss(
    denoiser: Denoiser,
    obs: Obs,
    action: ActionLike,
    noise: ActionLike,
    t: ScalarLike,
    *,
    schedule: Callable[[Any], Array],
) -> Scalar:
    r"""Predict the noise in a noised action: $\tfrac1d \lVert \epsilon_\theta(s, x_t, t) - z \rVert^2$.

    The minimiser is $E[z \mid x_t, s] = -\sqrt{1 - \bar\alpha}\, \nabla_{x_t} \log p_t(x_t \mid s)$, a multiple of the
    score of the noised actions. Published code takes the sum over the dimensions $d$. This loss takes the mean, as
    [`flow_matching_loss`][shortcutrl.flow_matching_loss] does.

    **Arguments:**

    - `denoiser`: `denoiser(obs, x, t)`, the same shape as `x`. Gradients flow into it.
    - `obs`: one observation, any pytree.
    - `action`: the dataset's action for this observation, shape `(action,)`.
    - `noise`, `t`, `schedule`: as in [`diffuse`][shortcutrl.diffuse].

    **Returns:** the mean square over the action's dimensions, a scalar.

    **Raises:** as [`diffuse`][shortcutrl.diffuse]; `ValueError` for a `denoiser` that returns another shape.

    !!! Example

        ```python
        import jax.numpy as jnp
        from shortcutrl import denoising_loss, vp_schedule

        action, noise = jnp.zeros(2), jnp.array([1.0, -1.0])
        blind = lambda obs, x, t: jnp.zeros_like(x)
        assert denoising_loss(blind, None, action, noise, 0.5, schedule=vp_schedule) == 1.0
        ```

    Source: denoising diffusion ([arXiv 2006.11239](https://arxiv.org/abs/2006.11239)), equation 14.
    """
    action, noise = _checks.as_same_dtype(action=action, noise=noise)
    return jnp.mean(jnp.square(_noise_error(denoiser, obs, action, noise, t, schedule)))


@typed
def score_distillation_loss(
    denoiser: Denoiser,
    obs: Obs,
    action: ActionLike,
    noise: ActionLike,
    t: ScalarLike,
    *,
    schedule: Callable[[Any], Array],
) -> Scalar:
    r"""Move an action towards the data of a diffusion model: the gradient is $\sigma_t^2 (\epsilon(s, x_t, t) - z)$.

    Here $\sigma_t^2 = 1 - \bar\alpha(t)$. The loss is the product of the action and that vector, which is held fixed.
    **Its value has no meaning**; use only its gradient. No gradient flows into the denoiser.

    **Arguments:**

    - `denoiser`: a model of the data, trained by [`denoising_loss`][shortcutrl.denoising_loss]. Its gradient is zero.
    - `obs`: one observation, any pytree.
    - `action`: the action to move, shape `(action,)`. Gradients flow through it.
    - `noise`, `t`, `schedule`: as in [`diffuse`][shortcutrl.diffuse].

    **Returns:** a scalar, summed over the action's dimensions, of which only the gradient has a meaning.

    **Raises:** as [`denoising_loss`][shortcutrl.denoising_loss].

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from functools import partial
        from shortcutrl import score_distillation_loss, vp_schedule

        def denoiser(obs, x, t):  # of data that is always zero
            return x / jnp.sqrt(-jnp.expm1(vp_schedule(t)))

        loss = partial(score_distillation_loss, denoiser, None, schedule=vp_schedule)
        assert jax.grad(loss)(jnp.array([2.0]), jnp.array([0.3]), 0.5) > 0  # descent moves the action to zero
        ```

    Source: SRPO ([arXiv 2310.07297](https://arxiv.org/abs/2310.07297)), with the weight of its code. Subtracting the
    noise is the baseline of its paper: it lowers the variance and does not change the mean. Score distillation is from
    [arXiv 2209.14988](https://arxiv.org/abs/2209.14988).
    """
    action, noise = _checks.as_same_dtype(action=action, noise=noise)
    weight = -jnp.expm1(_log_signal(schedule, t, action.dtype))
    direction = weight * _noise_error(denoiser, obs, action, noise, t, schedule)
    return jnp.sum(jax.lax.stop_gradient(direction) * action)


@typed
def ddpm_sample(
    denoiser: Denoiser,
    obs: Obs,
    noise: Float[Array | np.ndarray, "steps action"],
    *,
    steps: Integer,
    schedule: Callable[[Any], Array],
    clip: Clip = None,
) -> Action:
    r"""Turn noise into an action by ancestral sampling, from $t = 1$ to $t = 0$.

    $$x_s = \tfrac{1}{\sqrt\alpha} \left(x_t - \tfrac{\beta}{\sqrt{1 - \bar\alpha(t)}} \epsilon_\theta(s, x_t, t)\right)
    + \sqrt\beta\, z.$$

    Here $\alpha = \bar\alpha(t) / \bar\alpha(s)$ and $\beta = 1 - \alpha$, for $t = 1, \tfrac{T-1}{T}, \dots, \tfrac1T$
    and $s = t - \tfrac1T$. The last step adds no noise. The mean of each step is that of the posterior
    $q(x_s \mid x_t, a)$ at the predicted action. The variance is $\beta$, as in the code of IDQL. It is exact for data
    of unit variance, and larger than the posterior's variance.
    `functools.partial(ddpm_sample, denoiser, steps=5, schedule=vp_schedule)` is an [`Actor`][shortcutrl.Actor].

    **Arguments:**

    - `denoiser`: as in [`denoising_loss`][shortcutrl.denoising_loss]. Gradients flow into it.
    - `obs`: one observation, any pytree.
    - `noise`: standard normal, shape `(steps, action)`: the start, then the noise of each step but the last.
    - `steps`: $T$, at least 1. The denoiser is called once in each step. Static.
    - `schedule`: as in [`diffuse`][shortcutrl.diffuse]. Static.
    - `clip`: `(low, high)`, two numbers or two arrays of the action's shape, to clip the action to **after each step**.
      `None` leaves it unchanged.

    **Returns:** the action, shape `(action,)`.

    **Raises:** `ValueError` for noise of another shape, an empty `clip`, or a `denoiser` that returns another shape.

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from functools import partial
        from shortcutrl import ddpm_sample, vp_schedule

        def denoiser(obs, x, t):  # of data that is always zero
            return x / jnp.sqrt(-jnp.expm1(vp_schedule(t)))

        noise = jax.random.normal(jax.random.key(0), (5, 2))
        action = ddpm_sample(denoiser, None, noise, steps=5, schedule=vp_schedule)
        assert jnp.allclose(action, 0, atol=1e-6)
        ```

    Source: denoising diffusion ([arXiv 2006.11239](https://arxiv.org/abs/2006.11239)), algorithm 2.
    """
    steps = _checks.as_size("steps", steps)
    noise = _checks.as_rows("noise", noise, steps)
    bounds = _checks.as_clip("clip", clip, noise[0])
    obs = encoded(denoiser, obs)

    x, rows = noise[0], jnp.concatenate([noise[1:], jnp.zeros_like(noise[:1])])  # the last step adds no noise
    times = jnp.arange(steps, -1, -1, dtype=x.dtype) / steps
    log_signal = jax.vmap(lambda t: _log_signal(schedule, t, x.dtype))(times)
    log_alpha = log_signal[:-1] - log_signal[1:]
    beta = -jnp.expm1(log_alpha)
    scale, weight = jnp.exp(-log_alpha / 2), beta / jnp.sqrt(-jnp.expm1(log_signal[:-1]))

    def step(x, at):
        t, row, scale, weight, deviation = at
        x = scale * (x - weight * like_x("denoiser", denoiser, obs, x, t)) + deviation * row
        return (x if bounds is None else jnp.clip(x, *bounds)), None

    each = times[:-1], rows, scale, weight, jnp.sqrt(beta)
    if is_long(steps):
        first, rest = (jax.tree.map(lambda leaf, part=part: leaf[part], each) for part in (0, slice(1, None)))
        # After the first step, each has the same type: the carry may vary over devices where the noise does not.
        return jax.lax.scan(step, step(x, first)[0], rest, unroll=8)[0]
    for at in zip(*each, strict=True):
        x, _ = step(x, at)
    return x


def _log_signal(schedule: Callable[[Any], Array], t: ScalarLike, dtype: Any) -> Scalar:
    _checks.check_range("t", t, 0, 1)
    return value_of("schedule", schedule, jnp.asarray(t, dtype)).astype(dtype)


def _noise_error(denoiser: Denoiser, obs: Obs, action: Action, noise: Action, t: ScalarLike, schedule: Any) -> Action:
    """How far the predicted noise is from the noise."""
    x = diffuse(action, noise, t, schedule=schedule)
    return like_x("denoiser", denoiser, obs, x, jnp.asarray(t, x.dtype)) - noise
