"""Policy improvement: maximise Q, distil a policy, weight by the advantage."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from shortcutrl import _checks
from shortcutrl._call import action_of, q_of
from shortcutrl._typed import typed
from shortcutrl._types import Action, Actor, Aggregate, Critic, Noise, Obs, Scalar, ScalarLike


class QInfo(NamedTuple):
    """The `action` that [`q_loss`][shortcutrl.q_loss] evaluated and its aggregated `q`, a scalar."""

    q: Scalar
    action: Action


@typed
def q_loss(
    actor: Actor, critic: Critic, obs: Obs, noise: Noise, *, aggregate: Aggregate = "mean"
) -> tuple[Scalar, QInfo]:
    r"""Move the actor to better actions: $-\operatorname{agg}_i Q_{\phi_i}(s, \pi(s, z))$.

    The gradient flows through the critic into the actor, and in a rollout back through all its jumps. It also flows
    into `critic`, so differentiate with respect to the actor only.

    **Arguments:**

    - `actor`: an [`Actor`][shortcutrl.Actor], such as `functools.partial(rollout_k, policy, k=4, clip=(-1.0, 1.0))`.
      Gradients flow into it.
    - `critic`: `critic(obs, action)`, shape `(ensemble,)`.
    - `obs`: one observation, any pytree.
    - `noise`: the actor's noise.
    - `aggregate`: `"min"`, `"mean"`, or a function of the ensemble's vector. Static.

    **Returns:** minus Q, a scalar, and [`QInfo`][shortcutrl.QInfo]. To normalise the loss of a batch, divide its mean
    by `jax.lax.stop_gradient(jnp.abs(info.q).mean())`.

    **Raises:** `ValueError` for a function that returns another shape; `TypeError` for a function that cannot take
    these arguments or does not return a float array.

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from functools import partial
        from shortcutrl import q_loss, rollout_k

        critic = lambda obs, action: -jnp.sum(jnp.square(action - obs))[None]


        def loss(speed):
            actor = partial(rollout_k, lambda obs, x, t, h: speed, k=4)
            return q_loss(actor, critic, jnp.ones(2), jnp.zeros(2))[0]


        assert jnp.allclose(jax.grad(loss)(jnp.zeros(2)), -2.0)  # faster, towards `obs`
        ```

    Source: the policy's objective of SORL, backpropagation through time
    ([arXiv 2505.22866](https://arxiv.org/abs/2505.22866)).
    """
    action = action_of("actor", actor, obs, noise)
    q = q_of("critic", critic, obs, action, aggregate)
    return -q, QInfo(q, action)


@typed
def distill_loss(student: Actor, teacher: Actor, obs: Obs, noise: Noise) -> Scalar:
    r"""Make the student act as the teacher does from the same noise: $\tfrac1d \lVert \mu(s, z) - \pi(s, z) \rVert^2$.

    **Arguments:**

    - `student`: an [`Actor`][shortcutrl.Actor]. Gradients flow into it.
    - `teacher`: an [`Actor`][shortcutrl.Actor], such as a flow of ten jumps. Its gradient is zero.
    - `obs`: one observation, any pytree.
    - `noise`: the noise of both actors.

    **Returns:** the mean square over the action's dimensions, a scalar.

    **Raises:** `ValueError` if the two actions differ in shape; otherwise as [`q_loss`][shortcutrl.q_loss].

    !!! Example

        ```python
        import jax.numpy as jnp
        from shortcutrl import distill_loss

        student, teacher = (lambda obs, noise: 0 * noise), (lambda obs, noise: noise)
        assert distill_loss(student, teacher, None, jnp.array([1.0, 3.0])) == 5.0
        ```

    Source: one-step distillation in FQL ([arXiv 2502.02538](https://arxiv.org/abs/2502.02538)).
    """
    target = jax.lax.stop_gradient(action_of("teacher", teacher, obs, noise))
    action = action_of("student", student, obs, noise)
    if action.shape != target.shape:
        raise ValueError(f"`student` returned shape {action.shape} but `teacher` {target.shape}. Make them agree.")
    return jnp.mean(jnp.square(action - target))


@typed
def advantage_weight(q: ScalarLike, v: ScalarLike, *, temperature: ScalarLike, cap: ScalarLike = 100.0) -> Scalar:
    r"""Compute the weight of advantage-weighted regression: $\min(\exp(\alpha (q - v)), c)$.

    **No gradient flows out of it.**

    **Arguments:**

    - `q`, `v`: finite estimates of Q and V, scalars.
    - `temperature`: $\alpha$, non-negative. It multiplies the advantage: 0 is behaviour cloning, and larger values
      follow Q more closely. IQL's paper calls it the inverse temperature β.
    - `cap`: the largest weight $c$, positive.

    **Returns:** the weight, a scalar in [0, `cap`].

    **Raises:** `ValueError` for a negative `temperature` or a `cap` that is not positive.

    !!! Example

        ```python
        import jax.numpy as jnp
        from shortcutrl import advantage_weight

        assert advantage_weight(jnp.array(1.0), jnp.array(1.0), temperature=3.0) == 1.0
        assert advantage_weight(jnp.array(9.0), jnp.array(1.0), temperature=3.0) == 100.0
        ```

    Source: advantage-weighted regression ([arXiv 1910.00177](https://arxiv.org/abs/1910.00177)), as in IQL.
    """
    _checks.check_range("temperature", temperature, 0, float("inf"))
    _checks.check_range("cap", cap, 0, float("inf"), open_low=True)
    dtype = jnp.result_type(q, v, 1.0)
    advantage = jnp.asarray(q, dtype) - jnp.asarray(v, dtype)
    weight = jnp.exp(jnp.asarray(temperature, dtype) * advantage)
    return jax.lax.stop_gradient(jnp.minimum(weight, jnp.asarray(cap, dtype)))
