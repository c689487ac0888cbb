"""What a worker process does: it holds a group of environments and answers messages."""

import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import cloudpickle
import gymnasium
import jax
import numpy as np

from shortcutrl.evaluate._environment import Environment


class Reply(NamedTuple):
    """The answer of a group's environments: arrays over its environments; `stepped` says which took a step."""

    obs: Any
    reward: np.ndarray
    stepped: np.ndarray
    ended: np.ndarray
    success: np.ndarray
    info_keys: set[str]
    """What the last `info` of the episodes that ended contains."""


class Group:
    """Environments that act one after the other. An environment whose episode has ended rests until it is reset."""

    def __init__(self, make_env: Callable[[], gymnasium.Env], size: int):
        self.envs = [Environment(make_env) for _ in range(size)]
        if len({id(env.env.unwrapped) for env in self.envs}) < size:
            raise ValueError(
                "`make_env` must make a new environment at each call, got the same one twice. Call the environment's "
                "constructor inside the function, or use `envs_per_process=1`."
            )
        self.layout = agreed([(env.empty_obs, plain(env.action_space)) for env in self.envs])
        self.obs = [env.empty_obs for env in self.envs]
        self.playing = np.zeros(size, bool)

    def answer(self, actions: np.ndarray | None, seeds: np.ndarray, success_key: str | None) -> Reply:
        size, keys = len(self.envs), set()
        reward = np.zeros(size)
        stepped, ended, success = np.zeros((3, size), bool)
        for i, env in enumerate(self.envs):
            if seeds[i] >= 0:
                self.obs[i] = env.reset(int(seeds[i]))
                self.playing[i] = True
            elif self.playing[i] and actions is not None:
                self.obs[i], reward[i], ended[i], info = env.step(actions[i])
                stepped[i], self.playing[i] = True, not ended[i]
                if ended[i] and success_key is not None:
                    success[i] = env.success(info, success_key)
                    keys |= {key for key in info if isinstance(key, str)}
        batch = jax.tree.map(lambda *leaves: np.stack(leaves), *self.obs)
        return Reply(batch, reward, stepped, ended, success, keys)

    def close(self) -> None:
        """Close each environment. The results are complete by then, so an error only causes a warning."""
        for env in self.envs:
            try:
                env.close()
            except Exception as error:
                warnings.warn(f"{error}", stacklevel=2)


def plain(space: gymnasium.spaces.Box) -> gymnasium.spaces.Box:
    """The same space without a class of the user's, which another process may not find."""
    return gymnasium.spaces.Box(space.low, space.high, dtype=space.dtype.type)


def agreed(layouts: list[Any]) -> Any:
    """The layout of observations and actions that all environments have."""
    described = {str(jax.tree.map(lambda x: (x.dtype, x.shape), layout)): layout for layout in layouts}
    if len(described) > 1:
        raise ValueError(
            "`make_env` must make environments of one observation space and one action space, got (dtype, shape) "
            f"{' and '.join(described)}."
        )
    return layouts[0]


def serve(connection: Connection, make_env: bytes, size: int) -> None:
    """Answer messages until the pipe closes or an environment fails."""
    group = None
    try:
        group = Group(cloudpickle.loads(make_env), size)
        reply: Any = group.layout
    except BaseException as error:
        reply = _portable(error)
    while True:
        try:
            connection.send(reply)
            if isinstance(reply, Exception):
                break
            message = connection.recv()
        except (EOFError, OSError):
            break  # the parent closed the pool or is gone
        try:
            assert group is not None
            reply = group.answer(*message)
        except BaseException as error:
            reply = _portable(error)
    if group is not None:
        with suppress(BaseException):  # the parent no longer listens
            group.close()


def _portable(error: BaseException) -> Exception:
    """An error that can be sent: that of a check, or a `RuntimeError` with the environment's traceback."""
    if isinstance(error, ValueError | TypeError) and error.__cause__ is None:
        return type(error)(str(error))
    cause = error.__cause__ or error
    first = str(error) if error.__cause__ else f"the environment failed: {type(error).__name__}: {error}"
    return RuntimeError(f"{first}\n\n{''.join(traceback.format_exception(cause))}")
