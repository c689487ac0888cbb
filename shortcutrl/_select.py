"""Test-time scaling: more candidates, ranked by Q."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from shortcutrl import _checks
from shortcutrl._call import action_of, q_of
from shortcutrl._typed import show, typed
from shortcutrl._types import Action, Actor, Aggregate, Critic, Noise, Obs


class BestOfN(NamedTuple):
    """The choice of [`bon_select`][shortcutrl.bon_select]: the index `best`, each `q` and all `candidates`."""

    best: Int[Array, ""]
    q: Float[Array, " n"]
    candidates: Float[Array, "n action"]


@typed
def bon_select(
    actor: Actor, critic: Critic, obs: Obs, noise: Noise, *, aggregate: Aggregate = "mean"
) -> tuple[Action, BestOfN]:
    r"""Take the best of `n` candidates: $a^{(i^*)}$, $i^* = \arg\max_i \operatorname{agg}_j Q_{\phi_j}(s, a^{(i)})$.

    The actor turns each row of `noise` into one candidate, and Q ranks the candidates (parallel scaling). The choice is
    better than one candidate where Q ranks the actor's samples correctly, and worse where the actor already exploits
    errors of Q. A rollout may take more jumps than Q was maximised through (sequential extrapolation).

    **Arguments:**

    - `actor`: an [`Actor`][shortcutrl.Actor], such as `functools.partial(rollout_k, policy, k=4)`.
    - `critic`: `critic(obs, action)`, shape `(ensemble,)`.
    - `obs`: one observation, any pytree.
    - `noise`: one row of the actor's noise for each candidate: an array of shape `(n, ...)`, or a pytree of arrays that
      share this leading axis, n at least 1.
    - `aggregate`: `"min"`, `"mean"`, or a function of the ensemble's vector. Static.

    **Returns:** the chosen action, shape `(action,)`, and [`BestOfN`][shortcutrl.BestOfN]. Ties go to the first
    candidate. A candidate whose Q is NaN never beats one whose Q is a number. Gradients flow through the chosen action,
    not through the choice.

    **Raises:** `ValueError` for no candidates; otherwise as [`q_loss`][shortcutrl.q_loss].

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from functools import partial
        from shortcutrl import bon_select

        stay = lambda obs, noise: noise
        critic = lambda obs, action: -jnp.sum(jnp.square(action - obs))[None]
        noise = jnp.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
        action, info = bon_select(stay, critic, jnp.ones(2), noise)
        assert info.best == 1 and jnp.allclose(action, 1.0)

        many = jnp.broadcast_to(noise, (5, 3, 2))  # own candidates for each of 5 observations
        actions, _ = jax.vmap(partial(bon_select, stay, critic))(jnp.ones((5, 2)), many)
        assert actions.shape == (5, 2)
        ```

    Source: best-of-N sampling in SORL ([arXiv 2505.22866](https://arxiv.org/abs/2505.22866)).
    """
    _checks.check_leading_axis("noise", noise)
    rows = jax.tree.map(jnp.asarray, noise)
    try:
        candidates = jax.vmap(lambda row: action_of("actor", actor, obs, row))(rows)
    except (TypeError, ValueError) as error:
        if type(error) not in (TypeError, ValueError) or any(row.ndim > 1 for row in jax.tree.leaves(rows)):
            raise
        text = f"`noise` must have one row for each candidate, got {show(noise)}. The error was: {error}"
        raise type(error)(text) from error
    q = jax.vmap(lambda action: q_of("critic", critic, obs, action, aggregate))(candidates)
    numbers = jnp.maximum(q, jnp.finfo(q.dtype).min)  # -inf is a number too, and beats NaN
    best = jnp.argmax(jnp.where(jnp.isnan(q), -jnp.inf, numbers))
    best = best if len(q) > 1 else jnp.zeros_like(best)  # no choice: the compiler removes a Q that is not used
    chosen = jax.lax.dynamic_index_in_dim(candidates, best, keepdims=False)  # eagerly faster than candidates[best]
    return chosen, BestOfN(best, q, candidates)


@typed
def best_of_n(actor: Actor, critic: Critic, obs: Obs, noise: Noise, *, aggregate: Aggregate = "mean") -> Action:
    r"""Act with the best of `n` candidates: return only the action of [`bon_select`][shortcutrl.bon_select].

    `functools.partial(best_of_n, actor, critic)` is an [`Actor`][shortcutrl.Actor], whose noise has one row for each
    candidate.

    **Arguments:**

    - `actor`, `critic`, `obs`, `noise`, `aggregate`: as in [`bon_select`][shortcutrl.bon_select].

    **Returns:** the chosen action, shape `(action,)`.

    **Raises:** as [`bon_select`][shortcutrl.bon_select].

    !!! Example

        ```python
        import jax.numpy as jnp
        from functools import partial
        from shortcutrl import best_of_n

        critic = lambda obs, action: action
        actor = partial(best_of_n, lambda obs, noise: noise, critic)
        assert actor(None, jnp.array([[1.0], [3.0], [2.0]])) == 3.0
        ```

    Source: best-of-N sampling in SORL ([arXiv 2505.22866](https://arxiv.org/abs/2505.22866)).
    """
    return bon_select(actor, critic, obs, noise, aggregate=aggregate)[0]


def best_of(n: int, actor: Any, critic: Any, aggregate: Aggregate) -> Any:
    """The actor that takes the best of exactly `n` candidates; `actor` itself for one."""
    return actor if n == 1 else eqx.Partial(_best_of, actor, critic, n=n, aggregate=aggregate)


def _best_of(actor: Actor, critic: Critic, obs: Obs, noise: Noise, *, n: int, aggregate: Aggregate) -> Action:
    if _checks.check_leading_axis("noise", noise) != n:
        shape = "Draw it in the shape that `noise_shape` returns."
        raise ValueError(f"`noise` must have one row for each of {n} candidates, got {show(noise)}. {shape}")
    return best_of_n(actor, critic, obs, noise, aggregate=aggregate)
