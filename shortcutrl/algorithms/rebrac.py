"""ReBRAC: a deterministic policy that maximises Q, held to the dataset in its own loss and in the TD target.

Source: revisited behaviour-regularised actor-critic ([arXiv 2305.09836](https://arxiv.org/abs/2305.09836)), as in the
repository of FQL ([arXiv 2502.02538](https://arxiv.org/abs/2502.02538)).
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import Array, Int, PRNGKeyArray

from shortcutrl import _contract, _training, nn
from shortcutrl._actors import clipped, noiseless
from shortcutrl._call import ensemble_of
from shortcutrl._improve import q_loss
from shortcutrl._typed import typed
from shortcutrl._types import Actor, Encoder, Integer, Loss, Number, PerNetwork, Scalar, Transition
from shortcutrl._value import td_loss


class Networks(NamedTuple):
    """One entry for each network: the networks of [`init`][shortcutrl.rebrac.init], or their optimizers.

    - `policy`: an [`Actor`][shortcutrl.Actor] without randomness. It is called with noise of zeros, shape `(action,)`.
    - `critic`: a [`Critic`][shortcutrl.Critic].
    """

    policy: Any
    critic: Any


OPTIMIZERS = Networks(*[optax.adam(3e-4)] * 2)
"""The published optimizers: Adam with learning rate 3e-4."""


@typed
@dataclasses.dataclass(frozen=True)
class Config:
    """The hyperparameters of ReBRAC, validated when constructed. Plain data.

    The defaults are the published ones. The penalties have no published default, only a value for each environment.
    Their defaults here are the values for humanoidmaze.

    - `policy_penalty`: the weight of imitation in the policy's loss, α₁, non-negative (published: 0.003 to 1).
    - `critic_penalty`: the weight of the distance to the dataset's next action in the TD target, α₂, non-negative
      (published: 0 or 0.01).
    - `target_noise`: the standard deviation of the noise on the action in the TD target, non-negative.
    - `target_noise_clip`: the largest such noise, non-negative.
    - `policy_period`: the policy and both targets move in every `policy_period`-th update, at least 1.
    - `discount`: γ, in [0, 1].
    - `tau`: how far the target networks move, in (0, 1].
    - `clip`: the range of actions, (low, high), or `None`.

    !!! Example

        ```python
        from shortcutrl import rebrac

        config = rebrac.Config(policy_penalty=0.1, critic_penalty=0.0)
        ```
    """

    policy_penalty: Number = 0.01
    critic_penalty: Number = 0.01
    target_noise: Number = 0.2
    target_noise_clip: Number = 0.5
    policy_period: Integer = 2
    discount: Number = 0.99
    tau: Number = 0.005
    clip: tuple[Number, Number] | list[Any] | None = (-1.0, 1.0)

    def __post_init__(self) -> None:
        non_negative = ["policy_penalty", "critic_penalty", "target_noise", "target_noise_clip"]
        _contract.validate(self, non_negative=non_negative, sizes=["policy_period"])


class State(NamedTuple):
    """All that an update changes.

    - `policy`, `critic`: the networks. The agent acts with the policy.
    - `target_policy`, `target_critic`: their moving averages, for the TD target.
    - `policy_opt_state`, `critic_opt_state`: the states of the optimizers.
    - `updates`: the number of updates so far, an integer.
    """

    policy: Any
    critic: Any
    target_policy: Any
    target_critic: Any
    policy_opt_state: optax.OptState
    critic_opt_state: optax.OptState
    updates: Int[Array, ""]


class Draws(NamedTuple):
    """All the randomness of one update; an array with the batch as its leading axis.

    - `target_noise`: standard normal, added to the next action of the TD target, shape `(batch, action)`.
    """

    target_noise: Array


class Info(NamedTuple):
    """What one update measured: scalars, each a mean over the batch.

    - `td`: the critic's loss.
    - `q`: the ensemble's mean Q of the dataset's actions.
    - `policy_moved`: 1 if this update moved the policy, else 0.
    - `q_loss`: minus the minimum of Q of the policy's actions, before normalising; 0 if the policy did not move.
    - `imitation`: the squared distance to the dataset's actions, before weighting; 0 if the policy did not move.
    """

    td: Scalar
    q: Scalar
    policy_moved: Scalar
    q_loss: Scalar
    imitation: Scalar


@typed
def networks(
    example: Transition,
    *,
    width: Integer = 512,
    depth: Integer = 4,
    encoder: Encoder = None,
    key: PRNGKeyArray,
) -> Networks:
    """Make the published networks: MLPs with GELU, tanh at the end of the policy, LayerNorm in the critic, two critics.

    **Arguments:**

    - `example`: a transition or a batch of transitions with the sizes of the dataset.
    - `width`, `depth`: the size and number of hidden layers.
    - `encoder`: a function from one observation to a vector; each network trains a copy. `None` if observations are
      vectors.
    - `key`: a JAX random key.

    **Returns:** [`Networks`][shortcutrl.rebrac.Networks]. Any other callable pytrees can take their place.

    **Raises:** as [`sorl.networks`][shortcutrl.sorl.networks].
    """
    sizes = _contract.sizes_of(example, encoder)
    shape: dict[str, Any] = {"width": width, "depth": depth, "encoder": encoder}
    policy_key, critic_key = jax.random.split(key)
    return Networks(
        nn.DeterministicPolicy(*sizes, **shape, key=policy_key),
        nn.EnsembleCritic(*sizes, **shape, key=critic_key),
    )


@typed
def init(networks: PerNetwork, *, config: Config, optimizers: PerNetwork | None) -> State:
    """Start training: copy the networks, make their averages equal to them, and make new optimizer states.

    **Arguments:**

    - `networks`: [`Networks`][shortcutrl.rebrac.Networks]: callable pytrees, such as Equinox Modules, with any leaves.
    - `config`: static.
    - `optimizers`: [`Networks`][shortcutrl.rebrac.Networks] of optax transformations, or `None` to act only.

    **Returns:** the [`State`][shortcutrl.rebrac.State]. It shares no array with `networks`, so it may be donated.

    **Raises:** as [`sorl.init`][shortcutrl.sorl.init].
    """
    return _training.start(Networks, State, networks, optimizers, updates=jnp.zeros((), jnp.int32))


@_contract.checked(Networks)
def draw(key: PRNGKeyArray, batch: Transition, *, config: Config) -> Draws:
    """Draw the noise of one update.

    **Arguments:**

    - `key`: a JAX random key.
    - `batch`: transitions with one leading axis.
    - `config`: static; not used.

    **Returns:** [`Draws`][shortcutrl.rebrac.Draws].

    **Raises:** as [`sorl.draw`][shortcutrl.sorl.draw].
    """
    return Draws(jax.random.normal(key, batch.action.shape, batch.action.dtype))


@_contract.checked(Networks, draw)
def critic_loss(critic: Any, state: State, batch: Transition, draws: Draws, *, config: Config) -> tuple[Scalar, Scalar]:
    r"""Compute the TD loss of a batch: $y = r + \gamma m (\min_i Q(s', a') - \alpha_2 \lVert a' - a'_D \rVert^2)$.

    Here $a'$ is the target policy's action plus clipped noise, and is clipped to the range of actions. $a'_D$ is the
    dataset's own next action.

    **Arguments:**

    - `critic`: the critic that learns. Gradients flow into it alone.
    - `state`: its `target_policy` chooses the next actions, and its `target_critic` evaluates them.
    - `batch`: transitions with one leading axis and with `next_action`.
    - `draws`: from [`draw`][shortcutrl.rebrac.draw].
    - `config`: static.

    **Returns:** the loss and the mean Q of the dataset's actions, scalars.

    **Raises:** `ValueError` for a `batch` without `next_action`.
    """
    if batch.next_action is None:  # another shape is refused by `checked`
        raise ValueError(
            f"`batch.next_action` must have the shape of `batch.action`, {batch.action.shape}, got None. ReBRAC needs "
            "the dataset's next action: `data.sample` gives it."
        )

    def smoothed(obs, noise):
        high = config.target_noise_clip
        return noiseless(state.target_policy, obs, noise) + jnp.clip(config.target_noise * noise, -high, high)

    def loss(transition, noise):
        def penalized(obs, action):
            distance = jnp.sum(jnp.square(action - transition.next_action))
            q = ensemble_of("state.target_critic", state.target_critic, obs, action)
            return q - config.critic_penalty * distance

        actor = partial(clipped, smoothed, clip=config.clip)
        return td_loss(critic, penalized, actor, transition, noise, discount=config.discount, aggregate="min")

    losses, info = jax.vmap(loss)(batch, draws.target_noise)
    return losses.mean(), info.q.mean()


@_contract.checked(Networks, draw)
def policy_loss(
    policy: Any, state: State, batch: Transition, draws: Draws, *, config: Config
) -> tuple[Scalar, tuple[Scalar, Scalar]]:
    r"""Compute $-\min_i Q_{\phi_i}(s, \mu(s)) / \overline{|Q|} + \alpha_1 \lVert \mu(s) - a \rVert^2$ of a batch.

    **Arguments:**

    - `policy`: the policy that learns. Gradients flow into it alone.
    - `state`: its `critic` evaluates the policy's actions.
    - `batch`, `draws`, `config`: as in [`critic_loss`][shortcutrl.rebrac.critic_loss].

    **Returns:** the loss, and its terms before normalising and weighting: minus Q, and the squared distance, a sum over
    the action's dimensions; scalars.

    **Raises:** as [`sorl.critic_loss`][shortcutrl.sorl.critic_loss].

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from shortcutrl import Transition, rebrac

        batch = Transition(jnp.ones((8, 3)), jnp.ones((8, 2)), jnp.ones(8), jnp.ones(8), jnp.ones((8, 3)))
        config, key = rebrac.Config(), jax.random.key(0)
        networks = rebrac.networks(batch, width=32, depth=2, key=key)
        state = rebrac.init(networks, config=config, optimizers=rebrac.OPTIMIZERS)
        draws = rebrac.draw(key, batch, config=config)
        loss, terms = rebrac.policy_loss(state.policy, state, batch, draws, config=config)
        ```
    """
    improve = partial(q_loss, partial(noiseless, policy), state.critic, aggregate="min")
    losses, info = jax.vmap(improve)(batch.obs, batch.action)  # the noise, of which only the shape is used
    imitation = jnp.square(info.action - batch.action).sum(axis=1).mean()
    minus_q = losses.mean()
    return _training.normalized(minus_q, info.q) + config.policy_penalty * imitation, (minus_q, imitation)


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
    """Step the critic; every `policy_period`-th update also steps the policy and moves both target networks.

    This function is pure and not jitted: wrap it in `jax.jit`, scan it over steps, `vmap` it over agents. The policy's
    step is inside `lax.cond`. `vmap` over agents turns this into a selection, so each update then computes the step.

    In the published code, Adam's momentum also moves the policy in the updates between. Here the policy does not move
    then.

    **Arguments:**

    - `state`: from [`init`][shortcutrl.rebrac.init] or the previous update.
    - `batch`: a [`Transition`][shortcutrl.Transition] with one leading axis and with `next_action`, which `data.sample`
      returns.
    - `config`: static.
    - `optimizers`: those that the state was made with.
    - `key`: a JAX random key, a new one for each update.
    - `critic_loss`, `policy_loss`: static, by default those of this module. A replacement takes the
      same arguments and returns the same kinds of results.

    **Returns:** the new state and [`Info`][shortcutrl.rebrac.Info].

    **Raises:** `ValueError` for a `batch` without `next_action`.

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from functools import partial
        from shortcutrl import Transition, rebrac

        obs, action = jnp.ones((8, 3)), jnp.ones((8, 2))
        batch = Transition(obs, action, jnp.ones(8), jnp.ones(8), obs, next_action=action)
        options = {"config": rebrac.Config(), "optimizers": rebrac.OPTIMIZERS}
        state = rebrac.init(rebrac.networks(batch, width=32, depth=2, key=jax.random.key(0)), **options)
        state, info = jax.jit(partial(rebrac.update, **options))(state, batch, key=jax.random.key(1))
        ```
    """
    args: Any = state, batch, draw(key, batch, config=config)
    (td, q), critic_grads = _training.value_and_grad(critic_loss)(state.critic, *args, config=config)
    count = jnp.asarray(state.updates) + 1
    move = count % config.policy_period == 0

    def step_both():
        (_, terms), grads = _training.value_and_grad(policy_loss)(state.policy, *args, config=config)
        new = _training.step(Networks, state, optimizers, policy=grads, critic=critic_grads)
        return _training.move_targets(new, config.tau), tuple(term.astype(td.dtype) for term in terms)

    def step_critic():
        return _training.step(Networks, state, optimizers, critic=critic_grads), (jnp.zeros_like(td),) * 2

    if isinstance(move, Tracer):
        state, terms = jax.lax.cond(move, step_both, step_critic)
    else:  # `cond` would compile at every call
        state, terms = step_both() if move else step_critic()
    return state._replace(updates=count), Info(td, q, move.astype(td.dtype), *terms)


@_contract.checked(Networks)
def actor(state: State, *, config: Config) -> Actor:
    """Act with the policy: make one pass and clip the action.

    **Arguments:**

    - `state`: from [`update`][shortcutrl.rebrac.update].
    - `config`: the `Config` of the training.

    **Returns:** an [`Actor`][shortcutrl.Actor], a pytree. It ignores its noise, which has shape `(action,)`.

    **Raises:** `TypeError` for a `state` of another algorithm.

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from shortcutrl import Transition, rebrac

        example = Transition(jnp.ones(3), jnp.ones(2), jnp.array(1.0), jnp.array(1.0), jnp.ones(3))
        networks = rebrac.networks(example, width=32, depth=2, key=jax.random.key(0))
        state = rebrac.init(networks, config=rebrac.Config(), optimizers=rebrac.OPTIMIZERS)
        assert rebrac.actor(state, config=rebrac.Config())(example.obs, jnp.zeros(2)).shape == (2,)
        ```
    """
    return eqx.Partial(clipped, eqx.Partial(noiseless, state.policy), clip=config.clip)
