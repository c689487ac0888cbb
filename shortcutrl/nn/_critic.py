"""The critic network."""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from shortcutrl import _checks
from shortcutrl._typed import typed
from shortcutrl._types import ActionLike, Encoder, Integer, Obs, ScalarLike
from shortcutrl.nn._mlp import MLP, Encodes, as_layer, as_vector


class EnsembleCritic(Encodes):
    r"""An ensemble of critics $Q_{\phi_1}, \dots, Q_{\phi_E}$: independent MLPs on `[obs, action]`, unbatched.

    A [`Critic`][shortcutrl.Critic] with GELU, LayerNorm, Glorot-uniform weights and zero biases. With
    `width=512, depth=4, condition_on_k=True` it is the network of the published code, which also sees the number of
    jumps k that the policy takes. Bind k by `functools.partial(critic, k=4)`.

    **Arguments:**

    - `obs_size`: the length of one observation, or of what `encoder` returns.
    - `action_size`: the length of one action.
    - `width`, `depth`: the size and number of hidden layers.
    - `ensemble`: the number of members.
    - `layer_norm`: whether hidden layers end in LayerNorm.
    - `condition_on_k`: whether the number of jumps is an input, passed as `k=`.
    - `matmul_dtype`: the dtype of the matrix products between hidden layers, such as `jnp.bfloat16`, also in the
      backward pass. Parameters and everything else keep their dtype. `None` leaves the products as they are. Static.
    - `encoder`: a function, such as an Equinox Module, from one observation to a vector of `obs_size` numbers, shared
      by the members. `None` for observations that are vectors.
    - `key`: a JAX random key for the initial weights.

    **Raises:** `ValueError` for a size below 1 or a `matmul_dtype` of integers. A call raises it for a `k` that is
    missing, below 1, or not an input of this critic, and for sizes other than the network's.

    !!! Example

        ```python
        import jax, jax.numpy as jnp
        from functools import partial
        from shortcutrl import nn

        critic = nn.EnsembleCritic(3, 2, width=32, depth=2, condition_on_k=True, key=jax.random.key(0))
        q = partial(critic, k=4)(jnp.ones(3), jnp.zeros(2))
        assert q.shape == (2,)
        ```
    """

    members: MLP
    action_size: int = eqx.field(static=True)
    condition_on_k: bool = eqx.field(static=True)

    @typed
    def __init__(
        self,
        obs_size: Integer,
        action_size: Integer,
        *,
        width: Integer = 512,
        depth: Integer = 4,
        ensemble: Integer = 2,
        layer_norm: bool = True,
        condition_on_k: bool = False,
        matmul_dtype: Any = None,
        encoder: Encoder = None,
        key: PRNGKeyArray,
    ):
        self.obs_size = as_layer("obs_size", obs_size)
        self.action_size = as_layer("action_size", action_size)
        self.condition_on_k = condition_on_k
        self.encoder = encoder
        in_size = self.obs_size + self.action_size + condition_on_k

        def member(key):
            return MLP(in_size, 1, width=width, depth=depth, layer_norm=layer_norm, matmul_dtype=matmul_dtype, key=key)

        self.members = eqx.filter_vmap(member)(jax.random.split(key, as_layer("ensemble", ensemble)))

    @typed
    def __call__(
        self, obs: Obs, action: ActionLike, *, k: ScalarLike | Int[Array, ""] | None = None
    ) -> Float[Array, " ensemble"]:
        if self.condition_on_k != (k is not None):
            raise ValueError(
                "`k` is missing: this critic sees the number of jumps. Bind it by `functools.partial(critic, k=4)`; in "
                "SORL, set `condition_critic_on_k` to True in `Config`."
                if self.condition_on_k
                else f"`k` must be None for a critic made with `condition_on_k=False`, got {k}. In SORL, set "
                "`condition_critic_on_k` to False in `Config`, or to True in `networks`."
            )
        action = as_vector("action", action, self.action_size)
        inputs = [self.encode(obs).vector, action]
        if k is not None:
            _checks.check_range("k", k, 1, float("inf"))
            inputs.append(jnp.asarray(k, action.dtype))
        return _forward(self.members, *inputs)


@partial(jax.jit, inline=True)
def _forward(members: MLP, *inputs: Array) -> Array:
    return eqx.filter_vmap(lambda mlp: mlp(*inputs)[0])(members)
