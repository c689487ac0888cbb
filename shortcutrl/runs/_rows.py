"""The text files of a run: `settings.json`, and tables of one JSON object a line."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np

from shortcutrl._files import as_path, whole
from shortcutrl._typed import show, typed


@typed
def load_settings(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Load the settings that a run was made with.

    **Arguments:**

    - `folder`: of a [`Run`][shortcutrl.runs.Run].

    **Returns:** the settings, as JSON keeps them: tuples are lists.

    **Raises:** `ValueError` if the folder has no run, or if its `settings.json` is damaged.

    !!! Example

        ```python
        import tempfile
        from shortcutrl.runs import Run, load_settings

        with tempfile.TemporaryDirectory() as folder:
            with Run(folder, {"seed": 0}):
                pass
            assert load_settings(folder) == {"seed": 0}
        ```
    """
    path = as_path("folder", folder) / "settings.json"
    if not path.exists():
        raise ValueError(f"`folder`: {folder} holds no run. Train there first.")
    if isinstance(settings := _parse(path.read_bytes()), dict):
        return settings
    raise ValueError(f"`folder`: {path} is damaged. Restore it, or choose another folder.")


@typed
def append_row(folder: str | os.PathLike[str], name: str, row: dict[Any, Any]) -> None:
    """Append a row to a table of a run: a line of `<name>.jsonl`.

    **Arguments:**

    - `folder`: of a [`Run`][shortcutrl.runs.Run].
    - `name`: of the table, such as `"table"`: letters, digits and underscores, not a digit first. Not `"metrics"`,
      whose rows are those of [`Run.log`][shortcutrl.runs.Run.log].
    - `row`: values by name: numbers, text, lists, arrays and dataclasses.

    **Returns:** nothing.

    **Raises:** `ValueError` or `TypeError` for a folder that does not exist, for another name, or for values that JSON
    cannot keep.

    !!! Example

        ```python
        import tempfile
        import numpy as np
        from shortcutrl.runs import append_row, read_rows

        with tempfile.TemporaryDirectory() as folder:
            append_row(folder, "table", {"k": 4, "success": np.array([True, False])})
            assert read_rows(folder, "table") == [{"k": 4, "success": [True, False]}]
        ```
    """
    if name == "metrics":  # a resumed run removes rows that it did not log
        raise ValueError("`name` must not be 'metrics'. Append metrics by `Run.log`, or choose another name.")
    append_line(table_path(folder, name), as_json("row", row))


def append_line(path: Path, line: str) -> None:
    if not path.parent.is_dir():
        raise ValueError(f"`folder` must be the folder of a run, but {path.parent} does not exist. Make a `Run` first.")
    with path.open("a+b") as file:
        cut = file.seek(0, 2) > 0 and file.seek(-1, 2) >= 0 and file.read(1) != b"\n"
        file.write(b"\n" * cut + line.encode() + b"\n")


@typed
def read_rows(folder: str | os.PathLike[str], name: str) -> list[dict[str, Any]]:
    """Read the rows of a table of a run. Lines that were cut off, by a full disk for example, are left out.

    **Arguments:**

    - `folder`: of a [`Run`][shortcutrl.runs.Run].
    - `name`: of the table, such as `"metrics"`.

    **Returns:** the rows, the oldest first; none if there is no such table.

    **Raises:** `ValueError` for a name that is not letters, digits and underscores, or that begins with a digit.

    !!! Example

        ```python
        import tempfile
        from shortcutrl.runs import Run, read_rows

        with tempfile.TemporaryDirectory() as folder:
            with Run(folder, {"seed": 0}) as run:
                run.log(10, {"td": 0.5})
            assert read_rows(folder, "metrics") == [{"step": 10, "td": 0.5}]
        ```
    """
    path = table_path(folder, name)
    parsed = [_parse(line) for line in path.read_bytes().splitlines()] if path.exists() else []
    return [row for row in parsed if isinstance(row, dict)]


def table_path(folder: str | os.PathLike[str], name: str) -> Path:
    if not name.isidentifier():
        raise ValueError(
            f"`name` must be letters, digits and underscores, not a digit first, such as 'table', got {show(name)}."
        )
    return as_path("folder", folder) / f"{name}.jsonl"


def as_json(name: str, values: dict[Any, Any], **options: Any) -> str:
    """A JSON object; arrays become lists, and dataclasses dictionaries."""
    if unnamed := [key for key in values if not isinstance(key, str)]:
        raise TypeError(f"`{name}` must have text as its names, got {show(unnamed[0])}.")
    try:
        return json.dumps(dict(values), default=_plain, **options)
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"`{name}` must hold what JSON can keep: {error}. Convert it to numbers or text.") from error


def write_whole(path: Path, text: str) -> None:
    with whole(path, path.with_suffix(".partial")) as file:
        file.write(text.encode())


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type | eqx.Module):
        return dataclasses.asdict(value)
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return np.asarray(value).tolist()
    raise TypeError(f"{show(value)} is a {type(value).__name__}")


def _parse(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
