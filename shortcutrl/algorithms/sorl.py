"""SORL: a shortcut policy, trained to imitate the dataset and to maximise Q through its jumps.

Source: algorithm 1 of SORL ([arXiv 2505.22866](https://arxiv.org/abs/2505.22866)).
"""

import dataclasses
from functools import partial
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PRNGKeyArray

from shortcutrl import _checks, _contract, _switch, _training, nn
from shortcutrl._flow import flow_matching_loss, self_consistency_loss
from shortcutrl._improve import q_loss
from shortcutrl._path import draw_flow_matching, draw_self_consistency
from shortcutrl._select import best_of
from shortcutrl._step import rollout_k
from shortcutrl._typed import typed
from shortcutrl._types import Actor, Encoder, Integer, Loss, Number, PerNetwork, Scalar, Transition


class Networks(NamedTuple):
    """One entry for each network: the networks of [`init`][shortcutrl.sorl.init], or their optimizers.

    - `policy`: a [`Velocity`][shortcutrl.Velocity].
    - `critic`: a [`Critic`][shortcutrl.Critic]; called with `k=` if `condition_critic_on_k`.
    """

    policy: Any
    critic: Any


OPTIMIZERS = Networks(*[optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-4))] * 2)
"""Adam with learning rate 1e-4 after clipping the gradient to norm 1, as published, but one for each network."""


@typed
@dataclasses.dataclass(frozen=True)
class Config:
    """The hyperparameters of SORL, validated when constructed; the defaults are the published ones.

    Plain data: hashable (a static argument of `jax.jit`), picklable, and `Config(**json.loads(json.dumps(
    dataclasses.asdict(config))))` is equal to `config`.

    - `num_steps`: M, the largest number of jumps that the policy learns, a power of two of at most 4,096. Flow matching
      trains jumps of size 1/M. With more than 256, make your own
      [`ShortcutPolicy`][shortcutrl.nn.ShortcutPolicy] with `smallest_step=1 / num_steps`.
    - `max_jumps`: M_BTT, the largest number of jumps that Q is maximised through, a power of two of at most
      `num_steps`. Each update draws k from 1, 2, 4, ..., `max_jumps`: once for the TD target, once for the policy.
    - `discount`: γ, in [0, 1].
    - `aggregate`: whether the TD target, and the choice among candidates in `actor`, takes the `"min"` or the `"mean"`
      of the target critics. The policy always maximises the mean.
    - `flow_matching_weight`, `self_consistency_weight`, `q_weight`: the weights of the terms of the policy's loss,
      non-negative. Tune `q_weight` for each environment (published: 10 to 500); 0 is behaviour cloning.
    - `normalize_q`: whether to divide the Q loss by the batch's mean |Q|, which makes `q_weight` independent of the
      scale of rewards.
    - `condition_critic_on_k`: whether the critic sees the number of jumps, as `critic(obs, action, k=k)`.
    - `tau`: how far the target networks move at each update, in (0, 1].
    - `clip`: the range of actions, (low, high), or `None`.
    - `remat`: whether to compute each jump again in the backward pass, as in [`rollout_k`][shortcutrl.rollout_k].

    !!! Example

        ```python
        from shortcutrl import sorl

        config = sorl.Config(q_weight=50.0, max_jumps=4)
        ```
    """

    num_steps: Integer = 8
    max_jumps: Integer = 8
    discount: Number = 0.99
    aggregate: Literal["min", "mean"] = "mean"
    flow_matching_weight: Number = 10.0
    self_consistency_weight: Number = 10.0
    q_weight: Number = 100.0
    normalize_q: bool = True
    condition_critic_on_k: bool = True
    tau: Number = 0.005
    clip: tuple[Number, Number] | list[Any] | None = (-1.0, 1.0)
    remat: bool = False

    def __post_init__(self) -> None:
        _contract.validate(self, non_negative=["flow_matching_weight", "self_consistency_weight", "q_weight"])
        _checks.as_power_of_two("num_steps", self.num_steps)
        if _checks.as_power_of_two("max_jumps", self.max_jumps) > self.num_steps:
            raise ValueError(f"`max_jumps` must be at most `num_steps` = {self.num_steps}, got {self.max_jumps}.")


class State(NamedTuple):
    """All that an update changes.

    - `policy`, `critic`: the networks.
    - `target_policy`, `target_critic`: their moving averages: the teacher of self-consistency, and the critic of the TD
      target. The agent acts with them.
    - `policy_opt_state`, `critic_opt_state`: the states of the optimizers.
    """

    policy: Any
    critic: Any
    target_policy: Any
    target_critic: Any
    policy_opt_state: optax.OptState
    critic_opt_state: optax.OptState


class Draws(NamedTuple):
    """All the randomness of one update; arrays with the batch as their leading axis, except the numbers of jumps.

    - `td_k`, `q_k`: the numbers of jumps of the TD target and of the policy's improvement, integers. Where `jit` traces
      them, a critic takes them as `k=`. `rollout_k` takes static ones: select its result by `jax.lax.switch`.
    - `td_noise`, `q_noise`: the noise of the actions in the TD target and in the policy's improvement, shape
      `(batch, action)`.
    - `flow_noise`, `flow_t`: the noise and the times of flow matching, shapes `(batch, action)` and `(batch,)`.
    - `consistency_noise`, `consistency_times`: the noise and the times of self-consistency. The times are (t, h), both
      of shape `(batch,)`.
    """

    td_k: int | Int[Array, ""]
    q_k: int | Int[Array, ""]
    td_noise: Array
    q_noise: Array
    flow_noise: Array
    flow_t: Array
    consistency_noise: Array
    consistency_times: tuple[Array, Array]


class Info(NamedTuple):
    """What one update measured: scalars, each a mean over the batch.

    - `td`: the critic's loss.
    - `q`: the ensemble's mean Q of the dataset's actions.
    - `q_loss`: minus the mean Q of the policy's actions, before weighting and normalising.
    - `flow_matching`, `self_consistency`: the policy's losses of imitation, before weighting.
    """

    td: Scalar
    q: Scalar
    q_loss: Scalar
    flow_matching: Scalar
    self_consistency: Scalar


@typed
def networks(
    example: Transition,
    *,
    width: Integer = 512,
    depth: Integer = 4,
    encoder: Encoder = None,
    condition_critic_on_k: bool = True,
    key: PRNGKeyArray,
) -> Networks:
    """Make the published networks: MLPs with GELU, LayerNorm in the critic, two critics.

    **Arguments:**

    - `example`: a transition or a batch of transitions with the sizes of the dataset.
    - `width`, `depth`: the size and number of hidden layers.
    - `encoder`: a function from one observation to a vector; policy and critic each train a copy. `None` if
      observations are vectors.
    - `condition_critic_on_k`: as in [`Config`][shortcutrl.sorl.Config].
    - `key`: a JAX random key.

    **Returns:** [`Networks`][shortcutrl.sorl.Networks]. Any other pair of callable pytrees can take its place.

    **Raises:** `ValueError` for a size below 1, or if observations are not vectors and there is no `encoder`.
    """
    sizes = _contract.sizes_of(example, encoder)
    policy_key, critic_key = jax.random.split(key)
    shape: dict[str, Any] = {"width": width, "depth": depth, "encoder": encoder}
    critic = nn.EnsembleCritic(*sizes, **shape, condition_on_k=condition_critic_on_k, key=critic_key)
    return Networks(nn.ShortcutPolicy(*sizes, **shape, key=policy_key), critic)


@typed
def init(networks: PerNetwork, *, config: Config, optimizers: PerNetwork | None) -> State:
    """Start training: copy the networks, make their averages equal to them, and make new optimizer states.

    **Arguments:**

    - `networks`: [`Networks`][shortcutrl.sorl.Networks]: callable pytrees, such as Equinox Modules, with any leaves.
    - `config`: static.
    - `optimizers`: [`Networks`][shortcutrl.sorl.Networks] of optax transformations, such as
      [`OPTIMIZERS`][shortcutrl.sorl.OPTIMIZERS]. With `None`, the state has `None` for the states of the optimizers: it
      can load a checkpoint and act, but not be updated.

    **Returns:** the [`State`][shortcutrl.sorl.State]. It shares no array with `networks`, so it may be donated.

    **Raises:** `ValueError` for a network without parameters or with parameters of fewer than 32 bits, and for an
    optimizer that needs more than gradients and parameters.
    """
    return _training.start(Networks, State, networks, optimizers)


@_contract.checked(Networks)
def draw(key: PRNGKeyArray, batch: Transition, *, config: Config, jumps_key: PRNGKeyArray | None = None) -> Draws:
    """Draw the numbers of jumps, each uniform on 1, 2, 4, ..., `config.max_jumps`, the noise and the times.

    **Arguments:**

    - `key`: a JAX random key.
    - `batch`: transitions with one leading axis.
    - `config`: static.
    - `jumps_key`: the key for the numbers of jumps, by default made from `key`.

    **Returns:** [`Draws`][shortcutrl.sorl.Draws].

    **Raises:** `TypeError` or `ValueError` for a `batch` of another form, such as one without transitions or with
    arrays of different lengths.
    """
    own_key, noise_key, flow_key, consistency_key = jax.random.split(key, 4)
    k_key = own_key if jumps_key is None else jumps_key
    td_k, q_k = 2 ** jax.random.randint(k_key, (2,), 0, int(config.max_jumps).bit_length())
    td_noise, q_noise, flow_noise, noise = jax.random.normal(noise_key, (4, *batch.action.shape), batch.action.dtype)
    flow_t, _ = draw_flow_matching(flow_key, num_steps=config.num_steps, shape=batch.reward.shape)
    # With M = 1 they are not used.
    times = draw_self_consistency(consistency_key, num_steps=max(config.num_steps, 2), shape=batch.reward.shape)
    return Draws(td_k, q_k, td_noise, q_noise, flow_noise, flow_t, noise, times)


@_contract.checked(Networks, draw)
def critic_loss(critic: Any, state: State, batch: Transition, draws: Draws, *, config: Config) -> tuple[Scalar, Scalar]:
    r"""Compute the TD loss of a batch: the mean of [`td_loss`][shortcutrl.td_loss] with actions of `td_k` jumps.

    **Arguments:**

    - `critic`: the critic that learns. Gradients flow into it alone.
    - `state`: its `policy` chooses the next actions, and its `target_critic` evaluates them.
    - `batch`: transitions with one leading axis.
    - `draws`: from [`draw`][shortcutrl.sorl.draw].
    - `config`: static.

    **Returns:** the loss and the mean Q of the dataset's actions, scalars. The latter has no gradient.

    **Raises:** `TypeError` or `ValueError` for a `state`, `batch` or `draws` of another form; otherwise as
    [`td_loss`][shortcutrl.td_loss].
    """
    obs, critic = _training.encode_once(batch.obs, critic=critic)
    networks = {"state.policy": state.policy, "state.target_critic": state.target_critic}
    next_obs, policy, target_critic = _training.encode_once(batch.next_obs, **networks)

    def loss(critic, obs, k):
        actor = partial(rollout_k, policy, k=k, clip=config.clip)
        critics = _bind(critic, k, config), _bind(target_critic, k, config)
        return _training.fit_td(*critics, actor, batch._replace(obs=obs, next_obs=next_obs), draws.td_noise, config)

    return _switch.at_drawn(loss, (critic, obs), "draws.td_k", draws.td_k, config.max_jumps)


@_contract.checked(Networks, draw)
def policy_loss(
    policy: Any, state: State, batch: Transition, draws: Draws, *, config: Config
) -> tuple[Scalar, tuple[Scalar, Scalar, Scalar]]:
    r"""Compute $w_1 L_\text{flow matching} + w_2 L_\text{self-consistency} + w_3 L_Q / \overline{|Q|}$ of a batch.

    The divisor is the batch's mean |Q| of the policy's actions, or 1 without `normalize_q`. No gradient flows through
    it.

    **Arguments:**

    - `policy`: the policy that learns. Gradients flow into it alone.
    - `state`: its `target_policy` is the teacher of self-consistency, and its `critic` evaluates the policy's actions.
    - `batch`, `draws`, `config`: as in [`critic_loss`][shortcutrl.sorl.critic_loss].

    **Returns:** the loss, and its terms before weighting and normalising: minus Q, flow matching, self-consistency;
    scalars. The terms have no gradient.

    **Raises:** as [`sorl.critic_loss`][shortcutrl.sorl.critic_loss].

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from shortcutrl import Transition, sorl

        batch = Transition(jnp.ones((8, 3)), jnp.ones((8, 2)), jnp.ones(8), jnp.ones(8), jnp.ones((8, 3)))
        config, key = sorl.Config(), jax.random.key(0)
        networks = sorl.networks(batch, width=32, depth=2, key=key)
        state = sorl.init(networks, config=config, optimizers=sorl.OPTIMIZERS)
        draws = sorl.draw(key, batch, config=config)
        loss, terms = sorl.policy_loss(state.policy, state, batch, draws, config=config)
        ```
    """
    networks = {"policy": policy, "state.critic": state.critic, "state.target_policy": state.target_policy}
    obs, policy, critic, teacher = _training.encode_once(batch.obs, **networks)

    def minus_q(policy, obs, k):
        actor = partial(rollout_k, policy, k=k, clip=config.clip, remat=config.remat)
        losses, info = jax.vmap(partial(q_loss, actor, _bind(critic, k, config)))(obs, draws.q_noise)
        loss = _training.normalized(losses.mean(), info.q) if config.normalize_q else losses.mean()
        return config.q_weight * loss, losses.mean()

    match = partial(flow_matching_loss, policy, h=1 / config.num_steps)
    flow_matching = jax.vmap(match)(obs, batch.action, draws.flow_noise, draws.flow_t).mean()
    self_consistency = jnp.zeros_like(flow_matching)
    if config.num_steps > 1:
        agree = partial(self_consistency_loss, policy, teacher)
        self_consistency = jax.vmap(agree)(obs, batch.action, draws.consistency_noise, *draws.consistency_times).mean()
    q_term, q = _switch.at_drawn(minus_q, (policy, obs), "draws.q_k", draws.q_k, config.max_jumps)
    loss = config.flow_matching_weight * flow_matching + config.self_consistency_weight * self_consistency + q_term
    return loss, jax.lax.stop_gradient((q, flow_matching, self_consistency))


@_contract.checked(Networks)
def update(
    state: State,
    batch: Transition,
    *,
    config: Config,
    optimizers: PerNetwork,
    key: PRNGKeyArray,
    jumps_key: PRNGKeyArray | None = None,
    critic_loss: Loss = critic_loss,
    policy_loss: Loss = policy_loss,
) -> tuple[State, Info]:
    r"""Make one update on one batch: step the critic, then the policy, then move both target networks.

    This function is pure and not jitted: wrap it in `jax.jit`, scan it over steps, `vmap` it over agents.

    **Arguments:**

    - `state`: from [`init`][shortcutrl.sorl.init] or the previous update.
    - `batch`: a [`Transition`][shortcutrl.Transition] with one leading axis.
    - `config`: static.
    - `optimizers`: those that the state was made with.
    - `key`: a JAX random key, a new one for each update.
    - `jumps_key`: the key for the numbers of jumps, by default made from `key`. Under `jax.vmap` over agents, pass one
      shared key; otherwise `lax.switch` evaluates every branch for each agent.
    - `critic_loss`, `policy_loss`: static, by default those of this module. A replacement takes the
      same arguments and returns the same kinds of results.

    **Returns:** the new state and [`Info`][shortcutrl.sorl.Info].

    **Raises:** `ValueError` for a `batch` that is empty or whose arrays have different lengths, and for a state that
    belongs to other optimizers; otherwise as the functions that it calls.

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from functools import partial
        from shortcutrl import Transition, sorl

        batch = Transition(jnp.ones((8, 3)), jnp.ones((8, 2)), jnp.ones(8), jnp.ones(8), jnp.ones((8, 3)))
        options = {"config": sorl.Config(num_steps=2, max_jumps=2), "optimizers": sorl.OPTIMIZERS}
        networks = sorl.networks(batch, width=32, depth=2, key=jax.random.key(0))
        state = sorl.init(networks, **options)
        state, info = jax.jit(partial(sorl.update, **options))(state, batch, key=jax.random.key(1))
        ```
    """
    draws = draw(key, batch, config=config, jumps_key=jumps_key)
    (td, q), critic_grads = _training.value_and_grad(critic_loss)(state.critic, state, batch, draws, config=config)
    state = _training.step(Networks, state, optimizers, critic=critic_grads)
    (_, terms), policy_grads = _training.value_and_grad(policy_loss)(state.policy, state, batch, draws, config=config)
    state = _training.step(Networks, state, optimizers, policy=policy_grads)
    return _training.move_targets(state, config.tau), Info(td, q, *terms)


@_contract.checked(Networks)
def actor(state: State, *, config: Config, k: Integer | None = None, n: Integer = 1) -> Actor:
    """Act with the target networks: make `k` jumps, and take the best of `n` candidates by the target critic.

    **Arguments:**

    - `state`: from [`update`][shortcutrl.sorl.update].
    - `config`: the `Config` of the training.
    - `k`: the number of jumps, from 1 to 4,096, by default `config.num_steps`.
    - `n`: the number of candidates, from 1 to 4,096. With 1 the actor's noise has shape `(action,)`, otherwise
      `(n, action)`. A critic that sees k ranks them at this `k`: it was trained at 1, 2, 4, ..., `max_jumps`, and
      extrapolates at others.

    **Returns:** an [`Actor`][shortcutrl.Actor] that can be an argument of a function under `equinox.filter_jit`. It
    refuses noise that does not have `n` rows.

    **Raises:** `ValueError` for `k` or `n` below 1.

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from shortcutrl import Transition, sorl

        example = Transition(jnp.ones(3), jnp.ones(2), jnp.array(1.0), jnp.array(1.0), jnp.ones(3))
        config = sorl.Config()
        networks = sorl.networks(example, width=32, depth=2, key=jax.random.key(0))
        state = sorl.init(networks, config=config, optimizers=sorl.OPTIMIZERS)
        act = sorl.actor(state, config=config, k=4, n=8)
        assert act(example.obs, jax.random.normal(jax.random.key(1), (8, 2))).shape == (2,)
        ```
    """
    k = _checks.as_count("k", config.num_steps if k is None else k)
    roll = eqx.Partial(rollout_k, state.target_policy, k=k, clip=config.clip)
    return best_of(_checks.as_count("n", n), roll, _bind(state.target_critic, k, config), config.aggregate)


@typed
def noise_shape(action_size: Integer, *, config: Config, k: Integer | None = None, n: Integer = 1) -> tuple[int, ...]:
    """Return the shape of the noise that [`actor`][shortcutrl.sorl.actor] takes with the same options.

    **Arguments:**

    - `action_size`: the length of an action.
    - `config`: the `Config` of the training.
    - `k`: the number of jumps, which does not change the shape.
    - `n`: the number of candidates.

    **Returns:** `(action,)` for one candidate, otherwise `(n, action)`.

    **Raises:** `ValueError` for a size below 1.

    !!! Example

        ```python
        from shortcutrl import sorl

        assert sorl.noise_shape(2, config=sorl.Config(), n=8) == (8, 2)
        ```
    """
    size, n = _checks.as_size("action_size", action_size), _checks.as_count("n", n)
    return (size,) if n == 1 else (n, size)


def _bind(critic: Any, k: int, config: Config) -> Any:
    return eqx.Partial(critic, k=k) if config.condition_critic_on_k else critic
