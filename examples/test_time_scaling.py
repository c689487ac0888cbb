"""Combine the tables of several runs into one, and draw success against the number of jumps and the time of an action.

    python examples/evaluate.py runs/M?-s? --k 1 2 4 8 --n 1 4 8
    python examples/test_time_scaling.py runs/M?-s?

Runs with the same `max_jumps` count as seeds of one line. Sequential scaling means more jumps, and parallel scaling the
best of more candidates. Sequential extrapolation means more jumps than Q was maximised through; its points are hollow.
"""

import csv
import sys
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import matplotlib
import numpy as np
import tyro
from scipy.stats import sem, t

from shortcutrl.runs import load_settings, read_rows

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

COLUMNS = ["run", "seed", "max_jumps", "k", "n", "episodes", "successes", "milliseconds"]


def combine(runs: list[Path]) -> list[dict[str, Any]]:
    """One row for each run, k and n that evaluate.py measured: that of the most episodes."""
    table, names = {}, set()
    for run in runs:
        settings = load_settings(run)
        rows = [row for row in read_rows(run, "table") if "milliseconds" in row]
        if not {"config", "seed"} <= settings.keys() or not rows:
            raise ValueError(f"{run} has no table of evaluate.py: run evaluate.py {run} first.")
        names.add(settings["env"])
        about = {"run": run, "seed": settings["seed"], "max_jumps": settings["config"]["max_jumps"]}
        for row in sorted(rows, key=lambda row: row["episodes"]):
            table[run, row["k"], row["n"]] = {**about, **row, "successes": sum(row["success"])}
    if len(names) > 1:
        raise ValueError(f"`runs` must be of one environment, got {', '.join(sorted(names))}.")
    return [{name: row[name] for name in COLUMNS} for row in table.values()]


def over_seeds(rows: list[dict[str, Any]]) -> dict[tuple[int, int, int], tuple[float, float, float, float]]:
    """By candidates, `max_jumps` and jumps: the mean success, its 95% t interval, and the median time of an action.

    The interval is over seeds, because they differ more than episodes do. One seed has none (NaN).
    """
    cells = defaultdict(list)
    for row in rows:
        cells[row["n"], row["max_jumps"], row["k"]].append(row)
    found = {}
    for cell, seeds in sorted(cells.items()):
        rates = np.array([row["successes"] / row["episodes"] for row in seeds])
        half = t.ppf(0.975, len(rates) - 1) * sem(rates) if len(rates) > 1 else np.nan
        ends = np.clip([rates.mean() - half, rates.mean() + half], 0, 1)
        found[cell] = rates.mean(), *ends, np.median([row["milliseconds"] for row in seeds])
    return found


def candidates(n: int) -> str:
    return f"best of {n}" if n > 1 else "one candidate"


def draw(rows: list[dict[str, Any]]) -> Figure:
    """Two panels for each number of candidates: against the jumps, and against the time of an action."""
    cells = over_seeds(rows)
    ns, jumps = sorted({n for n, _, _ in cells}), sorted({k for _, _, k in cells})
    figure, axes = plt.subplots(len(ns), 2, figsize=(6, 2.5 * len(ns)), layout="constrained", squeeze=False)
    for n, (by_k, by_time) in zip(ns, axes, strict=True):
        for line, max_jumps in enumerate(sorted({m for each, m, _ in cells if each == n})):
            ks = [k for k in jumps if (n, max_jumps, k) in cells]
            rate, low, high, times = np.transpose([cells[n, max_jumps, k] for k in ks])
            trained = np.array(ks) <= max_jumps
            for axis, x in ((by_k, np.array(ks) * 1.04**line), (by_time, times)):  # k: side by side
                color = axis.errorbar(x, rate, [rate - low, high - rate], capsize=2, lw=1)[0].get_color()
                axis.scatter(x[trained], rate[trained], color=color, label=f"M_BTT = {max_jumps}", zorder=3)
                axis.scatter(x[~trained], rate[~trained], color="none", edgecolor=color, zorder=3)
        by_k.set(title=candidates(n), xlabel="jumps k", xscale="log")
        by_k.set_xticks(jumps, jumps)
        by_k.minorticks_off()
        by_time.set(
            xlabel="milliseconds per action", xlim=(0, 1.05 * max(cells[cell][-1] for cell in cells if cell[0] == n))
        )
        by_time.locator_params(axis="x", nbins=4)
        for axis in (by_k, by_time):
            axis.set(ylabel="success", ylim=(-0.03, 1.03))
    handles, labels = axes[0, 0].get_legend_handles_labels()
    if len(labels) > 1:
        title = "hollow: k > M_BTT = max_jumps"
        figure.legend(handles, labels, loc="outside upper center", ncols=4, columnspacing=1, title=title)
    return figure


def main(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional],  # folders of runs of sorl.py with tables of evaluate.py
    out: Path = Path("runs/scaling"),  # the folder for the table (CSV) and the picture
) -> None:
    rows = combine(list(runs))
    out.mkdir(parents=True, exist_ok=True)
    with (out / "test_time_scaling.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    draw(rows).savefig(out / "test_time_scaling.png")
    print("mean success (95% t interval over seeds), median time of one action")
    for (n, max_jumps, k), (rate, low, high, time) in over_seeds(rows).items():
        interval = "" if np.isnan(low) else f" ({low:.2f} to {high:.2f})"
        print(f"max_jumps = {max_jumps}, {candidates(n)}, k = {k}: {rate:.2f}{interval}, {time:.2f} ms")
    print(f"table and picture: {out}")


if __name__ == "__main__":
    try:
        tyro.cli(main, description=__doc__)
    except (ValueError, OSError) as error:
        sys.exit(f"test_time_scaling.py: {error}")
