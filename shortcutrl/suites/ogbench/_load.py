"""From the name of an OGBench single-task environment to its dataset on the device."""

import os
import zipfile
import zlib
from collections.abc import Callable
from contextlib import closing
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.request import Request, urlopen

import gymnasium
import numpy as np
import ogbench
import ogbench.utils
from filelock import FileLock
from ogbench.relabel_utils import relabel_dataset
from ogbench.utils import load_dataset

from shortcutrl._types import Transition
from shortcutrl.data._generate import generate
from shortcutrl.data._oracles import RECIPES, ignore_harmless_warnings
from shortcutrl.data._transitions import transitions

DEFAULT_FOLDER = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "shortcutrl"


class Task(NamedTuple):
    """An OGBench single-task problem.

    - `dataset`: its transitions, with one leading axis, in the order in which they happened.
    - `episode_end`: whether each is the last of its episode in the data.
    - `make_env`: makes the environment to evaluate in.
    - `path`: the file that the dataset came from.
    """

    dataset: Transition
    episode_end: np.ndarray
    make_env: Callable[[], gymnasium.Env]
    path: Path


def load_ogbench(
    name: str,
    *,
    folder: str | os.PathLike[str] = DEFAULT_FOLDER,
    episodes: int | None = None,
    seed: int = 0,
    processes: int | None = None,
    progress: bool = True,
) -> Task:
    """Load an OGBench single-task dataset by name, such as `"scene-play-singletask-task1-v0"`.

    Uses OGBench's own file where it has been downloaded, downloads it where its host can be reached, and otherwise
    makes a dataset of `episodes` episodes on the spot, with OGBench's scripted oracles where they exist
    ([`generate`][shortcutrl.data.generate]). What is downloaded is kept where OGBench keeps it (`~/.ogbench/data`),
    what is made in `folder`; both are used again. Of several processes that need the same dataset, one fetches it.

    **Arguments:**

    - `name`: an OGBench dataset name with `singletask`.
    - `folder`: where datasets that are made on the spot are kept; by default `~/.cache/shortcutrl`.
    - `episodes`, `seed`: of a dataset that is made on the spot; by default as many episodes as OGBench publishes.
    - `processes`: that make it; by default one for each core.
    - `progress`: whether to show progress bars.

    **Returns:** the [`Task`][shortcutrl.data.Task].

    **Raises:** `ValueError` for an unknown `name`, a file that cannot be read as a dataset, or bad values in it;
    `OSError` if `folder` cannot be written, or if the dataset can be neither downloaded nor made.

    !!! Example

        ```python
        import tempfile
        from shortcutrl import data

        folder = tempfile.mkdtemp()  # leave it out for the usual one
        task = data.load_ogbench("pointmaze-medium-navigate-singletask-v0", folder=folder, episodes=1)
        assert task.dataset.action.shape[-1] == 2
        ```
    """
    env_name, dataset_name = _split(name)
    make = partial(generate, dataset_name, episodes=episodes, seed=seed, processes=processes, progress=progress)
    path = _find(dataset_name, Path(folder).expanduser(), episodes, seed, make)
    try:
        arrays = load_dataset(str(path), add_info=True)
        with closing(make_env(name)) as env:
            relabel_dataset(env_name, env, arrays)  # a KeyError where the states are missing from the file
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read as an OGBench dataset ({type(error).__name__}: {error}). Delete it and its "
            "-val.npz, then run again to get it anew."
        ) from error
    dataset = transitions(
        obs=arrays["observations"],
        action=arrays["actions"],
        reward=arrays["rewards"],
        mask=arrays["masks"],
        next_obs=arrays["next_observations"],
    )
    return Task(dataset, arrays["terminals"].astype(bool), partial(make_env, name), path)


def make_env(name: str, **options) -> gymnasium.Env:
    """Make the environment of an OGBench single-task dataset, for evaluation; its data is not needed.

    **Arguments:**

    - `name`: as in [`load_ogbench`][shortcutrl.data.load_ogbench].
    - `options`: passed on to `gymnasium.make`, such as `width` and `height` of pictures.

    **Returns:** the environment, a `gymnasium.Env`.

    **Raises:** `ValueError` for an unknown `name`.

    !!! Example

        ```python
        from shortcutrl import data

        env = data.make_env("pointmaze-medium-navigate-singletask-v0")
        obs, info = env.reset(seed=0)
        ```
    """
    ignore_harmless_warnings()
    return gymnasium.make(_split(name)[0], **options)


def _split(name: str) -> tuple[str, str]:
    """The names of the environment and of its dataset, which all tasks of an environment share."""
    known = {}
    for env_name in gymnasium.registry:
        scene, singletask, task = env_name.partition("-singletask")
        locomotion = "maze" in scene or "soccer" in scene
        for kind in ("navigate", "stitch", "explore") if locomotion else ("play", "noisy"):
            if singletask:
                known[f"{scene}-{kind}{singletask}{task}"] = env_name, f"{scene}-{kind}-{env_name.split('-')[-1]}"
    if name in known:
        return known[name]
    close = get_close_matches(name, known, n=3)
    hint = (
        f"did you mean {' or '.join(map(repr, close))}?" if close else "see the list of datasets in OGBench's README."
    )
    raise ValueError(f"`name` must be an OGBench single-task dataset, got {name!r}; {hint}")


def _find(dataset_name: str, folder: Path, episodes: int | None, seed: int, make: Callable[[Path], Path]) -> Path:
    downloaded = Path(ogbench.utils.DEFAULT_DATASET_DIR).expanduser()
    episodes = episodes or (RECIPES[dataset_name].episodes if dataset_name in RECIPES else 0)
    made = folder / f"{dataset_name}-{episodes}-episodes-seed-{seed}.npz"
    for path in (downloaded / f"{dataset_name}.npz", made):
        if _complete(path):
            return path
    for each in (downloaded, folder):
        each.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{made.stem}.lock"), FileLock(downloaded / f".{dataset_name}.lock"):
        for path in (downloaded / f"{dataset_name}.npz", made):
            if _complete(path):  # by another process, while this one waited
                return path
        if _reachable(f"{ogbench.utils.DATASET_URL}/{dataset_name}.npz"):
            ogbench.download_datasets([dataset_name])
            return downloaded / f"{dataset_name}.npz"
        if dataset_name not in RECIPES:
            raise OSError(
                f"the host of OGBench's datasets cannot be reached, and {dataset_name} cannot be made on the spot. "
                f"Put {dataset_name}.npz and {dataset_name}-val.npz from {ogbench.utils.DATASET_URL} into {downloaded}."
            )
        return make(made)


def _complete(path: Path) -> bool:
    return path.exists() and path.with_name(f"{path.stem}-val.npz").exists()


def _reachable(url: str, timeout: float = 5.0) -> bool:
    try:
        with urlopen(Request(url, method="HEAD"), timeout=timeout):
            return True
    except OSError:
        return False
