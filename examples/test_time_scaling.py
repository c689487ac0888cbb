"""Success against the number of jumps, for runs of `sorl.py` that were optimised through 1, 2, 4 or 8 of them.

Sequential scaling: more jumps. Parallel scaling: the best of more candidates. Extrapolation: more jumps than the policy
was optimised through. Cells that are done are kept: the same command goes on.
"""

import csv
import math
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Annotated

import equinox as eqx
import jax
import matplotlib
import numpy as np
import tyro
from PIL import Image
from scipy.stats import binomtest
from sorl import actor, load
from tqdm import tqdm

from shortcutrl import data
from shortcutrl.evaluate import EnvPool, evaluate, record

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

COLUMNS = ["run", "seed", "max_jumps", "k", "n", "episodes", "successes", "milliseconds"]


def milliseconds_per_action(policy, obs) -> float:
    """For one observation; the median of many calls."""
    arrays, static = eqx.partition(policy, eqx.is_array)
    decide = jax.jit(lambda arrays, obs, key: eqx.combine(arrays, static)(obs, key=key))
    key, took = jax.random.key(0), []
    for _ in range(200):
        start = time.perf_counter()
        jax.block_until_ready(decide(arrays, obs, key))
        took.append(time.perf_counter() - start)
    return 1e3 * float(np.median(took))


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of the table that are whole."""
    rows = list(csv.DictReader(path.open())) if path.exists() else []
    return [row for row in rows if row["milliseconds"]]


def measure(runs: list[Path], jumps: list[int], candidates: list[int], episodes: int, path: Path) -> list[dict]:
    cells = {(str(run), str(k), str(n), str(episodes)) for run in runs for k in jumps for n in candidates}
    done = {(row["run"], row["k"], row["n"], row["episodes"]) for row in rows_of(path)}
    loaded = {str(run): load(run) for run in runs}
    names = {args.env for args, _ in loaded.values()}
    if len(names) > 1:
        raise ValueError(f"`runs` must be of one environment, got {', '.join(sorted(names))}.")
    (name,) = names
    if missing := sorted(cells - done, key=lambda cell: (cell[0], int(cell[1]), int(cell[2]))):
        env = data.make_env(name)
        obs, _ = env.reset(seed=0)
        (action_size,) = env.action_space.shape or (0,)
        if not path.exists():
            path.write_text(",".join(COLUMNS) + "\n")
        elif not path.read_text().endswith("\n"):  # a row was cut off
            path.write_text(path.read_text() + "\n")
        with EnvPool(lambda: data.make_env(name)) as pool, path.open("a") as file:
            for run, k, n, _ in tqdm(missing, unit="cell"):
                args, state = loaded[run]
                policy = actor(args, state, k=int(k), n=int(n), action_size=action_size)
                successes = int(evaluate(policy, pool, episodes=episodes).success.sum())
                cost = round(milliseconds_per_action(policy, obs), 3)
                csv.writer(file).writerow([run, args.seed, args.max_jumps, k, n, episodes, successes, cost])
                file.flush()
    return [row for row in rows_of(path) if (row["run"], row["k"], row["n"], row["episodes"]) in cells]


def draw(rows: list[dict]) -> Figure:
    cells: dict[tuple[int, ...], tuple[int, ...]] = defaultdict(lambda: (0, 0))
    cost: dict[tuple[int, int], list[float]] = defaultdict(list)
    for row in rows:
        max_jumps, k, n, successes, episodes = (int(row[x]) for x in ("max_jumps", "k", "n", "successes", "episodes"))
        before = cells[max_jumps, k, n]
        cells[max_jumps, k, n] = before[0] + successes, before[1] + episodes  # over the seeds
        cost[k, n].append(float(row["milliseconds"]))
    jumps, candidates = sorted({k for k, _ in cost}), sorted({n for _, n in cost})
    height = math.ceil((len(candidates) + 2) / 3)  # and panels for the cost and the legend
    figure, panels = plt.subplots(height, 3, figsize=(9, 3 * height), layout="constrained", squeeze=False)
    axes, (price, key, *empty) = np.split(panels.flatten(), [len(candidates)])
    for n, axis in zip(candidates, axes, strict=True):
        for max_jumps in sorted({m for m, _, _ in cells}):
            counts = [cells[max_jumps, k, n] for k in jumps]
            rate = np.array([successes / episodes for successes, episodes in counts])
            bounds = [binomtest(count[0], count[1]).proportion_ci(method="wilson") for count in counts]
            low, high = np.transpose([(b.low, b.high) for b in bounds])
            x = np.array(jumps) * 1.04 ** np.log2(max_jumps)  # side by side
            lines = axis.errorbar(x, rate, [np.maximum(rate - low, 0), np.maximum(high - rate, 0)], capsize=2, lw=1)
            color = lines[0].get_color()
            trained = np.array(jumps) <= max_jumps
            axis.scatter(x[trained], rate[trained], color=color, label=f"M_BTT = {max_jumps}", zorder=3)
            axis.scatter(x[~trained], rate[~trained], color="white", edgecolor=color, zorder=3)
        axis.set(title=f"best of {n}", xlabel="jumps k", ylabel="success", ylim=(-0.03, 1.03))
    key.legend(*axes[0].get_legend_handles_labels(), loc="center left", title="hollow: k > M_BTT")
    for n in candidates:
        price.plot(jumps, [np.median(cost[k, n]) for k in jumps], "o-", label=f"n = {n}")
    price.set(title="cost", xlabel="jumps k", ylabel="milliseconds per action")
    price.legend(loc="upper left", fontsize="small")
    for axis in [*axes, price]:
        axis.set_xscale("log", base=2)
        axis.set_xticks(jumps, jumps)
    for axis in [key, *empty]:
        axis.set_axis_off()
    return figure


def film(run: Path, jumps: tuple[int, int], n: int, path: Path, every: int = 8) -> None:
    """The same start, played with few jumps (left) and with many (right)."""
    args, state = load(run)
    env = data.make_env(args.env, width=200, height=200)
    (action_size,) = env.action_space.shape or (0,)
    films = [record(actor(args, state, k=k, n=n, action_size=action_size), env, every=every)[0] for k in jumps]
    length = max(map(len, films))  # the shorter one waits
    padded = [np.concatenate([f, np.repeat(f[-1:], length - len(f), axis=0)]) for f in films]
    first, *rest = [Image.fromarray(picture).quantize(32) for picture in np.concatenate(padded, axis=2)]
    first.save(path, save_all=True, append_images=rest, duration=80, loop=0)


def main(
    runs: Annotated[list[Path], tyro.conf.Positional],  # folders of `sorl.py`, all of one environment
    out: Path = Path("runs/scaling"),  # the folder for the table (CSV), the picture and the film
    jumps: tuple[int, ...] = (1, 2, 4, 8),
    candidates: tuple[int, ...] = (1, 4, 8, 32),
    episodes: int = 50,  # for each cell
    film_run: Path | None = None,  # to film with 1 and with 8 jumps; without a display, set MUJOCO_GL to egl or osmesa
) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        rows = measure(runs, list(jumps), list(candidates), episodes, out / "test_time_scaling.csv")
        draw(rows).savefig(out / "test_time_scaling.png", dpi=110)
        if film_run is not None:
            film(film_run, (1, 8), 1, out / "one_and_eight_jumps.gif")
    except (ValueError, OSError) as error:
        sys.exit(f"test_time_scaling.py: {error}")
    except KeyboardInterrupt:
        sys.exit("test_time_scaling.py: interrupted; the same command goes on from what is done")
    print(f"table, picture and film: {out}")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
