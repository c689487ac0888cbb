"""The policy network."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from shortcutrl import _checks
from shortcutrl._types import ActionLike, ScalarLike, typed
from shortcutrl.nn._mlp import MLP


class ShortcutPolicy(eqx.Module):
    r"""A shortcut policy $s_\theta(x, t, h \mid s)$: an MLP on `[obs, x, t, log2(1 / h)]`, unbatched.

    A [`Velocity`][shortcutrl.Velocity] for observations that are vectors. GELU, Glorot-uniform weights, zero biases;
    with `width=512, depth=4` the network of the published code. Steps below `smallest_step` look alike to it, so
    `h = 0`, the instantaneous velocity, is an ordinary finite input.

    **Arguments:**

    - `obs_size`, `action_size`: the lengths of one observation and of one action.
    - `width`, `depth`: of the hidden layers.
    - `layer_norm`: whether hidden layers end in LayerNorm; not in the published policy.
    - `smallest_step`: the smallest step that it can tell from 0, in (0, 1).
    - `matmul_dtype`: of the matrix products between hidden layers, such as `jnp.bfloat16`, in the backward pass too;
      parameters and all else keep their dtype. `None` leaves the products as they are. Static.
    - `key`: a JAX random key for the initial weights.

    **Raises:** `ValueError` for a size below 1, `smallest_step` outside (0, 1), or a `matmul_dtype` of integers.

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from shortcutrl import nn, rollout_k

        policy = nn.ShortcutPolicy(obs_size=3, action_size=2, width=32, depth=2, key=jax.random.key(0))
        action = rollout_k(policy, jnp.ones(3), jnp.zeros(2), k=4)
        assert action.shape == (2,)
        ```
    """

    mlp: MLP
    smallest_step: float = eqx.field(static=True)

    def __init__(
        self,
        obs_size: int,
        action_size: int,
        *,
        width: int = 512,
        depth: int = 4,
        layer_norm: bool = False,
        smallest_step: float = 1 / 256,
        matmul_dtype: DTypeLike | None = None,
        key: PRNGKeyArray,
    ):
        _checks.sizes(obs_size=obs_size, action_size=action_size, width=width, depth=depth)
        if not 0 < smallest_step < 1:
            raise ValueError(f"`smallest_step` must lie in (0, 1), got {smallest_step}.")
        self.mlp = MLP(
            obs_size + action_size + 2,
            action_size,
            width=width,
            depth=depth,
            layer_norm=layer_norm,
            matmul_dtype=matmul_dtype,
            key=key,
        )
        self.smallest_step = smallest_step

    @typed
    def __call__(
        self, obs: Float[Array | np.ndarray, " obs"], x: ActionLike, t: ScalarLike, h: ScalarLike
    ) -> Float[Array, " action"]:
        x = jnp.asarray(x)
        t, h = jnp.asarray(t, x.dtype), jnp.asarray(h, x.dtype)
        action_size = self.mlp.weights[-1].shape[1]
        _checks.input_size("x", x, action_size)
        _checks.input_size("obs", obs, self.mlp.weights[0].shape[0] - action_size - 2)
        step = -jnp.log2(jnp.maximum(h, self.smallest_step))
        return self.mlp(jnp.concatenate([obs, x, t[None], step[None]]))
