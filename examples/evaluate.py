"""Evaluate finished runs of sorl.py again, with any numbers of jumps and candidates, and append to their tables.

    python examples/evaluate.py runs/sorl --k 4 --n 8 --episodes 100

It also measures the time of one action. It does not repeat combinations of k and n that it evaluated before.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from PIL import Image
from tqdm import tqdm

from shortcutrl import Transition, sorl
from shortcutrl.evaluate import EnvPool, Evaluation, evaluate, keyed, record
from shortcutrl.runs import append_row, load_checkpoint, load_settings, read_rows
from shortcutrl.suites import ogbench


def load(run: Path) -> tuple[dict[str, Any], Callable[[int, int], Any]]:
    """The settings of a run of sorl.py, and a function of k and n that returns its policy."""
    settings = load_settings(run)
    if not {"config", "seed"} <= settings.keys():
        raise ValueError(f"{run} holds no run of sorl.py.")
    config = sorl.Config(**settings["config"])
    obs, action = jnp.zeros(settings["obs_size"]), jnp.zeros(settings["action_size"])
    networks = sorl.networks(
        Transition(obs, action, 0.0, 1.0, obs),  # pyright: ignore[reportArgumentType]
        width=settings["width"],
        depth=settings["depth"],
        condition_critic_on_k=config.condition_critic_on_k,
        key=jax.random.key(0),
    )
    state = load_checkpoint(run, sorl.init(networks, config=config, optimizers=None))

    def policy(k: int, n: int) -> Any:
        options: dict[str, Any] = {"config": config, "k": k, "n": n}
        return keyed(sorl.actor(state, **options), sorl.noise_shape(*action.shape, **options))

    return settings, policy


def milliseconds_per_action(policy: Any, obs: np.ndarray) -> float:
    """For one observation; the median of many calls."""
    decide, key, took = eqx.filter_jit(policy), jax.random.key(0), []
    for _ in range(200):
        start = time.perf_counter()
        jax.block_until_ready(decide(obs, key=key))
        took.append(1e3 * (time.perf_counter() - start))
    return round(float(np.median(took)), 3)


def make_film(policies: list[Any], env: str, path: Path, every: int = 8) -> None:
    """One episode of each policy from the same start, side by side."""
    films = [record(policy, ogbench.make_env(env, width=200, height=200), every=every)[0] for policy in policies]
    length = max(map(len, films))  # the shorter ones wait at their end
    padded = [np.concatenate([each, np.repeat(each[-1:], length - len(each), axis=0)]) for each in films]
    first, *rest = [Image.fromarray(picture).quantize(32) for picture in np.concatenate(padded, axis=2)]
    first.save(path, save_all=True, append_images=rest, duration=80, loop=0)


def main(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional],  # folders of runs of sorl.py, all of one environment
    k: tuple[int, ...] = (1, 2, 4, 8),  # numbers of jumps
    n: tuple[int, ...] = (1,),  # numbers of candidates
    episodes: int = 50,  # episodes for each k and n
    processes: int | None = None,  # processes for the environments; by default two for each core
    film: Path | None = None,  # a GIF of the first run, one episode for each k; see MUJOCO_GL without a display
) -> None:
    loaded = {run: load(run) for run in runs}
    names = {settings["env"] for settings, _ in loaded.values()}
    if len(names) != 1 or min(*k, *n, episodes) < 1:
        raise ValueError(f"`runs` must be of one environment, and all numbers at least 1, got {names}, {k}, {n}.")
    (env,) = names
    cells = [(run, each_k, each_n) for run in runs for each_n in n for each_k in k]

    def measured() -> dict[tuple[Path, int, int], dict[str, Any]]:
        rows = [(run, row) for run in runs for row in read_rows(run, "table") if "milliseconds" in row]
        return {(run, row["k"], row["n"]): row for run, row in rows if row["episodes"] == episodes}

    if missing := [cell for cell in cells if cell not in measured()]:
        obs, _ = ogbench.make_env(env).reset(seed=0)
        with EnvPool(partial(ogbench.make_env, env), processes=processes) as pool:
            for run, each_k, each_n in tqdm(missing, unit="cell"):
                policy = loaded[run][1](each_k, each_n)
                result = evaluate(policy, pool, episodes=episodes)
                row = {"k": each_k, "n": each_n, "episodes": episodes, **result._asdict()}
                append_row(run, "table", row | {"milliseconds": milliseconds_per_action(policy, obs)})
    table = measured()
    print("success (95% interval), time of one action")
    for run, each_k, each_n in cells:
        row = table[run, each_k, each_n]
        result = Evaluation(*(np.array(row[name]) for name in Evaluation._fields))
        low, high = result.success_interval()
        said = f"{result.success_rate:.2f} ({low:.2f} to {high:.2f}), {row['milliseconds']:.2f} ms"
        print(f"{run}: k = {each_k}, n = {each_n}: {said}")
    if film is not None:
        make_film([loaded[runs[0]][1](each_k, n[0]) for each_k in k], env, film)


if __name__ == "__main__":
    try:
        tyro.cli(main, description=__doc__)
    except (ValueError, OSError) as error:
        sys.exit(f"evaluate.py: {error}")
    except KeyboardInterrupt:
        sys.exit("evaluate.py: interrupted; the same command resumes")
