"""The types that signatures use."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, Shaped

Obs: TypeAlias = Any
"""One observation: any pytree that the user's own callables take. The library only passes it on."""


class Features(NamedTuple):
    """An encoded observation, which the networks of `nn` take in place of the observation itself.

    `network.encode(obs)` makes it. Pass it only to networks with that encoder.

    - `vector`: what the encoder returned, for the networks of `nn` of shape `(obs_size,)`.
    """

    vector: Any


Noise: TypeAlias = Any
"""All the randomness of an actor: any pytree of arrays, standard normal unless the actor says otherwise."""

Encoder: TypeAlias = Callable[[Obs], Array] | None
"""A function from one observation to a vector; `None` if observations are vectors."""

Action: TypeAlias = Float[Array, " action"]
ActionLike: TypeAlias = Float[Array | np.ndarray, " action"]
Scalar: TypeAlias = Float[Array, ""]
ScalarLike: TypeAlias = float | int | np.floating | np.integer | Float[Array | np.ndarray, ""]
Integer: TypeAlias = int | np.integer
Number: TypeAlias = float | int | np.floating | np.integer
Bound: TypeAlias = Number | Shaped[Array | np.ndarray, "..."]
Limit: TypeAlias = Bound | list[Any] | tuple[Any, ...]
Clip: TypeAlias = tuple[Bound, Bound] | list[Any] | None
PerNetwork: TypeAlias = tuple[Any, ...] | list[Any]
Loss: TypeAlias = Callable[..., tuple[Any, Any]]
Aggregate: TypeAlias = Literal["min", "mean"] | Callable[[Array], Array]


@runtime_checkable
class Velocity(Protocol):
    """`velocity(obs, x, t, h)`: the mean velocity over `[t, t + h]` of the flow that is at `x` at time `t`.

    Like any network, it may have a method `encode(obs)` that returns [`nn.Features`][shortcutrl.nn.Features], as the
    networks of `nn` have. A function that calls it several times for one observation then calls `encode` once, and
    passes the features in place of `obs`. Any other result of `encode`, or an error, is ignored.
    """

    def __call__(self, obs: Obs, x: Action, t: Scalar, h: Scalar, /) -> Array: ...


@runtime_checkable
class Actor(Protocol):
    """`actor(obs, noise)`: an action, shape `(action,)`. `noise` is all of its randomness, in whatever shape it takes.

    Any policy is one: `functools.partial(rollout_k, velocity, k=4)`, a Gaussian, a deterministic policy that ignores
    its noise.
    """

    def __call__(self, obs: Obs, noise: Noise, /) -> Array: ...


@runtime_checkable
class Critic(Protocol):
    """`critic(obs, action)`: the estimates of Q by each member of an ensemble, shape `(ensemble,)`."""

    def __call__(self, obs: Obs, action: Action, /) -> Array: ...


@runtime_checkable
class Value(Protocol):
    """`value(obs)`: an estimate of V, a scalar."""

    def __call__(self, obs: Obs, /) -> Array: ...


class Transition(NamedTuple):
    """One environment step, or many with a leading axis.

    - `obs`, `next_obs`: any pytree that the networks take.
    - `action`: shape `(action,)`.
    - `reward`: shape `()`.
    - `mask`: shape `()`; 0 where the episode ended in a terminal state, else 1. It multiplies the discount, so an
      n-step transition may carry its further discounting here.
    - `next_action`: the dataset's own next action, shape `(action,)`, or `None`. Only some algorithms use it.
    """

    obs: Obs
    action: Shaped[Array | np.ndarray, "*batch action"]
    reward: Shaped[Array | np.ndarray, "*batch"]
    mask: Shaped[Array | np.ndarray, "*batch"]
    next_obs: Obs
    next_action: Shaped[Array | np.ndarray, "*batch action"] | None = None
