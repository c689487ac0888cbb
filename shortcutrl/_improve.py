"""Policy improvement: maximise Q through the jumps."""

from typing import NamedTuple

from shortcutrl import _checks
from shortcutrl._step import rollout_k
from shortcutrl._types import Action, ActionLike, Clip, Critic, Obs, Scalar, Velocity, typed
from shortcutrl._value import evaluate


class QInfo(NamedTuple):
    """The `action` that [`q_loss`][shortcutrl.q_loss] judged and its aggregated `q`, a scalar."""

    q: Scalar
    action: Action


@typed
def q_loss(
    velocity: Velocity,
    critic: Critic,
    obs: Obs,
    noise: ActionLike,
    *,
    k: int,
    aggregate: str = "mean",
    clip: Clip = None,
    remat: bool = False,
) -> tuple[Scalar, QInfo]:
    r"""Move the policy to better actions: $-\operatorname{agg}_i Q_{\phi_i}(s, a^k)$, $a^k$ by `k` jumps from noise.

    The gradient flows through the critic and back through all `k` jumps. It also flows into `critic`: differentiate
    with respect to the policy alone. Where `clip` cuts an action off, no gradient flows through that dimension.

    **Arguments:**

    - `velocity`: the policy, as in [`shortcut_step`][shortcutrl.shortcut_step]. Gradients flow into it.
    - `critic`: `critic(obs, action)`, shape `(ensemble,)`.
    - `obs`: one observation, any pytree.
    - `noise`: a draw from the standard normal, shape `(action,)`.
    - `k`: the number of jumps, a power of two. Static.
    - `aggregate`: `"min"` or `"mean"` over the ensemble. Static.
    - `clip`: `(low, high)` for the action, or `None`.
    - `remat`: as in [`rollout_k`][shortcutrl.rollout_k]. Static.

    **Returns:** minus Q, a scalar, and [`QInfo`][shortcutrl.QInfo]. To normalise the loss of a batch, divide its mean
    by `jax.lax.stop_gradient(jnp.abs(info.q).mean())`.

    **Raises:** `ValueError` for an unknown `aggregate`; otherwise as [`rollout_k`][shortcutrl.rollout_k].

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from shortcutrl import q_loss

        critic = lambda obs, action: -jnp.sum(jnp.square(action - obs))[None]
        loss = lambda speed: q_loss(lambda obs, x, t, h: speed, critic, jnp.ones(2), jnp.zeros(2), k=4)[0]
        assert jnp.allclose(jax.grad(loss)(jnp.zeros(2)), -2.0)  # faster, towards `obs`
        ```

    Source: the policy's objective of SORL, backpropagation through time
    ([arXiv 2505.22866](https://arxiv.org/abs/2505.22866)).
    """
    _checks.aggregate_name(aggregate)
    action = rollout_k(velocity, obs, noise, k=k, clip=clip, remat=remat)
    q = evaluate(critic, obs, action, aggregate)
    return -q, QInfo(q, action)
