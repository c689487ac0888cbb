"""Arguments that `load` and `generate` share."""

import os
from pathlib import Path

MAX_COUNT = 1_000_000
MAX_SEED = 2**64 - 1


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
