"""Policy networks with one mode: a Gaussian of unit standard deviation, and a deterministic policy."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from shortcutrl._typed import typed
from shortcutrl._types import ActionLike, Encoder, Integer, Noise, Obs
from shortcutrl.nn._mlp import MLP, Encodes, as_layer, as_vector

FINAL_SCALE = 0.01
"""Of the variance of the last layer's initial weights: a new policy acts near zero for every observation."""


class GaussianPolicy(Encodes):
    r"""A Gaussian policy of unit standard deviation, $\mu_\theta(s) + z$: an MLP on `obs`, unbatched.

    An [`Actor`][shortcutrl.Actor], whose action is not clipped. With [`noiseless`][shortcutrl.noiseless], it acts by
    its mean. It has GELU, zero biases and Glorot-uniform weights, a tenth as large in the last layer. With
    `width=512, depth=4` it is the network of the published code.

    **Arguments:**

    - `obs_size`, `action_size`, `width`, `depth`, `layer_norm`, `matmul_dtype`, `encoder`, `key`: as in
      [`ShortcutPolicy`][shortcutrl.nn.ShortcutPolicy].

    **Raises:** as [`ShortcutPolicy`][shortcutrl.nn.ShortcutPolicy].

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from shortcutrl import nn

        policy = nn.GaussianPolicy(3, 2, width=32, depth=2, key=jax.random.key(0))
        obs, noise = jnp.ones(3), jnp.array([1.0, -1.0])
        assert jnp.allclose(policy(obs, noise), policy(obs, 0 * noise) + noise)
        ```

    Source: the policy of IQL in the FQL repository ([arXiv 2502.02538](https://arxiv.org/abs/2502.02538)).
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
        sizes = self.obs_size, as_layer("action_size", action_size)
        shape = {"width": width, "depth": depth, "layer_norm": layer_norm, "final_scale": FINAL_SCALE}
        self.mlp = MLP(*sizes, **shape, matmul_dtype=matmul_dtype, key=key)
        self.encoder = encoder

    @typed
    def __call__(self, obs: Obs, noise: ActionLike) -> Float[Array, " action"]:
        noise = as_vector("noise", noise, len(self.mlp.biases[-1]))
        return self.mlp(self.encode(obs).vector) + noise


class DeterministicPolicy(Encodes):
    r"""A policy without randomness, $\tanh \mu_\theta(s)$: an MLP on `obs`, unbatched.

    An [`Actor`][shortcutrl.Actor] that ignores its noise, which may be anything, such as `None`. Its initial weights
    are those of [`GaussianPolicy`][shortcutrl.nn.GaussianPolicy].

    **Arguments:**

    - `obs_size`, `action_size`, `width`, `depth`, `layer_norm`, `matmul_dtype`, `encoder`, `key`: as in
      [`ShortcutPolicy`][shortcutrl.nn.ShortcutPolicy].

    **Raises:** as [`ShortcutPolicy`][shortcutrl.nn.ShortcutPolicy].

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from shortcutrl import nn

        policy = nn.DeterministicPolicy(3, 2, width=32, depth=2, key=jax.random.key(0))
        assert jnp.abs(policy(jnp.ones(3), None)).max() < 1
        ```

    Source: the policy of ReBRAC in the FQL repository ([arXiv 2502.02538](https://arxiv.org/abs/2502.02538)).
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
        sizes = self.obs_size, as_layer("action_size", action_size)
        shape = {"width": width, "depth": depth, "layer_norm": layer_norm, "final_scale": FINAL_SCALE}
        self.mlp = MLP(*sizes, **shape, matmul_dtype=matmul_dtype, key=key)
        self.encoder = encoder

    @typed
    def __call__(self, obs: Obs, noise: Noise) -> Float[Array, " action"]:
        del noise
        action = self.mlp(self.encode(obs).vector)
        return jnp.tanh(action)
