"""Arguments that `load` and `generate` share."""

import os
from pathlib import Path
from typing import Any

from shortcutrl._typed import show

MAX_COUNT = 1_000_000
MAX_SEED = 2**64 - 1


def as_path(name: str, value: Any) -> Path:
    """A path, with `~` expanded."""
    try:
        path = Path(value).expanduser()
        os.fsencode(path)
    except (RuntimeError, TypeError, UnicodeError) as error:  # no home folder; a path of bytes; half a character
        raise ValueError(f"`{name}` must be a path of text, got {show(value)} ({error}).") from None
    if "\0" in str(path):
        raise ValueError(f"`{name}` must be a path, got {show(value)}. Remove its null characters.")
    return path


def make_folder(name: str, folder: Path) -> Path:
    """Make a folder to write to, if it is not there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(f"no permission to write to {folder}")
    except OSError as error:
        raise OSError(f"`{name}` must lie in a folder that can be written, got {folder} ({error}).") from error
    return folder


def can_write(folder: Path) -> bool:
    """Whether a folder can be made and written to. It is made if so."""
    try:
        make_folder("folder", folder)
    except OSError:
        return False
    return True
