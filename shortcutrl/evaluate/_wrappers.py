"""Wrappers between a policy's actions and those of an environment."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from shortcutrl._checks import as_size
from shortcutrl._typed import show, typed
from shortcutrl._types import Integer
from shortcutrl.evaluate._spaces import as_number, as_numbers, check_actions, convert

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
        space = check_actions("env", env.action_space)
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
        space = check_actions("env", env.action_space)
        self.scale = scale
        self.action_space = Box(-1.0, 1.0, space.shape, np.float32)
        try:
            self._from_unit(np.zeros(space.shape, np.float32))
        except Exception as error:
            raise ValueError(
                f"`scale` must map an action of shape {space.shape}, as the environment's, got {show(scale)}: {error}"
            ) from error

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        return self.env.step(self._from_unit(_as_action(action, self.action_space)))

    def _from_unit(self, action: np.ndarray) -> np.ndarray:
        """A writable copy in the dtype of the environment's action space."""
        space = self.env.action_space
        scaled = as_numbers(result := self.scale.from_unit(action))
        if scaled is None or scaled.shape != space.shape or (converted := convert(scaled, space.dtype)) is None:
            raise ValueError(f"`scale.from_unit` must return actions of {space}, got {show(result)}.")
        return converted


def _as_action(action: Any, space: gymnasium.Space) -> np.ndarray:
    array = as_numbers(action)
    if array is None or array.shape != space.shape:
        raise ValueError(f"`action` must be an array of shape {space.shape}, got {show(action)}.")
    return array
