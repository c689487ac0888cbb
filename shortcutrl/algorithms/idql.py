"""IDQL: IQL's values; a diffusion model imitates the dataset, and the agent acts with the best of its candidates by Q.

Source: implicit diffusion Q-learning ([arXiv 2304.10573](https://arxiv.org/abs/2304.10573)), with its code's noise
schedule, sampler and residual network. The rest is as in the comparison of the FQL paper
([arXiv 2502.02538](https://arxiv.org/abs/2502.02538)) and in [`iql`][shortcutrl.iql.update]. IDQL's code differs:

- Critic and value are 2 x 256 with ReLU and no LayerNorm. The critic's loss is the mean over the ensemble, and its
  target uses the value after its step; here it is the sum, and the value before its step.
- The policy has dropout of 0.1, weight decay of 1e-4, a learning rate that follows a cosine to zero, and an average
  that moves by 0.001. It acts with the best of 64.
- Batches have 512 transitions. The FQL paper trains IDQL for 3M updates, and most methods for 1M.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import optax
from jaxtyping import Array, PRNGKeyArray

from shortcutrl import _checks, _contract, _training, nn
from shortcutrl._diffusion import ddpm_sample, denoising_loss, vp_schedule
from shortcutrl._select import best_of
from shortcutrl._typed import typed
from shortcutrl._types import Actor, Encoder, Integer, Loss, Number, PerNetwork, Scalar, Transition


class Networks(NamedTuple):
    """One entry for each network: the networks of [`init`][shortcutrl.idql.init], or their optimizers.

    - `policy`: a [`Denoiser`][shortcutrl.Denoiser] that imitates the dataset.
    - `critic`: a [`Critic`][shortcutrl.Critic].
    - `value`: a [`Value`][shortcutrl.Value].
    """

    policy: Any
    critic: Any
    value: Any


OPTIMIZERS = Networks(*[optax.adam(3e-4)] * 3)
"""The published optimizers: Adam with learning rate 3e-4."""

SCHEDULE = partial(vp_schedule, beta_max=10.0)
"""The published noise schedule."""


@typed
@dataclasses.dataclass(frozen=True)
class Config:
    """The hyperparameters of IDQL, validated when constructed; the defaults are the published ones. Plain data.

    - `expectile`: the expectile of Q that V fits, in [0, 1]. Values towards 1 approach the best action of the dataset
      (published: 0.9 for manipulation, 0.7 for locomotion).
    - `num_candidates`: the number of candidates from which the agent chooses by Q.
    - `denoising_steps`: T, the number of diffusion steps, in training and to act.
    - `discount`: γ, in [0, 1].
    - `tau`: how far the target networks move at each update, in (0, 1].
    - `clip`: the range of actions, (low, high), or `None`. The action is clipped after each diffusion step.

    !!! Example

        ```python
        from shortcutrl import idql

        config = idql.Config(num_candidates=64)
        ```
    """

    expectile: Number = 0.9
    num_candidates: Integer = 32
    denoising_steps: Integer = 5
    discount: Number = 0.99
    tau: Number = 0.005
    clip: tuple[Number, Number] | list[Any] | None = (-1.0, 1.0)

    def __post_init__(self) -> None:
        _contract.validate(self, sizes=["num_candidates", "denoising_steps"], fractions=["expectile"])


class State(NamedTuple):
    """All that an update changes.

    - `policy`, `critic`, `value`: the networks.
    - `target_policy`, `target_critic`: the moving averages. The agent acts with them, and V fits the average of the
      critic.
    - `policy_opt_state`, `critic_opt_state`, `value_opt_state`: the states of the optimizers.
    """

    policy: Any
    critic: Any
    value: Any
    target_policy: Any
    target_critic: Any
    policy_opt_state: optax.OptState
    critic_opt_state: optax.OptState
    value_opt_state: optax.OptState


class Draws(NamedTuple):
    """All the randomness of one update; arrays with the batch as their leading axis.

    - `diffusion_noise`, `diffusion_t`: the noise and the diffusion times, shapes `(batch, action)` and `(batch,)`. Each
      time is one of 1/T, 2/T, ..., 1.
    """

    diffusion_noise: Array
    diffusion_t: Array


class Info(NamedTuple):
    """What one update measured: scalars, each a mean over the batch.

    - `td`: the critic's loss.
    - `q`: the ensemble's mean Q of the dataset's actions.
    - `value_loss`, `v`: the loss of V, and V of the dataset's observations.
    - `denoising`: the policy's loss.
    """

    td: Scalar
    q: Scalar
    value_loss: Scalar
    v: Scalar
    denoising: Scalar


@typed
def networks(
    example: Transition,
    *,
    width: Integer = 512,
    depth: Integer = 4,
    policy_width: Integer = 256,
    blocks: Integer = 3,
    encoder: Encoder = None,
    key: PRNGKeyArray,
) -> Networks:
    """Make the published networks: a residual policy; MLPs with GELU and LayerNorm for two critics and the value.

    **Arguments:**

    - `example`: a transition or a batch of transitions with the sizes of the dataset.
    - `width`, `depth`: the size and number of hidden layers of critic and value.
    - `policy_width`, `blocks`: the sizes of the policy, as in [`ResidualDenoiser`][shortcutrl.nn.ResidualDenoiser].
    - `encoder`: a function from one observation to a vector; each network trains a copy. `None` if observations are
      vectors.
    - `key`: a JAX random key.

    **Returns:** [`Networks`][shortcutrl.idql.Networks]. Any other callable pytrees can take their place.

    **Raises:** as [`sorl.networks`][shortcutrl.sorl.networks].
    """
    sizes = _contract.sizes_of(example, encoder)
    shape: dict[str, Any] = {"width": width, "depth": depth, "encoder": encoder}
    policy_key, critic_key, value_key = jax.random.split(key, 3)
    policy = nn.ResidualDenoiser(*sizes, width=policy_width, blocks=blocks, encoder=encoder, key=policy_key)
    critic = nn.EnsembleCritic(*sizes, **shape, key=critic_key)
    return Networks(policy, critic, nn.Value(sizes[0], **shape, key=value_key))


@typed
def init(networks: PerNetwork, *, config: Config, optimizers: PerNetwork | None) -> State:
    """Start training: copy the networks, make their averages equal to them, and make new optimizer states.

    **Arguments:**

    - `networks`: [`Networks`][shortcutrl.idql.Networks]: callable pytrees, such as Equinox Modules, with any leaves.
    - `config`: static.
    - `optimizers`: [`Networks`][shortcutrl.idql.Networks] of optax transformations, or `None` to act only.

    **Returns:** the [`State`][shortcutrl.idql.State]. It shares no array with `networks`, so it may be donated.

    **Raises:** as [`sorl.init`][shortcutrl.sorl.init].
    """
    return _training.start(Networks, State, networks, optimizers)


@_contract.checked(Networks)
def draw(key: PRNGKeyArray, batch: Transition, *, config: Config) -> Draws:
    """Draw the noise and the times of one update.

    **Arguments:**

    - `key`: a JAX random key.
    - `batch`: transitions with one leading axis.
    - `config`: static.

    **Returns:** [`Draws`][shortcutrl.idql.Draws].

    **Raises:** as [`sorl.draw`][shortcutrl.sorl.draw].
    """
    noise_key, t_key = jax.random.split(key)
    shape, dtype, steps = batch.action.shape, batch.action.dtype, config.denoising_steps
    t = jax.random.randint(t_key, shape[:1], 1, steps + 1).astype(dtype) / steps
    return Draws(jax.random.normal(noise_key, shape, dtype), t)


@_contract.checked(Networks, draw)
def value_loss(value: Any, state: State, batch: Transition, draws: Draws, *, config: Config) -> tuple[Scalar, Scalar]:
    r"""Fit V to an expectile of Q: the mean of [`expectile_loss`][shortcutrl.expectile_loss].

    Here $Q = \min_i Q_{\bar\phi_i}(s, a)$ of the target critic for the dataset's action.

    **Arguments:**

    - `value`: the value that learns. Gradients flow into it alone.
    - `state`: its `target_critic` evaluates the dataset's actions.
    - `batch`: transitions with one leading axis.
    - `draws`: from [`draw`][shortcutrl.idql.draw].
    - `config`: static.

    **Returns:** the loss and the mean V, scalars.

    **Raises:** as [`sorl.critic_loss`][shortcutrl.sorl.critic_loss].
    """
    return _training.fit_value(value, state.target_critic, batch, expectile=config.expectile)


@_contract.checked(Networks, draw)
def critic_loss(critic: Any, state: State, batch: Transition, draws: Draws, *, config: Config) -> tuple[Scalar, Scalar]:
    r"""Fit Q to the value of the next observation: $\sum_i (Q_{\phi_i}(s, a) - (r + \gamma m V(s')))^2$.

    The loss is the **sum** over the ensemble and the mean over the batch, as in [`iql`][shortcutrl.iql.critic_loss].

    **Arguments:**

    - `critic`: the critic that learns. Gradients flow into it alone.
    - `state`: its `value` evaluates the next observations.
    - `batch`, `draws`, `config`: as in [`value_loss`][shortcutrl.idql.value_loss].

    **Returns:** the loss and the mean Q of the dataset's actions, scalars.

    **Raises:** as [`sorl.critic_loss`][shortcutrl.sorl.critic_loss].
    """
    return _training.fit_critic(critic, state.value, batch, discount=config.discount)


@_contract.checked(Networks, draw)
def policy_loss(policy: Any, state: State, batch: Transition, draws: Draws, *, config: Config) -> tuple[Scalar, Scalar]:
    """Imitate the dataset: the mean of [`denoising_loss`][shortcutrl.denoising_loss].

    **Arguments:**

    - `policy`: the policy that learns. Gradients flow into it alone.
    - `state`: not used, because Q does not train this policy.
    - `batch`, `draws`, `config`: as in [`value_loss`][shortcutrl.idql.value_loss].

    **Returns:** the loss and its denoising term, which are equal; scalars.

    **Raises:** as [`sorl.critic_loss`][shortcutrl.sorl.critic_loss].

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from shortcutrl import Transition, idql

        batch = Transition(jnp.ones((8, 3)), jnp.ones((8, 2)), jnp.ones(8), jnp.ones(8), jnp.ones((8, 3)))
        config, key = idql.Config(), jax.random.key(0)
        networks = idql.networks(batch, width=32, depth=2, policy_width=32, key=key)
        state = idql.init(networks, config=config, optimizers=idql.OPTIMIZERS)
        draws = idql.draw(key, batch, config=config)
        loss, denoising = idql.policy_loss(state.policy, state, batch, draws, config=config)
        ```
    """
    denoise = partial(denoising_loss, policy, schedule=SCHEDULE)
    loss = jax.vmap(denoise)(batch.obs, batch.action, draws.diffusion_noise, draws.diffusion_t).mean()
    return loss, loss


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
    """Make one gradient step of all three networks on one batch, then move both target networks.

    This function is pure and not jitted: wrap it in `jax.jit`, scan it over steps, `vmap` it over agents.

    **Arguments:**

    - `state`: from [`init`][shortcutrl.idql.init] or the previous update.
    - `batch`: a [`Transition`][shortcutrl.Transition] with one leading axis.
    - `config`: static.
    - `optimizers`: those that the state was made with.
    - `key`: a JAX random key, a new one for each update.
    - `value_loss`, `critic_loss`, `policy_loss`: static, by default those of this module. A replacement takes the
      same arguments and returns the same kinds of results.

    **Returns:** the new state and [`Info`][shortcutrl.idql.Info].

    **Raises:** as [`sorl.update`][shortcutrl.sorl.update].

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from functools import partial
        from shortcutrl import Transition, idql

        batch = Transition(jnp.ones((8, 3)), jnp.ones((8, 2)), jnp.ones(8), jnp.ones(8), jnp.ones((8, 3)))
        options = {"config": idql.Config(), "optimizers": idql.OPTIMIZERS}
        networks = idql.networks(batch, width=32, depth=2, policy_width=32, key=jax.random.key(0))
        state = idql.init(networks, **options)
        state, info = jax.jit(partial(idql.update, **options))(state, batch, key=jax.random.key(1))
        ```
    """
    args: Any = state, batch, draw(key, batch, config=config)
    (fit, v), value_grads = _training.value_and_grad(value_loss)(state.value, *args, config=config)
    (td, q), critic_grads = _training.value_and_grad(critic_loss)(state.critic, *args, config=config)
    (imitation, _), policy_grads = _training.value_and_grad(policy_loss)(state.policy, *args, config=config)
    state = _training.step(Networks, state, optimizers, policy=policy_grads, critic=critic_grads, value=value_grads)
    return _training.move_targets(state, config.tau), Info(td, q, fit, v, imitation)


@_contract.checked(Networks)
def actor(state: State, *, config: Config, n: Integer | None = None) -> Actor:
    """Act with the best of `n` samples of the diffusion by the minimum of the target critic.

    **Arguments:**

    - `state`: from [`update`][shortcutrl.idql.update].
    - `config`: the `Config` of the training.
    - `n`: the number of candidates, by default `config.num_candidates`. With 1 the actor's noise has shape
      `(T, action)`, otherwise `(n, T, action)`, where T is `config.denoising_steps`.

    **Returns:** an [`Actor`][shortcutrl.Actor] that can be an argument of a function under `equinox.filter_jit`. It
    refuses noise that does not have `n` rows.

    **Raises:** `ValueError` for `n` below 1.

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from shortcutrl import Transition, idql

        example = Transition(jnp.ones(3), jnp.ones(2), jnp.array(1.0), jnp.array(1.0), jnp.ones(3))
        networks = idql.networks(example, width=32, depth=2, policy_width=32, key=jax.random.key(0))
        state = idql.init(networks, config=idql.Config(), optimizers=idql.OPTIMIZERS)
        act = idql.actor(state, config=idql.Config(), n=4)
        assert act(example.obs, jax.random.normal(jax.random.key(1), (4, 5, 2))).shape == (2,)
        ```
    """
    n = _checks.as_count("n", config.num_candidates if n is None else n)
    options: dict[str, Any] = {"steps": config.denoising_steps, "schedule": SCHEDULE, "clip": config.clip}
    sample = eqx.Partial(ddpm_sample, state.target_policy, **options)
    return best_of(n, sample, state.target_critic, "min")


@typed
def noise_shape(action_size: Integer, *, config: Config, n: Integer | None = None) -> tuple[int, ...]:
    """Return the shape of the noise that [`actor`][shortcutrl.idql.actor] takes with the same options.

    **Arguments:**

    - `action_size`: the length of an action.
    - `config`: the `Config` of the training.
    - `n`: the number of candidates, by default `config.num_candidates`.

    **Returns:** `(T, action)` for one candidate, otherwise `(n, T, action)`, where T is `config.denoising_steps`.

    **Raises:** `ValueError` for a size below 1.

    !!! Example

        ```python
        from shortcutrl import idql

        assert idql.noise_shape(2, config=idql.Config(), n=8) == (8, 5, 2)
        ```
    """
    n = _checks.as_count("n", config.num_candidates if n is None else n)
    shape = int(config.denoising_steps), _checks.as_size("action_size", action_size)
    return shape if n == 1 else (n, *shape)
