"""Generate datasets locally by OGBench's scripted oracles, in OGBench's own file format."""

import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from shortcutrl._checks import as_size
from shortcutrl._files import as_path
from shortcutrl._processes import SPAWN, check_main_guard, cores, interrupts_ignored
from shortcutrl._typed import typed
from shortcutrl._types import Integer
from shortcutrl.suites.ogbench._arguments import MAX_COUNT, MAX_SEED, make_folder
from shortcutrl.suites.ogbench._names import either, quote, similar
from shortcutrl.suites.ogbench._oracles import RECIPES, Behaviour, make_behaviour, record
from shortcutrl.suites.ogbench._renderer import check_renderer
from shortcutrl.suites.ogbench._store import is_complete, locked, open_parts, remove_parts, save_as, write

CAN_GENERATE = tuple(RECIPES)
"""The names of the datasets that [`generate`][shortcutrl.suites.ogbench.generate] can generate."""

MAX_ATTEMPTS = 100
"""Attempts at one episode. More fail only if `episode_steps` is too large for the cube to stay within reach."""

_worker: dict[str, Behaviour] = {}  # what each worker process keeps between episodes: its simulator and its oracles


@typed
def generate(
    dataset: str,
    path: str | os.PathLike[str],
    *,
    episodes: Integer | None = None,
    episode_steps: Integer | None = None,
    seed: Integer = 0,
    processes: Integer | None = None,
    progress: bool = True,
) -> Path:
    """Generate an OGBench dataset, such as `"scene-play-v0"`, by OGBench's scripted oracles.

    Follows the commands that OGBench publishes for its manipulation and pointmaze datasets: the same oracles, noise,
    random actions and targets. Each episode has its own seed, so the data does not depend on `processes`. A dataset
    with images, such as `"visual-scene-play-v0"`, holds the transitions that the one without them has, rendered.

    Writes four files: `path`; the validation set that OGBench expects, `<name>-val.npz`, with a tenth as many episodes;
    the recipe, `<name>.recipe.json`; and a lock. `path` is written last, so if it exists it is complete.

    - **Called again:** a complete dataset of the same recipe is kept. Another dataset at `path` is never replaced.
    - **Interrupted:** finished episodes are kept in the folder `<name>.parts`. The same call resumes.
    - **Called by several processes:** one generates, and the others wait for it.

    Worker processes import the calling script, so it needs the guard `if __name__ == "__main__":`.

    **Arguments:**

    - `dataset`: one of `shortcutrl.suites.ogbench.CAN_GENERATE`.
    - `path`: where to write the training set; ends in `.npz`.
    - `episodes`: the number of training episodes, 1 to 1,000,000. By default OGBench's, 500 to 5,000.
    - `episode_steps`: the rows of each episode, 2 to 1,000,000. By default OGBench's, 201 to 2,001.
    - `seed`: an integer in [0, 2^64).
    - `processes`: the number of worker processes, at most one for each core. By default one for each core.
    - `progress`: whether to show a progress bar.

    **Returns:** `path`. [`load`][shortcutrl.suites.ogbench.load] and `ogbench.make_env_and_datasets(name,
    dataset_path=path)` read this format.

    **Raises:** `TypeError` or `ValueError` for bad arguments. `FileExistsError` if another dataset or unfinished
    episodes of another recipe are there. `OSError` if the folder of `path` cannot be written, or if a dataset has
    images and this machine cannot render. These errors come before
    the simulation starts and change no file. Later, `OSError` if the disk is full or a worker process died.

    !!! Example

        ```python
        import tempfile
        from pathlib import Path
        from shortcutrl.suites import ogbench

        path = Path(tempfile.mkdtemp()) / "maze.npz"
        ogbench.generate("pointmaze-medium-navigate-v0", path, episodes=1, episode_steps=20)
        ```

    Source: OGBench ([arXiv 2410.20092](https://arxiv.org/abs/2410.20092)).
    """
    if dataset not in RECIPES:
        close = similar(dataset.lower().replace("-singletask", ""), RECIPES)
        raise ValueError(
            f"`dataset` must be a name in `CAN_GENERATE`, got {quote(dataset)}. "
            f"{f'Use {either(close)}.' if close else 'Others can only be downloaded.'}"
        )
    path = as_path("path", path)
    if path.suffix != ".npz":
        raise ValueError(f"`path` must end in .npz, got {quote(str(path))}.")
    published = RECIPES[dataset]
    episodes = as_size("episodes", published.episodes if episodes is None else episodes, 1, MAX_COUNT)
    steps = as_size("episode_steps", published.episode_steps if episode_steps is None else episode_steps, 2, MAX_COUNT)
    seed = as_size("seed", seed, 0, MAX_SEED)
    processes = min(cores(), cores() if processes is None else as_size("processes", processes))
    check_main_guard()
    check_renderer(dataset, here=False)  # worker processes render
    make_folder("path", path.parent)

    recipe = {"dataset": str(dataset), "episode_steps": steps, "seed": seed}
    recipe |= {package: version(package) for package in ("ogbench", "mujoco", "gymnasium", "numpy")}
    folder = path.with_name(f"{path.stem}.parts")
    with locked(path, progress):
        if not is_complete(path, recipe | {"episodes": episodes}):
            open_parts(folder, recipe)
            parts = [folder / f"{index}.npz" for index in range(episodes + max(episodes // 10, 1))]
            _collect(recipe, parts, processes, progress)
            write(path, recipe | {"episodes": episodes}, parts[:episodes], parts[episodes:])
        remove_parts(folder, recipe)
    return path


def _collect(recipe: dict[str, Any], parts: list[Path], processes: int, progress: bool) -> None:
    """Simulate the episodes that are missing."""
    missing = [index for index, part in enumerate(parts) if not part.exists()]
    if not missing:
        return
    pool = ProcessPoolExecutor(
        min(processes, len(missing)),
        mp_context=SPAWN,
        initializer=_start_worker,
        initargs=(recipe["dataset"], recipe["episode_steps"]),
    )
    bar = {"total": len(parts), "initial": len(parts) - len(missing), "desc": f"generating {recipe['dataset']}"}
    try:
        with interrupts_ignored():
            futures = [pool.submit(_episode, recipe["seed"], index, parts[index]) for index in missing]
        for future in tqdm(as_completed(futures), **bar, unit="episode", disable=not progress):
            future.result()
    except BrokenProcessPool as error:
        raise OSError(
            "a worker process died. See its own message above. If there is none, memory ran out: pass fewer "
            '`processes`. A script without the guard `if __name__ == "__main__":` also causes it. Finished episodes '
            "are kept: call again to resume."
        ) from error
    except BaseException:
        for process in (pool._processes or {}).values():
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(dataset: str, episode_steps: int) -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:  # or a worker whose parent was killed would wait forever
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    _worker["behaviour"] = make_behaviour(dataset, episode_steps)


def _episode(seed: int, index: int, part: Path) -> None:
    attempts = np.random.SeedSequence((seed, index))
    for _ in range(MAX_ATTEMPTS):
        if (episode := record(_worker["behaviour"], attempts.spawn(1)[0])) is not None:
            return save_as(part, np.savez, episode, part.parent)
    raise ValueError(
        f"`episode_steps` is too large: the cube left the robot's reach in each of {MAX_ATTEMPTS} attempts at episode "
        f"{index}. Pass fewer."
    )
