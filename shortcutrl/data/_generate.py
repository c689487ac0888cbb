"""Offline datasets made on the spot by OGBench's own scripted oracles, in OGBench's own file format."""

import multiprocessing
import os
import signal
import tempfile
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

_SCENES = ("cube-single", "cube-double", "cube-triple", "cube-quadruple", "scene")
_SCENES += ("puzzle-3x3", "puzzle-4x4", "puzzle-4x5", "puzzle-4x6")
CAN_GENERATE = tuple(f"{scene}-play-v0" for scene in _SCENES)

# How often a cube is stacked on another, drawn once an episode from this range.
_STACKING = {"single": (0.0, 0.0), "double": (0.0, 0.25), "triple": (0.05, 0.35), "quadruple": (0.1, 0.5)}

_worker: dict[str, Any] = {}  # what each worker process keeps between episodes: its simulator and its oracles


def generate(
    dataset: str,
    path: str | os.PathLike[str],
    *,
    episodes: int = 1000,
    episode_steps: int = 1001,
    seed: int = 0,
    processes: int | None = None,
    progress: bool = True,
) -> Path:
    """Make the OGBench dataset `dataset` (such as `"scene-play-v0"`) with OGBench's scripted oracles.

    Follows OGBench's published recipe for its `play` datasets: plan oracles with temporally correlated noise (scale
    0.1, smoothing 0.5), a new random target whenever the current one is reached and, in `scene`, only episodes in
    which the cube stays within reach. Each episode has its own seed, so the same `seed` and `episodes` give the same
    data for any number of `processes`.

    Writes `path` and, with a tenth as many episodes, the validation set that OGBench expects beside it
    (`<name>-val.npz`). Either both files are complete or `path` does not exist: an interrupted run leaves nothing that
    could be taken for a dataset. Load them with `ogbench.make_env_and_datasets(name, dataset_path=path)`.

    Worker processes are spawned, so a script that calls this needs the `if __name__ == "__main__":` guard.

    **Arguments:**

    - `dataset`: one of `shortcutrl.data.CAN_GENERATE`.
    - `path`: where to write the training set; ends in `.npz`.
    - `episodes`: the number of training episodes.
    - `episode_steps`: steps of each episode; OGBench's own datasets have 1,001.
    - `seed`: a non-negative integer.
    - `processes`: how many worker processes; by default one for each core.
    - `progress`: whether to show a progress bar.

    **Returns:** `path`.

    **Raises:** `ValueError` for an unknown `dataset` or a size below 1; `OSError` if `path` cannot be written, before
    anything is simulated.
    """
    path = Path(path)
    if dataset not in CAN_GENERATE:
        raise ValueError(f"`dataset` must be one of {', '.join(CAN_GENERATE)}, got {dataset!r}.")
    if path.suffix != ".npz":
        raise ValueError(f"`path` must end in .npz, got {str(path)!r}.")
    for name, value in {"episodes": episodes, "episode_steps": episode_steps, "processes": processes}.items():
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent):
        pass  # an unwritable folder is found out now, not after the simulation

    held_out = max(episodes // 10, 1)
    collected = _collect(dataset, episode_steps, seed, episodes + held_out, processes, progress)
    path.unlink(missing_ok=True)  # an older one must not stand beside a new validation set
    _write(path.with_name(f"{path.stem}-val.npz"), collected[episodes:])
    _write(path, collected[:episodes])  # last: its presence says that the pair is complete
    return path


def _collect(
    dataset: str, episode_steps: int, seed: int, count: int, processes: int | None, progress: bool
) -> list[dict[str, np.ndarray]]:
    collected: list[dict[str, np.ndarray] | None] = [None] * count
    pool = ProcessPoolExecutor(
        min(processes or _cores(), count),
        mp_context=multiprocessing.get_context("spawn"),  # forking a process in which JAX runs threads can deadlock
        initializer=_start_worker,
        initargs=(dataset, episode_steps),
    )
    try:
        futures = {pool.submit(_episode, (seed, index)): index for index in range(count)}
        with tqdm(total=count, desc=f"making {dataset}", unit="episode", disable=not progress) as bar:
            for future in as_completed(futures):
                collected[futures[future]] = future.result()
                bar.update()
    except BrokenProcessPool as error:
        raise OSError("a worker process died, perhaps for want of memory; try fewer `processes`.") from error
    except BaseException:
        for process in (pool._processes or {}).values():
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    return collected  # pyright: ignore[reportReturnType]


def _cores() -> int:
    """The cores that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _write(path: Path, episodes: list[dict[str, np.ndarray]]) -> None:
    arrays: dict[str, Any] = {key: np.concatenate([episode[key] for episode in episodes]) for key in episodes[0]}
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with partial.open("wb") as file:
            np.savez_compressed(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _start_worker(dataset: str, episode_steps: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides; a worker's traceback helps nobody
    import gymnasium
    import ogbench.manipspace  # noqa: F401  (registers the environments)
    from ogbench.manipspace.oracles.plan.button_plan import ButtonPlanOracle
    from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle
    from ogbench.manipspace.oracles.plan.drawer_plan import DrawerPlanOracle
    from ogbench.manipspace.oracles.plan.window_plan import WindowPlanOracle

    warnings.filterwarnings("ignore", message=".*precision lowered by casting.*")  # of OGBench's action space
    name = dataset.removesuffix("-play-v0")
    env = gymnasium.make(f"{name}-v0", terminate_at_goal=False, mode="data_collection", max_episode_steps=episode_steps)
    noise: dict[str, Any] = {"env": env, "noise": 0.1, "noise_smoothing": 0.5}
    if name.startswith("puzzle"):
        oracles = {"button": ButtonPlanOracle(gripper_always_closed=True, **noise)}
    else:
        oracles = {"cube": CubePlanOracle(**noise)}
    if name == "scene":
        oracles |= {
            "button": ButtonPlanOracle(**noise),
            "drawer": DrawerPlanOracle(**noise),
            "window": WindowPlanOracle(**noise),
        }
    _worker.update(name=name, env=env, oracles=oracles)


def _episode(seed: tuple[int, int]) -> dict[str, np.ndarray]:
    attempts = np.random.SeedSequence(seed)
    while True:
        if (episode := _attempt(attempts.spawn(1)[0])) is not None:
            return episode


def _attempt(sequence: np.random.SeedSequence) -> dict[str, np.ndarray] | None:
    name, env, oracles = _worker["name"], _worker["env"], _worker["oracles"]
    env_seed, oracle_seed = (int(s) for s in sequence.generate_state(2))
    np.random.seed(oracle_seed)  # noqa: NPY002  (OGBench's oracles draw from NumPy's global generator)
    obs, info = env.reset(seed=env_seed)
    p_stack = np.random.default_rng(oracle_seed).uniform(*_STACKING.get(name.removeprefix("cube-"), (0.5, 0.5)))
    oracle = oracles[info["privileged/target_task"]]
    oracle.reset(obs, info)

    steps, done = [], False
    while not done:
        action = np.clip(np.asarray(oracle.select_action(obs, info)), -1, 1)
        next_obs, _, terminated, truncated, info = env.step(action)
        done = terminated or truncated
        if oracle.done:
            target_obs, target_info = env.unwrapped.set_new_target(p_stack=p_stack)
            oracle = oracles[target_info["privileged/target_task"]]
            oracle.reset(target_obs, target_info)
        step = {
            "observations": np.float32(obs),
            "actions": np.float32(action),
            "terminals": np.bool_(done),
            "qpos": np.float32(info["prev_qpos"]),
            "qvel": np.float32(info["prev_qvel"]),
        }
        if "prev_button_states" in info:
            step["button_states"] = np.int64(info["prev_button_states"])
        if name == "scene" and _cube_out_of_reach(info["prev_qpos"]):
            return None
        steps.append(step)
        obs = next_obs
    return {key: np.stack([step[key] for step in steps]) for key in steps[0]}


def _cube_out_of_reach(qpos: np.ndarray) -> bool:
    """OGBench's health check for `scene`: too far right, or too far left without being in the drawer."""
    y, z = qpos[15:17]
    return bool(y >= 0.29 or (y <= -0.3 and not 0.06 <= z <= 0.08))
