"""Learning Q and V: targets and losses."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from shortcutrl import _checks
from shortcutrl._call import action_of, ensemble_of, q_of, value_of
from shortcutrl._typed import show, typed
from shortcutrl._types import Actor, Aggregate, Critic, Noise, Obs, Scalar, ScalarLike, Transition, Value


class TDInfo(NamedTuple):
    """The values that [`td_loss`][shortcutrl.td_loss] and [`critic_loss`][shortcutrl.critic_loss] report.

    - `q`: the ensemble's mean Q of the transition's action, a scalar.
    - `target`: the target that Q is regressed on, a scalar.
    - `error`: `q - target`, a scalar.
    """

    q: Scalar
    target: Scalar
    error: Scalar


@typed
def bellman_target(transition: Transition, next_value: ScalarLike, *, discount: ScalarLike) -> Scalar:
    r"""Compute the value to regress Q on: $y = r + \gamma\, m\, v'$.

    **No gradient flows out of it.**

    **Arguments:**

    - `transition`: one [`Transition`][shortcutrl.Transition]; only `reward` and `mask` are used.
    - `next_value`: $v'$, the value of the next observation, a scalar. Its gradient is zero.
    - `discount`: $\gamma$, in [0, 1].

    **Returns:** the target, a scalar in the dtype of `next_value`.

    **Raises:** `ValueError` for a `discount` outside [0, 1] or a batched transition.

    !!! Example

        ```python
        import jax.numpy as jnp
        from shortcutrl import Transition, bellman_target

        step = Transition(jnp.ones(3), jnp.ones(2), reward=1.0, mask=1.0, next_obs=jnp.ones(3))
        assert bellman_target(step, jnp.array(4.0), discount=0.5) == 3.0
        ```
    """
    _checks.check_range("discount", discount, 0, 1)
    dtype = jnp.result_type(next_value, 1.0)
    reward = _checks.as_scalar("transition.reward", transition.reward, dtype)
    mask = _checks.as_scalar("transition.mask", transition.mask, dtype)
    target = reward + jnp.asarray(discount, dtype) * mask * jnp.asarray(next_value, dtype)
    return jax.lax.stop_gradient(target)


@typed
def td_target(
    target_critic: Critic,
    actor: Actor,
    transition: Transition,
    noise: Noise,
    *,
    discount: ScalarLike,
    aggregate: Aggregate = "mean",
) -> Scalar:
    r"""Compute $y = r + \gamma\, m\, \operatorname{agg}_i Q_{\bar\phi_i}(s', a')$, where the actor chooses $a'$.

    This is one sample of the Bellman target of `actor`. It is biased where `target_critic` is biased. `aggregate="min"`
    is deliberately low, to counteract overestimation. **No gradient flows out of it**: neither into the actor nor into
    the target critic.

    **Arguments:**

    - `target_critic`: `target_critic(obs, action)`, shape `(ensemble,)`; usually a moving average of the critic.
    - `actor`: the policy that chooses the next action, an [`Actor`][shortcutrl.Actor].
    - `transition`: one [`Transition`][shortcutrl.Transition]; its `action` and `obs` are not used.
    - `noise`: the actor's noise for the next action.
    - `discount`: $\gamma$, in [0, 1].
    - `aggregate`: `"min"`, `"mean"`, or a function of the ensemble's vector, shape `(ensemble,)`, to a scalar. Static.

    **Returns:** the target, a scalar in the dtype of Q.

    **Raises:** `ValueError` for a `discount` outside [0, 1], a batched transition, or a function that returns another
    shape; `TypeError` for a function that cannot take these arguments or does not return a float array.

    !!! Example

        ```python
        import jax.numpy as jnp
        from shortcutrl import Transition, td_target

        stay = lambda obs, noise: noise
        critic = lambda obs, action: jnp.stack([jnp.sum(action), 2 * jnp.sum(action)])
        step = Transition(jnp.ones(3), jnp.ones(2), jnp.array(1.0), jnp.array(1.0), jnp.ones(3))
        assert td_target(critic, stay, step, jnp.ones(2), discount=0.5, aggregate="min") == 1.0 + 0.5 * 2.0

        pessimistic = lambda q: q.mean() - 0.5 * q.std()
        td_target(critic, stay, step, jnp.ones(2), discount=0.5, aggregate=pessimistic)
        ```

    Source: the critic's objective of SORL ([arXiv 2505.22866](https://arxiv.org/abs/2505.22866)).
    """
    next_action = action_of("actor", actor, transition.next_obs, noise)
    next_q = q_of("target_critic", target_critic, transition.next_obs, next_action, aggregate)
    return bellman_target(transition, next_q, discount=discount)


@typed
def critic_loss(critic: Critic, transition: Transition, target: ScalarLike) -> tuple[Scalar, TDInfo]:
    r"""Fit every member of the ensemble to a target of your choice: $\tfrac1E \sum_i (Q_{\phi_i}(s, a) - y)^2$.

    **Arguments:**

    - `critic`: `critic(obs, action)`, shape `(ensemble,)`. Gradients flow into it.
    - `transition`: one [`Transition`][shortcutrl.Transition]; only `obs` and `action` are used.
    - `target`: $y$, a scalar. Its gradient is zero.

    **Returns:** the mean over the ensemble, a scalar, and [`TDInfo`][shortcutrl.TDInfo].

    **Raises:** `TypeError` if `transition.action` is not one float array of shape `(action,)`; `ValueError` if
    `critic` returns another shape.

    !!! Example

        ```python
        import jax.numpy as jnp
        from shortcutrl import Transition, critic_loss

        step = Transition(jnp.ones(3), jnp.ones(2), jnp.array(1.0), jnp.array(0.0), jnp.ones(3))
        loss, info = critic_loss(lambda obs, action: jnp.array([3.0, 5.0]), step, 1.0)
        assert loss == (2.0**2 + 4.0**2) / 2
        ```

    Source: fitted Q evaluation, as in SORL ([arXiv 2505.22866](https://arxiv.org/abs/2505.22866)).
    """
    action = _as_action("transition.action", transition.action)
    q = ensemble_of("critic", critic, transition.obs, action)
    target = jax.lax.stop_gradient(jnp.asarray(target, q.dtype))
    mean_q = jnp.mean(q)
    return jnp.mean(jnp.square(q - target)), TDInfo(mean_q, target, mean_q - target)


@typed
def td_loss(
    critic: Critic,
    target_critic: Critic,
    actor: Actor,
    transition: Transition,
    noise: Noise,
    *,
    discount: ScalarLike,
    aggregate: Aggregate = "mean",
) -> tuple[Scalar, TDInfo]:
    r"""Fit the whole ensemble to [`td_target`][shortcutrl.td_target]: $\tfrac1E \sum_i (Q_{\phi_i}(s, a) - y)^2$.

    **Arguments:**

    - `critic`: `critic(obs, action)`, shape `(ensemble,)`. Gradients flow into it.
    - `target_critic`: as `critic`; usually its moving average. Its gradient is zero.
    - `actor`: the policy that chooses the next action, an [`Actor`][shortcutrl.Actor]. Its gradient is zero.
    - `transition`: one [`Transition`][shortcutrl.Transition].
    - `noise`: the actor's noise for the next action.
    - `discount`: $\gamma$, in [0, 1].
    - `aggregate`: `"min"`, `"mean"`, or a function of the ensemble's vector; used in the target only. Static.

    **Returns:** the mean over the ensemble, a scalar, and [`TDInfo`][shortcutrl.TDInfo].

    **Raises:** as [`td_target`][shortcutrl.td_target] and [`critic_loss`][shortcutrl.critic_loss].

    !!! Example

        ```python
        import jax.numpy as jnp
        from shortcutrl import Transition, td_loss

        critic = lambda obs, action: jnp.array([3.0, 5.0])
        step = Transition(jnp.ones(3), jnp.ones(2), jnp.array(1.0), jnp.array(0.0), jnp.ones(3))
        loss, info = td_loss(critic, critic, lambda obs, noise: noise, step, jnp.ones(2), discount=0.9)
        assert info.target == 1.0 and loss == (2.0**2 + 4.0**2) / 2
        ```

    Source: the critic's objective of SORL ([arXiv 2505.22866](https://arxiv.org/abs/2505.22866)).
    """
    target = td_target(target_critic, actor, transition, noise, discount=discount, aggregate=aggregate)
    return critic_loss(critic, transition, target)


@typed
def expectile_loss(value: Value, obs: Obs, q: ScalarLike, *, expectile: ScalarLike) -> Scalar:
    r"""Fit V to an expectile of Q: $|\tau - 1[q < v]|\,(q - v)^2$ with $v = V_\psi(s)$.

    The minimiser is the `expectile` of q over the dataset's actions. 0.5 gives the mean of q, and values towards 1
    approach the q of the best action.

    **Arguments:**

    - `value`: `value(obs)`, a scalar. Gradients flow into it.
    - `obs`: one observation, any pytree.
    - `q`: the estimate of Q for the dataset's action, a scalar. Its gradient is zero.
    - `expectile`: $\tau$, in [0, 1].

    **Returns:** the loss, a scalar.

    **Raises:** `ValueError` for an `expectile` outside [0, 1], or a `value` that is not a scalar.

    !!! Example

        ```python
        import jax.numpy as jnp
        from shortcutrl import expectile_loss

        value = lambda obs: jnp.array(1.0)
        assert jnp.allclose(expectile_loss(value, None, jnp.array(3.0), expectile=0.9), 0.9 * 4.0)
        assert jnp.allclose(expectile_loss(value, None, jnp.array(-1.0), expectile=0.9), 0.1 * 4.0)
        ```

    Source: equation 5 of IQL ([arXiv 2110.06169](https://arxiv.org/abs/2110.06169)).
    """
    _checks.check_range("expectile", expectile, 0, 1)
    v = value_of("value", value, obs)
    difference = jax.lax.stop_gradient(jnp.asarray(q, v.dtype)) - v
    weight = jnp.abs(jnp.asarray(expectile, v.dtype) - (difference < 0).astype(v.dtype))
    return weight * jnp.square(difference)


def _as_action(name: str, value: Any) -> Array:
    """An action of a transition: one float array of shape `(action,)`."""
    array = isinstance(value, jax.Array | np.ndarray) and _checks.is_real(value)
    if not array or not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(f"`{name}` must be a float array, got {show(value)}. Convert it.")
    if value.ndim != 1:
        raise TypeError(f"`{name}` must have shape (action,), got {value.shape}. For a batch, use `jax.vmap`.")
    return jnp.asarray(value)
