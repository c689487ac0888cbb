"""Functions that act: from actors, and compiled for batches of observations."""

import functools
import hashlib
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from shortcutrl._call import call
from shortcutrl._checks import as_size
from shortcutrl._typed import show, typed
from shortcutrl._types import Actor, Obs
from shortcutrl.evaluate._spaces import as_jax_has

MAX_NOISE = 10_000_000


class _Bound(eqx.Partial):
    """As `functools.partial`: an argument of the call replaces one that was bound."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.func(*self.args, *args, **(self.keywords | kwargs))


def as_pytree(tree: Any) -> Any:
    """Replace each `functools.partial` by a pytree, so that `jit` sees the arrays that it binds."""

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, functools.partial):
            return _Bound(as_pytree(leaf.func), *as_pytree(leaf.args), **as_pytree(leaf.keywords))
        return leaf

    return jax.tree.map(convert, tree, is_leaf=lambda leaf: isinstance(leaf, functools.partial))


class _DrawNoise(eqx.Module):
    shape: tuple[int, ...] = eqx.field(static=True)

    @typed
    def __call__(self, actor: Actor, obs: Obs, *, key: PRNGKeyArray) -> Any:
        return call("actor", actor, obs, jax.random.normal(key, self.shape), remedy="Pass an actor(obs, noise).")


@typed
def keyed(actor: Actor, shape: Any) -> Callable[..., Array]:
    """Return `act(obs, *, key) = actor(obs, noise)`, where `noise` is standard normal.

    **Arguments:**

    - `actor`: `actor(obs, noise) -> action`. A `functools.partial` becomes a pytree, so new weights do not compile
      again in [`evaluate`][shortcutrl.evaluate.evaluate].
    - `shape`: the shape of the noise, a tuple: `(action,)` for `rollout_k`, `(n, action)` for `best_of_n`.

    **Returns:** a function for [`evaluate`][shortcutrl.evaluate.evaluate] and [`record`][shortcutrl.evaluate.record],
    an `eqx.Partial`.

    **Raises:** `ValueError` for a shape that is not a tuple of positive integers.

    !!! Example

        ```python
        import functools, jax, jax.numpy as jnp
        from shortcutrl import nn, rollout_k
        from shortcutrl.evaluate import keyed

        policy = nn.ShortcutPolicy(3, 2, width=8, depth=1, key=jax.random.key(0))
        act = keyed(functools.partial(rollout_k, policy, k=4, clip=(-1.0, 1.0)), (2,))
        assert act(jnp.zeros(3), key=jax.random.key(1)).shape == (2,)
        ```
    """
    if not isinstance(shape, tuple):
        raise ValueError(f"`shape` must be a tuple of integers, such as (2,), got {show(shape)}.")
    sizes = tuple(as_size("shape", size) for size in shape)
    if math.prod(sizes) > MAX_NOISE:
        raise ValueError(f"`shape` must have at most {MAX_NOISE:,} elements, got {sizes}.")
    return eqx.Partial(_DrawNoise(sizes), as_pytree(actor))


class Compiler:
    """Compile `act` for batches. Keep the last program only, so nothing that the user drops stays alive.

    Each `act` is traced, because values that it closes over may have changed. It is compiled only if the text of its
    program, which contains these values, is another.
    """

    def __init__(self, action_shape: tuple[int, ...]):
        self._action_shape = action_shape
        self._act: list[Any] = []  # what the last program reads if JAX traces it again
        self._program, self._digest = None, None

    def __call__(self, act: Callable[..., Any]) -> Callable[[np.ndarray, np.ndarray, Any], np.ndarray]:
        """Return a function of the seeds, the steps and the observations of a batch, whose shapes stay the same."""
        arrays, static = eqx.partition(as_pytree(act), _is_array)
        leaves, structure = jax.tree.flatten(arrays)
        program: Any = None

        def decide(seeds: np.ndarray, steps: np.ndarray, obs: Any) -> np.ndarray:
            nonlocal program
            obs = jax.tree_util.tree_map_with_path(as_jax_has, obs)
            args = leaves, seeds.astype(np.uint32), steps, obs
            if program is None:
                current = [structure, static]
                digest = _digest(_batched(current, self._action_shape), args)
                if digest is None or digest != self._digest:
                    self._act = current
                    self._program, self._digest = jax.jit(_batched(current, self._action_shape)), digest
                self._act[:] = current
                program = self._program
            return np.asarray(program(*args))

        return decide


def _digest(function: Callable[..., Array], args: Any) -> bytes | None:
    """A digest of the program's text; `None` if the text does not contain all that the program depends on."""
    shapes = jax.eval_shape(lambda *args: args, *args)  # on no device
    # The arguments are results too, so that the text says which leaf is which, also of those that nothing uses. With
    # `keep_unused`, JAX 0.12 would keep the constants of the program alive.
    text = jax.jit(lambda *args: (function(*args), args)).lower(*shapes).as_text()
    inputs = text.partition("@main(")[2].partition(") ->")[0].count("%arg")
    if inputs != len(jax.tree.leaves(args)) or "callback" in text or "host_transfer" in text:
        return None  # constants that JAX passes as arguments, or calls of Python
    return hashlib.sha256(text.encode()).digest()


def _is_array(leaf: Any) -> bool:
    """Whether `jit` can take the leaf as an argument. NumPy scalars stay static: they may be sizes."""
    return isinstance(leaf, jax.Array) or (isinstance(leaf, np.ndarray) and leaf.dtype.kind in "fiubc")


_ACTOR = "If it is an actor, pass `keyed(actor, shape)`."


def _batched(act: list[Any], action_shape: tuple[int, ...]) -> Callable[..., Array]:
    """The function of a batch for `act`, which is given by the structure of its arrays and the rest."""

    def one(act, seed, step, obs):
        key = jax.random.fold_in(jax.random.key(seed), step)
        return _as_action(call("act", act, obs, key=key, remedy=_ACTOR), action_shape)

    def many(leaves, seeds, steps, obs):
        structure, static = act
        bound = eqx.combine(jax.tree.unflatten(structure, leaves), static)
        return jax.vmap(functools.partial(one, bound))(seeds, steps, obs)

    return many


def _as_action(action: Any, shape: tuple[int, ...]) -> Array:
    real = isinstance(action, jax.Array | np.ndarray | np.generic) and (
        jnp.issubdtype(action.dtype, jnp.floating) or jnp.issubdtype(action.dtype, jnp.integer)
    )
    if not real:
        raise TypeError(f"`act` must return one array of real numbers, the action, got {show(action)}.")
    if action.shape != shape:
        raise ValueError(
            f"`act` must return an action of shape {shape}, as the environment's, got {action.shape}. It gets one "
            "unbatched observation. A policy of chunks needs `ChunkedActions` around the environment."
        )
    return jnp.asarray(action)
