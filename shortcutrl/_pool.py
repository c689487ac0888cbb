"""Environments in processes of their own, several in each, answered as they become ready."""

import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import cloudpickle
import gymnasium
import numpy as np
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate

from shortcutrl._processes import SPAWN, cores, interrupts_ignored


class Reply(NamedTuple):
    """What a group's environments answered, arrays over its environments; `stepped` says which took a step."""

    obs: Any
    reward: np.ndarray
    stepped: np.ndarray
    ended: np.ndarray
    success: np.ndarray


def reset(env: gymnasium.Env, seed: int) -> tuple[Any, dict[str, Any]]:
    """Reset to the start that belongs to `seed`, also where an environment draws it from NumPy's global generator."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    env.action_space.seed(seed)
    try:
        return env.reset(seed=seed)
    finally:
        np.random.set_state(before)  # noqa: NPY002


class _Group:
    """Environments that act one after the other. An environment whose episode has ended rests until it is reset."""

    def __init__(self, make_env: Callable[[], gymnasium.Env], size: int):
        self.envs = [make_env() for _ in range(size)]
        self.space = self.envs[0].observation_space
        self.obs = list(iterate(batch_space(self.space, size), create_empty_array(self.space, size)))
        self.playing = np.zeros(size, bool)

    def answer(self, actions: np.ndarray | None, seeds: np.ndarray) -> Reply:
        size = len(self.envs)
        reward = np.zeros(size)
        shape = self.envs[0].action_space.shape
        if actions is not None and shape is not None and actions.shape[1:] != shape:
            raise ValueError(
                f"`act` must return an action of shape {shape}, as the environment's, got {actions.shape[1:]}."
            )
        stepped, ended, success = np.zeros((3, size), bool)
        for i, env in enumerate(self.envs):
            if seeds[i] >= 0:
                self.obs[i], _ = reset(env, int(seeds[i]))
                self.playing[i] = True
            elif self.playing[i] and actions is not None:
                self.obs[i], reward[i], terminated, truncated, info = env.step(actions[i])
                stepped[i], ended[i] = True, terminated or truncated
                success[i] = bool(info.get("success", False))
                self.playing[i] = not ended[i]
        obs = concatenate(self.space, self.obs, create_empty_array(self.space, len(self.envs)))
        return Reply(obs, reward, stepped, ended, success)


class EnvPool:
    """Hold environments in worker processes, for [`evaluate`][shortcutrl.evaluate.evaluate]; a context manager.

    Each process holds a group of environments and steps them one after the other, so that one message carries several
    steps; no group waits for another. Two processes a core keep the cores busy while the policy decides for one of
    them. Worker processes are spawned, so a script that makes a pool needs the `if __name__ == "__main__":` guard.

    **Arguments:**

    - `make_env`: makes one gymnasium environment; any callable that cloudpickle can carry, lambdas included.
    - `processes`: how many worker processes; by default two for each core. 0 keeps a single group in this process.
    - `envs_per_process`: the size of each group.

    **Raises:** `ValueError` for a negative number of processes or an empty group; `RuntimeError` with the worker's
    traceback, when it is used, for what an environment raises.

    !!! Example

        ```python
        import gymnasium
        from shortcutrl.evaluate import EnvPool

        with EnvPool(lambda: gymnasium.make("Pendulum-v1"), processes=1, envs_per_process=2) as pool:
            assert (pool.groups, pool.group_size) == (1, 2)
        ```
    """

    def __init__(
        self, make_env: Callable[[], gymnasium.Env], *, processes: int | None = None, envs_per_process: int = 4
    ):
        processes = 2 * cores() if processes is None else processes
        if not callable(make_env):
            raise TypeError(f"`make_env` must be a function that makes an environment, got {make_env}.")
        if processes < 0:
            raise ValueError(f"`processes` must not be negative, got {processes}.")
        if envs_per_process < 1:
            raise ValueError(f"`envs_per_process` must be at least 1, got {envs_per_process}.")
        self.groups, self.group_size = max(processes, 1), envs_per_process
        self._workers, self._connections = [], []
        self._local = _Group(make_env, envs_per_process) if processes == 0 else None
        self._answered: list[tuple[int, Reply]] = []
        with interrupts_ignored():
            for _ in range(processes):
                ours, theirs = SPAWN.Pipe()
                worker = SPAWN.Process(target=_serve, args=(theirs, cloudpickle.dumps(make_env), envs_per_process))
                worker.daemon = True  # dies with this process
                worker.start()
                theirs.close()
                self._workers.append(worker)
                self._connections.append(ours)

    def send(self, group: int, actions: np.ndarray | None, seeds: np.ndarray) -> None:
        """Ask `group` to reset each environment whose seed is not negative and to step the others with `actions`."""
        self._check_open()
        if self._local is not None:
            self._answered.append((group, self._local.answer(actions, seeds)))
            return
        with suppress(OSError):  # of a dead worker: `receive` says so
            self._connections[group].send((actions, seeds))

    def receive(self) -> list[tuple[int, Reply]]:
        """Wait until a group has answered; the replies that are there, each with the group's index."""
        self._check_open()
        if self._local is not None:
            answered, self._answered = self._answered, []
            return answered
        ready, replies = wait(self._connections), []
        for group, connection in enumerate(self._connections):
            if connection not in ready:
                continue
            try:
                reply = connection.recv()
            except (EOFError, OSError) as error:
                raise RuntimeError(
                    "an environment's process died: for want of memory, or because the script that makes the pool has "
                    'no `if __name__ == "__main__":` guard.'
                ) from error
            if isinstance(reply, str):
                raise RuntimeError(f"an environment failed in its process:\n{reply}")
            replies.append((group, reply))
        return replies

    def _check_open(self) -> None:
        if self._local is None and not self._workers:
            raise RuntimeError("the pool is closed, as it is after an evaluation that was cut short: make a new one.")

    def close(self) -> None:
        """End the worker processes."""
        for connection in self._connections:
            connection.close()
        for worker in self._workers:
            worker.terminate()
            worker.join()
        for env in self._local.envs if self._local else []:
            env.close()
        self._workers, self._connections, self._local = [], [], None

    def __enter__(self) -> "EnvPool":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _serve(connection: Connection, make_env: bytes, size: int) -> None:
    try:
        group = _Group(cloudpickle.loads(make_env), size)
        while True:
            connection.send(group.answer(*connection.recv()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent is gone
    except Exception:
        connection.send(traceback.format_exc())
