"""The state-value network."""

from typing import Any

from jaxtyping import Array, Float, PRNGKeyArray

from shortcutrl._typed import typed
from shortcutrl._types import Encoder, Integer, Obs
from shortcutrl.nn._mlp import MLP, Encodes, as_layer


class Value(Encodes):
    r"""A state value $V_\psi(s)$: an MLP on `obs`, unbatched.

    A [`Value`][shortcutrl.Value] with GELU, LayerNorm, Glorot-uniform weights and zero biases. With
    `width=512, depth=4` it is the network of the published code.

    **Arguments:**

    - `obs_size`, `width`, `depth`, `layer_norm`, `matmul_dtype`, `encoder`, `key`: as in
      [`EnsembleCritic`][shortcutrl.nn.EnsembleCritic].

    **Raises:** as [`EnsembleCritic`][shortcutrl.nn.EnsembleCritic].

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from shortcutrl import nn

        value = nn.Value(3, width=32, depth=2, key=jax.random.key(0))
        assert value(jnp.ones(3)).shape == ()
        ```

    Source: the value of IQL in the FQL repository ([arXiv 2502.02538](https://arxiv.org/abs/2502.02538)).
    """

    mlp: MLP

    @typed
    def __init__(
        self,
        obs_size: Integer,
        *,
        width: Integer = 512,
        depth: Integer = 4,
        layer_norm: bool = True,
        matmul_dtype: Any = None,
        encoder: Encoder = None,
        key: PRNGKeyArray,
    ):
        self.obs_size = as_layer("obs_size", obs_size)
        shape: dict[str, Any] = {"width": width, "depth": depth, "layer_norm": layer_norm, "matmul_dtype": matmul_dtype}
        self.mlp = MLP(self.obs_size, 1, **shape, key=key)
        self.encoder = encoder

    @typed
    def __call__(self, obs: Obs) -> Float[Array, ""]:
        return self.mlp(self.encode(obs).vector)[0]
