"""Test-time scaling: more candidates, with Q as the verifier."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from shortcutrl import _checks
from shortcutrl._step import rollout_k
from shortcutrl._types import Action, Clip, Critic, Obs, Velocity, typed
from shortcutrl._value import evaluate


class BestOfN(NamedTuple):
    """What [`bon_select`][shortcutrl.bon_select] chose from: the index of the `best`, each `q` and all `candidates`."""

    best: Int[Array, ""]
    q: Float[Array, " n"]
    candidates: Float[Array, "n action"]


@typed
def bon_select(
    velocity: Velocity,
    critic: Critic,
    obs: Obs,
    noise: Float[Array | np.ndarray, "n action"],
    *,
    k: int,
    aggregate: str = "mean",
    clip: Clip = None,
) -> tuple[Action, BestOfN]:
    r"""Take the best of `n` candidates: $a^{(i^*)}$, $i^* = \arg\max_i \operatorname{agg}_j Q_{\phi_j}(s, a^{(i)})$.

    Each row of `noise` becomes one candidate by `k` jumps; Q chooses (parallel scaling). Better than one candidate
    where Q ranks the policy's own samples rightly, worse where the policy already exploits Q's errors. `k` may exceed
    the number of jumps that the policy was improved with (sequential extrapolation).

    **Arguments:**

    - `velocity`, `critic`, `obs`, `k`, `aggregate`, `clip`: as in [`q_loss`][shortcutrl.q_loss].
    - `noise`: draws from the standard normal, shape `(n, action)`, one row for each candidate, n at least 1.

    **Returns:** the chosen action, shape `(action,)`, and [`BestOfN`][shortcutrl.BestOfN]. The first of equals wins; a
    candidate whose Q is NaN never beats one whose Q is a number. Gradients flow through the chosen action, not through
    the choice.

    **Raises:** `ValueError` for no candidates or an unknown `aggregate`; otherwise as
    [`rollout_k`][shortcutrl.rollout_k].

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from functools import partial
        from shortcutrl import bon_select

        stay = lambda obs, x, t, h: jnp.zeros_like(x)
        critic = lambda obs, action: -jnp.sum(jnp.square(action - obs))[None]
        noise = jnp.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
        action, info = bon_select(stay, critic, jnp.ones(2), noise, k=1)
        assert info.best == 1 and jnp.allclose(action, 1.0)

        many = jnp.broadcast_to(noise, (5, 3, 2))  # own candidates for each of 5 observations
        actions, _ = jax.vmap(partial(bon_select, stay, critic, k=1))(jnp.ones((5, 2)), many)
        assert actions.shape == (5, 2)
        ```

    Source: best-of-N sampling in SORL ([arXiv 2505.22866](https://arxiv.org/abs/2505.22866)).
    """
    _checks.aggregate_name(aggregate)
    _checks.candidates("noise", noise)
    candidates = jax.vmap(partial(rollout_k, velocity, obs, k=k, clip=clip))(jnp.asarray(noise))
    q = jax.vmap(lambda action: evaluate(critic, obs, action, aggregate))(candidates)
    best = jnp.argmax(jnp.where(jnp.isnan(q), -jnp.inf, q))
    best = jnp.where(jnp.isnan(q[best]), jnp.argmax(~jnp.isnan(q)), best)  # -inf is a number too
    best = best if len(q) > 1 else jnp.zeros_like(best)  # no choice: the compiler leaves out a Q that nobody reads
    return candidates[best], BestOfN(best, q, candidates)
