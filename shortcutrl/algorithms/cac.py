"""CAC: a consistency model imitates the dataset and maximises Q through its few steps.

Source: consistency actor-critic ([arXiv 2309.16984](https://arxiv.org/abs/2309.16984)) and its code, with the settings
of the FQL paper ([arXiv 2502.02538](https://arxiv.org/abs/2502.02538)). CAC's code differs in these points:

- The critic is 3 x 256 with Mish and no LayerNorm, and learning rates follow a cosine to zero.
- The policy is an MLP of 3 x 256 with Mish. Its input is not scaled, and it sees an embedding of the noise level.
- The schedule of the noise levels restarts at each evaluation; here it runs once.
- The Q loss takes one critic, drawn at random, and divides by the mean |Q| of the other; here both use the ensemble's
  mean. The critic's loss is the sum over the ensemble; here it is the mean.
- The TD target takes the best of 10 next actions in five of its 20 tasks only; `backup_candidates=1` is its choice in
  the others. In 12 of the 20, it divides the TD target by the batch's standard deviation; here it never does.
- The policy's average moves at every fifth update, after 1,000 updates; here it moves at each update.
- To act, one of 50 samples is drawn with the probabilities softmax(Q); here the agent acts with one sample.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, PRNGKeyArray

from shortcutrl import _checks, _contract, _training, nn
from shortcutrl._call import action_of, encoded, ensemble_of
from shortcutrl._consistency import (
    LARGEST_LEVEL,
    consistency_function,
    consistency_loss,
    consistency_sample,
    noise_level,
)
from shortcutrl._improve import q_loss
from shortcutrl._typed import typed
from shortcutrl._types import Actor, Encoder, Integer, Loss, Number, PerNetwork, Scalar, Transition
from shortcutrl._value import bellman_target
from shortcutrl._value import critic_loss as fit_to_target


class Networks(NamedTuple):
    """One entry for each network: the networks of [`init`][shortcutrl.cac.init], or their optimizers.

    - `policy`: the network of a [`consistency_function`][shortcutrl.consistency_function], `policy(obs, x, u)`.
    - `critic`: a [`Critic`][shortcutrl.Critic].
    """

    policy: Any
    critic: Any


OPTIMIZERS = Networks(*[optax.chain(optax.clip_by_global_norm(5.0), optax.adam(3e-4))] * 2)
"""The published optimizers: Adam with learning rate 3e-4, after clipping the gradient to norm 5."""

FIRST_LEVELS, LAST_START = 2, 2.0
"""The number of noise levels at the first update, and the noise level that the last step of a sample starts from."""

CONSISTENCY_WEIGHT = 100.0
"""The weight of the consistency loss, divided by the distance of the two noise levels."""


@typed
@dataclasses.dataclass(frozen=True)
class Config:
    """The hyperparameters of CAC, validated when constructed; the defaults are the published ones. Plain data.

    - `eta`: the weight of Q against imitation, non-negative. Tune it for each environment (published: 0.003 to 1).
    - `sample_steps`: the number of steps in which the policy makes an action. Q is maximised through them.
    - `num_levels`: the number of noise levels after `schedule_updates` updates, in [2, 4,096]. It grows from 2.
    - `schedule_updates`: the number of updates in which the noise levels grow to `num_levels`, in [1, 2^31).
    - `backup_candidates`: the number of actions in the TD target; each critic takes its best one.
    - `discount`: γ, in [0, 1].
    - `tau`: how far the target networks move at each update, in (0, 1].
    - `clip`: the range of actions, (low, high), or `None`.

    !!! Example

        ```python
        from shortcutrl import cac

        config = cac.Config(eta=0.01)
        ```
    """

    eta: Number = 1.0
    sample_steps: Integer = 2
    num_levels: Integer = 150
    schedule_updates: Integer = 50_000
    backup_candidates: Integer = 10
    discount: Number = 0.99
    tau: Number = 0.005
    clip: tuple[Number, Number] | list[Any] | None = (-1.0, 1.0)

    def __post_init__(self) -> None:
        _contract.validate(self, non_negative=["eta"], sizes=["sample_steps", "backup_candidates"])
        _checks.as_size("num_levels", self.num_levels, FIRST_LEVELS, _checks.MAX_COUNT)
        _checks.as_size("schedule_updates", self.schedule_updates, maximum=2**31 - 1)


class State(NamedTuple):
    """All that an update changes.

    - `policy`, `critic`: the networks. The agent acts with the policy.
    - `target_policy`, `target_critic`: the moving averages, for the targets of TD and of consistency.
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
    """All the randomness of one update; arrays with the batch as their leading axis.

    - `td_noise`: the noise of the actions in the TD target, shape `(batch, backup_candidates, sample_steps, action)`.
    - `q_noise`: the noise of the actions that maximise Q, shape `(batch, sample_steps, action)`.
    - `consistency_noise`, `level`: the draws of the consistency loss, shapes `(batch, action)` and `(batch,)`. `level`
      is uniform on [0, 1) and chooses a pair of neighbouring noise levels.
    """

    td_noise: Array
    q_noise: Array
    consistency_noise: Array
    level: Array


class Info(NamedTuple):
    """What one update measured: scalars, each a mean over the batch.

    - `td`: the critic's loss.
    - `q`: the ensemble's mean Q of the dataset's actions.
    - `consistency`: the policy's imitation loss.
    - `q_loss`: minus the mean Q of the policy's actions, before normalising.
    - `levels`: the number of noise levels.
    """

    td: Scalar
    q: Scalar
    consistency: Scalar
    q_loss: Scalar
    levels: Scalar


@typed
def networks(
    example: Transition,
    *,
    width: Integer = 512,
    depth: Integer = 4,
    policy_width: Integer = 256,
    policy_depth: Integer = 3,
    encoder: Encoder = None,
    key: PRNGKeyArray,
) -> Networks:
    """Make the networks: MLPs with GELU, LayerNorm in the critic, two critics.

    **Arguments:**

    - `example`: a transition or a batch of transitions with the sizes of the dataset.
    - `width`, `depth`: the size and number of hidden layers of the critic.
    - `policy_width`, `policy_depth`: the size and number of hidden layers of the policy.
    - `encoder`: a function from one observation to a vector; each network trains a copy. `None` if observations are
      vectors.
    - `key`: a JAX random key.

    **Returns:** [`Networks`][shortcutrl.cac.Networks]. Any other pair of callable pytrees can take their place.

    **Raises:** as [`sorl.networks`][shortcutrl.sorl.networks].
    """
    sizes = _contract.sizes_of(example, encoder)
    policy_key, critic_key = jax.random.split(key)
    policy = nn.FlowPolicy(*sizes, width=policy_width, depth=policy_depth, encoder=encoder, key=policy_key)
    return Networks(policy, nn.EnsembleCritic(*sizes, width=width, depth=depth, encoder=encoder, key=critic_key))


@typed
def init(networks: PerNetwork, *, config: Config, optimizers: PerNetwork | None) -> State:
    """Start training: copy the networks, make their averages equal to them, and make new optimizer states.

    **Arguments:**

    - `networks`: [`Networks`][shortcutrl.cac.Networks]: callable pytrees, such as Equinox Modules, with any leaves.
    - `config`: static.
    - `optimizers`: [`Networks`][shortcutrl.cac.Networks] of optax transformations, or `None` to act only.

    **Returns:** the [`State`][shortcutrl.cac.State]. It shares no array with `networks`, so it may be donated.

    **Raises:** as [`sorl.init`][shortcutrl.sorl.init].
    """
    return _training.start(Networks, State, networks, optimizers, updates=jnp.zeros((), jnp.int32))


@_contract.checked(Networks)
def draw(key: PRNGKeyArray, batch: Transition, *, config: Config) -> Draws:
    """Draw the noise and the noise levels of one update.

    **Arguments:**

    - `key`: a JAX random key.
    - `batch`: transitions with one leading axis.
    - `config`: static.

    **Returns:** [`Draws`][shortcutrl.cac.Draws].

    **Raises:** as [`sorl.draw`][shortcutrl.sorl.draw].
    """
    td_key, q_key, noise_key, level_key = jax.random.split(key, 4)
    (size, action), dtype = batch.action.shape, batch.action.dtype
    q_shape = size, int(config.sample_steps), action
    td_shape = size, int(config.backup_candidates), *q_shape[1:]
    td_noise, q_noise = jax.random.normal(td_key, td_shape, dtype), jax.random.normal(q_key, q_shape, dtype)
    noise = jax.random.normal(noise_key, (size, action), dtype)
    wide = jnp.promote_types(dtype, jnp.float32)  # narrower floats do not separate neighbouring levels
    return Draws(td_noise, q_noise, noise, jax.random.uniform(level_key, (size,), wide))


def _actor(policy: Any, config: Config) -> Actor:
    """Samples of the policy, from noise of shape `(sample_steps, action)`."""
    levels = tuple(np.linspace(LARGEST_LEVEL, LAST_START, config.sample_steps).tolist())
    return eqx.Partial(_sample, policy, levels=levels, clip=config.clip)


def _sample(policy: Any, obs: Any, noise: Any, **options: Any) -> Any:
    obs = encoded(policy, obs)  # once for all steps
    return consistency_sample(partial(consistency_function, policy), obs, noise, **options)


@_contract.checked(Networks, draw)
def critic_loss(critic: Any, state: State, batch: Transition, draws: Draws, *, config: Config) -> tuple[Scalar, Scalar]:
    r"""Fit Q to the best of several next actions: $y = r + \gamma m \min_i \max_j Q_{\bar\phi_i}(s', a'_j)$.

    **Arguments:**

    - `critic`: the critic that learns. Gradients flow into it alone.
    - `state`: its `target_policy` makes the next actions, and its `target_critic` evaluates them.
    - `batch`: transitions with one leading axis.
    - `draws`: from [`draw`][shortcutrl.cac.draw].
    - `config`: static.

    **Returns:** the loss and the mean Q of the dataset's actions, scalars.

    **Raises:** as [`sorl.critic_loss`][shortcutrl.sorl.critic_loss].
    """
    act = _actor(state.target_policy, config)

    def one(transition, noise):
        def evaluate(noise):
            action = action_of("state.target_policy", act, transition.next_obs, noise)
            return ensemble_of("state.target_critic", state.target_critic, transition.next_obs, action)

        next_value = jax.vmap(evaluate)(noise).max(axis=0).min()
        return fit_to_target(critic, transition, bellman_target(transition, next_value, discount=config.discount))

    losses, info = jax.vmap(one)(batch, draws.td_noise)
    return losses.mean(), info.q.mean()


@_contract.checked(Networks, draw)
def policy_loss(
    policy: Any, state: State, batch: Transition, draws: Draws, *, config: Config
) -> tuple[Scalar, tuple[Scalar, Scalar, Scalar]]:
    r"""Compute $\frac{100}{\sigma_{n+1} - \sigma_n} L_\text{consistency} - \eta\, Q / \overline{|Q|}$ of a batch.

    The N noise levels are those of [`noise_level`][shortcutrl.noise_level] at equally spaced positions. N grows with
    the number of updates $i$ as $\lceil \sqrt{\kappa (N_1^2 - 4) + 4} - 1 \rceil + 1$, where $N_1$ is
    `config.num_levels` and $\kappa$ is $i$ divided by `config.schedule_updates`, at most 1. Q is the mean of the
    ensemble.

    **Arguments:**

    - `policy`: the policy that learns. Gradients flow into it alone.
    - `state`: its `target_policy` is the teacher of the consistency loss, and its `critic` evaluates the policy's
      actions.
    - `batch`, `draws`, `config`: as in [`critic_loss`][shortcutrl.cac.critic_loss].

    **Returns:** the loss, its consistency and Q losses before weighting by `eta`, and N; scalars.

    **Raises:** as [`sorl.critic_loss`][shortcutrl.sorl.critic_loss].

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from shortcutrl import Transition, cac

        batch = Transition(jnp.ones((8, 3)), jnp.ones((8, 2)), jnp.ones(8), jnp.ones(8), jnp.ones((8, 3)))
        config, key = cac.Config(), jax.random.key(0)
        networks = cac.networks(batch, width=32, depth=2, policy_width=32, key=key)
        state = cac.init(networks, config=config, optimizers=cac.OPTIMIZERS)
        draws = cac.draw(key, batch, config=config)
        loss, terms = cac.policy_loss(state.policy, state, batch, draws, config=config)
        ```
    """
    done = jnp.minimum(state.updates / config.schedule_updates, 1)
    growth = jnp.sqrt(done * (config.num_levels**2 - FIRST_LEVELS**2) + FIRST_LEVELS**2)
    gaps = jnp.ceil(growth - 1).astype(draws.level.dtype)  # one less than there are levels
    first = jnp.minimum(jnp.floor(draws.level * gaps), gaps - 1)
    low, high = noise_levels = [jax.vmap(noise_level)((first + i) / gaps) for i in (0, 1)]

    networks = {"policy": policy, "state.target_policy": state.target_policy, "state.critic": state.critic}
    obs, policy, teacher, critic = _training.encode_once(batch.obs, **networks)
    models = (eqx.Partial(consistency_function, network) for network in (policy, teacher))
    losses = jax.vmap(partial(consistency_loss, *models))(obs, batch.action, draws.consistency_noise, *noise_levels)
    consistency = (CONSISTENCY_WEIGHT / (high - low) * losses).mean()
    losses, info = jax.vmap(partial(q_loss, _actor(policy, config), critic))(obs, draws.q_noise)
    minus_q = losses.mean()
    loss = consistency + config.eta * _training.normalized(minus_q, info.q)
    return loss, (consistency, minus_q, gaps + 1)


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
    """Make one update on one batch: step the critic, then the policy, then move both target networks.

    This function is pure and not jitted: wrap it in `jax.jit`, scan it over steps, `vmap` it over agents.

    **Arguments:**

    - `state`: from [`init`][shortcutrl.cac.init] or the previous update.
    - `batch`: a [`Transition`][shortcutrl.Transition] with one leading axis.
    - `config`: static.
    - `optimizers`: those that the state was made with.
    - `key`: a JAX random key, a new one for each update.
    - `critic_loss`, `policy_loss`: static, by default those of this module. A replacement takes the
      same arguments and returns the same kinds of results.

    **Returns:** the new state and [`Info`][shortcutrl.cac.Info].

    **Raises:** as [`sorl.update`][shortcutrl.sorl.update].

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from functools import partial
        from shortcutrl import Transition, cac

        batch = Transition(jnp.ones((8, 3)), jnp.ones((8, 2)), jnp.ones(8), jnp.ones(8), jnp.ones((8, 3)))
        options = {"config": cac.Config(), "optimizers": cac.OPTIMIZERS}
        networks = cac.networks(batch, width=32, depth=2, policy_width=32, key=jax.random.key(0))
        state = cac.init(networks, **options)
        state, info = jax.jit(partial(cac.update, **options))(state, batch, key=jax.random.key(1))
        ```
    """
    draws = draw(key, batch, config=config)
    (td, q), grads = _training.value_and_grad(critic_loss)(state.critic, state, batch, draws, config=config)
    state = _training.step(Networks, state, optimizers, critic=grads)
    (_, terms), grads = _training.value_and_grad(policy_loss)(state.policy, state, batch, draws, config=config)
    state = _training.step(Networks, state, optimizers, policy=grads)
    state = _training.move_targets(state, config.tau)._replace(updates=state.updates + 1)
    return state, Info(td, q, *terms)


@_contract.checked(Networks)
def actor(state: State, *, config: Config) -> Actor:
    """Act with a sample of the policy, made in `config.sample_steps` steps and clipped.

    **Arguments:**

    - `state`: from [`update`][shortcutrl.cac.update].
    - `config`: the `Config` of the training.

    **Returns:** an [`Actor`][shortcutrl.Actor], a pytree, whose noise has shape `(sample_steps, action)`.

    **Raises:** `TypeError` for a `state` of another algorithm.

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from shortcutrl import Transition, cac

        example = Transition(jnp.ones(3), jnp.ones(2), jnp.array(1.0), jnp.array(1.0), jnp.ones(3))
        networks = cac.networks(example, width=32, depth=2, policy_width=32, key=jax.random.key(0))
        state = cac.init(networks, config=cac.Config(), optimizers=cac.OPTIMIZERS)
        assert cac.actor(state, config=cac.Config())(example.obs, jnp.zeros((2, 2))).shape == (2,)
        ```
    """
    return _actor(state.policy, config)


@typed
def noise_shape(action_size: Integer, *, config: Config) -> tuple[int, ...]:
    """Return the shape of the noise that [`actor`][shortcutrl.cac.actor] takes with the same options.

    **Arguments:**

    - `action_size`: the length of an action.
    - `config`: the `Config` of the training.

    **Returns:** `(sample_steps, action)`.

    **Raises:** `ValueError` for a size below 1.

    !!! Example

        ```python
        from shortcutrl import cac

        assert cac.noise_shape(2, config=cac.Config()) == (2, 2)
        ```
    """
    return int(config.sample_steps), _checks.as_size("action_size", action_size)
