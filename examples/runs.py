"""Runs that survive: settings, metrics and checkpoints in one folder; the same command goes on from the last one."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.summary import scalar


class Run:
    """One folder with `settings.json`, `metrics.jsonl`, TensorBoard's events and `checkpoints`.

    Metrics are on disk before the checkpoint that follows them, and what was logged after the last checkpoint is taken
    back when the run goes on. So a run that is killed at any moment has neither gaps nor double lines. TensorBoard's
    events are made anew from the metrics then.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]):
        self.folder = folder.absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.settings = settings
        self._same_settings(json.loads(json.dumps(settings)))
        # Not asynchronous: on a CPU the copy that is written in the background can be the memory that is donated next.
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
        self._checkpoints = ocp.CheckpointManager(self.folder / "checkpoints", options=options)
        self.step = self._checkpoints.latest_step() or 0
        done = [row for row in self.rows("metrics") if row["step"] <= self.step]
        _write(self.folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in done))
        shutil.rmtree(self.folder / "tensorboard", ignore_errors=True)
        (self.folder / "tensorboard").mkdir()
        # Not a SummaryWriter: that writes in a thread, which dies on a full disk and leaves the run waiting for it.
        self._board = EventsWriter(str(self.folder / "tensorboard" / "events"))
        for row in done:
            self._show(**row)
        self._board.flush()

    def restore(self, state) -> Any:
        """The last checkpoint, or `state`, which has its structure, if there is none."""
        if self.step == 0:
            return state
        return self._checkpoints.restore(self.step, args=ocp.args.StandardRestore(jax.tree.map(_describe, state)))

    def log(self, step: int, values: dict[str, float]) -> None:
        self.append("metrics", {"step": step, **values})
        self._show(step, **values)
        self._board.flush()

    def save(self, step: int, state) -> None:
        self._checkpoints.save(step, args=ocp.args.StandardSave(state))
        self.step = step

    def append(self, name: str, row: dict[str, Any]) -> None:
        with (self.folder / f"{name}.jsonl").open("a+b") as file:
            cut_off = file.seek(0, 2) > 0 and file.seek(-1, 2) >= 0 and file.read(1) != b"\n"
            file.write(b"\n" * cut_off + json.dumps(row).encode() + b"\n")

    def rows(self, name: str) -> list[dict[str, Any]]:
        """All that was appended and is whole."""
        path = self.folder / f"{name}.jsonl"
        parsed = [_parse(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [row for row in parsed if row is not None]

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_) -> None:
        self._checkpoints.close()
        self._board.close()

    def _show(self, step: int, **values: float) -> None:
        for name, value in values.items():
            self._board.write_event(Event(step=step, wall_time=time.time(), summary=scalar(name, value)))

    def _same_settings(self, settings: dict[str, Any]) -> None:
        path = self.folder / "settings.json"
        if not path.exists():
            _write(path, json.dumps(settings, indent=1))
        before = json.loads(path.read_text())
        if changed := [name for name in settings | before if settings.get(name) != before.get(name)]:
            was, now = ({name: values.get(name) for name in changed} for values in (before, settings))
            raise ValueError(f"{self.folder} holds a run with {was}, not {now}: choose another `out`, or delete it.")


def load_checkpoint(folder: Path, state) -> Any:
    """The last checkpoint of a run, which has the structure of `state`."""
    options = ocp.CheckpointManagerOptions(create=False)
    with ocp.CheckpointManager(folder.absolute() / "checkpoints", options=options) as checkpoints:
        if (step := checkpoints.latest_step()) is None:
            raise ValueError(f"{folder} has no checkpoint: train there first.")
        return checkpoints.restore(step, args=ocp.args.StandardRestore(jax.tree.map(_describe, state)))


def _describe(leaf) -> jax.ShapeDtypeStruct:
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)


def _parse(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except ValueError:
        return None  # cut off in the middle


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    partial = path.with_suffix(".tmp")
    partial.write_text(text)
    partial.replace(path)
