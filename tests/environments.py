"""Small environments for the tests of evaluation."""

import gymnasium
import numpy as np


class Countdown(gymnasium.Env):
    """Lasts 2 to 30 steps, as the seed says; succeeds if it lasts at most 8; pays the action's first component."""

    observation_space = gymnasium.spaces.Box(0, 100, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1000, 1000, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = self.length = int(self.np_random.integers(2, 31))
        return np.float32([self.left]), {}

    def step(self, action):
        self.left -= 1
        ended = self.left <= 0
        success = {"success": self.length <= 8, "elapsed": self.length} if ended else {}
        return np.float32([self.left]), float(action[0]), ended, False, success

    def render(self):
        """Its picture is its observation."""
        return np.full((2, 3, 3), self.left, np.uint8)


class Echo(gymnasium.Env):
    """Lasts 5 steps; observes and pays the action's sum; `actions` are those that it got."""

    observation_space = gymnasium.spaces.Box(-100, 100, (1,), np.float32)
    action_space = gymnasium.spaces.Box(np.float32([-1, -2]), np.float32([1, 2]))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.actions = []
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.actions.append(action)
        steps = len(self.actions)
        return np.float32([action.sum()]), float(action.sum()), steps == 5, False, {"steps": steps, "success": True}

    def render(self):
        return np.zeros((2, 3, 3), np.uint8)


class Changed(Echo):
    """`Echo`, but `reset`, `step`, `render` or a space is another. A function gets the environment and its result."""

    def __init__(self, **changes):
        self.changes = changes
        for name in changes.keys() & {"observation_space", "action_space"}:
            setattr(self, name, changes[name])

    def _changed(self, name, result):
        return self.changes[name](self, result) if name in self.changes else result

    def reset(self, **options):
        return self._changed("reset", super().reset(**options))

    def step(self, action):
        return self._changed("step", super().step(action))

    def render(self):
        return self._changed("render", super().render())


def replaced(**items):
    """A change of `step` that replaces items of its result, such as `reward=None`."""
    names = ("obs", "reward", "terminated", "truncated", "info")

    def change(env, result):
        return tuple(items.get(name, value) for name, value in zip(names, result, strict=True))

    return change


def raising(error):
    def change(env, result):
        raise error

    return change
