"""One environment with its own random generators. Its inputs and outputs are checked."""

import random
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from numpy.random.mtrand import get_bit_generator, set_bit_generator

from shortcutrl._typed import show
from shortcutrl.evaluate._spaces import as_flag, as_number, as_numbers, check_actions, conform, convert, zeros

MAX_STEPS = 1_000_000


class Step(NamedTuple):
    obs: Any
    reward: float
    ended: bool
    info: Mapping


class Environment:
    """Some environments draw from `random` or NumPy's global generator. Each gets its own state of both, so an episode
    depends on its seed only, not on the other environments of the process.
    """

    def __init__(self, make_env: Callable[[], gymnasium.Env]):
        self._python, self._numpy = random.Random(0).getstate(), np.random.MT19937(0)
        self._seed, self._steps = -1, 0
        self.env = self._call("make_env", make_env)
        if not isinstance(self.env, gymnasium.Env):
            raise TypeError(
                f"`make_env` must return a `gymnasium.Env`, got {show(self.env)}. Pass a function without arguments "
                "that makes one, such as `lambda: gymnasium.make(name)`."
            )
        self.action_space = check_actions(self._call("action_space", getattr, self.env, "action_space", None))
        self.observation_space = self._call("observation_space", getattr, self.env, "observation_space", None)
        self.empty_obs = zeros(self.observation_space)

    def reset(self, seed: int) -> Any:
        """The observation at the start that belongs to `seed`."""
        self._seed, self._steps = seed, 0
        result = self._call("reset", self._reset, seed)
        if not (isinstance(result, tuple) and len(result) == 2):
            raise ValueError(f"`env.reset` must return (obs, info), got {show(result)}{self._where()}.")
        return self._check(conform, self.observation_space, result[0])

    def _reset(self, seed: int) -> Any:
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        self.env.action_space.seed(seed)
        return self.env.reset(seed=seed)

    def step(self, action: np.ndarray) -> Step:
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise RuntimeError(
                f"the environment has not ended its episode after {MAX_STEPS:,} steps (seed {self._seed}). Limit it by "
                "`gymnasium.wrappers.TimeLimit(env, max_episode_steps=1000)`."
            )
        result = self._call("step", self.env.step, self._convert(action))
        if not (isinstance(result, tuple) and len(result) == 5):
            raise ValueError(
                f"`env.step` must return (obs, reward, terminated, truncated, info), got {show(result)}{self._where()}."
            )
        obs, reward, terminated, truncated, info = result
        obs = self._check(conform, self.observation_space, obs)
        reward = self._check(as_number, "reward", reward)
        ended = self._check(as_flag, "terminated", terminated) | self._check(as_flag, "truncated", truncated)
        if not isinstance(info, Mapping):
            raise ValueError(f"`info` must be a dictionary, got {show(info)}{self._where()}.")
        return Step(obs, reward, ended, info)

    def _convert(self, action: np.ndarray) -> np.ndarray:
        """A writable copy in the dtype of the action space."""
        numbers, dtype = as_numbers(action), self.action_space.dtype
        converted = None if numbers is None else convert(numbers, dtype)
        if converted is None or not np.isfinite(converted).all():
            need = "a finite action" if np.issubdtype(dtype, np.floating) else f"whole numbers in the range of {dtype}"
            raise ValueError(f"`act` must return {need}, got {action}{self._where()}. Check the weights of the policy.")
        return converted

    def success(self, info: Mapping, key: str) -> bool:
        return self._check(as_flag, f"info[{key!r}]", info[key]) if key in info else False

    def render(self) -> Any:
        return self._call("render", self.env.render)

    def close(self) -> None:
        self._call("close", self.env.close)

    def _check(self, check: Callable[..., Any], *args: Any) -> Any:
        try:
            return check(*args)
        except ValueError as error:
            raise ValueError(f"{error} The environment returned it{self._where()}.") from None

    def _call(self, doing: str, function: Callable[..., Any], *args: Any) -> Any:
        """Call into the environment with its own generators. Whatever it raises becomes one kind of error."""
        random.setstate(self._python)
        set_bit_generator(self._numpy)
        try:
            return function(*args)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            said = traceback.format_exception_only(error)[0].strip()
            raise RuntimeError(f"the environment failed in `{doing}`{self._where()}: {said}") from error
        finally:
            self._python, self._numpy = random.getstate(), get_bit_generator()

    def _where(self) -> str:
        return f" (seed {self._seed}, step {self._steps})" if self._seed >= 0 else ""


@contextmanager
def generators_kept() -> Iterator[None]:
    """Restore the global generators of this process, in which environments run."""
    python, generator, state = random.getstate(), get_bit_generator(), np.random.get_state(legacy=False)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        set_bit_generator(generator)
        np.random.set_state(state)  # noqa: NPY002
