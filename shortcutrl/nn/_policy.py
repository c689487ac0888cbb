"""Policy networks: a shortcut velocity, the velocity of a plain flow, and a one-step policy.

Constructors are alike but not inherited: type checkers make that of a module from its fields, unless it has its own.
"""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from shortcutrl import _checks
from shortcutrl._typed import typed
from shortcutrl._types import ActionLike, Encoder, Integer, Number, Obs, ScalarLike
from shortcutrl.nn._mlp import MLP, Encodes, as_layer, as_vector


class ShortcutPolicy(Encodes):
    r"""A shortcut policy $s_\theta(x, t, h \mid s)$: an MLP on `[obs, x, t, log2(1 / h)]`, unbatched.

    A [`Velocity`][shortcutrl.Velocity] with GELU, Glorot-uniform weights and zero biases. With `width=512, depth=4` it
    is the network of the published code. It does not distinguish steps below `smallest_step`, so `h = 0`, the
    instantaneous velocity, is an ordinary finite input.

    **Arguments:**

    - `obs_size`: the length of one observation, or of what `encoder` returns.
    - `action_size`: the length of one action.
    - `width`, `depth`: the size and number of hidden layers.
    - `layer_norm`: whether hidden layers end in LayerNorm; the published policy has none.
    - `smallest_step`: the smallest step that it can distinguish from 0, in (0, 1).
    - `matmul_dtype`: the dtype of the matrix products between hidden layers, such as `jnp.bfloat16`, also in the
      backward pass. Parameters and everything else keep their dtype. `None` leaves the products as they are. Static.
    - `encoder`: a function, such as an Equinox Module, from one observation to a vector of `obs_size` numbers. Its
      parameters are trained with the network. `None` for observations that are vectors.
    - `key`: a JAX random key for the initial weights.

    **Raises:** `ValueError` for a size below 1, or one that is too large to be meant (an observation or action above
    131,072, a `width` above 16,384, a `depth` above 1,024); for `smallest_step` outside (0, 1) and a `matmul_dtype` of
    integers. A call raises it for `t` or `h` outside [0, 1] where they are known, and for sizes other than the
    network's.

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from shortcutrl import nn, rollout_k

        policy = nn.ShortcutPolicy(obs_size=3, action_size=2, width=32, depth=2, key=jax.random.key(0))
        action = rollout_k(policy, jnp.ones(3), jnp.zeros(2), k=4)
        assert action.shape == (2,)
        ```

    Source: the policy of SORL ([arXiv 2505.22866](https://arxiv.org/abs/2505.22866)).
    """

    mlp: MLP
    smallest_step: float = eqx.field(static=True)

    @typed
    def __init__(
        self,
        obs_size: Integer,
        action_size: Integer,
        *,
        width: Integer = 512,
        depth: Integer = 4,
        layer_norm: bool = False,
        smallest_step: Number = 1 / 256,
        matmul_dtype: Any = None,
        encoder: Encoder = None,
        key: PRNGKeyArray,
    ):
        if not 0 < smallest_step < 1:
            raise ValueError(f"`smallest_step` must lie in (0, 1), got {smallest_step}.")
        self.obs_size = as_layer("obs_size", obs_size)
        action_size = as_layer("action_size", action_size)
        sizes = self.obs_size + action_size + 2, action_size
        self.mlp = MLP(*sizes, width=width, depth=depth, layer_norm=layer_norm, matmul_dtype=matmul_dtype, key=key)
        self.encoder = encoder
        self.smallest_step = float(smallest_step)

    @typed
    def __call__(self, obs: Obs, x: ActionLike, t: ScalarLike, h: ScalarLike) -> Float[Array, " action"]:
        x = as_vector("x", x, len(self.mlp.biases[-1]))
        t, h = _checks.as_times(t, h, x.dtype)
        return self.mlp(self.encode(obs).vector, x, t, _level(h, self.smallest_step))


@partial(jax.jit, inline=True)
def _level(h: Array, smallest_step: float) -> Array:
    """The step as the network sees it, -log2 h."""
    return -jnp.log2(jnp.maximum(h, smallest_step))


class FlowPolicy(Encodes):
    r"""The velocity of a plain flow model $v_\theta(x, t \mid s)$: an MLP on `[obs, x, t]`, unbatched.

    A [`Velocity`][shortcutrl.Velocity] that ignores the step `h`. Train it by
    [`flow_matching_loss`][shortcutrl.flow_matching_loss] with `h = 0`. Act by Euler steps, for example
    [`rollout_k`][shortcutrl.rollout_k] with `k=10`.

    **Arguments:**

    - `obs_size`, `action_size`, `width`, `depth`, `layer_norm`, `matmul_dtype`, `encoder`, `key`: as in
      [`ShortcutPolicy`][shortcutrl.nn.ShortcutPolicy].

    **Raises:** as [`ShortcutPolicy`][shortcutrl.nn.ShortcutPolicy].

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from shortcutrl import nn, rollout_k

        velocity = nn.FlowPolicy(obs_size=3, action_size=2, width=32, depth=2, key=jax.random.key(0))
        action = rollout_k(velocity, jnp.ones(3), jnp.zeros(2), k=10)
        ```

    Source: the behaviour flow of FQL ([arXiv 2502.02538](https://arxiv.org/abs/2502.02538)).
    """

    mlp: MLP

    @typed
    def __init__(
        self,
        obs_size: Integer,
        action_size: Integer,
        *,
        width: Integer = 512,
        depth: Integer = 4,
        layer_norm: bool = False,
        matmul_dtype: Any = None,
        encoder: Encoder = None,
        key: PRNGKeyArray,
    ):
        self.obs_size = as_layer("obs_size", obs_size)
        action_size = as_layer("action_size", action_size)
        sizes = self.obs_size + action_size + 1, action_size
        self.mlp = MLP(*sizes, width=width, depth=depth, layer_norm=layer_norm, matmul_dtype=matmul_dtype, key=key)
        self.encoder = encoder

    @typed
    def __call__(self, obs: Obs, x: ActionLike, t: ScalarLike, h: ScalarLike = 0.0) -> Float[Array, " action"]:
        x = as_vector("x", x, len(self.mlp.biases[-1]))
        t, _ = _checks.as_times(t, h, x.dtype)
        return self.mlp(self.encode(obs).vector, x, t)


class OneStepPolicy(Encodes):
    r"""A policy that turns noise into an action in one pass, $\mu_\omega(s, z)$: an MLP on `[obs, noise]`, unbatched.

    An [`Actor`][shortcutrl.Actor], whose action is not clipped.

    **Arguments:**

    - `obs_size`, `action_size`, `width`, `depth`, `layer_norm`, `matmul_dtype`, `encoder`, `key`: as in
      [`ShortcutPolicy`][shortcutrl.nn.ShortcutPolicy].

    **Raises:** as [`ShortcutPolicy`][shortcutrl.nn.ShortcutPolicy].

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from shortcutrl import nn

        student = nn.OneStepPolicy(obs_size=3, action_size=2, width=32, depth=2, key=jax.random.key(0))
        assert student(jnp.ones(3), jnp.zeros(2)).shape == (2,)
        ```

    Source: the one-step policy of FQL ([arXiv 2502.02538](https://arxiv.org/abs/2502.02538)).
    """

    mlp: MLP

    @typed
    def __init__(
        self,
        obs_size: Integer,
        action_size: Integer,
        *,
        width: Integer = 512,
        depth: Integer = 4,
        layer_norm: bool = False,
        matmul_dtype: Any = None,
        encoder: Encoder = None,
        key: PRNGKeyArray,
    ):
        self.obs_size = as_layer("obs_size", obs_size)
        action_size = as_layer("action_size", action_size)
        sizes = self.obs_size + action_size, action_size
        self.mlp = MLP(*sizes, width=width, depth=depth, layer_norm=layer_norm, matmul_dtype=matmul_dtype, key=key)
        self.encoder = encoder

    @typed
    def __call__(self, obs: Obs, noise: ActionLike) -> Float[Array, " action"]:
        noise = as_vector("noise", noise, len(self.mlp.biases[-1]))
        return self.mlp(self.encode(obs).vector, noise)
