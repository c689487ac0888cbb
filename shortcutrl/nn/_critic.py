"""The critic network."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from shortcutrl import _checks
from shortcutrl._types import ActionLike, ScalarLike, typed
from shortcutrl.nn._mlp import MLP


class EnsembleCritic(eqx.Module):
    r"""An ensemble of critics $Q_{\phi_1}, \dots, Q_{\phi_n}$: independent MLPs on `[obs, action]`, unbatched.

    A [`Critic`][shortcutrl.Critic] for observations that are vectors. GELU, LayerNorm, Glorot-uniform weights, zero
    biases. With `width=512, depth=4, condition_on_k=True` the network of the published code, which also sees the
    number of jumps that the policy takes: bind it with `functools.partial(critic, k=4)`.

    **Arguments:**

    - `obs_size`, `action_size`: the lengths of one observation and of one action.
    - `width`, `depth`: of the hidden layers.
    - `ensemble`: the number of members.
    - `layer_norm`: whether hidden layers end in LayerNorm.
    - `condition_on_k`: whether it is called with `k`, which then is an input.
    - `matmul_dtype`: of the matrix products between hidden layers, such as `jnp.bfloat16`, in the backward pass too;
      parameters and all else keep their dtype. `None` leaves the products as they are. Static.
    - `key`: a JAX random key for the initial weights.

    **Raises:** `ValueError` for a size below 1, a `matmul_dtype` of integers, and when called with `k` where it is not
    conditioned on it, or without where it is.

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
    obs_size: int = eqx.field(static=True)
    condition_on_k: bool = eqx.field(static=True)

    def __init__(
        self,
        obs_size: int,
        action_size: int,
        *,
        width: int = 512,
        depth: int = 4,
        ensemble: int = 2,
        layer_norm: bool = True,
        condition_on_k: bool = False,
        matmul_dtype: DTypeLike | None = None,
        key: PRNGKeyArray,
    ):
        _checks.sizes(obs_size=obs_size, action_size=action_size, width=width, depth=depth, ensemble=ensemble)

        def member(key):
            in_size = obs_size + action_size + condition_on_k
            return MLP(in_size, 1, width=width, depth=depth, layer_norm=layer_norm, matmul_dtype=matmul_dtype, key=key)

        self.members = eqx.filter_vmap(member)(jax.random.split(key, ensemble))
        self.obs_size = obs_size
        self.condition_on_k = condition_on_k

    @typed
    def __call__(
        self, obs: Float[Array | np.ndarray, " obs"], action: ActionLike, *, k: ScalarLike | None = None
    ) -> Float[Array, " ensemble"]:
        if self.condition_on_k != (k is not None):
            raise ValueError(
                "`k` is missing: this critic sees the number of jumps. Bind it by `functools.partial(critic, k=4)`."
                if self.condition_on_k
                else f"`k` must be None for a critic made with `condition_on_k=False`, got {k}."
            )
        action = jnp.asarray(action)
        _checks.input_size("obs", obs, self.obs_size)
        _checks.input_size("action", action, self.members.weights[0].shape[1] - self.obs_size - self.condition_on_k)
        inputs = [obs, action] if k is None else [obs, action, jnp.asarray(k, action.dtype)[None]]
        x = jnp.concatenate(inputs)
        return eqx.filter_vmap(lambda mlp: mlp(x)[0])(self.members)
