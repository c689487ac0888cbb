"""FQL: a flow imitates the dataset; a one-step student imitates the flow and maximises Q.

Source: flow Q-learning ([arXiv 2502.02538](https://arxiv.org/abs/2502.02538)).
"""

import dataclasses
from functools import partial
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import optax
from jaxtyping import Array, PRNGKeyArray

from shortcutrl import _contract, _training, nn
from shortcutrl._actors import clipped
from shortcutrl._call import action_of
from shortcutrl._flow import flow_matching_loss
from shortcutrl._improve import distill_loss, q_loss
from shortcutrl._step import rollout_k
from shortcutrl._typed import typed
from shortcutrl._types import Actor, Encoder, Integer, Loss, Number, PerNetwork, Scalar, Transition


class Networks(NamedTuple):
    """One entry for each network: the networks of [`init`][shortcutrl.fql.init], or their optimizers.

    - `flow`: a [`Velocity`][shortcutrl.Velocity] that imitates the dataset, and ignores `h`, such as
      [`nn.FlowPolicy`][shortcutrl.nn.FlowPolicy].
    - `student`: an [`Actor`][shortcutrl.Actor] whose noise has shape `(action,)`.
    - `critic`: a [`Critic`][shortcutrl.Critic].
    """

    flow: Any
    student: Any
    critic: Any


OPTIMIZERS = Networks(*[optax.adam(3e-4)] * 3)
"""The published optimizers: Adam with learning rate 3e-4."""


@typed
@dataclasses.dataclass(frozen=True)
class Config:
    """The hyperparameters of FQL, validated when constructed; the defaults are the published ones. Plain data.

    - `alpha`: the weight of distillation against Q, non-negative. Tune it for each environment (published: 10 to 1000).
    - `flow_steps`: the number of Euler steps of the flow that the student imitates.
    - `discount`: γ, in [0, 1].
    - `aggregate`: whether the TD target takes the `"min"` or the `"mean"` of the target critics. The student always
      maximises the mean.
    - `normalize_q`: whether to divide the Q loss by the batch's mean |Q|.
    - `tau`: how far the target critic moves at each update, in (0, 1].
    - `clip`: the range of actions, (low, high), or `None`.

    !!! Example

        ```python
        from shortcutrl import fql

        config = fql.Config(alpha=300.0)
        ```
    """

    alpha: Number = 10.0
    flow_steps: Integer = 10
    discount: Number = 0.99
    aggregate: Literal["min", "mean"] = "mean"
    normalize_q: bool = False
    tau: Number = 0.005
    clip: tuple[Number, Number] | list[Any] | None = (-1.0, 1.0)

    def __post_init__(self) -> None:
        _contract.validate(self, non_negative=["alpha"], sizes=["flow_steps"])


class State(NamedTuple):
    """All that an update changes.

    - `flow`, `student`, `critic`: the networks. The agent acts with the student.
    - `target_critic`: the moving average of the critic, for the TD target.
    - `flow_opt_state`, `student_opt_state`, `critic_opt_state`: the states of the optimizers.
    """

    flow: Any
    student: Any
    critic: Any
    target_critic: Any
    flow_opt_state: optax.OptState
    student_opt_state: optax.OptState
    critic_opt_state: optax.OptState


class Draws(NamedTuple):
    """All the randomness of one update; arrays with the batch as their leading axis.

    - `td_noise`, `student_noise`: the student's noise in the TD target and in its own loss, shape `(batch, action)`.
    - `flow_noise`, `flow_t`: the noise and the times of flow matching, shapes `(batch, action)` and `(batch,)`.
    """

    td_noise: Array
    student_noise: Array
    flow_noise: Array
    flow_t: Array


class Info(NamedTuple):
    """What one update measured: scalars, each a mean over the batch.

    - `td`: the critic's loss.
    - `q`: the ensemble's mean Q of the dataset's actions.
    - `flow_matching`, `distillation`: the losses of the flow and of the student, before weighting.
    - `q_loss`: minus the mean Q of the student's actions, before normalising.
    """

    td: Scalar
    q: Scalar
    flow_matching: Scalar
    distillation: Scalar
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

    **Returns:** [`Networks`][shortcutrl.fql.Networks]. Any other callable pytrees can take their place.

    **Raises:** as [`sorl.networks`][shortcutrl.sorl.networks].
    """
    sizes = _contract.sizes_of(example, encoder)
    shape: dict[str, Any] = {"width": width, "depth": depth, "encoder": encoder}
    flow_key, student_key, critic_key = jax.random.split(key, 3)
    return Networks(
        nn.FlowPolicy(*sizes, **shape, key=flow_key),
        nn.OneStepPolicy(*sizes, **shape, key=student_key),
        nn.EnsembleCritic(*sizes, **shape, key=critic_key),
    )


@typed
def init(networks: PerNetwork, *, config: Config, optimizers: PerNetwork | None) -> State:
    """Start training: copy the networks, make the critic's average equal to it, and make new optimizer states.

    **Arguments:**

    - `networks`: [`Networks`][shortcutrl.fql.Networks]: callable pytrees, such as Equinox Modules, with any leaves.
    - `config`: static.
    - `optimizers`: [`Networks`][shortcutrl.fql.Networks] of optax transformations, or `None` to act only.

    **Returns:** the [`State`][shortcutrl.fql.State]. It shares no array with `networks`, so it may be donated.

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

    **Returns:** [`Draws`][shortcutrl.fql.Draws].

    **Raises:** as [`sorl.draw`][shortcutrl.sorl.draw].
    """
    noise_key, t_key = jax.random.split(key)
    td_noise, noise, flow_noise = jax.random.normal(noise_key, (3, *batch.action.shape), batch.action.dtype)
    return Draws(td_noise, noise, flow_noise, jax.random.uniform(t_key, batch.action.shape[:1], batch.action.dtype))


@_contract.checked(Networks, draw)
def critic_loss(critic: Any, state: State, batch: Transition, draws: Draws, *, config: Config) -> tuple[Scalar, Scalar]:
    r"""Compute the TD loss of a batch: the mean of [`td_loss`][shortcutrl.td_loss] with the student's next actions.

    **Arguments:**

    - `critic`: the critic that learns. Gradients flow into it alone.
    - `state`: its `student` chooses the next actions, and its `target_critic` evaluates them.
    - `batch`: transitions with one leading axis.
    - `draws`: from [`draw`][shortcutrl.fql.draw].
    - `config`: static.

    **Returns:** the loss and the mean Q of the dataset's actions, scalars.

    **Raises:** as [`sorl.critic_loss`][shortcutrl.sorl.critic_loss].
    """
    student = partial(clipped, state.student, clip=config.clip)
    return _training.fit_td(critic, state.target_critic, student, batch, draws.td_noise, config)


@_contract.checked(Networks, draw)
def policy_loss(
    policy: tuple[Any, ...], state: State, batch: Transition, draws: Draws, *, config: Config
) -> tuple[Scalar, tuple[Scalar, Scalar, Scalar]]:
    r"""Compute $L_\text{flow matching} + \alpha L_\text{distillation} + L_Q$ of a batch.

    **Arguments:**

    - `policy`: the pair (flow, student). The first term trains only the flow, the others only the student.
    - `state`: its `critic` evaluates the student's actions.
    - `batch`, `draws`, `config`: as in [`critic_loss`][shortcutrl.fql.critic_loss].

    **Returns:** the loss, and the flow matching, distillation and Q losses before weighting; scalars.

    **Raises:** as [`sorl.critic_loss`][shortcutrl.sorl.critic_loss].

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from shortcutrl import Transition, fql

        batch = Transition(jnp.ones((8, 3)), jnp.ones((8, 2)), jnp.ones(8), jnp.ones(8), jnp.ones((8, 3)))
        config, key = fql.Config(), jax.random.key(0)
        networks = fql.networks(batch, width=32, depth=2, key=key)
        state = fql.init(networks, config=config, optimizers=fql.OPTIMIZERS)
        policy = state.flow, state.student
        draws = fql.draw(key, batch, config=config)
        loss, terms = fql.policy_loss(policy, state, batch, draws, config=config)
        ```
    """
    networks = {"flow": policy[0], "student": policy[1], "state.critic": state.critic}
    obs, flow, student, critic = _training.encode_once(batch.obs, **networks)
    match = partial(flow_matching_loss, flow, h=0.0)
    flow_matching = jax.vmap(match)(obs, batch.action, draws.flow_noise, draws.flow_t).mean()
    teacher = partial(rollout_k, flow, k=config.flow_steps, clip=config.clip)

    def improve(obs, noise):
        action = action_of("student", student, obs, noise)
        taken = lambda obs, noise: action  # one pass of the student for both losses
        minus_q, info = q_loss(partial(clipped, taken, clip=config.clip), critic, obs, noise)
        return distill_loss(taken, teacher, obs, noise), minus_q, info.q

    distillations, losses, q = jax.vmap(improve)(obs, draws.student_noise)
    distillation, minus_q = distillations.mean(), losses.mean()
    q_term = _training.normalized(minus_q, q) if config.normalize_q else minus_q
    return flow_matching + config.alpha * distillation + q_term, (flow_matching, distillation, minus_q)


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
    """Make one gradient step of all three networks on one batch, then move the target critic.

    This function is pure and not jitted: wrap it in `jax.jit`, scan it over steps, `vmap` it over agents.

    **Arguments:**

    - `state`: from [`init`][shortcutrl.fql.init] or the previous update.
    - `batch`: a [`Transition`][shortcutrl.Transition] with one leading axis.
    - `config`: static.
    - `optimizers`: those that the state was made with.
    - `key`: a JAX random key, a new one for each update.
    - `critic_loss`, `policy_loss`: static, by default those of this module. A replacement takes the
      same arguments and returns the same kinds of results.

    **Returns:** the new state and [`Info`][shortcutrl.fql.Info].

    **Raises:** as [`sorl.update`][shortcutrl.sorl.update].

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from functools import partial
        from shortcutrl import Transition, fql

        batch = Transition(jnp.ones((8, 3)), jnp.ones((8, 2)), jnp.ones(8), jnp.ones(8), jnp.ones((8, 3)))
        options = {"config": fql.Config(), "optimizers": fql.OPTIMIZERS}
        state = fql.init(fql.networks(batch, width=32, depth=2, key=jax.random.key(0)), **options)
        state, info = jax.jit(partial(fql.update, **options))(state, batch, key=jax.random.key(1))
        ```
    """
    args: Any = state, batch, draw(key, batch, config=config)
    (td, q), critic_grads = _training.value_and_grad(critic_loss)(state.critic, *args, config=config)
    policy = state.flow, state.student
    (_, terms), (flow_grads, student_grads) = _training.value_and_grad(policy_loss)(policy, *args, config=config)
    state = _training.step(Networks, state, optimizers, flow=flow_grads, student=student_grads, critic=critic_grads)
    return _training.move_targets(state, config.tau), Info(td, q, *terms)


@_contract.checked(Networks)
def actor(state: State, *, config: Config) -> Actor:
    """Act with the student: make one pass and clip the action.

    **Arguments:**

    - `state`: from [`update`][shortcutrl.fql.update].
    - `config`: the `Config` of the training.

    **Returns:** an [`Actor`][shortcutrl.Actor], a pytree, whose noise has shape `(action,)`.

    **Raises:** `TypeError` for a `state` of another algorithm.

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from shortcutrl import Transition, fql

        example = Transition(jnp.ones(3), jnp.ones(2), jnp.array(1.0), jnp.array(1.0), jnp.ones(3))
        networks = fql.networks(example, width=32, depth=2, key=jax.random.key(0))
        state = fql.init(networks, config=fql.Config(), optimizers=fql.OPTIMIZERS)
        assert fql.actor(state, config=fql.Config())(example.obs, jnp.zeros(2)).shape == (2,)
        ```
    """
    return eqx.Partial(clipped, state.student, clip=config.clip)
