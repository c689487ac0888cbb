"""FAWAC: a flow imitates the dataset's actions, each weighted by its advantage over the value of the dataset's actions.

Source: the flow variant of AWAC ([arXiv 2006.09359](https://arxiv.org/abs/2006.09359)), a baseline of FQL
([arXiv 2502.02538](https://arxiv.org/abs/2502.02538)) and of QAM ([arXiv 2601.14234](https://arxiv.org/abs/2601.14234)).
"""

import dataclasses
from functools import partial
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray

from shortcutrl import _contract, _training, nn
from shortcutrl._flow import flow_matching_loss
from shortcutrl._improve import advantage_weight
from shortcutrl._step import rollout_k
from shortcutrl._typed import typed
from shortcutrl._types import Actor, Encoder, Integer, Loss, Number, PerNetwork, Scalar, Transition


class Networks(NamedTuple):
    """One entry for each network: the networks of [`init`][shortcutrl.fawac.init], or their optimizers.

    - `policy`: a [`Velocity`][shortcutrl.Velocity] that ignores `h`, such as
      [`nn.FlowPolicy`][shortcutrl.nn.FlowPolicy].
    - `critic`: a [`Critic`][shortcutrl.Critic].
    - `value`: a [`Value`][shortcutrl.Value].
    """

    policy: Any
    critic: Any
    value: Any


OPTIMIZERS = Networks(*[optax.adam(3e-4)] * 3)
"""The published optimizers: Adam with learning rate 3e-4."""


@typed
@dataclasses.dataclass(frozen=True)
class Config:
    """The hyperparameters of FAWAC, validated when constructed; the defaults are the published ones. Plain data.

    - `alpha`: the factor of the advantage, non-negative: larger values follow Q more closely. Tune it for each
      environment (published: 0.3 to 3; the default is that of the mazes).
    - `flow_steps`: the number of Euler steps of the flow.
    - `discount`: γ, in [0, 1].
    - `aggregate`: whether the TD target takes the `"min"` or the `"mean"` of the target critics. V and the weight use
      the mean.
    - `tau`: how far the target critic moves at each update, in (0, 1].
    - `clip`: the range of actions, (low, high), or `None`.

    !!! Example

        ```python
        from shortcutrl import fawac

        config = fawac.Config(alpha=0.3)
        ```
    """

    alpha: Number = 3.0
    flow_steps: Integer = 10
    discount: Number = 0.99
    aggregate: Literal["min", "mean"] = "mean"
    tau: Number = 0.005
    clip: tuple[Number, Number] | list[Any] | None = (-1.0, 1.0)

    def __post_init__(self) -> None:
        _contract.validate(self, non_negative=["alpha"], sizes=["flow_steps"])


class State(NamedTuple):
    """All that an update changes.

    - `policy`, `critic`, `value`: the networks. The agent acts with the policy.
    - `target_critic`: the moving average of the critic, for the TD target and for V.
    - `policy_opt_state`, `critic_opt_state`, `value_opt_state`: the states of the optimizers.
    """

    policy: Any
    critic: Any
    value: Any
    target_critic: Any
    policy_opt_state: optax.OptState
    critic_opt_state: optax.OptState
    value_opt_state: optax.OptState


class Draws(NamedTuple):
    """All the randomness of one update; arrays with the batch as their leading axis.

    - `td_noise`: the policy's noise in the TD target, shape `(batch, action)`.
    - `flow_noise`, `flow_t`: the noise and the times of flow matching, shapes `(batch, action)` and `(batch,)`.
    """

    td_noise: Array
    flow_noise: Array
    flow_t: Array


class Info(NamedTuple):
    """What one update measured: scalars, each a mean over the batch.

    - `td`: the critic's loss.
    - `q`: the ensemble's mean Q of the dataset's actions.
    - `value_loss`, `v`: the loss of V, and V of the dataset's observations.
    - `flow_matching`: the policy's imitation loss, before weighting.
    - `weight`: the weights of the dataset's actions.
    """

    td: Scalar
    q: Scalar
    value_loss: Scalar
    v: Scalar
    flow_matching: Scalar
    weight: Scalar


@typed
def networks(
    example: Transition,
    *,
    width: Integer = 512,
    depth: Integer = 4,
    encoder: Encoder = None,
    key: PRNGKeyArray,
) -> Networks:
    """Make the published networks: MLPs with GELU, LayerNorm in critic and value, two critics.

    **Arguments:**

    - `example`: a transition or a batch of transitions with the sizes of the dataset.
    - `width`, `depth`: the size and number of hidden layers.
    - `encoder`: a function from one observation to a vector; each network trains a copy. `None` if observations are
      vectors.
    - `key`: a JAX random key.

    **Returns:** [`Networks`][shortcutrl.fawac.Networks]. Any other callable pytrees can take their place.

    **Raises:** as [`sorl.networks`][shortcutrl.sorl.networks].
    """
    sizes = _contract.sizes_of(example, encoder)
    shape: dict[str, Any] = {"width": width, "depth": depth, "encoder": encoder}
    policy_key, critic_key, value_key = jax.random.split(key, 3)
    return Networks(
        nn.FlowPolicy(*sizes, **shape, key=policy_key),
        nn.EnsembleCritic(*sizes, **shape, key=critic_key),
        nn.Value(sizes[0], **shape, key=value_key),
    )


@typed
def init(networks: PerNetwork, *, config: Config, optimizers: PerNetwork | None) -> State:
    """Start training: copy the networks, make the critic's average equal to it, and make new optimizer states.

    **Arguments:**

    - `networks`: [`Networks`][shortcutrl.fawac.Networks]: callable pytrees, such as Equinox Modules, with any leaves.
    - `config`: static.
    - `optimizers`: [`Networks`][shortcutrl.fawac.Networks] of optax transformations, or `None` to act only.

    **Returns:** the [`State`][shortcutrl.fawac.State]. It shares no array with `networks`, so it may be donated.

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

    **Returns:** [`Draws`][shortcutrl.fawac.Draws].

    **Raises:** as [`sorl.draw`][shortcutrl.sorl.draw].
    """
    noise_key, t_key = jax.random.split(key)
    td_noise, flow_noise = jax.random.normal(noise_key, (2, *batch.action.shape), batch.action.dtype)
    return Draws(td_noise, flow_noise, jax.random.uniform(t_key, batch.action.shape[:1], batch.action.dtype))


@_contract.checked(Networks, draw)
def critic_loss(critic: Any, state: State, batch: Transition, draws: Draws, *, config: Config) -> tuple[Scalar, Scalar]:
    r"""Compute the TD loss of a batch: the mean of [`td_loss`][shortcutrl.td_loss] with the policy's next actions.

    **Arguments:**

    - `critic`: the critic that learns. Gradients flow into it alone.
    - `state`: its `policy` chooses the next actions, and its `target_critic` evaluates them.
    - `batch`: transitions with one leading axis.
    - `draws`: from [`draw`][shortcutrl.fawac.draw].
    - `config`: static.

    **Returns:** the loss and the mean Q of the dataset's actions, scalars.

    **Raises:** as [`sorl.critic_loss`][shortcutrl.sorl.critic_loss].
    """
    actor = partial(rollout_k, state.policy, k=config.flow_steps, clip=config.clip)
    return _training.fit_td(critic, state.target_critic, actor, batch, draws.td_noise, config)


@_contract.checked(Networks, draw)
def value_loss(value: Any, state: State, batch: Transition, draws: Draws, *, config: Config) -> tuple[Scalar, Scalar]:
    r"""Fit V to Q of the dataset's actions by least squares: $(Q_{\bar\phi}(s, a) - V(s))^2$.

    Q is the mean of the target critics.

    **Arguments:**

    - `value`: the value that learns. Gradients flow into it alone.
    - `state`: its `target_critic` evaluates the dataset's actions.
    - `batch`, `draws`, `config`: as in [`critic_loss`][shortcutrl.fawac.critic_loss].

    **Returns:** the loss and the mean V, scalars.

    **Raises:** as [`sorl.critic_loss`][shortcutrl.sorl.critic_loss].
    """
    half, v = _training.fit_value(value, state.target_critic, batch, expectile=0.5, aggregate="mean")
    return 2 * half, v


@_contract.checked(Networks, draw)
def policy_loss(
    policy: Any, state: State, batch: Transition, draws: Draws, *, config: Config
) -> tuple[Scalar, tuple[Scalar, Scalar]]:
    r"""Imitate better actions more: $\min(e^{\alpha (Q(s, a) - V(s))}, 100)\, L_\text{flow matching}$ of a batch.

    Q is the mean of the latest critics, not of the target critics.

    **Arguments:**

    - `policy`: the policy that learns. Gradients flow into it alone.
    - `state`: its `critic` and `value` evaluate the dataset's actions.
    - `batch`, `draws`, `config`: as in [`critic_loss`][shortcutrl.fawac.critic_loss].

    **Returns:** the loss, and the means of its two factors: flow matching and the weight; scalars.

    **Raises:** as [`sorl.critic_loss`][shortcutrl.sorl.critic_loss].

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from shortcutrl import Transition, fawac

        batch = Transition(jnp.ones((8, 3)), jnp.ones((8, 2)), jnp.ones(8), jnp.ones(8), jnp.ones((8, 3)))
        config, key = fawac.Config(), jax.random.key(0)
        networks = fawac.networks(batch, width=32, depth=2, key=key)
        state = fawac.init(networks, config=config, optimizers=fawac.OPTIMIZERS)
        draws = fawac.draw(key, batch, config=config)
        loss, terms = fawac.policy_loss(state.policy, state, batch, draws, config=config)
        ```
    """
    match = partial(flow_matching_loss, policy, h=0.0)
    flow_matching = jax.vmap(match)(batch.obs, batch.action, draws.flow_noise, draws.flow_t)
    q = _training.q_of_data("state.critic", state.critic, batch, "mean")
    v = _training.v_of_data("state.value", state.value, batch.obs)
    weight = jax.vmap(partial(advantage_weight, temperature=config.alpha))(q, v)
    return jnp.mean(weight * flow_matching), (flow_matching.mean(), weight.mean())


@_contract.checked(Networks)
def update(
    state: State,
    batch: Transition,
    *,
    config: Config,
    optimizers: PerNetwork,
    key: PRNGKeyArray,
    critic_loss: Loss = critic_loss,
    value_loss: Loss = value_loss,
    policy_loss: Loss = policy_loss,
) -> tuple[State, Info]:
    """Make one gradient step of all three networks on one batch, then move the target critic.

    This function is pure and not jitted: wrap it in `jax.jit`, scan it over steps, `vmap` it over agents.

    **Arguments:**

    - `state`: from [`init`][shortcutrl.fawac.init] or the previous update.
    - `batch`: a [`Transition`][shortcutrl.Transition] with one leading axis.
    - `config`: static.
    - `optimizers`: those that the state was made with.
    - `key`: a JAX random key, a new one for each update.
    - `critic_loss`, `value_loss`, `policy_loss`: static, by default those of this module. A replacement takes the
      same arguments and returns the same kinds of results.

    **Returns:** the new state and [`Info`][shortcutrl.fawac.Info].

    **Raises:** as [`sorl.update`][shortcutrl.sorl.update].

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from functools import partial
        from shortcutrl import Transition, fawac

        batch = Transition(jnp.ones((8, 3)), jnp.ones((8, 2)), jnp.ones(8), jnp.ones(8), jnp.ones((8, 3)))
        options = {"config": fawac.Config(), "optimizers": fawac.OPTIMIZERS}
        state = fawac.init(fawac.networks(batch, width=32, depth=2, key=jax.random.key(0)), **options)
        state, info = jax.jit(partial(fawac.update, **options))(state, batch, key=jax.random.key(1))
        ```
    """
    args: Any = state, batch, draw(key, batch, config=config)
    (td, q), critic_grads = _training.value_and_grad(critic_loss)(state.critic, *args, config=config)
    (fit, v), value_grads = _training.value_and_grad(value_loss)(state.value, *args, config=config)
    (_, terms), policy_grads = _training.value_and_grad(policy_loss)(state.policy, *args, config=config)
    state = _training.step(Networks, state, optimizers, policy=policy_grads, critic=critic_grads, value=value_grads)
    return _training.move_targets(state, config.tau), Info(td, q, fit, v, *terms)


@_contract.checked(Networks)
def actor(state: State, *, config: Config) -> Actor:
    """Act with the flow: make all Euler steps and clip the action.

    **Arguments:**

    - `state`: from [`update`][shortcutrl.fawac.update].
    - `config`: the `Config` of the training.

    **Returns:** an [`Actor`][shortcutrl.Actor], a pytree, whose noise has shape `(action,)`.

    **Raises:** `TypeError` for a `state` of another algorithm.

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from shortcutrl import Transition, fawac

        example = Transition(jnp.ones(3), jnp.ones(2), jnp.array(1.0), jnp.array(1.0), jnp.ones(3))
        networks = fawac.networks(example, width=32, depth=2, key=jax.random.key(0))
        state = fawac.init(networks, config=fawac.Config(), optimizers=fawac.OPTIMIZERS)
        assert fawac.actor(state, config=fawac.Config())(example.obs, jnp.zeros(2)).shape == (2,)
        ```
    """
    return eqx.Partial(rollout_k, state.policy, k=config.flow_steps, clip=config.clip)
