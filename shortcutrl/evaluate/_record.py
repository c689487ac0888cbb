"""A film of one episode."""

import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import jax
import numpy as np

from shortcutrl._checks import as_size
from shortcutrl._typed import show, typed
from shortcutrl._types import Integer
from shortcutrl.evaluate._act import Compiler
from shortcutrl.evaluate._environment import Environment, generators_kept
from shortcutrl.evaluate._evaluate import MAX_SEED, warn_of_missing

MAX_BYTES = 4 * 2**30


@typed
def record(
    act: Callable[..., Any],
    env: gymnasium.Env,
    *,
    seed: Integer = 0,
    every: Integer = 1,
    success_key: str | None = "success",
) -> tuple[np.ndarray, bool]:
    """Run one episode and return pictures of it.

    It is the episode that [`evaluate`][shortcutrl.evaluate.evaluate] runs for the same seed, up to rounding.

    **Arguments:**

    - `act`: as in [`evaluate`][shortcutrl.evaluate.evaluate].
    - `env`: an environment whose `render()` returns a picture, such as `gymnasium.make(name, render_mode="rgb_array")`.
    - `seed`: the seed of the start and of the actions' randomness, less than 2**32.
    - `every`: the number of steps between pictures, at least 1. Drawing takes longer than a step. The end has one too.
    - `success_key`: as in [`evaluate`][shortcutrl.evaluate.evaluate].

    **Returns:** the pictures, shape `(pictures, height, width, 3)`, 8 bit; and whether the episode succeeded.

    **Raises:** as [`evaluate`][shortcutrl.evaluate.evaluate]; `ValueError` for an environment that returns no pictures,
    or if they take more than 4 GiB.

    !!! Example

        ```python
        import gymnasium, jax.numpy as jnp, numpy as np
        from shortcutrl.evaluate import record


        class Drawn(gymnasium.Wrapper):
            def render(self):
                return np.full((4, 4, 3), 255, np.uint8)


        env = Drawn(gymnasium.make("Pendulum-v1"))
        pictures, success = record(lambda obs, key: jnp.zeros(1), env, every=50, success_key=None)
        assert pictures.shape == (5, 4, 4, 3) and not success
        ```
    """
    seed, every = as_size("seed", seed, 0, MAX_SEED), as_size("every", every)
    with generators_kept():
        environment = Environment(lambda: env)
        decide = Compiler(environment.action_space.shape)(act)
        obs = environment.reset(seed)
        pictures, steps, ended, info = [_picture(environment)], 0, False, {}
        while not ended:
            batch = jax.tree.map(lambda x: x[None], obs)
            action = decide(np.array([seed]), np.array([steps]), batch)[0]
            obs, _, ended, info = environment.step(action)
            steps += 1
            if ended or steps % every == 0:
                pictures.append(_picture(environment, pictures[0].shape))
                if len(pictures) * pictures[0].nbytes > MAX_BYTES:
                    raise ValueError(f"the pictures take more than 4 GiB. Pass a larger `every`, got {every}.")
        success = success_key is not None and environment.success(info, success_key)
    warn_of_missing(success_key, {key for key in info if isinstance(key, str)})
    return np.stack(pictures), success


def _picture(environment: Environment, shape: tuple[int, ...] | None = None) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Gymnasium's of a missing `render_mode`: an error says more
        picture = environment.render()
    if not (isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.shape[2:] == (3,)):
        raise ValueError(
            f"`env.render()` must return a picture, a uint8 array of shape (height, width, 3), got {show(picture)}. "
            'Make the environment with `render_mode="rgb_array"`.'
        )
    if shape is not None and picture.shape != shape:
        raise ValueError(f"`env.render()` must return pictures of one shape, got {shape} and {picture.shape}.")
    return picture.copy()  # some environments draw into one buffer
