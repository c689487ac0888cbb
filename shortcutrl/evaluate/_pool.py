"""Hold environments in worker processes, several in each, and answer each as soon as it is ready."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing.connection import wait
from typing import Any

import cloudpickle
import gymnasium

from shortcutrl._checks import as_size
from shortcutrl._processes import SPAWN, check_main_guard, cores, interrupts_ignored
from shortcutrl._typed import typed
from shortcutrl._types import Integer
from shortcutrl.evaluate._act import Compiler
from shortcutrl.evaluate._environment import generators_kept
from shortcutrl.evaluate._worker import Group, Reply, agreed, serve

MAX_PROCESSES_PER_CORE = 16
MAX_ENVS_PER_PROCESS = 1024


class EnvPool:
    """Hold environments in worker processes, for [`evaluate`][shortcutrl.evaluate.evaluate]; a context manager.

    Each process holds a group of environments and steps them one after the other, so one message carries several steps.
    No group waits for another. Two processes a core keep the cores busy while the policy computes actions for one of
    them. The constructor returns when all environments exist.

    Worker processes are spawned: a script that makes a pool needs the `if __name__ == "__main__":` guard.

    **Arguments:**

    - `make_env`: makes one new Gymnasium environment at each call. Any function that cloudpickle can send to a process,
      lambdas included. Its action space must be a Box.
    - `processes`: the number of worker processes, at most 16 for each core; by default two for each core. 0 keeps a
      single group in this process.
    - `envs_per_process`: the size of each group, at most 1024.

    It has `groups`, `group_size`, and `action_shape`, the shape of the environments' actions.

    **Raises:** `ValueError` or `TypeError` for bad arguments and for what `make_env` returns; `RuntimeError` with the
    environment's traceback for what an environment raises. No process survives an error.

    !!! Example

        ```python
        import gymnasium
        from shortcutrl.evaluate import EnvPool

        with EnvPool(lambda: gymnasium.make("Pendulum-v1"), processes=1, envs_per_process=2) as pool:
            assert (pool.groups, pool.group_size, pool.action_shape) == (1, 2, (1,))
        ```
    """

    @typed
    def __init__(
        self,
        make_env: Callable[[], gymnasium.Env],
        *,
        processes: Integer | None = None,
        envs_per_process: Integer = 4,
    ):
        self._workers, self._connections, self._local = [], [], None
        processes = 2 * cores() if processes is None else as_size("processes", processes, 0)
        if processes > (limit := MAX_PROCESSES_PER_CORE * cores()):
            raise ValueError(f"`processes` must be at most {limit} on {cores()} cores, got {processes}.")
        self.groups: int = max(processes, 1)
        self.group_size: int = as_size("envs_per_process", envs_per_process, maximum=MAX_ENVS_PER_PROCESS)
        self._answered: list[tuple[int, Reply]] = []
        self._in_use = threading.Lock()
        if processes == 0:
            with generators_kept():
                self._local = Group(make_env, self.group_size)
            layout = self._local.layout
        else:
            layout = self._start(make_env)
        self._action_space: gymnasium.spaces.Box = layout[1]
        self.action_shape: tuple[int, ...] = self._action_space.shape
        self._compiler = Compiler(self.action_shape)

    def _start(self, make_env: Callable[[], gymnasium.Env]) -> Any:
        """Start the processes, and wait until each has made its environments."""
        check_main_guard()
        try:
            pickled = cloudpickle.dumps(make_env)
        except Exception as error:
            raise TypeError(
                f"`make_env` cannot be sent to a process ({error}). Make what it needs inside it, or use `processes=0`."
            ) from error
        try:
            with interrupts_ignored():
                for _ in range(self.groups):
                    ours, theirs = SPAWN.Pipe()
                    self._connections.append(ours)
                    worker = SPAWN.Process(target=serve, args=(theirs, pickled, self.group_size), daemon=True)
                    worker.start()
                    theirs.close()
                    self._workers.append(worker)
            layouts = []
            while len(layouts) < self.groups:
                layouts += [layout for _, layout in self._receive()]
            return agreed(layouts)
        except BaseException:
            self._end(grace=0.0)
            raise

    @contextmanager
    def _session(self) -> Iterator[None]:
        """Hold the pool for one evaluation. An error closes it, because answers may still be on their way."""
        if self._local is None and not self._workers:
            raise RuntimeError("the pool is closed, as it is after an evaluation that was cut short. Make a new one.")
        if not self._in_use.acquire(blocking=False):
            raise RuntimeError("the pool is in use by another evaluation. Make a pool for each.")
        try:
            with generators_kept() if self._local else nullcontext():
                yield
        except BaseException:
            self.close()
            raise
        finally:
            self._in_use.release()

    def _send(self, group: int, *message: Any) -> None:
        """Ask `group` to reset each environment whose seed is not negative and to step the others with `actions`."""
        if self._local is not None:
            self._answered.append((group, self._local.answer(*message)))
            return
        with suppress(OSError):  # of a dead worker: `_receive` reports it
            self._connections[group].send(message)

    def _receive(self) -> list[tuple[int, Any]]:
        """Wait until a group has answered. Return the answers that are there, each with the group's index."""
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
                self._workers[group].join(1.0)
                raise RuntimeError(
                    f"an environment's process died with exit code {self._workers[group].exitcode}. Code 1: the script "
                    'that makes the pool may lack the `if __name__ == "__main__":` guard. Code -9: memory may be too '
                    "small. Other negative codes: the simulator crashed."
                ) from error
            if isinstance(reply, Exception):
                raise reply
            replies.append((group, reply))
        return replies

    def close(self) -> None:
        """Close the environments and end the worker processes."""
        self._end(grace=2.0)

    def _end(self, grace: float) -> None:
        workers, connections, local = self._workers, self._connections, self._local
        self._workers, self._connections, self._local = [], [], None
        for connection in connections:
            connection.close()  # a worker closes its environments and ends when its pipe closes
        deadline = time.monotonic() + grace
        for worker in workers:
            worker.join(max(0.0, deadline - time.monotonic()))
            worker.kill()
            worker.join()
        if local is not None:
            with generators_kept():
                local.close()

    def __enter__(self) -> "EnvPool":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
