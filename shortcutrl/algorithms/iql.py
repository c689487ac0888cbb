"""IQL: learn the value of the dataset's better actions without a policy, then extract a Gaussian policy.

Source: implicit Q-learning ([arXiv 2110.06169](https://arxiv.org/abs/2110.06169)), as in the repository of FQL
([arXiv 2502.02538](https://arxiv.org/abs/2502.02538)).
"""

import dataclasses
from functools import partial
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import PRNGKeyArray

from shortcutrl import _contract, _training, nn
from shortcutrl._actors import clipped, noiseless
from shortcutrl._flow import gaussian_nll
from shortcutrl._improve import advantage_weight, q_loss
from shortcutrl._typed import typed
from shortcutrl._types import Actor, Encoder, Integer, Loss, Number, PerNetwork, Scalar, Transition


class Networks(NamedTuple):
    """One entry for each network: the networks of [`init`][shortcutrl.iql.init], or their optimizers.

    - `policy`: an [`Actor`][shortcutrl.Actor], a Gaussian of unit standard deviation: its mean plus noise of shape
      `(action,)`.
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
    """The hyperparameters of IQL, validated when constructed; the defaults are the published ones. Plain data.

    - `policy`: `"awr"` weights imitation by the advantage. `"ddpgbc"` maximises Q and imitates.
    - `alpha`: for `"awr"`, the factor of the advantage: larger values follow Q more closely. For `"ddpgbc"`, the weight
      of imitation: larger values follow the dataset more closely. It is non-negative. Tune it for each environment
      (published: 0.3 to 10 for `"awr"`).
    - `expectile`: the expectile of Q that V fits, in [0, 1]. Values towards 1 approach the best action of the dataset.
    - `discount`: γ, in [0, 1].
    - `tau`: how far the target critic moves at each update, in (0, 1].
    - `clip`: the range of actions, (low, high), or `None`.

    !!! Example

        ```python
        from shortcutrl import iql

        config = iql.Config(policy="ddpgbc", alpha=0.3)
        ```
    """

    policy: Literal["awr", "ddpgbc"] = "awr"
    alpha: Number = 10.0
    expectile: Number = 0.9
    discount: Number = 0.99
    tau: Number = 0.005
    clip: tuple[Number, Number] | list[Any] | None = (-1.0, 1.0)

    def __post_init__(self) -> None:
        _contract.validate(self, non_negative=["alpha"], fractions=["expectile"])


class State(NamedTuple):
    """All that an update changes.

    - `policy`, `critic`, `value`: the networks.
    - `target_critic`: the moving average of the critic, which V fits.
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
    """All the randomness of one update: none."""


class Info(NamedTuple):
    """What one update measured: scalars, each a mean over the batch.

    - `td`: the critic's loss.
    - `q`: the ensemble's mean Q of the dataset's actions.
    - `value_loss`, `v`: the loss of V, and V of the dataset's observations.
    - `policy_loss`: the policy's loss.
    - `nll`: minus the log-likelihood of the dataset's actions.
    """

    td: Scalar
    q: Scalar
    value_loss: Scalar
    v: Scalar
    policy_loss: Scalar
    nll: Scalar


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
    - `width`, `depth`: the size and number of hidden layers. Published: 4 of 512, or of 256 for manipulation.
    - `encoder`: a function from one observation to a vector; each network trains a copy. `None` if observations are
      vectors.
    - `key`: a JAX random key.

    **Returns:** [`Networks`][shortcutrl.iql.Networks]. Any other callable pytrees can take their place.

    **Raises:** as [`sorl.networks`][shortcutrl.sorl.networks].
    """
    sizes = _contract.sizes_of(example, encoder)
    shape: dict[str, Any] = {"width": width, "depth": depth, "encoder": encoder}
    policy_key, critic_key, value_key = jax.random.split(key, 3)
    return Networks(
        nn.GaussianPolicy(*sizes, **shape, key=policy_key),
        nn.EnsembleCritic(*sizes, **shape, key=critic_key),
        nn.Value(sizes[0], **shape, key=value_key),
    )


@typed
def init(networks: PerNetwork, *, config: Config, optimizers: PerNetwork | None) -> State:
    """Start training: copy the networks, make the critic's average equal to it, and make new optimizer states.

    **Arguments:**

    - `networks`: [`Networks`][shortcutrl.iql.Networks]: callable pytrees, such as Equinox Modules, with any leaves.
    - `config`: static.
    - `optimizers`: [`Networks`][shortcutrl.iql.Networks] of optax transformations, or `None` to act only.

    **Returns:** the [`State`][shortcutrl.iql.State]. It shares no array with `networks`, so it may be donated.

    **Raises:** as [`sorl.init`][shortcutrl.sorl.init].
    """
    return _training.start(Networks, State, networks, optimizers)


@_contract.checked(Networks)
def draw(key: PRNGKeyArray, batch: Transition, *, config: Config) -> Draws:
    """Draw the randomness of one update, which is none: losses use the policy's mean.

    **Arguments:**

    - `key`: a JAX random key.
    - `batch`: transitions with one leading axis.
    - `config`: static; not used.

    **Returns:** [`Draws`][shortcutrl.iql.Draws].

    **Raises:** as [`sorl.draw`][shortcutrl.sorl.draw].
    """
    return Draws()


@_contract.checked(Networks, draw)
def value_loss(value: Any, state: State, batch: Transition, draws: Draws, *, config: Config) -> tuple[Scalar, Scalar]:
    r"""Fit V to an expectile of Q: the mean of [`expectile_loss`][shortcutrl.expectile_loss].

    Here $Q = \min_i Q_{\bar\phi_i}(s, a)$ of the target critic for the dataset's action.

    **Arguments:**

    - `value`: the value that learns. Gradients flow into it alone.
    - `state`: its `target_critic` evaluates the dataset's actions.
    - `batch`: transitions with one leading axis.
    - `draws`: from [`draw`][shortcutrl.iql.draw].
    - `config`: static.

    **Returns:** the loss and the mean V, scalars.

    **Raises:** as [`sorl.critic_loss`][shortcutrl.sorl.critic_loss].
    """
    return _training.fit_value(value, state.target_critic, batch, expectile=config.expectile)


@_contract.checked(Networks, draw)
def critic_loss(critic: Any, state: State, batch: Transition, draws: Draws, *, config: Config) -> tuple[Scalar, Scalar]:
    r"""Fit Q to the value of the next observation: $\sum_i (Q_{\phi_i}(s, a) - (r + \gamma m V(s')))^2$.

    The published loss is the **sum** over the ensemble and the mean over the batch. [`td_loss`][shortcutrl.td_loss] is
    the mean over the ensemble, so this gradient is twice as large for two critics.

    **Arguments:**

    - `critic`: the critic that learns. Gradients flow into it alone.
    - `state`: its `value` evaluates the next observations.
    - `batch`, `draws`, `config`: as in [`value_loss`][shortcutrl.iql.value_loss].

    **Returns:** the loss and the mean Q of the dataset's actions, scalars.

    **Raises:** as [`sorl.critic_loss`][shortcutrl.sorl.critic_loss].
    """
    return _training.fit_critic(critic, state.value, batch, discount=config.discount)


@_contract.checked(Networks, draw)
def policy_loss(policy: Any, state: State, batch: Transition, draws: Draws, *, config: Config) -> tuple[Scalar, Scalar]:
    r"""Extract the policy: advantage-weighted regression, or Q plus imitation ("DDPG+BC").

    - `"awr"`: $-\min(e^{\alpha (Q(s, a) - V(s))}, 100) \log \pi(a \mid s)$.
    - `"ddpgbc"`: $-Q(s, \mu(s)) / \overline{|Q|} - \alpha \log \pi(a \mid s)$, where Q evaluates the clipped mean
      action.

    Q is the minimum of the latest critics, not of the target critics.

    **Arguments:**

    - `policy`: the policy that learns. Gradients flow into it alone.
    - `state`: its `critic` and `value` evaluate actions.
    - `batch`, `draws`, `config`: as in [`value_loss`][shortcutrl.iql.value_loss].

    **Returns:** the loss, and the mean of minus the log-likelihood of the dataset's actions; scalars.

    **Raises:** as [`sorl.critic_loss`][shortcutrl.sorl.critic_loss].

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from shortcutrl import Transition, iql

        batch = Transition(jnp.ones((8, 3)), jnp.ones((8, 2)), jnp.ones(8), jnp.ones(8), jnp.ones((8, 3)))
        config, key = iql.Config(), jax.random.key(0)
        networks = iql.networks(batch, width=32, depth=2, key=key)
        state = iql.init(networks, config=config, optimizers=iql.OPTIMIZERS)
        draws = iql.draw(key, batch, config=config)
        loss, nll = iql.policy_loss(state.policy, state, batch, draws, config=config)
        ```
    """
    act = partial(noiseless, policy)
    mean = jax.vmap(act)(batch.obs, batch.action).astype(batch.action.dtype)  # the action gives the shape of the noise
    nll = jax.vmap(gaussian_nll)(mean, batch.action)
    if config.policy == "awr":
        q = _training.q_of_data("state.critic", state.critic, batch, "min")
        v = _training.v_of_data("state.value", state.value, batch.obs)
        weight = jax.vmap(partial(advantage_weight, temperature=config.alpha))(q, v)
        return jnp.mean(weight * nll), nll.mean()
    taken = partial(clipped, lambda obs, action: action, clip=config.clip)
    losses, info = jax.vmap(partial(q_loss, taken, state.critic, aggregate="min"))(batch.obs, mean)
    return _training.normalized(losses.mean(), info.q) + config.alpha * nll.mean(), nll.mean()


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
    """Make one gradient step of all three networks on one batch, then move the target critic.

    This function is pure and not jitted: wrap it in `jax.jit`, scan it over steps, `vmap` it over agents.

    **Arguments:**

    - `state`: from [`init`][shortcutrl.iql.init] or the previous update.
    - `batch`: a [`Transition`][shortcutrl.Transition] with one leading axis.
    - `config`: static.
    - `optimizers`: those that the state was made with.
    - `key`: a JAX random key; not used, because nothing is drawn.
    - `value_loss`, `critic_loss`, `policy_loss`: static, by default those of this module. A replacement takes the
      same arguments and returns the same kinds of results.

    **Returns:** the new state and [`Info`][shortcutrl.iql.Info].

    **Raises:** as [`sorl.update`][shortcutrl.sorl.update].

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from functools import partial
        from shortcutrl import Transition, iql

        batch = Transition(jnp.ones((8, 3)), jnp.ones((8, 2)), jnp.ones(8), jnp.ones(8), jnp.ones((8, 3)))
        options = {"config": iql.Config(), "optimizers": iql.OPTIMIZERS}
        state = iql.init(iql.networks(batch, width=32, depth=2, key=jax.random.key(0)), **options)
        state, info = jax.jit(partial(iql.update, **options))(state, batch, key=jax.random.key(1))
        ```
    """
    args: Any = state, batch, draw(key, batch, config=config)
    (fit, v), value_grads = _training.value_and_grad(value_loss)(state.value, *args, config=config)
    (td, q), critic_grads = _training.value_and_grad(critic_loss)(state.critic, *args, config=config)
    (extract, nll), policy_grads = _training.value_and_grad(policy_loss)(state.policy, *args, config=config)
    state = _training.step(Networks, state, optimizers, policy=policy_grads, critic=critic_grads, value=value_grads)
    return _training.move_targets(state, config.tau), Info(td, q, fit, v, extract, nll)


@_contract.checked(Networks)
def actor(state: State, *, config: Config, sample: bool = False) -> Actor:
    """Act with the policy's mean, or with a sample, and clip the action.

    **Arguments:**

    - `state`: from [`update`][shortcutrl.iql.update].
    - `config`: the `Config` of the training.
    - `sample`: whether to add the noise. The published evaluation uses the mean.

    **Returns:** an [`Actor`][shortcutrl.Actor], a pytree, whose noise has shape `(action,)`.

    **Raises:** `TypeError` for a `state` of another algorithm.

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from shortcutrl import Transition, iql

        example = Transition(jnp.ones(3), jnp.ones(2), jnp.array(1.0), jnp.array(1.0), jnp.ones(3))
        networks = iql.networks(example, width=32, depth=2, key=jax.random.key(0))
        state = iql.init(networks, config=iql.Config(), optimizers=iql.OPTIMIZERS)
        act = iql.actor(state, config=iql.Config())
        assert jnp.allclose(act(example.obs, jnp.ones(2)), act(example.obs, jnp.zeros(2)))
        ```
    """
    act = state.policy if sample else eqx.Partial(noiseless, state.policy)
    return eqx.Partial(clipped, act, clip=config.clip)
