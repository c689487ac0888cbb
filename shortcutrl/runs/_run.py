"""A run: metrics and checkpoints in a folder, from which the same program resumes."""

import json
import os
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.summary import scalar

from shortcutrl._checks import as_size
from shortcutrl._files import as_path
from shortcutrl._typed import show, typed
from shortcutrl._types import Integer
from shortcutrl.runs import _checkpoint
from shortcutrl.runs._rows import append_line, as_json, load_settings, read_rows, write_whole


class Run:
    """Keep one training in a folder: `settings.json`, `metrics.jsonl`, `checkpoints` and events for TensorBoard.

    A context manager. A program that is killed at any moment and started again resumes from the last checkpoint: start
    at `run.step` with `run.restore(state)`. The first `log` or `save` removes metrics that were logged after that
    checkpoint, so they have neither gaps nor double rows. Only one process may have a run open.

    **Arguments:**

    - `folder`: is made if it does not exist. `~` is expanded.
    - `settings`: all that the result depends on: names and values that JSON can keep, arrays, and dataclasses such as a
      `Config`.
    - `logger`: `logger(step, values)`, called at each [`log`][shortcutrl.runs.Run.log]: for Weights & Biases,
      `lambda step, values: wandb.log(values, step=step)`. A run that resumes logs the steps after its last checkpoint
      again.

    It has `folder`, and `step`, the step of the last checkpoint or 0.

    **Raises:** `ValueError` if the folder holds a run of other settings or the files of something else, if the run is
    open already, or if all its checkpoints are damaged. If only the last one is, the run resumes from the one before,
    with a warning.

    !!! Example

        ```python
        import tempfile
        import jax.numpy as jnp
        from shortcutrl.runs import Run

        with tempfile.TemporaryDirectory() as folder:
            for _ in range(2):  # the second resumes: it has nothing left to do
                with Run(folder, {"updates": 20}) as run:
                    state = run.restore(jnp.zeros(3))
                    for step in range(run.step + 10, 21, 10):
                        state = state + 1
                        run.log(step, {"mean": state.mean()})
                        run.save(step, state)
            assert run.step == 20 and state[0] == 2
        ```
    """

    @typed
    def __init__(
        self,
        folder: str | os.PathLike[str],
        settings: dict[Any, Any],
        *,
        logger: Callable[[int, dict[str, float]], Any] | None = None,
    ):
        self.folder: Path = as_path("folder", folder).absolute()
        text = as_json("settings", settings, indent=1, allow_nan=False)
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"`folder`: {self.folder} is a file. Choose another path.")
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "settings.json"
        self._lock = FileLock(self.folder / ".lock", thread_local=False)
        try:
            self._lock.acquire(blocking=False)
        except Timeout as error:
            raise ValueError(f"`folder`: the run in {self.folder} is open already. Close it, or wait.") from error
        except (OSError, NotImplementedError) as error:  # such as a network's file system without locks
            warnings.warn(f"{self.folder} cannot be locked ({error}): open the run in one process only.", stacklevel=5)
        self._open = True
        try:
            if not path.exists():
                _check_free(self.folder)
                write_whole(path, text)
            _check_same(self.folder, json.loads(text))
            self.step: int = _checkpoint.last_step(self.folder) or 0
        except BaseException:
            self._lock.release()
            raise
        self._logger = logger
        self._board: EventsWriter | None = None  # until something is written
        self._logged = 0  # the step of the last row of this process

    def _events(self) -> EventsWriter:
        """TensorBoard's events. The first time, removes what was logged after the last checkpoint."""
        if not self._open:
            raise ValueError(f"the run in {self.folder} is closed: open it again by `Run`.")
        if self._board is None:
            _checkpoint.remove_partial(self.folder)
            rows = [row for row in read_rows(self.folder, "metrics") if _is_metrics(row) and row["step"] <= self.step]
            write_whole(self.folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
            shutil.rmtree(self.folder / "tensorboard", ignore_errors=True)
            (self.folder / "tensorboard").mkdir(exist_ok=True)
            # Not a SummaryWriter: its thread dies on a full disk, and the run would wait for it.
            self._board = EventsWriter(str(self.folder / "tensorboard" / "events"))
            for row in rows:
                _show(self._board, row["step"], row)
        return self._board

    @typed
    def restore(self, state: Any) -> Any:
        """Load the checkpoint of `step`, as [`load_checkpoint`][shortcutrl.runs.load_checkpoint] does.

        **Arguments:**

        - `state`: the initial state.

        **Returns:** the saved state, or `state` if there is no checkpoint.
        """
        return state if self.step == 0 else _checkpoint.read(self.folder, self.step, state)

    @typed
    def log(self, step: Integer, values: dict[Any, Any]) -> None:
        """Append a row to `metrics.jsonl`, to TensorBoard's events and to the `logger`.

        **Arguments:**

        - `step`: at least 1, and not below the step of the last row or of the last checkpoint.
        - `values`: numbers by name, such as `info._asdict()`.

        If the `logger` raises an error, the row is written already.
        """
        step = as_size("step", step, maximum=2**62)
        row = {name: _as_float(name, value) for name, value in values.items()}
        board = self._events()
        if step < (last := max(self._logged, self.step)):
            raise ValueError(f"`step` must be at least {last}, which the run has reached, got {step}.")
        self._logged = step
        append_line(self.folder / "metrics.jsonl", as_json("values", {"step": step, **row}))
        _show(board, step, row)
        board.flush()
        if self._logger is not None:
            self._logger(step, row)

    @typed
    def save(self, step: Integer, state: Any) -> None:
        """Write a checkpoint, whole or not at all. The last two are kept.

        **Arguments:**

        - `step`: higher than the step of the last checkpoint.
        - `state`: a pytree of arrays and numbers; other leaves are not saved.
        """
        if (step := as_size("step", step, maximum=2**62)) <= self.step:
            raise ValueError(f"`step` must be higher than {self.step}, the step of the last checkpoint, got {step}.")
        self._events()
        _checkpoint.write(self.folder, step, state)
        self.step = step

    def close(self) -> None:
        """Close the run, so that another process may open it. Closing it again does nothing."""
        self._open, board, self._board = False, self._board, None
        try:
            if board is not None:
                board.close()
        finally:
            self._lock.release()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _show(board: EventsWriter, step: int, values: dict[str, float]) -> None:
    for name, value in values.items():
        if name != "step":
            board.write_event(Event(step=step, wall_time=time.time(), summary=scalar(name, value)))


def _check_free(folder: Path) -> None:
    """The folder has no files that a new run would replace."""
    for name in ("metrics.jsonl", "checkpoints", "tensorboard"):
        if (folder / name).exists():
            raise ValueError(f"`folder`: {folder} has {name} but no settings.json, so it is no run. Choose another.")


def _check_same(folder: Any, settings: dict[str, Any]) -> None:
    """The run in the folder was made with these settings."""
    now, was = dict(_flat(settings)), dict(_flat(load_settings(folder)))
    if changed := [name for name in {**was, **now} if name not in was or name not in now or was[name] != now[name]]:
        names = {name: ".".join(part if "." not in part else repr(part) for part in name) for name in changed}
        before, after = ({names[name]: each[name] for name in changed if name in each} for each in (was, now))
        raise ValueError(
            f"`settings`: {folder} holds a run with {before}, not {after}. Choose another folder, or delete it."
        )


def _flat(settings: dict[str, Any], *outer: str) -> Any:
    for name, value in settings.items():
        yield from _flat(value, *outer, name) if isinstance(value, dict) and value else [((*outer, name), value)]


def _is_metrics(row: dict[str, Any]) -> bool:
    return all(isinstance(value, int | float) for value in row.values()) and isinstance(row.get("step"), int)


def _as_float(name: Any, value: Any) -> float:
    if not isinstance(name, str) or name == "step":
        raise ValueError(f"`values` must have names other than 'step', got {show(name)}.")
    try:
        if isinstance(value, int | float) or (np.shape(value) == () and np.asarray(value).dtype.kind in "biufV"):
            return float(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise TypeError(f"`values` must be numbers, got {show(value)} for {name!r}.")
