"""BC: a Gaussian of unit standard deviation that imitates the dataset. No reward, no Q.

Source: behaviour cloning as the baseline of FQL ([arXiv 2502.02538](https://arxiv.org/abs/2502.02538)).
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import optax
from jaxtyping import PRNGKeyArray

from shortcutrl import _contract, _training, nn
from shortcutrl._actors import clipped, noiseless
from shortcutrl._flow import gaussian_nll
from shortcutrl._typed import typed
from shortcutrl._types import Actor, Encoder, Integer, Loss, Number, PerNetwork, Scalar, Transition


class Networks(NamedTuple):
    """One entry for each network: the networks of [`init`][shortcutrl.bc.init], or their optimizers.

    - `policy`: an [`Actor`][shortcutrl.Actor], a Gaussian of unit standard deviation: its mean plus noise of shape
      `(action,)`.
    """

    policy: Any


OPTIMIZERS = Networks(optax.adam(3e-4))
"""The published optimizer: Adam with learning rate 3e-4."""


@typed
@dataclasses.dataclass(frozen=True)
class Config:
    """The hyperparameters of BC, validated when constructed; the default is the published one. Plain data.

    - `clip`: the range of actions, (low, high), or `None`.

    !!! Example

        ```python
        from shortcutrl import bc

        config = bc.Config()
        ```
    """

    clip: tuple[Number, Number] | list[Any] | None = (-1.0, 1.0)

    def __post_init__(self) -> None:
        _contract.validate(self)


class State(NamedTuple):
    """All that an update changes.

    - `policy`: the network.
    - `policy_opt_state`: the state of the optimizer.
    """

    policy: Any
    policy_opt_state: optax.OptState


class Draws(NamedTuple):
    """All the randomness of one update: none."""


class Info(NamedTuple):
    """What one update measured: a scalar, a mean over the batch.

    - `nll`: minus the log-likelihood of the dataset's actions, the loss.
    """

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
    """Make the published network: an MLP with GELU.

    **Arguments:**

    - `example`: a transition or a batch of transitions with the sizes of the dataset.
    - `width`, `depth`: the size and number of hidden layers.
    - `encoder`: a function from one observation to a vector, trained with the network. `None` if observations are
      vectors.
    - `key`: a JAX random key.

    **Returns:** [`Networks`][shortcutrl.bc.Networks]. Any other callable pytree can take its place.

    **Raises:** as [`sorl.networks`][shortcutrl.sorl.networks].
    """
    sizes = _contract.sizes_of(example, encoder)
    return Networks(nn.GaussianPolicy(*sizes, width=width, depth=depth, encoder=encoder, key=key))


@typed
def init(networks: PerNetwork, *, config: Config, optimizers: PerNetwork | None) -> State:
    """Start training: copy the network, and make a new optimizer state.

    **Arguments:**

    - `networks`: [`Networks`][shortcutrl.bc.Networks]: a callable pytree, such as an Equinox Module, with any leaves.
    - `config`: static.
    - `optimizers`: [`Networks`][shortcutrl.bc.Networks] of one optax transformation, or `None` to act only.

    **Returns:** the [`State`][shortcutrl.bc.State]. It shares no array with `networks`, so it may be donated.

    **Raises:** as [`sorl.init`][shortcutrl.sorl.init].
    """
    return _training.start(Networks, State, networks, optimizers)


@_contract.checked(Networks)
def draw(key: PRNGKeyArray, batch: Transition, *, config: Config) -> Draws:
    """Draw the randomness of one update, which is none: the loss uses the policy's mean.

    **Arguments:**

    - `key`: a JAX random key.
    - `batch`: transitions with one leading axis.
    - `config`: static; not used.

    **Returns:** [`Draws`][shortcutrl.bc.Draws].

    **Raises:** as [`sorl.draw`][shortcutrl.sorl.draw].
    """
    return Draws()


@_contract.checked(Networks, draw)
def policy_loss(policy: Any, state: State, batch: Transition, draws: Draws, *, config: Config) -> tuple[Scalar, Scalar]:
    r"""Imitate the dataset: $-\log \pi(a \mid s)$, the mean of [`gaussian_nll`][shortcutrl.gaussian_nll].

    **Arguments:**

    - `policy`: the policy that learns. Gradients flow into it.
    - `state`: not used.
    - `batch`: transitions with one leading axis; only `obs` and `action` are used.
    - `draws`: from [`draw`][shortcutrl.bc.draw].
    - `config`: static.

    **Returns:** the loss and its likelihood term, which are equal; scalars.

    **Raises:** as [`sorl.critic_loss`][shortcutrl.sorl.critic_loss].

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from shortcutrl import Transition, bc

        batch = Transition(jnp.ones((8, 3)), jnp.ones((8, 2)), jnp.ones(8), jnp.ones(8), jnp.ones((8, 3)))
        config, key = bc.Config(), jax.random.key(0)
        networks = bc.networks(batch, width=32, depth=2, key=key)
        state = bc.init(networks, config=config, optimizers=bc.OPTIMIZERS)
        draws = bc.draw(key, batch, config=config)
        loss, nll = bc.policy_loss(state.policy, state, batch, draws, config=config)
        ```
    """
    mean = jax.vmap(partial(noiseless, policy))(batch.obs, batch.action)  # the noise, of which only the shape is used
    loss = jax.vmap(gaussian_nll)(mean.astype(batch.action.dtype), batch.action).mean()
    return loss, loss


@_contract.checked(Networks)
def update(
    state: State,
    batch: Transition,
    *,
    config: Config,
    optimizers: PerNetwork,
    key: PRNGKeyArray,
    policy_loss: Loss = policy_loss,
) -> tuple[State, Info]:
    """Make one gradient step of the policy on one batch.

    This function is pure and not jitted: wrap it in `jax.jit`, scan it over steps, `vmap` it over agents.

    **Arguments:**

    - `state`: from [`init`][shortcutrl.bc.init] or the previous update.
    - `batch`: a [`Transition`][shortcutrl.Transition] with one leading axis.
    - `config`: static.
    - `optimizers`: those that the state was made with.
    - `key`: a JAX random key; not used, because nothing is drawn.
    - `policy_loss`: static, by default that of this module. A replacement takes the same arguments and returns the same
      kinds of results.

    **Returns:** the new state and [`Info`][shortcutrl.bc.Info].

    **Raises:** as [`sorl.update`][shortcutrl.sorl.update].

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from functools import partial
        from shortcutrl import Transition, bc

        batch = Transition(jnp.ones((8, 3)), jnp.ones((8, 2)), jnp.ones(8), jnp.ones(8), jnp.ones((8, 3)))
        options = {"config": bc.Config(), "optimizers": bc.OPTIMIZERS}
        state = bc.init(bc.networks(batch, width=32, depth=2, key=jax.random.key(0)), **options)
        state, info = jax.jit(partial(bc.update, **options))(state, batch, key=jax.random.key(1))
        ```
    """
    args: Any = state, batch, draw(key, batch, config=config)
    (_, nll), grads = _training.value_and_grad(policy_loss)(state.policy, *args, config=config)
    return _training.step(Networks, state, optimizers, policy=grads), Info(nll)


@_contract.checked(Networks)
def actor(state: State, *, config: Config, sample: bool = False) -> Actor:
    """Act with the policy's mean, or with a sample, and clip the action.

    **Arguments:**

    - `state`: from [`update`][shortcutrl.bc.update].
    - `config`: the `Config` of the training.
    - `sample`: whether to add the noise. The published evaluation uses the mean.

    **Returns:** an [`Actor`][shortcutrl.Actor], a pytree, whose noise has shape `(action,)`.

    **Raises:** `TypeError` for a `state` of another algorithm.

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from shortcutrl import Transition, bc

        example = Transition(jnp.ones(3), jnp.ones(2), jnp.array(1.0), jnp.array(1.0), jnp.ones(3))
        networks = bc.networks(example, width=32, depth=2, key=jax.random.key(0))
        state = bc.init(networks, config=bc.Config(), optimizers=bc.OPTIMIZERS)
        act = bc.actor(state, config=bc.Config())
        assert jnp.allclose(act(example.obs, jnp.ones(2)), act(example.obs, jnp.zeros(2)))
        ```
    """
    act = state.policy if sample else eqx.Partial(noiseless, state.policy)
    return eqx.Partial(clipped, act, clip=config.clip)
