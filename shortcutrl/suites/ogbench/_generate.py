"""Offline datasets made on the spot by OGBench's own scripted oracles, in OGBench's own file format."""

import json
import multiprocessing
import os
import shutil
import threading
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from shortcutrl._processes import SPAWN, cores, interrupts_ignored
from shortcutrl.data._oracles import RECIPES, Behaviour, make_behaviour, record

CAN_GENERATE = tuple(RECIPES)
"""The names of the datasets that [`generate`][shortcutrl.data.generate] can make."""

_worker: dict[str, Behaviour] = {}  # what each worker process keeps between episodes: its simulator and its oracles


def generate(
    dataset: str,
    path: str | os.PathLike[str],
    *,
    episodes: int | None = None,
    episode_steps: int | None = None,
    seed: int = 0,
    processes: int | None = None,
    progress: bool = True,
) -> Path:
    """Make the OGBench dataset `dataset` (such as `"scene-play-v0"`) with OGBench's scripted oracles.

    Follows OGBench's published commands for its manipulation and pointmaze datasets: the same oracles, noise, random
    actions, targets and, in `scene`, the same check that the cube stays within reach. Each episode has its own seed, so
    the same `seed` and `episodes` give the same data for any number of `processes`.

    Writes `path` and, with a tenth as many episodes, the validation set that OGBench expects beside it
    (`<name>-val.npz`). Finished episodes wait in the folder `<name>.parts` until all are there: run again after an
    interruption, it goes on from them. `path` itself is only ever complete. Load it with
    `ogbench.make_env_and_datasets(name, dataset_path=path)`.

    Worker processes are spawned, so a script that calls this needs the `if __name__ == "__main__":` guard.

    **Arguments:**

    - `dataset`: one of `shortcutrl.data.CAN_GENERATE`.
    - `path`: where to write the training set; ends in `.npz`. What is there is replaced.
    - `episodes`: the number of training episodes; by default as many as OGBench publishes, 500 to 5,000.
    - `episode_steps`: steps of each episode; by default OGBench's 1,001 (201 and 2,001 in some mazes).
    - `seed`: a non-negative integer.
    - `processes`: how many worker processes; by default one for each core.
    - `progress`: whether to show a progress bar.

    **Returns:** `path`.

    **Raises:** `ValueError` for an unknown `dataset` or a size below 1; `OSError` if `path` cannot be written, before
    anything is simulated, or if the disk is full, with the finished episodes kept.

    !!! Example

        ```python
        import tempfile
        from pathlib import Path
        from shortcutrl import data

        path = Path(tempfile.mkdtemp()) / "maze.npz"
        data.generate("pointmaze-medium-navigate-v0", path, episodes=1, episode_steps=20, processes=1)
        ```
    """
    path = Path(path)
    if dataset not in CAN_GENERATE:
        raise ValueError(f"`dataset` must be one of {', '.join(CAN_GENERATE)}, got {dataset!r}.")
    if path.suffix != ".npz":
        raise ValueError(f"`path` must end in .npz, got {str(path)!r}.")
    for name, value in {"episodes": episodes, "episode_steps": episode_steps, "processes": processes}.items():
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    if seed < 0:
        raise ValueError(f"`seed` must not be negative, got {seed}.")
    episodes = episodes or RECIPES[dataset].episodes
    episode_steps = episode_steps or RECIPES[dataset].episode_steps
    held_out = max(episodes // 10, 1)

    recipe = {"dataset": dataset, "episode_steps": episode_steps, "seed": seed}
    recipe |= {package: version(package) for package in ("ogbench", "mujoco", "gymnasium", "numpy")}
    folder = _open_parts(path.with_name(f"{path.stem}.parts"), recipe)
    parts = [folder / f"{index}.npz" for index in range(episodes + held_out)]
    _collect(recipe, parts, processes, progress)
    path.unlink(missing_ok=True)  # an older one must not stand beside a new validation set
    _write(path.with_name(f"{path.stem}-val.npz"), parts[episodes:])
    _write(path, parts[:episodes])  # last: its presence says that the pair is complete
    shutil.rmtree(folder)
    return path


def _open_parts(folder: Path, recipe: dict[str, Any]) -> Path:
    """The folder with what an earlier run finished, if it followed the same recipe; else an empty one."""
    label = folder / "recipe.json"
    try:
        same = json.loads(label.read_text()) == recipe
    except (OSError, ValueError):
        same = False
    if not same:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        label.write_text(json.dumps(recipe))
    return folder


def _collect(recipe: dict[str, Any], parts: list[Path], processes: int | None, progress: bool) -> None:
    missing = [index for index, part in enumerate(parts) if not part.exists()]
    if not missing:
        return
    pool = ProcessPoolExecutor(
        min(processes or cores(), len(missing)),
        mp_context=SPAWN,
        initializer=_start_worker,
        initargs=(recipe["dataset"], recipe["episode_steps"]),
    )
    bar = {"total": len(parts), "initial": len(parts) - len(missing), "desc": f"making {recipe['dataset']}"}
    try:
        with interrupts_ignored():
            futures = [pool.submit(_episode, recipe["seed"], index, parts[index]) for index in missing]
        for future in tqdm(as_completed(futures), **bar, unit="episode", disable=not progress):
            future.result()
    except BrokenProcessPool as error:
        raise OSError(
            "a worker process died: for want of memory, then try fewer `processes`; because the script that calls this "
            'has no `if __name__ == "__main__":` guard; or for what is printed above. Finished episodes are kept.'
        ) from error
    except BaseException:
        for process in (pool._processes or {}).values():
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(dataset: str, episode_steps: int) -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:  # a worker of a parent that was killed would wait for ever
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    _worker["behaviour"] = make_behaviour(dataset, episode_steps)


def _episode(seed: int, index: int, part: Path) -> None:
    attempts = np.random.SeedSequence((seed, index))
    while (episode := record(_worker["behaviour"], attempts.spawn(1)[0])) is None:
        pass
    _save(part, np.savez, episode, part.parent)


def _write(path: Path, parts: list[Path]) -> None:
    episodes = []
    for part in parts:
        with np.load(part) as file:
            episodes.append(dict(file))
    arrays = {key: np.concatenate([episode[key] for episode in episodes]) for key in episodes[0]}
    _save(path, np.savez_compressed, arrays, parts[0].parent)


def _save(path: Path, save: Any, arrays: dict[str, np.ndarray], folder: Path) -> None:
    """Whole or not at all; what is left of a killed attempt lies in `folder`, until that is removed."""
    partial = folder / f"{path.name}.{os.getpid()}.tmp"
    try:
        with partial.open("wb") as file:
            save(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
