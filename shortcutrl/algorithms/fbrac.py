"""FBRAC: a flow imitates the dataset and maximises Q, backpropagated through its Euler steps.

Source: the flow variant of behaviour-regularised actor-critic, a baseline of FQL
([arXiv 2502.02538](https://arxiv.org/abs/2502.02538)) and of QAM ([arXiv 2601.14234](https://arxiv.org/abs/2601.14234)).
"""

import dataclasses
from functools import partial
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import optax
from jaxtyping import Array, PRNGKeyArray

from shortcutrl import _contract, _training, nn
from shortcutrl._flow import flow_matching_loss
from shortcutrl._improve import q_loss
from shortcutrl._step import rollout_k
from shortcutrl._typed import typed
from shortcutrl._types import Actor, Encoder, Integer, Loss, Number, PerNetwork, Scalar, Transition


class Networks(NamedTuple):
    """One entry for each network: the networks of [`init`][shortcutrl.fbrac.init], or their optimizers.

    - `policy`: a [`Velocity`][shortcutrl.Velocity] that ignores `h`, such as
      [`nn.FlowPolicy`][shortcutrl.nn.FlowPolicy].
    - `critic`: a [`Critic`][shortcutrl.Critic].
    """

    policy: Any
    critic: Any


OPTIMIZERS = Networks(*[optax.adam(3e-4)] * 2)
"""The published optimizers: Adam with learning rate 3e-4."""


@typed
@dataclasses.dataclass(frozen=True)
class Config:
    """The hyperparameters of FBRAC, validated when constructed; the defaults are the published ones. Plain data.

    - `alpha`: the weight of flow matching against Q, non-negative. Tune it for each environment (published: 3 to 300;
      the default is that of cube and scene).
    - `flow_steps`: the number of Euler steps of the flow, through which Q is maximised.
    - `discount`: γ, in [0, 1].
    - `aggregate`: whether the TD target takes the `"min"` or the `"mean"` of the target critics. The policy always
      maximises the mean.
    - `tau`: how far the target critic moves at each update, in (0, 1].
    - `clip`: the range of actions, (low, high), or `None`.

    !!! Example

        ```python
        from shortcutrl import fbrac

        config = fbrac.Config(alpha=30.0)
        ```
    """

    alpha: Number = 100.0
    flow_steps: Integer = 10
    discount: Number = 0.99
    aggregate: Literal["min", "mean"] = "mean"
    tau: Number = 0.005
    clip: tuple[Number, Number] | list[Any] | None = (-1.0, 1.0)

    def __post_init__(self) -> None:
        _contract.validate(self, non_negative=["alpha"], sizes=["flow_steps"])


class State(NamedTuple):
    """All that an update changes.

    - `policy`, `critic`: the networks. The agent acts with the policy.
    - `target_critic`: the moving average of the critic, for the TD target.
    - `policy_opt_state`, `critic_opt_state`: the states of the optimizers.
    """

    policy: Any
    critic: Any
    target_critic: Any
    policy_opt_state: optax.OptState
    critic_opt_state: optax.OptState


class Draws(NamedTuple):
    """All the randomness of one update; arrays with the batch as their leading axis.

    - `td_noise`, `q_noise`: the policy's noise in the TD target and in its own loss, shape `(batch, action)`.
    - `flow_noise`, `flow_t`: the noise and the times of flow matching, shapes `(batch, action)` and `(batch,)`.
    """

    td_noise: Array
    q_noise: Array
    flow_noise: Array
    flow_t: Array


class Info(NamedTuple):
    """What one update measured: scalars, each a mean over the batch.

    - `td`: the critic's loss.
    - `q`: the ensemble's mean Q of the dataset's actions.
    - `flow_matching`: the policy's imitation loss, before weighting.
    - `q_loss`: minus the mean Q of the policy's actions.
    """

    td: Scalar
    q: Scalar
    flow_matching: Scalar
    q_loss: Scalar


@typed
def networks(
    example: Transition,
    *,
    width: Integer = 512,
    depth: Integer = 4,
    encoder: Encoder = None,
    key: PRNGKeyArray,
) -> Networks:
    """Make the published networks: MLPs with GELU, LayerNorm in the critic, two critics.

    **Arguments:**

    - `example`: a transition or a batch of transitions with the sizes of the dataset.
    - `width`, `depth`: the size and number of hidden layers.
    - `encoder`: a function from one observation to a vector; each network trains a copy. `None` if observations are
      vectors.
    - `key`: a JAX random key.

    **Returns:** [`Networks`][shortcutrl.fbrac.Networks]. Any other callable pytrees can take their place.

    **Raises:** as [`sorl.networks`][shortcutrl.sorl.networks].
    """
    sizes = _contract.sizes_of(example, encoder)
    shape: dict[str, Any] = {"width": width, "depth": depth, "encoder": encoder}
    policy_key, critic_key = jax.random.split(key)
    return Networks(
        nn.FlowPolicy(*sizes, **shape, key=policy_key),
        nn.EnsembleCritic(*sizes, **shape, key=critic_key),
    )


@typed
def init(networks: PerNetwork, *, config: Config, optimizers: PerNetwork | None) -> State:
    """Start training: copy the networks, make the critic's average equal to it, and make new optimizer states.

    **Arguments:**

    - `networks`: [`Networks`][shortcutrl.fbrac.Networks]: callable pytrees, such as Equinox Modules, with any leaves.
    - `config`: static.
    - `optimizers`: [`Networks`][shortcutrl.fbrac.Networks] of optax transformations, or `None` to act only.

    **Returns:** the [`State`][shortcutrl.fbrac.State]. It shares no array with `networks`, so it may be donated.

    **Raises:** as [`sorl.init`][shortcutrl.sorl.init].
    """
    return _training.start(Networks, State, networks, optimizers)


@_contract.checked(Networks)
def draw(key: PRNGKeyArray, batch: Transition, *, config: Config) -> Draws:
    """Draw the noise and the times of one update.

    **Arguments:**

    - `key`: a JAX random key.
    - `batch`: transitions with one leading axis.
    - `config`: static; not used.

    **Returns:** [`Draws`][shortcutrl.fbrac.Draws].

    **Raises:** as [`sorl.draw`][shortcutrl.sorl.draw].
    """
    noise_key, t_key = jax.random.split(key)
    td_noise, noise, flow_noise = jax.random.normal(noise_key, (3, *batch.action.shape), batch.action.dtype)
    return Draws(td_noise, noise, flow_noise, jax.random.uniform(t_key, batch.action.shape[:1], batch.action.dtype))


@_contract.checked(Networks, draw)
def critic_loss(critic: Any, state: State, batch: Transition, draws: Draws, *, config: Config) -> tuple[Scalar, Scalar]:
    r"""Compute the TD loss of a batch: the mean of [`td_loss`][shortcutrl.td_loss] with the policy's next actions.

    **Arguments:**

    - `critic`: the critic that learns. Gradients flow into it alone.
    - `state`: its `policy` chooses the next actions, and its `target_critic` evaluates them.
    - `batch`: transitions with one leading axis.
    - `draws`: from [`draw`][shortcutrl.fbrac.draw].
    - `config`: static.

    **Returns:** the loss and the mean Q of the dataset's actions, scalars.

    **Raises:** as [`sorl.critic_loss`][shortcutrl.sorl.critic_loss].
    """
    actor = partial(rollout_k, state.policy, k=config.flow_steps, clip=config.clip)
    return _training.fit_td(critic, state.target_critic, actor, batch, draws.td_noise, config)


@_contract.checked(Networks, draw)
def policy_loss(
    policy: Any, state: State, batch: Transition, draws: Draws, *, config: Config
) -> tuple[Scalar, tuple[Scalar, Scalar]]:
    r"""Compute $\alpha L_\text{flow matching} - Q(s, a)$ of a batch, with $a$ from all Euler steps of the policy.

    The published code of QAM divides Q by $\alpha$ instead, which is the same loss up to a factor.

    **Arguments:**

    - `policy`: the policy that learns. Gradients flow into it alone, through all Euler steps.
    - `state`: its `critic` evaluates the policy's actions.
    - `batch`, `draws`, `config`: as in [`critic_loss`][shortcutrl.fbrac.critic_loss].

    **Returns:** the loss, and its terms before weighting: flow matching, and minus Q; scalars.

    **Raises:** as [`sorl.critic_loss`][shortcutrl.sorl.critic_loss].

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from shortcutrl import Transition, fbrac

        batch = Transition(jnp.ones((8, 3)), jnp.ones((8, 2)), jnp.ones(8), jnp.ones(8), jnp.ones((8, 3)))
        config, key = fbrac.Config(), jax.random.key(0)
        networks = fbrac.networks(batch, width=32, depth=2, key=key)
        state = fbrac.init(networks, config=config, optimizers=fbrac.OPTIMIZERS)
        draws = fbrac.draw(key, batch, config=config)
        loss, terms = fbrac.policy_loss(state.policy, state, batch, draws, config=config)
        ```
    """
    networks = {"policy": policy, "state.critic": state.critic}
    obs, policy, critic = _training.encode_once(batch.obs, **networks)
    match = partial(flow_matching_loss, policy, h=0.0)
    flow_matching = jax.vmap(match)(obs, batch.action, draws.flow_noise, draws.flow_t).mean()
    actor = partial(rollout_k, policy, k=config.flow_steps, clip=config.clip)
    losses, _ = jax.vmap(partial(q_loss, actor, critic))(obs, draws.q_noise)
    minus_q = losses.mean()
    return config.alpha * flow_matching + minus_q, (flow_matching, minus_q)


@_contract.checked(Networks)
def update(
    state: State,
    batch: Transition,
    *,
    config: Config,
    optimizers: PerNetwork,
    key: PRNGKeyArray,
    critic_loss: Loss = critic_loss,
    policy_loss: Loss = policy_loss,
) -> tuple[State, Info]:
    """Make one gradient step of both networks on one batch, then move the target critic.

    This function is pure and not jitted: wrap it in `jax.jit`, scan it over steps, `vmap` it over agents.

    **Arguments:**

    - `state`: from [`init`][shortcutrl.fbrac.init] or the previous update.
    - `batch`: a [`Transition`][shortcutrl.Transition] with one leading axis.
    - `config`: static.
    - `optimizers`: those that the state was made with.
    - `key`: a JAX random key, a new one for each update.
    - `critic_loss`, `policy_loss`: static, by default those of this module. A replacement takes the
      same arguments and returns the same kinds of results.

    **Returns:** the new state and [`Info`][shortcutrl.fbrac.Info].

    **Raises:** as [`sorl.update`][shortcutrl.sorl.update].

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from functools import partial
        from shortcutrl import Transition, fbrac

        batch = Transition(jnp.ones((8, 3)), jnp.ones((8, 2)), jnp.ones(8), jnp.ones(8), jnp.ones((8, 3)))
        options = {"config": fbrac.Config(), "optimizers": fbrac.OPTIMIZERS}
        state = fbrac.init(fbrac.networks(batch, width=32, depth=2, key=jax.random.key(0)), **options)
        state, info = jax.jit(partial(fbrac.update, **options))(state, batch, key=jax.random.key(1))
        ```
    """
    args: Any = state, batch, draw(key, batch, config=config)
    (td, q), critic_grads = _training.value_and_grad(critic_loss)(state.critic, *args, config=config)
    (_, terms), policy_grads = _training.value_and_grad(policy_loss)(state.policy, *args, config=config)
    state = _training.step(Networks, state, optimizers, policy=policy_grads, critic=critic_grads)
    return _training.move_targets(state, config.tau), Info(td, q, *terms)


@_contract.checked(Networks)
def actor(state: State, *, config: Config) -> Actor:
    """Act with the flow: make all Euler steps and clip the action.

    **Arguments:**

    - `state`: from [`update`][shortcutrl.fbrac.update].
    - `config`: the `Config` of the training.

    **Returns:** an [`Actor`][shortcutrl.Actor], a pytree, whose noise has shape `(action,)`.

    **Raises:** `TypeError` for a `state` of another algorithm.

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from shortcutrl import Transition, fbrac

        example = Transition(jnp.ones(3), jnp.ones(2), jnp.array(1.0), jnp.array(1.0), jnp.ones(3))
        networks = fbrac.networks(example, width=32, depth=2, key=jax.random.key(0))
        state = fbrac.init(networks, config=fbrac.Config(), optimizers=fbrac.OPTIMIZERS)
        assert fbrac.actor(state, config=fbrac.Config())(example.obs, jnp.zeros(2)).shape == (2,)
        ```
    """
    return eqx.Partial(rollout_k, state.policy, k=config.flow_steps, clip=config.clip)
