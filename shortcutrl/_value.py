"""Learning Q: the ensemble's verdict, the temporal-difference target and its loss."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from shortcutrl import _checks
from shortcutrl._step import rollout_k
from shortcutrl._types import ActionLike, Clip, Critic, Obs, Scalar, ScalarLike, Transition, Velocity, typed


class TDInfo(NamedTuple):
    """What [`td_loss`][shortcutrl.td_loss] saw.

    - `q`: the ensemble's mean Q of the transition's action, a scalar.
    - `target`: what it is regressed on, a scalar.
    - `error`: `q - target`, a scalar.
    """

    q: Scalar
    target: Scalar
    error: Scalar


def evaluate(critic: Critic, obs: Obs, action: Array, aggregate: str) -> Scalar:
    """The ensemble's verdict on one action: its lowest member (pessimistic) or its mean."""
    q = _checks.critic_output(critic(obs, action))
    return jnp.min(q) if aggregate == "min" else jnp.mean(q)


@typed
def td_target(
    target_critic: Critic,
    velocity: Velocity,
    transition: Transition,
    noise: ActionLike,
    *,
    k: int,
    discount: ScalarLike,
    aggregate: str = "mean",
    clip: Clip = None,
) -> Scalar:
    r"""The value to regress Q on: $y = r + \gamma\, m\, \operatorname{agg}_i Q_{\bar\phi_i}(s', a')$.

    The next action $a'$ is made by `k` jumps at $s'$. One sample of the Bellman target of the policy that takes `k`
    jumps. Biased where `target_critic` is; with `aggregate="min"` low on purpose, against overestimation. **No gradient
    flows out of it**: not into the policy that chose $a'$, not into the target critic.

    **Arguments:**

    - `target_critic`: `target_critic(obs, action)`, shape `(ensemble,)`; usually a moving average of the critic.
    - `velocity`: the policy that chooses the next action.
    - `transition`: one [`Transition`][shortcutrl.Transition]; its `action` and `obs` are not used.
    - `noise`: the draw that becomes the next action, standard normal, shape `(action,)`.
    - `k`: the number of jumps, a power of two. Static.
    - `discount`: $\gamma$, in [0, 1].
    - `aggregate`: `"min"` or `"mean"` over the ensemble. Static.
    - `clip`: `(low, high)` for the next action, or `None`.

    **Returns:** the target, a scalar.

    **Raises:** `ValueError` for an unknown `aggregate`, a `discount` outside [0, 1], a batched transition, and as
    [`rollout_k`][shortcutrl.rollout_k].

    !!! Example

        ```python
        import jax.numpy as jnp
        from shortcutrl import Transition, td_target

        stay = lambda obs, x, t, h: jnp.zeros_like(x)
        critic = lambda obs, action: jnp.stack([jnp.sum(action), 2 * jnp.sum(action)])
        step = Transition(jnp.ones(3), jnp.ones(2), jnp.array(1.0), jnp.array(1.0), jnp.ones(3))
        y = td_target(critic, stay, step, jnp.ones(2), k=1, discount=0.5, aggregate="min")
        assert y == 1.0 + 0.5 * 2.0
        ```

    Source: the critic's objective of SORL ([arXiv 2505.22866](https://arxiv.org/abs/2505.22866)).
    """
    _checks.aggregate_name(aggregate)
    _checks.unit_interval("discount", discount)
    (noise,) = _checks.same_dtype(noise=noise)
    reward = _checks.scalar("transition.reward", transition.reward, noise.dtype)
    mask = _checks.scalar("transition.mask", transition.mask, noise.dtype)
    discount = jnp.asarray(discount, noise.dtype)
    next_action = rollout_k(velocity, transition.next_obs, noise, k=k, clip=clip)
    next_q = evaluate(target_critic, transition.next_obs, next_action, aggregate)
    return jax.lax.stop_gradient(reward + discount * mask * next_q)


@typed
def td_loss(
    critic: Critic,
    target_critic: Critic,
    velocity: Velocity,
    transition: Transition,
    noise: ActionLike,
    *,
    k: int,
    discount: ScalarLike,
    aggregate: str = "mean",
    clip: Clip = None,
) -> tuple[Scalar, TDInfo]:
    r"""Fit every member of the ensemble to one target: $\tfrac1n \sum_i (Q_{\phi_i}(s, a) - y)^2$.

    The target $y$ is [`td_target`][shortcutrl.td_target]; the gradient with respect to `target_critic` and `velocity`
    is zero.

    **Arguments:**

    - `critic`: `critic(obs, action)`, shape `(ensemble,)`. Gradients flow into it.
    - all others: as in [`td_target`][shortcutrl.td_target].

    **Returns:** the mean over the ensemble, a scalar, and [`TDInfo`][shortcutrl.TDInfo].

    **Raises:** `TypeError` if `transition.action` and `noise` differ in shape or dtype; otherwise as
    [`td_target`][shortcutrl.td_target].

    !!! Example

        ```python
        import jax.numpy as jnp
        from shortcutrl import Transition, td_loss

        stay = lambda obs, x, t, h: jnp.zeros_like(x)
        critic = lambda obs, action: jnp.array([3.0, 5.0])
        step = Transition(jnp.ones(3), jnp.ones(2), jnp.array(1.0), jnp.array(0.0), jnp.ones(3))
        loss, info = td_loss(critic, critic, stay, step, jnp.ones(2), k=1, discount=0.9)
        assert info.target == 1.0 and loss == (2.0**2 + 4.0**2) / 2
        ```

    Source: the critic's objective of SORL ([arXiv 2505.22866](https://arxiv.org/abs/2505.22866)).
    """
    _checks.action_field("transition.action", transition.action, noise)
    action, noise = _checks.same_dtype(action=transition.action, noise=noise)
    target = td_target(
        target_critic, velocity, transition, noise, k=k, discount=discount, aggregate=aggregate, clip=clip
    )
    q = _checks.critic_output(critic(transition.obs, action))
    mean_q = jnp.mean(q)
    return jnp.mean(jnp.square(q - target)), TDInfo(mean_q, target, mean_q - target)
