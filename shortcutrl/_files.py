"""Paths that users pass, and files that are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from shortcutrl._typed import show


def as_path(name: str, value: Any) -> Path:
    """A path, with `~` expanded."""
    try:
        path = Path(value).expanduser()
        os.fsencode(path)
    except (RuntimeError, TypeError, UnicodeError) as error:  # no home folder; a path of bytes; half a character
        raise ValueError(f"`{name}` must be a path of text, got {show(value)} ({error}).") from None
    if "\0" in str(path) or not os.fspath(value):
        raise ValueError(f"`{name}` must be a path that is not empty, without null characters, got {show(value)}.")
    return path


@contextmanager
def whole(path: Path, partial: Path) -> Iterator[BinaryIO]:
    """A file to write, at `partial`, which takes the place of `path` when it is complete and on the disk."""
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
