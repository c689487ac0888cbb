"""SRPO: IQL's values; a deterministic policy maximises Q, regularised by the score of a diffusion model of the dataset.

Source: score-regularised policy optimisation ([arXiv 2310.07297](https://arxiv.org/abs/2310.07297)), with its code's
noise schedule, weight and times. The rest is as in the comparison of the FQL paper
([arXiv 2502.02538](https://arxiv.org/abs/2502.02538)) and in [`iql`][shortcutrl.iql.update]. SRPO's code differs:

- It trains the diffusion model and the values first, then the policy; here all networks learn in each update.
- All MLPs have two layers (the policy four in mazes) of 256, ReLU and no LayerNorm. The critic's loss is the mean over
  the ensemble; here it is the sum.
- The diffusion model has dropout of 0.1, weight decay of 0.01, batches of 2048, and fixed frequencies of the time with
  a standard deviation of 30; here they are learned, with an initial standard deviation of 1. The policy has a learning
  rate that follows a cosine to zero.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray

from shortcutrl import _contract, _training, nn
from shortcutrl._actors import clipped, noiseless
from shortcutrl._call import q_of
from shortcutrl._diffusion import denoising_loss, score_distillation_loss, vp_schedule
from shortcutrl._improve import q_loss
from shortcutrl._typed import typed
from shortcutrl._types import Actor, Encoder, Integer, Loss, Number, PerNetwork, Scalar, Transition


class Networks(NamedTuple):
    """One entry for each network: the networks of [`init`][shortcutrl.srpo.init], or their optimizers.

    - `diffusion`: a [`Denoiser`][shortcutrl.Denoiser] that imitates the dataset.
    - `policy`: an [`Actor`][shortcutrl.Actor] without randomness. It is called with noise of zeros, shape `(action,)`.
    - `critic`: a [`Critic`][shortcutrl.Critic].
    - `value`: a [`Value`][shortcutrl.Value].
    """

    diffusion: Any
    policy: Any
    critic: Any
    value: Any


OPTIMIZERS = Networks(*[optax.adam(3e-4)] * 4)
"""The published optimizers: Adam with learning rate 3e-4."""


@typed
@dataclasses.dataclass(frozen=True)
class Config:
    """The hyperparameters of SRPO, validated when constructed; the defaults are the published ones. Plain data.

    - `beta`: the weight of Q against the regulariser, non-negative: 0 is imitation of one action. Tune it for each
      environment (published: 0.03 to 0.3). In SRPO's paper, the regulariser has the weight 1/β. In its code and here, Q
      has the weight β. The optimum is the same.
    - `normalize_q`: whether to divide the gradient of Q with respect to the action by its root mean square, as SRPO's
      code does in mazes.
    - `expectile`: the expectile of Q that V fits, in [0, 1]. Values towards 1 approach the best action of the dataset
      (published: 0.9 for manipulation, 0.7 for locomotion).
    - `discount`: γ, in [0, 1].
    - `tau`: how far the target critic moves at each update, in (0, 1].
    - `clip`: the range of actions, (low, high), or `None`.

    !!! Example

        ```python
        from shortcutrl import srpo

        config = srpo.Config(beta=0.1)
        ```
    """

    beta: Number = 0.3
    normalize_q: bool = False
    expectile: Number = 0.9
    discount: Number = 0.99
    tau: Number = 0.005
    clip: tuple[Number, Number] | list[Any] | None = (-1.0, 1.0)

    def __post_init__(self) -> None:
        _contract.validate(self, non_negative=["beta"], fractions=["expectile"])


class State(NamedTuple):
    """All that an update changes.

    - `diffusion`, `policy`, `critic`, `value`: the networks. The agent acts with the policy.
    - `target_critic`: the moving average of the critic, which V fits and the policy maximises.
    - `diffusion_opt_state`, `policy_opt_state`, `critic_opt_state`, `value_opt_state`: the states of the optimizers.
    """

    diffusion: Any
    policy: Any
    critic: Any
    value: Any
    target_critic: Any
    diffusion_opt_state: optax.OptState
    policy_opt_state: optax.OptState
    critic_opt_state: optax.OptState
    value_opt_state: optax.OptState


class Draws(NamedTuple):
    """All the randomness of one update; arrays with the batch as their leading axis.

    - `diffusion_noise`, `diffusion_t`: the noise and the times of the dataset's actions, shapes `(batch, action)` and
      `(batch,)`; the times are uniform on [0.001, 1].
    - `policy_noise`, `policy_t`: the same for the policy's actions; the times are uniform on [0.02, 0.98].
    """

    diffusion_noise: Array
    diffusion_t: Array
    policy_noise: Array
    policy_t: Array


class Info(NamedTuple):
    """What one update measured: scalars, each a mean over the batch.

    - `td`: the critic's loss.
    - `q`: the ensemble's mean Q of the dataset's actions.
    - `value_loss`, `v`: the loss of V, and V of the dataset's observations.
    - `denoising`: the loss of the diffusion model.
    - `q_loss`: minus the mean Q of the policy's actions, before weighting and normalising.
    """

    td: Scalar
    q: Scalar
    value_loss: Scalar
    v: Scalar
    denoising: Scalar
    q_loss: Scalar


@typed
def networks(
    example: Transition,
    *,
    width: Integer = 512,
    depth: Integer = 4,
    diffusion_width: Integer = 256,
    blocks: Integer = 3,
    encoder: Encoder = None,
    key: PRNGKeyArray,
) -> Networks:
    """Make the published networks: a residual diffusion model; MLPs with GELU for the others, two critics.

    The policy ends in tanh. Critic and value have LayerNorm.

    **Arguments:**

    - `example`: a transition or a batch of transitions with the sizes of the dataset.
    - `width`, `depth`: the size and number of hidden layers of policy, critic and value.
    - `diffusion_width`, `blocks`: the sizes of the diffusion model, as in
      [`ResidualDenoiser`][shortcutrl.nn.ResidualDenoiser].
    - `encoder`: a function from one observation to a vector; each network trains a copy. `None` if observations are
      vectors.
    - `key`: a JAX random key.

    **Returns:** [`Networks`][shortcutrl.srpo.Networks]. Any other callable pytrees can take their place.

    **Raises:** as [`sorl.networks`][shortcutrl.sorl.networks].
    """
    sizes = _contract.sizes_of(example, encoder)
    shape: dict[str, Any] = {"width": width, "depth": depth, "encoder": encoder}
    diffusion_key, policy_key, critic_key, value_key = jax.random.split(key, 4)
    return Networks(
        nn.ResidualDenoiser(*sizes, width=diffusion_width, blocks=blocks, encoder=encoder, key=diffusion_key),
        nn.DeterministicPolicy(*sizes, **shape, key=policy_key),
        nn.EnsembleCritic(*sizes, **shape, key=critic_key),
        nn.Value(sizes[0], **shape, key=value_key),
    )


@typed
def init(networks: PerNetwork, *, config: Config, optimizers: PerNetwork | None) -> State:
    """Start training: copy the networks, make the critic's average equal to it, and make new optimizer states.

    **Arguments:**

    - `networks`: [`Networks`][shortcutrl.srpo.Networks]: callable pytrees, such as Equinox Modules, with any leaves.
    - `config`: static.
    - `optimizers`: [`Networks`][shortcutrl.srpo.Networks] of optax transformations, or `None` to act only.

    **Returns:** the [`State`][shortcutrl.srpo.State]. It shares no array with `networks`, so it may be donated.

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

    **Returns:** [`Draws`][shortcutrl.srpo.Draws].

    **Raises:** as [`sorl.draw`][shortcutrl.sorl.draw].
    """
    noise_key, diffusion_key, policy_key = jax.random.split(key, 3)
    shape, dtype = batch.action.shape, batch.action.dtype
    diffusion_noise, policy_noise = jax.random.normal(noise_key, (2, *shape), dtype)
    diffusion_t = jax.random.uniform(diffusion_key, shape[:1], dtype, 0.001, 1.0)
    return Draws(
        diffusion_noise, diffusion_t, policy_noise, jax.random.uniform(policy_key, shape[:1], dtype, 0.02, 0.98)
    )


@_contract.checked(Networks, draw)
def value_loss(value: Any, state: State, batch: Transition, draws: Draws, *, config: Config) -> tuple[Scalar, Scalar]:
    r"""Fit V to an expectile of Q: the mean of [`expectile_loss`][shortcutrl.expectile_loss].

    Here $Q = \min_i Q_{\bar\phi_i}(s, a)$ of the target critic for the dataset's action.

    **Arguments:**

    - `value`: the value that learns. Gradients flow into it alone.
    - `state`: its `target_critic` evaluates the dataset's actions.
    - `batch`: transitions with one leading axis.
    - `draws`: from [`draw`][shortcutrl.srpo.draw].
    - `config`: static.

    **Returns:** the loss and the mean V, scalars.

    **Raises:** as [`sorl.critic_loss`][shortcutrl.sorl.critic_loss].
    """
    return _training.fit_value(value, state.target_critic, batch, expectile=config.expectile)


@_contract.checked(Networks, draw)
def critic_loss(critic: Any, state: State, batch: Transition, draws: Draws, *, config: Config) -> tuple[Scalar, Scalar]:
    r"""Fit Q to the value of the next observation: $\sum_i (Q_{\phi_i}(s, a) - (r + \gamma m V(s')))^2$.

    The loss is the sum over the ensemble and the mean over the batch, as in [`iql`][shortcutrl.iql.critic_loss].

    **Arguments:**

    - `critic`: the critic that learns. Gradients flow into it alone.
    - `state`: its `value` evaluates the next observations.
    - `batch`, `draws`, `config`: as in [`value_loss`][shortcutrl.srpo.value_loss].

    **Returns:** the loss and the mean Q of the dataset's actions, scalars.

    **Raises:** as [`sorl.critic_loss`][shortcutrl.sorl.critic_loss].
    """
    return _training.fit_critic(critic, state.value, batch, discount=config.discount)


@_contract.checked(Networks, draw)
def policy_loss(
    policy: tuple[Any, ...], state: State, batch: Transition, draws: Draws, *, config: Config
) -> tuple[Scalar, tuple[Scalar, Scalar]]:
    r"""Compute $L_\text{denoising} + L_\text{score distillation} - \beta\, Q(s, \mu(s))$ of a batch.

    Q is the mean of the target critic. The value of [`score_distillation_loss`][shortcutrl.score_distillation_loss] has
    no meaning, so the value of this loss has none either.

    **Arguments:**

    - `policy`: the pair (diffusion, policy). The first term trains only the diffusion model, the others only the
      policy.
    - `state`: its `target_critic` evaluates the policy's actions.
    - `batch`, `draws`, `config`: as in [`value_loss`][shortcutrl.srpo.value_loss].

    **Returns:** the loss, and the denoising and Q losses before weighting; scalars.

    **Raises:** as [`sorl.critic_loss`][shortcutrl.sorl.critic_loss].

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from shortcutrl import Transition, srpo

        batch = Transition(jnp.ones((8, 3)), jnp.ones((8, 2)), jnp.ones(8), jnp.ones(8), jnp.ones((8, 3)))
        config, key = srpo.Config(), jax.random.key(0)
        networks = srpo.networks(batch, width=32, depth=2, diffusion_width=32, key=key)
        state = srpo.init(networks, config=config, optimizers=srpo.OPTIMIZERS)
        policy = state.diffusion, state.policy
        draws = srpo.draw(key, batch, config=config)
        loss, terms = srpo.policy_loss(policy, state, batch, draws, config=config)
        ```
    """
    diffusion, act = policy[0], partial(noiseless, policy[1])
    denoise = partial(denoising_loss, diffusion, schedule=vp_schedule)
    denoising = jax.vmap(denoise)(batch.obs, batch.action, draws.diffusion_noise, draws.diffusion_t).mean()

    actions = jax.vmap(act)(batch.obs, batch.action).astype(batch.action.dtype)
    taken = partial(clipped, lambda obs, action: action, clip=config.clip)
    losses, info = jax.vmap(partial(q_loss, taken, state.target_critic))(batch.obs, actions)
    slope = jnp.ones_like(losses)
    if config.normalize_q:
        q = partial(q_of, "state.target_critic", state.target_critic, aggregate="mean")
        gradient = jax.vmap(jax.grad(q, argnums=1))(batch.obs, info.action)
        slope = jnp.sqrt(jnp.square(jax.lax.stop_gradient(gradient)).mean(axis=1))
    q_term = (losses / jnp.where(slope > 0, slope, 1)).mean()

    distil = partial(score_distillation_loss, diffusion, schedule=vp_schedule)
    distillation = jax.vmap(distil)(batch.obs, actions, draws.policy_noise, draws.policy_t).mean()
    return denoising + distillation + config.beta * q_term, (denoising, losses.mean())


@_contract.checked(Networks)
def update(
    state: State,
    batch: Transition,
    *,
    config: Config,
    optimizers: PerNetwork,
    key: PRNGKeyArray,
    value_loss: Loss = value_loss,
    critic_loss: Loss = critic_loss,
    policy_loss: Loss = policy_loss,
) -> tuple[State, Info]:
    """Make one gradient step of all four networks on one batch, then move the target critic.

    This function is pure and not jitted: wrap it in `jax.jit`, scan it over steps, `vmap` it over agents.

    **Arguments:**

    - `state`: from [`init`][shortcutrl.srpo.init] or the previous update.
    - `batch`: a [`Transition`][shortcutrl.Transition] with one leading axis.
    - `config`: static.
    - `optimizers`: those that the state was made with.
    - `key`: a JAX random key, a new one for each update.
    - `value_loss`, `critic_loss`, `policy_loss`: static, by default those of this module. A replacement takes the
      same arguments and returns the same kinds of results.

    **Returns:** the new state and [`Info`][shortcutrl.srpo.Info].

    **Raises:** as [`sorl.update`][shortcutrl.sorl.update].

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from functools import partial
        from shortcutrl import Transition, srpo

        batch = Transition(jnp.ones((8, 3)), jnp.ones((8, 2)), jnp.ones(8), jnp.ones(8), jnp.ones((8, 3)))
        options = {"config": srpo.Config(), "optimizers": srpo.OPTIMIZERS}
        networks = srpo.networks(batch, width=32, depth=2, diffusion_width=32, key=jax.random.key(0))
        state = srpo.init(networks, **options)
        state, info = jax.jit(partial(srpo.update, **options))(state, batch, key=jax.random.key(1))
        ```
    """
    args: Any = state, batch, draw(key, batch, config=config)
    (fit, v), value_grads = _training.value_and_grad(value_loss)(state.value, *args, config=config)
    (td, q), critic_grads = _training.value_and_grad(critic_loss)(state.critic, *args, config=config)
    policy = state.diffusion, state.policy
    (_, terms), (diffusion_grads, policy_grads) = _training.value_and_grad(policy_loss)(policy, *args, config=config)
    grads = Networks(diffusion_grads, policy_grads, critic_grads, value_grads)
    state = _training.step(Networks, state, optimizers, **grads._asdict())
    return _training.move_targets(state, config.tau), Info(td, q, fit, v, *terms)


@_contract.checked(Networks)
def actor(state: State, *, config: Config) -> Actor:
    """Act with the policy: make one pass and clip the action.

    **Arguments:**

    - `state`: from [`update`][shortcutrl.srpo.update].
    - `config`: the `Config` of the training.

    **Returns:** an [`Actor`][shortcutrl.Actor], a pytree. It ignores its noise, which has shape `(action,)`.

    **Raises:** `TypeError` for a `state` of another algorithm.

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from shortcutrl import Transition, srpo

        example = Transition(jnp.ones(3), jnp.ones(2), jnp.array(1.0), jnp.array(1.0), jnp.ones(3))
        networks = srpo.networks(example, width=32, depth=2, diffusion_width=32, key=jax.random.key(0))
        state = srpo.init(networks, config=srpo.Config(), optimizers=srpo.OPTIMIZERS)
        assert srpo.actor(state, config=srpo.Config())(example.obs, jnp.zeros(2)).shape == (2,)
        ```
    """
    return eqx.Partial(clipped, eqx.Partial(noiseless, state.policy), clip=config.clip)
