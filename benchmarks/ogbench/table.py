"""Tables and figures of the agents that run.py trained: means, interquartile means, intervals, and comparisons.

    python benchmarks/ogbench/table.py results/agents*.jsonl --out results

Several files are combined. Intervals are stratified bootstraps over seeds within each task, as recommended by
Agarwal and others (arXiv 2108.13264). Success is in percent; higher is better.
"""

import csv
import json
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import matplotlib
import numpy as np
import tyro
from published import RESULTS
from scipy.stats import trim_mean

matplotlib.use("Agg")
from matplotlib import pyplot as plt

Scores = dict[str, dict[str, np.ndarray]]
"""Success in percent by method, task and seed."""

SETTINGS = (
    *("config", "act", "updates", "batch_size", "width", "depth", "n_step", "chunk", "learning_rate"),
    *("file", "sha256"),
)
"""What all agents of a method on a task must share; the last is that of the dataset."""


@dataclass(frozen=True)
class Args:
    files: Annotated[tuple[Path, ...], tyro.conf.Positional]  # of JSON lines, written by run.py
    out: Path = Path("results")  # where table.md, table.csv and table.png are written
    resamples: int = 2000  # of the bootstrap


def read(files: tuple[Path, ...]) -> Scores:
    """The last line of each agent, by method (with its changed settings), task and seed."""
    agents: dict[tuple[str, str, int], tuple[float, str, dict[str, Any]]] = {}  # with the line and its place
    for file in files:
        for number, line in enumerate(file.read_text().splitlines(), 1):
            try:
                row = json.loads(line)
                score = 100 * float(np.mean(row["success"]))
                agents[row["method"], row["task"], row["seed"]] = score, f"{file}:{number}", row
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{file}:{number} is not a line of run.py ({type(error).__name__}: {error})."
                ) from error
    shared: dict[tuple[str, str, str], Any] = {}  # by method, task and setting
    for (method, task, _), (_, place, row) in agents.items():
        for name in SETTINGS:
            if name in row and row[name] != shared.setdefault((method, task, name), row[name]):
                raise ValueError(
                    f"{place} has another {name} than other lines of {method} on {task}. Run it with another --label, "
                    "or give the files to different tables."
                )
    scores: Scores = defaultdict(dict)
    for method, task, _ in agents:
        values = [agents[key][0] for key in sorted(agents) if key[:2] == (method, task)]
        scores[method][task] = np.array(values)
    if not scores:
        raise ValueError(f"no finished agent in {', '.join(map(str, files))}: run run.py first.")
    return dict(scores)


def iqm(scores: np.ndarray) -> float:
    """The mean of the middle half: robust against outliers, and efficient with few runs."""
    return float(trim_mean(np.ravel(scores), 0.25))


def interval(
    tasks: list[np.ndarray], statistic: Callable[[np.ndarray], float], resamples: int, confidence: float = 0.95
) -> tuple[float, float]:
    """The percentile bootstrap of a statistic of all runs, which resamples the seeds within each task.

    NaN if a task has only one seed, because resampling it does not vary.
    """
    if min(map(len, tasks)) < 2:
        return float("nan"), float("nan")
    rng = np.random.default_rng(0)
    draws = [statistic(np.concatenate([rng.choice(task, len(task)) for task in tasks])) for _ in range(resamples)]
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def probability_of_improvement(x: dict[str, np.ndarray], y: dict[str, np.ndarray]) -> float:
    """How likely a run of x succeeds more often than a run of y on the same task; ties count half. NaN without one."""
    shared = [np.sign(x[task][:, None] - y[task][None]) for task in x if task in y]
    return float(np.mean([(1 + sign).mean() / 2 for sign in shared])) if shared else float("nan")


def over_all(scores: Scores) -> dict[str, list[np.ndarray]]:
    """What compares methods: the tasks that every method has, with equally many seeds of each. Empty without a task."""
    tasks = [task for task in tasks_of(scores) if all(task in scores[method] for method in scores)]
    least = {method: min((len(by_task[task]) for task in tasks), default=0) for method, by_task in scores.items()}
    return {method: [scores[method][task][: least[method]] for task in tasks] for method in scores} if tasks else {}


def rows(scores: Scores, resamples: int) -> list[dict[str, Any]]:
    """One row for each method and task, and one for each method over all that `over_all` compares."""
    table, compared = [], over_all(scores)
    for method, by_task in scores.items():
        groups = {task: [by_task[task]] for task in tasks_of(scores) if task in by_task}
        if method in compared:
            groups["all"] = compared[method]
        for task, values in groups.items():
            low, high = interval(values, np.mean, resamples)
            middle_low, middle_high = interval(values, iqm, resamples)
            table.append(
                {"method": method, "task": task, "runs": sum(map(len, values))}
                | {"mean": float(np.mean(np.concatenate(values))), "low": low, "high": high}
                | {"iqm": iqm(np.concatenate(values)), "iqm_low": middle_low, "iqm_high": middle_high}
                | {"published": published(method, task)}
            )
    return table


def published(method: str, task: str) -> float | None:
    """The published mean of the five tasks of the task's environment, where there is one."""
    return RESULTS.get(method, {}).get(task.split("-singletask")[0])


def tasks_of(scores: Scores) -> list[str]:
    return sorted({task for by_task in scores.values() for task in by_task})


def markdown(scores: Scores, table: list[dict[str, Any]]) -> str:
    """Methods as rows, tasks as columns; a missing cell is shown as missing."""
    cells = {(row["method"], row["task"]): row for row in table}
    columns = [*tasks_of(scores), *(["all"] if any(task == "all" for _, task in cells) else [])]
    lines = ["| method | " + " | ".join(columns) + " | IQM, all |", "|---" * (len(columns) + 2) + "|"]
    for method in scores:
        shown = [_cell(cells.get((method, task))) for task in columns]
        both = cells.get((method, "all"))
        middle = _estimate(both["iqm"], both["iqm_low"], both["iqm_high"]) if both else "missing"
        lines.append(f"| {method} | " + " | ".join(shown) + f" | {middle} |")
    better = [
        f"| {x} | "
        + " | ".join("" if x == y else _probability(probability_of_improvement(scores[x], scores[y])) for y in scores)
        + " |"
        for x in scores
    ]
    names = " | ".join(scores)
    return "\n".join(
        [
            "Mean success in percent (95% bootstrap interval over seeds, too narrow for few seeds), n runs; in square",
            "brackets the published mean of the environment's five tasks after a million updates. Higher is better.",
            "",
            *lines,
            "",
            "Probability that a run of the row's method succeeds more often than one of the column's. Above 0.5 the",
            "row is better.",
            "",
            f"| | {names} |",
            "|---" * (len(scores) + 1) + "|",
            *better,
            "",
        ]
    )


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "missing"
    known = "" if row["published"] is None else f" [{row['published']:.0f}]"
    return f"{_estimate(row['mean'], row['low'], row['high'])}, n={row['runs']}{known}"


def _probability(value: float) -> str:
    return "missing" if np.isnan(value) else f"{value:.2f}"


def _estimate(value: float, low: float, high: float) -> str:
    value, low, high = (number + 1e-9 for number in (value, low, high))  # formats round halves to even: 98.5 to 98
    return f"{value:.0f}" if np.isnan(low) else f"{value:.0f} ({low:.0f} to {high:.0f})"


def draw(scores: Scores, table: list[dict[str, Any]], path: Path) -> None:
    """The interquartile means with intervals, and the share of runs above each success: the performance profile.

    Over the tasks that every method has; without one, over each method's own.
    """
    compared = over_all(scores) or {method: list(by_task.values()) for method, by_task in scores.items()}
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 0.35 * len(scores) + 2), layout="constrained")
    methods = sorted(compared, key=lambda method: iqm(np.concatenate(compared[method])))
    for height, method in enumerate(methods):
        values = compared[method]
        low, high = interval(values, iqm, 500)
        left.plot([low, high], [height, height], linewidth=6, alpha=0.5, solid_capstyle="butt")
        left.plot(iqm(np.concatenate(values)), height, "o", color="black", markersize=4)
        levels = np.linspace(0, 100, 101)
        right.plot(levels, [(np.concatenate(values) > level).mean() for level in levels], label=method)
    left.set_yticks(range(len(methods)), methods)
    left.set(xlabel="interquartile mean of success (%)", xlim=(0, 100))
    right.set(xlabel="success (%)", ylabel="share of runs above it", ylim=(0, 1))
    right.legend(fontsize="small", ncols=2)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    try:
        scores = read(args.files)
    except (ValueError, OSError) as error:
        sys.exit(f"table.py: {error}")
    table = rows(scores, args.resamples)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "table.md").write_text(text := markdown(scores, table))
    with (args.out / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, table[0])
        writer.writeheader()
        writer.writerows(table)
    draw(scores, table, args.out / "table.png")
    print(text)


if __name__ == "__main__":
    main()
