"""Wrappers between a policy and an environment: of actions and of observations."""

from collections import deque
from typing import Any

import gymnasium
import jax
import numpy as np
from gymnasium.spaces import Box, Dict, Tuple

from shortcutrl._checks import as_size
from shortcutrl._typed import show, typed
from shortcutrl._types import Integer
from shortcutrl.evaluate._spaces import as_number, as_numbers, check_actions, conform, convert

MAX_LENGTH = 10_000


class ChunkedActions(gymnasium.Wrapper):
    """Carry out `length` actions for each decision: for policies of chunks, `data.sample(..., chunk=length)`.

    One step takes the actions one after the other, until the episode ends. Its reward is their sum.

    **Arguments:**

    - `env`: an environment with a flat Box as its action space.
    - `length`: the number of actions in a chunk, in [1, 10,000].

    !!! Example

        ```python
        import gymnasium
        from shortcutrl.evaluate import ChunkedActions

        env = ChunkedActions(gymnasium.make("Pendulum-v1"), length=4)
        assert env.action_space.shape == (4,)
        ```
    """

    @typed
    def __init__(self, env: gymnasium.Env, length: Integer):
        super().__init__(env)
        self.length: int = as_size("length", length, maximum=MAX_LENGTH)
        space = check_actions(env.action_space)
        if len(space.shape) != 1:
            raise ValueError(f"`env` must have a flat Box as its action space, got {space}. Flatten it in a wrapper.")
        self.action_space = Box(
            np.tile(space.low, self.length), np.tile(space.high, self.length), dtype=space.dtype.type
        )

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        chunk = _as_action(action, self.action_space)
        obs, total, terminated, truncated, info = None, 0.0, False, False, {}
        for each in np.split(chunk, self.length):
            obs, reward, terminated, truncated, info = self.env.step(each)
            total += as_number("reward", reward)
            if terminated or truncated:
                break
        return obs, total, terminated, truncated, info


class ScaledActions(gymnasium.Wrapper):
    """Map actions from [-1, 1] to those of the environment: it gets `scale.from_unit(action)`.

    **Arguments:**

    - `env`: an environment with a Box as its action space.
    - `scale`: the scale of the dataset, such as `task.scale`: any object with `from_unit(action)`.

    !!! Example

        ```python
        import gymnasium
        from shortcutrl import data
        from shortcutrl.evaluate import ScaledActions

        pendulum = gymnasium.make("Pendulum-v1")
        env = ScaledActions(pendulum, data.ActionScale(pendulum.action_space.low, pendulum.action_space.high))
        assert (env.action_space.low, env.action_space.high) == (-1, 1)
        ```
    """

    @typed
    def __init__(self, env: gymnasium.Env, scale: Any):
        super().__init__(env)
        if not callable(getattr(scale, "from_unit", None)):
            raise TypeError(
                f"`scale` must have a method `from_unit(action)`, as `data.ActionScale` has, got {show(scale)}."
            )
        space = check_actions(env.action_space)
        self.scale = scale
        self.action_space = Box(-1.0, 1.0, space.shape, np.float32)
        try:
            ends = [self._from_unit(np.full(space.shape, end, np.float32)) for end in (-1, 1)]
        except Exception as error:
            raise ValueError(
                f"`scale` must map an action of shape {space.shape}, as the environment's, got {show(scale)}: {error}"
            ) from error
        slack = 1e-5 * np.abs(ends).max(axis=0)  # of rounding
        if (np.minimum(*ends) < space.low - slack).any() or (np.maximum(*ends) > space.high + slack).any():
            raise ValueError(
                f"`scale` maps actions to {ends[0]} to {ends[1]}, but those of the environment are in {space.low} to "
                f"{space.high}. Use the scale of a dataset of this environment."
            )

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        return self.env.step(self._from_unit(_as_action(action, self.action_space)))

    def _from_unit(self, action: np.ndarray) -> np.ndarray:
        """A writable copy in the dtype of the environment's action space."""
        space = self.env.action_space
        scaled = as_numbers(result := self.scale.from_unit(action))
        if scaled is None or scaled.shape != space.shape or (converted := convert(scaled, space.dtype)) is None:
            raise ValueError(f"`scale.from_unit` must return actions of {space}, got {show(result)}.")
        return converted


class StackedFrames(gymnasium.Wrapper):
    """Observe the last `frames` observations as one, as `data.sample(..., frame_stack=frames)` does.

    They are concatenated on their last axis, oldest first. At the start of an episode the first one is repeated. Each
    array of a dictionary or tuple is stacked. In [`ChunkedActions`][shortcutrl.evaluate.ChunkedActions], wrap the
    environment first: frames are those of single steps.

    **Arguments:**

    - `env`: an environment whose observations are arrays with at least one axis, or dictionaries or tuples of them.
      Images need a last axis of channels, `image[..., None]`, or their widths are concatenated: in uint8, an error.
    - `frames`: the number of observations, in [1, 10,000].

    !!! Example

        ```python
        import gymnasium
        from shortcutrl.evaluate import StackedFrames

        env = StackedFrames(gymnasium.make("Pendulum-v1"), frames=3)
        obs, info = env.reset(seed=0)
        assert obs.shape == (9,) and (obs[:3] == obs[6:]).all()
        ```
    """

    @typed
    def __init__(self, env: gymnasium.Env, frames: Integer):
        super().__init__(env)
        self.frames: int = as_size("frames", frames, maximum=MAX_LENGTH)
        self._single = env.observation_space  # once: an environment of images may render for it
        self.observation_space = _stacked_space(self._single, self.frames)
        self._last: deque[Any] = deque(maxlen=self.frames)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        self._last.extend([conform(self._single, obs)] * self.frames)
        return self._stacked(), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if not self._last:
            raise gymnasium.error.ResetNeeded("Call `reset` before `step`: a stack starts with the first observation.")
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._last.append(conform(self._single, obs))
        return self._stacked(), reward, terminated, truncated, info

    def _stacked(self) -> Any:
        return jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=-1), *self._last)


def _stacked_space(space: gymnasium.Space, frames: int) -> gymnasium.Space:
    if isinstance(space, Dict):
        return Dict({key: _stacked_space(inner, frames) for key, inner in space.items()})
    if isinstance(space, Tuple):
        return Tuple([_stacked_space(inner, frames) for inner in space])
    if not isinstance(space, Box) or len(space.shape) == 0:
        raise ValueError(f"`env` must have observations with an axis to concatenate on, got {space}. Flatten it first.")
    if frames > 1 and space.dtype == np.uint8 and len(space.shape) == 2:
        raise ValueError(
            f"`env` has observations that look like images without channels, {space}, whose widths would be "
            "concatenated. Give images a last axis, `image[..., None]`, and anything else another dtype."
        )
    low, high = (np.concatenate([bound] * frames, axis=-1) for bound in (space.low, space.high))
    return Box(low, high, dtype=space.dtype.type)


def _as_action(action: Any, space: gymnasium.Space) -> np.ndarray:
    array = as_numbers(action)
    if array is None or array.shape != space.shape:
        raise ValueError(f"`action` must be an array of shape {space.shape}, got {show(action)}.")
    return array
