"""From the name of an OGBench single-task dataset to its transitions and its environment."""

import os
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import jax.numpy as jnp
import numpy as np
from ogbench import utils
from ogbench.relabel_utils import relabel_dataset

from shortcutrl._checks import as_size
from shortcutrl._files import as_path
from shortcutrl._typed import show, typed
from shortcutrl._types import Integer
from shortcutrl.data import Dataset, from_arrays
from shortcutrl.data._arrays import as_flags, as_float32, as_stored, check_rows
from shortcutrl.suites._task import Task
from shortcutrl.suites.ogbench._arguments import MAX_COUNT, MAX_SEED, can_write, make_folder
from shortcutrl.suites.ogbench._download import download, reachable, url_of
from shortcutrl.suites.ogbench._generate import generate
from shortcutrl.suites.ogbench._names import split
from shortcutrl.suites.ogbench._oracles import RECIPES, ignore_harmless_warnings
from shortcutrl.suites.ogbench._renderer import check_renderer

_RENDER_MODES = ("human", "rgb_array", "depth_array", "rgbd_tuple")


@typed
def load(
    name: str,
    *,
    folder: str | os.PathLike[str] | None = None,
    episodes: Integer | None = None,
    seed: Integer = 0,
    processes: Integer | None = None,
    progress: bool = True,
) -> Task:
    """Load an OGBench single-task dataset by name, such as `"scene-play-singletask-task1-v0"`.

    Takes the first of these sources:

    1. OGBench's own file, where it has been downloaded: in `~/.ogbench/data` or in `folder`.
    2. A dataset of this `seed` and number of `episodes` that was generated in `folder` before.
    3. OGBench's host. The file is kept in `~/.ogbench/data`, or in `folder` if that cannot be written.
    4. [`generate`][shortcutrl.suites.ogbench.generate], for the names in `CAN_GENERATE`. The file is kept in `folder`.

    Several processes may load the same dataset at the same time.

    **Arguments:**

    - `name`: an OGBench dataset name with `singletask`. Of `visual-*`, observations are images of 64 x 64 pixels in
      uint8, and the machine must be able to render them.
    - `folder`: where generated datasets are kept. By default `shortcutrl` in the user's cache folder, `~/.cache`.
    - `episodes`, `seed`: of a generated dataset, as in `generate`. OGBench's own file is always loaded completely.
    - `processes`: the number of processes that generate it, at most one for each core. By default one for each core.
    - `progress`: whether to show progress bars.

    **Returns:** the [`Task`][shortcutrl.suites.Task]. The last row of each episode is only the successor of the row
    before, as in OGBench's compact datasets, so it is never the start of a sample.

    **Raises:** `ValueError` for a `name` that is not supported, with names to use instead, and for a file that is not a
    valid dataset, with its path. `OSError` if the dataset can be neither downloaded nor generated, if `folder` cannot
    be written, or if observations are images and this machine cannot render them.

    !!! Example

        ```python
        import tempfile
        from shortcutrl.suites import ogbench

        folder = tempfile.mkdtemp()  # by default the user's cache folder
        task = ogbench.load("pointmaze-medium-navigate-singletask-v0", folder=folder, episodes=1)
        assert task.dataset.action.shape[-1] == 2
        ```

    Source: OGBench ([arXiv 2410.20092](https://arxiv.org/abs/2410.20092)).
    """
    env_name, dataset_name = split(name)
    if episodes is not None:
        episodes = as_size("episodes", episodes, maximum=MAX_COUNT)
    if processes is not None:
        processes = as_size("processes", processes)
    seed = as_size("seed", seed, 0, MAX_SEED)
    check_renderer(name, here=True)
    if folder is None:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "shortcutrl"
    path = _find(dataset_name, as_path("folder", folder), episodes, seed, processes, progress)
    with closing(make_env(name)) as env:
        try:
            dataset = _read(path, env_name, env)
        except Exception as error:
            if isinstance(error, OSError) and error.filename is not None:  # such as a file that may not be read
                raise
            small = "free memory, or " if isinstance(error, MemoryError) else ""
            raise ValueError(
                f"{path} cannot be read as a dataset for {env_name} ({type(error).__name__}: {error}). To get it "
                f"again, {small}delete it and its -val.npz, then load it again."
            ) from error
    return Task(dataset, partial(make_env, name), path)


@typed
def make_env(name: str, **options: Any) -> gymnasium.Env:
    """Make the environment of an OGBench single-task dataset, for evaluation. Its data is not needed.

    **Arguments:**

    - `name`: as in [`load`][shortcutrl.suites.ogbench.load].
    - `options`: for `gymnasium.make` and OGBench's environment, such as `width` and `height` of rendered images.

    **Returns:** the environment, a `gymnasium.Env`.

    **Raises:** `ValueError` for a `name` that is not supported, with names to use instead, and for bad `options`.
    `OSError` if observations are images and this machine cannot render them.

    !!! Example

        ```python
        from shortcutrl.suites import ogbench

        env = ogbench.make_env("pointmaze-medium-navigate-singletask-v0")
        obs, info = env.reset(seed=0)
        ```
    """
    env_name, _ = split(name)
    sizes = {size: 2**14 for size in ("width", "height") if size in options}
    if options.get("max_episode_steps") is not None:
        sizes["max_episode_steps"] = MAX_COUNT
    options |= {size: as_size(size, options[size], 1, maximum) for size, maximum in sizes.items()}
    mode = options.get("render_mode")
    if mode is not None and not (isinstance(mode, str) and mode in _RENDER_MODES):
        raise ValueError(f"`render_mode` must be one of {', '.join(_RENDER_MODES)}, got {show(mode)}.")
    check_renderer(name, here=True)
    ignore_harmless_warnings()
    try:
        return gymnasium.make(env_name, **options)
    except Exception as error:
        if not options:
            raise
        raise ValueError(
            f"`options` must be arguments of `gymnasium.make` and of the environment, got {options} "
            f"({type(error).__name__}: {str(error).partition(chr(10))[0]})."
        ) from error


def _find(dataset: str, folder: Path, episodes: int | None, seed: int, processes: int | None, progress: bool) -> Path:
    """The file of a dataset, which is downloaded or generated if it is not there yet."""
    episodes = episodes or (RECIPES[dataset].episodes if dataset in RECIPES else 0)
    made = folder / f"{dataset}-{episodes}-episodes-seed-{seed}.npz"
    try:
        shared = Path(utils.DEFAULT_DATASET_DIR).expanduser()
    except RuntimeError:  # no home folder
        shared = folder
    for path in (shared / f"{dataset}.npz", folder / f"{dataset}.npz", made):
        # False also for a folder that may not be entered, where `Path.exists` raises an error.
        if all(map(os.path.exists, (path, path.with_name(f"{path.stem}-val.npz")))):
            return path
    if reachable(url_of(f"{dataset}.npz")):
        return download(dataset, shared if can_write(shared) else make_folder("folder", folder), progress)
    if dataset not in RECIPES:
        raise OSError(
            f"{dataset} cannot be downloaded, because {utils.DATASET_URL} cannot be reached, and it cannot be "
            f"generated. Put {dataset}.npz and {dataset}-val.npz from there into {folder}."
        )
    make_folder("folder", folder)
    return generate(dataset, made, episodes=episodes, seed=seed, processes=processes, progress=progress)


def _read(path: Path, env_name: str, env: Any) -> Dataset:
    """Read a file in OGBench's format and label it with the rewards of the environment's task."""
    obs, info = env.reset()
    columns = {"observations": obs.shape, "actions": env.action_space.shape, "qpos": env.unwrapped.data.qpos.shape}
    columns |= {name: info[name].shape for name in ("button_states",) if name in info}
    arrays = _arrays(path, ["terminals", *columns])
    images = {"observations"} if obs.dtype == np.uint8 else set()
    read = lambda name, array: as_stored(name, array) if name in images else as_float32(name, array, rank=2)
    values = {name: read(name, arrays[name]) for name in columns}
    ends = as_flags("terminals", arrays["terminals"])
    check_rows({**values, "terminals": ends}, "observations")
    for name, shape in columns.items():
        if values[name].shape[1:] != shape:
            raise ValueError(f"`{name}` must have shape (rows, {', '.join(map(str, shape))}), got {values[name].shape}")
    for name in images:
        if values[name].dtype != np.uint8:
            raise ValueError(f"`{name}` must be uint8, got {values[name].dtype}")
    if not ends[-1]:
        raise ValueError(f"`terminals[{len(ends) - 1}]` = 0: the last row must be the end of an episode")
    relabel_dataset(env_name, env, arrays)
    dataset = from_arrays(
        observations=values["observations"],
        actions=values["actions"],
        rewards=arrays["rewards"],
        terminals=np.zeros(len(ends), bool),
        timeouts=ends,
    )
    # A mask of 0 does not end an episode here. The last row is no transition, whether it is at the goal or not.
    return dataset._replace(mask=jnp.asarray(np.where(ends, np.float32(1), arrays["masks"])))


def _arrays(path: Path, names: list[str]) -> dict[str, Any]:
    with path.open("rb") as raw:
        file = np.load(raw)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("it holds one array, not an archive of arrays")
        if missing := [name for name in names if name not in file]:
            raise ValueError(f"it does not hold the array `{missing[0]}`")
        return {name: file[name] for name in names}
