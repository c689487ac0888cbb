"""What every suite returns."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from shortcutrl.data import ActionScale, Dataset


class Task(NamedTuple):
    """A dataset and the environment that its policies are evaluated in.

    - `dataset`: a [`Dataset`][shortcutrl.data.Dataset].
    - `make_env`: makes the environment, a `gymnasium.Env`. It takes actions like those of the dataset. Its options are
      those of `gymnasium.make`.
    - `source`: the file or folder that the dataset was read from.
    - `scale`: how the dataset's actions were rescaled, or `None`. `make_env` undoes it.
    """

    dataset: Dataset
    make_env: Callable[..., Any]
    source: Path
    scale: ActionScale | None = None
