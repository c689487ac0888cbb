"""SORL: the functions composed into one pure step, to be jitted, scanned and vmapped by its user."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PRNGKeyArray

from shortcutrl import _checks
from shortcutrl._improve import q_loss
from shortcutrl._shortcut import shortcut_loss
from shortcutrl._types import Clip, Critic, Number, Scalar, Transition, Velocity, typed
from shortcutrl._value import td_loss

_PUBLISHED_OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-4))


@typed
@dataclasses.dataclass(frozen=True)
class Config:
    """The hyperparameters of SORL, validated when made; the defaults are the published ones.

    Hashable, so it may be a static argument of `jax.jit`.

    - `num_steps`: M, the largest number of jumps that the policy learns; flow matching trains jumps of 1/M.
    - `max_jumps`: M_BTT, the largest number of jumps that Q is maximised through, at most `num_steps`. Each update
      draws k from 1, 2, 4, ..., `max_jumps`: once for the TD target, once for the policy's improvement.
    - `discount`: γ, in [0, 1].
    - `aggregate`: `"min"` or `"mean"` of the target critic's ensemble in the TD target; the policy always maximises the
      mean.
    - `flow_matching_weight`, `self_consistency_weight`, `q_weight`: of the terms of the policy's loss. `q_weight` is
      the one to tune for each environment (the published values are 10 to 500); 0 is behaviour cloning.
    - `normalize_q`: whether to divide the Q loss by the batch's mean |Q|, so that `q_weight` does not depend on the
      scale of rewards.
    - `tau`: how far the target networks move towards the online ones at each update, in (0, 1].
    - `clip`: the range of actions, or `None`.
    - `remat`: whether the policy's improvement computes each jump anew in its backward pass, as in
      [`rollout_k`][shortcutrl.rollout_k].
    - `optimizer`: any optax transformation, used for the policy and for the critic, each with its own state; by default
      Adam with learning rate 1e-4 after clipping the gradient to norm 1.

    !!! Example

        ```python
        import optax
        from shortcutrl import sorl

        config = sorl.Config(q_weight=50.0, optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(3e-4)))
        ```
    """

    num_steps: int = 8
    max_jumps: int = 8
    discount: Number = 0.99
    aggregate: str = "mean"
    flow_matching_weight: Number = 10.0
    self_consistency_weight: Number = 10.0
    q_weight: Number = 100.0
    normalize_q: bool = True
    tau: Number = 0.005
    clip: Clip = (-1.0, 1.0)
    remat: bool = False
    optimizer: optax.GradientTransformation = _PUBLISHED_OPTIMIZER

    def __post_init__(self):
        _checks.power_of_two("num_steps", self.num_steps)
        _checks.power_of_two("max_jumps", self.max_jumps)
        if self.max_jumps > self.num_steps:
            raise ValueError(
                f"`max_jumps` must be at most `num_steps` = {self.num_steps}, got {self.max_jumps}: jumps smaller than "
                "1/num_steps are not trained."
            )
        _checks.unit_interval("discount", self.discount)
        _checks.aggregate_name(self.aggregate)
        for name in ("flow_matching_weight", "self_consistency_weight", "q_weight"):
            _checks.non_negative(name, getattr(self, name))
        if not 0 < self.tau <= 1:
            raise ValueError(f"`tau` must lie in (0, 1], got {self.tau}.")
        _checks.clip_range(self.clip)


class State(NamedTuple):
    """All that an update changes.

    - `policy`, `critic`: the networks.
    - `target_policy`, `target_critic`: their moving averages: the teacher of self-consistency and the critic of the TD
      target. They change less from one update to the next, and the examples act with them.
    - `policy_opt_state`, `critic_opt_state`: the optimiser's states.
    """

    policy: Any
    critic: Any
    target_policy: Any
    target_critic: Any
    policy_opt_state: optax.OptState
    critic_opt_state: optax.OptState


class Jumps(NamedTuple):
    """Through how many jumps one update acts: each one of 1, 2, 4, ..., `max_jumps`.

    - `td`: in the TD target, a scalar.
    - `improvement`: in the policy's improvement, a scalar.
    """

    td: int | Int[Array, ""]
    improvement: int | Int[Array, ""]


class Info(NamedTuple):
    """What one update saw, each a scalar; losses and values are means over the batch.

    - `td`: the critic's loss.
    - `q`: the ensemble's mean Q of the data's actions.
    - `q_loss`: minus the mean Q of the policy's actions, before weighting and normalising.
    - `flow_matching`, `self_consistency`: the policy's regularisers, before weighting.
    - `policy_grad_norm`, `critic_grad_norm`: of the gradients, before the optimiser clips them.
    """

    td: Scalar
    q: Scalar
    q_loss: Scalar
    flow_matching: Scalar
    self_consistency: Scalar
    policy_grad_norm: Scalar
    critic_grad_norm: Scalar


@typed
def init(policy: Velocity, critic: Critic, *, config: Config) -> State:
    """Start training from a `policy` and a `critic`: callable pytrees of arrays, such as equinox Modules.

    Copies them, so that the state may be donated. Raises `ValueError` for one with no parameters, or with a leaf that
    is not an array (an activation function, say) and is not marked `eqx.field(static=True)`.

    **Arguments:**

    - `policy`: a [`Velocity`][shortcutrl.Velocity].
    - `critic`: a [`Critic`][shortcutrl.Critic]. If its attribute `condition_on_k` is true it is called with the number
      of jumps, `critic(obs, action, k=k)`.
    - `config`: static.

    **Returns:** the [`State`][shortcutrl.sorl.State]: the networks, their averages equal to them, fresh optimisers.

    !!! Example

        ```python
        import jax
        from shortcutrl import nn, sorl

        policy_key, critic_key = jax.random.split(jax.random.key(0))
        policy = nn.ShortcutPolicy(3, 2, width=32, depth=2, key=policy_key)
        critic = nn.EnsembleCritic(3, 2, width=32, depth=2, key=critic_key)
        state = sorl.init(policy, critic, config=sorl.Config(q_weight=10.0))
        ```
    """
    _checks.trainable("policy", jax.tree.leaves(policy))
    _checks.trainable("critic", jax.tree.leaves(critic))
    copy = partial(jax.tree.map, jnp.copy)
    return State(
        policy=copy(policy),
        critic=copy(critic),
        target_policy=copy(policy),
        target_critic=copy(critic),
        policy_opt_state=config.optimizer.init(eqx.filter(policy, eqx.is_inexact_array)),
        critic_opt_state=config.optimizer.init(eqx.filter(critic, eqx.is_inexact_array)),
    )


@typed
def draw_jumps(key: PRNGKeyArray, *, config: Config) -> Jumps:
    """Draw the numbers of jumps of one update, each uniform on 1, 2, 4, ..., `config.max_jumps`.

    [`update`][shortcutrl.sorl.update] does this by itself. Many agents in one `jax.vmap` had better share the draw:
    `lax.switch` on a batch of different ones computes every branch for each agent.

    **Arguments:**

    - `key`: a JAX random key.
    - `config`: static.

    **Returns:** [`Jumps`][shortcutrl.sorl.Jumps].

    !!! Example

        ```python
        import jax
        from shortcutrl import sorl

        jumps = sorl.draw_jumps(jax.random.key(0), config=sorl.Config(max_jumps=1))
        assert jumps.td == jumps.improvement == 1
        ```
    """
    ks = jnp.array(_numbers_of_jumps(config))
    return Jumps(*(jax.random.choice(each, ks) for each in jax.random.split(key)))


@typed
def update(
    state: State, batch: Transition, *, config: Config, key: PRNGKeyArray, jumps: Jumps | None = None
) -> tuple[State, Info]:
    r"""One step of SORL on one batch: the critic by TD, then the policy, then both target networks.

    The policy minimises $w_1 L_\text{flow matching} + w_2 L_\text{self-consistency} + w_3 L_Q$ against the updated
    critic. Pure and not jitted: wrap it in `jax.jit`, scan it over steps, vmap it over seeds, with one draw of `jumps`
    for all of them.

    **Arguments:**

    - `state`: from [`init`][shortcutrl.sorl.init] or the update before.
    - `batch`: a [`Transition`][shortcutrl.Transition] with one leading axis.
    - `config`: static.
    - `key`: a JAX random key, a new one for each update.
    - `jumps`: [`Jumps`][shortcutrl.sorl.Jumps], as [`draw_jumps`][shortcutrl.sorl.draw_jumps] draws them; by default
      drawn by `key`.

    **Returns:** the new state and [`Info`][shortcutrl.sorl.Info].

    **Raises:** `ValueError` for a number of `jumps` that is not one of those that `config` allows, and for a `batch`
    that is empty or whose arrays have different lengths; otherwise as the functions that it is made of.

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from functools import partial
        from shortcutrl import Transition, nn, sorl

        policy_key, critic_key, key = jax.random.split(jax.random.key(0), 3)
        config = sorl.Config(num_steps=2, max_jumps=2)
        state = sorl.init(
            nn.ShortcutPolicy(3, 2, width=32, depth=2, key=policy_key),
            nn.EnsembleCritic(3, 2, width=32, depth=2, key=critic_key),
            config=config,
        )
        batch = Transition(jnp.ones((8, 3)), jnp.ones((8, 2)), jnp.ones(8), jnp.ones(8), jnp.ones((8, 3)))
        state, info = jax.jit(partial(sorl.update, config=config))(state, batch, key=key)
        ```

    Source: algorithm 1 of SORL ([arXiv 2505.22866](https://arxiv.org/abs/2505.22866)).
    """
    _checks.leading_axis("batch", batch)
    _checks.floats("batch.action", batch.action)
    jumps_key, critic_key, policy_key = jax.random.split(key, 3)
    jumps = draw_jumps(jumps_key, config=config) if jumps is None else jumps
    for name, k in jumps._asdict().items():
        _checks.one_of(f"jumps.{name}", k, _numbers_of_jumps(config))
    critic, critic_opt_state, td, td_info, critic_norm = _update_critic(state, batch, config, jumps.td, critic_key)
    policy, policy_opt_state, q, shortcut, policy_norm = _update_policy(
        state, critic, batch, config, jumps.improvement, policy_key
    )
    new_state = State(
        policy=policy,
        critic=critic,
        target_policy=_average(policy, state.target_policy, float(config.tau)),
        target_critic=_average(critic, state.target_critic, float(config.tau)),
        policy_opt_state=policy_opt_state,
        critic_opt_state=critic_opt_state,
    )
    info = Info(
        td=td,
        q=td_info.q.mean(),
        q_loss=q,
        flow_matching=shortcut.flow_matching.mean(),
        self_consistency=shortcut.self_consistency.mean(),
        policy_grad_norm=policy_norm,
        critic_grad_norm=critic_norm,
    )
    return new_state, info


def _update_critic(state: State, batch: Transition, config: Config, k, key: PRNGKeyArray):
    noise = jax.random.normal(key, batch.action.shape, batch.action.dtype)

    def loss(critic, k):
        each = partial(
            td_loss,
            _seeing(critic, k),
            _seeing(state.target_critic, k),
            state.policy,
            k=k,
            discount=config.discount,
            aggregate=config.aggregate,
            clip=config.clip,
        )
        losses, info = jax.vmap(each)(batch, noise)
        return losses.mean(), info

    (td, info), grads = _grad_for_drawn_k(loss, state.critic, config, k)
    critic, opt_state, norm = _apply(grads, state.critic, state.critic_opt_state, config)
    return critic, opt_state, td, info, norm


def _update_policy(state: State, critic: Critic, batch: Transition, config: Config, k, key: PRNGKeyArray):
    noise_key, shortcut_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, batch.action.shape, batch.action.dtype)

    def improvement(policy, k):
        each = partial(q_loss, policy, _seeing(critic, k), k=k, clip=config.clip, remat=config.remat)
        losses, info = jax.vmap(each)(batch.obs, noise)
        size = jax.lax.stop_gradient(jnp.abs(info.q).mean())
        scale = jnp.where(size > 0, size, 1.0) if config.normalize_q else 1.0  # a critic may start at zero
        return config.q_weight * losses.mean() / scale, losses.mean()

    def regularisation(policy):
        each = partial(
            shortcut_loss,
            policy,
            state.target_policy,
            num_steps=config.num_steps,
            flow_matching_weight=config.flow_matching_weight,
            self_consistency_weight=config.self_consistency_weight,
        )
        keys = jax.random.split(shortcut_key, len(batch.action))
        losses, info = jax.vmap(lambda obs, action, key: each(obs, action, key=key))(batch.obs, batch.action, keys)
        return losses.mean(), info

    grads, info = eqx.filter_grad(regularisation, has_aux=True)(state.policy)
    (_, q), q_grads = _grad_for_drawn_k(improvement, state.policy, config, k)
    grads = jax.tree.map(jnp.add, grads, q_grads)
    policy, opt_state, norm = _apply(grads, state.policy, state.policy_opt_state, config)
    return policy, opt_state, q, info, norm


def _numbers_of_jumps(config: Config) -> list[int]:
    return [2**i for i in range(config.max_jumps.bit_length())]


def _grad_for_drawn_k(loss, model, config: Config, k):
    """Value and gradient of `loss(model, k)` for the k that was drawn.

    Differentiated inside the branches: differentiating through the switch would carry every branch's residuals.
    """
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def branch(k):
        return jax.value_and_grad(lambda params: loss(eqx.combine(params, static), k), has_aux=True)

    log2_k = jax.lax.population_count(jnp.asarray(k) - 1)
    return jax.lax.switch(log2_k, [branch(k) for k in _numbers_of_jumps(config)], params)


def _apply(grads, model, opt_state, config: Config):
    updates, opt_state = config.optimizer.update(grads, opt_state, eqx.filter(model, eqx.is_inexact_array))
    return eqx.apply_updates(model, updates), opt_state, optax.tree.norm(grads)


def _average(online, target, tau: float):
    new, static = eqx.partition(online, eqx.is_inexact_array)
    old = eqx.filter(target, eqx.is_inexact_array)
    return eqx.combine(optax.incremental_update(new, old, tau), static)


def _seeing(critic, k: int) -> Critic:
    return partial(critic, k=k) if getattr(critic, "condition_on_k", False) else critic
