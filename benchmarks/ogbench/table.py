"""Tables and figures of the agents that run.py trained: means, interquartile means, intervals, and comparisons.

    python benchmarks/ogbench/table.py results/agents*.jsonl --out results

Several files are combined. Intervals are stratified bootstraps over seeds within each task, as recommended by
Agarwal and others (arXiv 2108.13264). Success is in percent; higher is better.
"""

import csv
import itertools
import json
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import matplotlib
import numpy as np
import tyro
from bootstrap import improvement, interval, iqm, mean
from published import RESULTS

matplotlib.use("Agg")
from matplotlib import pyplot as plt

Scores = dict[str, dict[str, np.ndarray]]
"""Success in percent by method, task and seed."""

SETTINGS = (
    *("config", "act", "updates", "batch_size", "width", "depth", "n_step", "chunk", "learning_rate"),
    *("file", "sha256", "episodes"),
)
"""What all agents of a method on a task must share. `sha256` is that of the dataset; the episodes are of evaluation."""

COMPARED = ("updates", "batch_size", "width", "depth", "n_step", "learning_rate", "sha256", "episodes")
"""What methods share in a fair comparison."""


@dataclass(frozen=True)
class Args:
    files: Annotated[tuple[Path, ...], tyro.conf.Positional]  # of JSON lines, written by run.py
    out: Path = Path("results")  # where table.md, table.csv and table.png are written
    resamples: int = 2000  # of the bootstrap


def read(files: tuple[Path, ...]) -> list[dict[str, Any]]:
    """The last line of each agent, sorted by method (with its changed settings), task and seed."""
    agents: dict[tuple[str, str, int], tuple[str, dict[str, Any]]] = {}  # with the place of the line
    for file in files:
        for number, line in enumerate(file.read_text().splitlines(), 1):
            try:
                row = json.loads(line)
                key = str(row["method"]), str(row["task"]), int(row["seed"])
                row["episodes"] = len(row["success"])
                if not row["success"] or any(value not in (0, 1) for value in row["success"]):
                    raise ValueError(f"`success` must have a 0 or 1 for each episode, got {row['success']}")
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{file}:{number} is not a line of run.py ({type(error).__name__}: {error})."
                ) from error
            agents[key] = f"{file}:{number}", row
    if not agents:
        raise ValueError(f"no finished agent in {', '.join(map(str, files))}: run run.py first.")
    shared: dict[tuple[str, str, str], Any] = {}  # by method, task and setting
    for (method, task, _), (place, row) in agents.items():
        for name in SETTINGS:
            if name in row and row[name] != shared.setdefault((method, task, name), row[name]):
                raise ValueError(
                    f"{place} has another {name} than other lines of {method} on {task}. Run it with another --label, "
                    "or give the files to different tables."
                )
    return [agents[key][1] for key in sorted(agents)]


def scores_of(agents: list[dict[str, Any]]) -> Scores:
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in agents:
        values[row["method"]][row["task"]].append(100 * float(np.mean(row["success"])))
    return {method: {task: np.array(each) for task, each in by_task.items()} for method, by_task in values.items()}


def differences(agents: list[dict[str, Any]]) -> list[str]:
    """A sentence for each setting that methods do not share, although none of them defines it."""
    found: dict[tuple[str, str], dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for row in agents:
        for name in COMPARED:
            if name in row:
                found["on " + row["task"] if name == "sha256" else "", name][str(row[name])].add(row["method"])
    return [
        " ".join(filter(None, ["Methods differ in", name, where]))
        + ": "
        + "; ".join(f"{value} ({', '.join(sorted(methods))})" for value, methods in values.items())
        + "."
        for (where, name), values in found.items()
        if len(values) > 1
    ]


def over_all(scores: Scores) -> dict[str, list[np.ndarray]]:
    """What compares methods: the tasks that every method has, with equally many seeds of each. Empty without a task."""
    tasks = common_tasks(scores)
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
            low, high = interval(values, mean, resamples)
            middle_low, middle_high = interval(values, iqm, resamples)
            table.append(
                {"method": method, "task": task, "runs": sum(map(len, values))}
                | {"mean": float(mean(values)), "low": low, "high": high}
                | {"iqm": float(iqm(values)), "iqm_low": middle_low, "iqm_high": middle_high}
                | {"published": published(method, task)}
            )
    return table


def published(method: str, task: str) -> float | None:
    """The published mean of the five tasks of the task's environment, where there is one."""
    return RESULTS.get(method, {}).get(task.split("-singletask")[0])


def tasks_of(scores: Scores) -> list[str]:
    return sorted({task for by_task in scores.values() for task in by_task})


def common_tasks(scores: Scores) -> list[str]:
    return [task for task in tasks_of(scores) if all(task in by_task for by_task in scores.values())]


def markdown(scores: Scores, table: list[dict[str, Any]], resamples: int, notes: list[str]) -> str:
    """Methods as rows, tasks as columns; a missing cell is shown as missing."""
    cells = {(row["method"], row["task"]): row for row in table}
    tasks, compared = tasks_of(scores), over_all(scores)
    columns = [*tasks, *(["all"] if compared else [])]
    lines = ["| method | " + " | ".join(columns) + " | IQM, all |", "|---" * (len(columns) + 2) + "|"]
    for method in scores:
        shown = [_cell(cells.get((method, task))) for task in columns]
        both = cells.get((method, "all"))
        middle = _estimate(both["iqm"], both["iqm_low"], both["iqm_high"]) if both else "missing"
        lines.append(f"| {method} | " + " | ".join(shown) + f" | {middle} |")
    pairs = _improvements(scores, resamples)
    better = [f"| {x} | " + " | ".join("" if x == y else pairs.get((x, y), "missing") for y in scores) for x in scores]
    seeds = sorted({len(by_task[0]) for by_task in compared.values()})
    if compared:
        text = f"`all` is over {', '.join(common_tasks(scores))}, which all methods have, with the first "
        notes = [f"{text}{' or '.join(map(str, seeds))} seeds of each.", *notes]
    return "\n".join(
        [
            "Mean success in percent (95% bootstrap interval over seeds), n runs; in square brackets the published",
            "mean of the environment's five tasks after a million updates. Higher is better. With four seeds, such an",
            "interval contains the mean of many seeds in about 80% of cases instead of 95%.",
            *notes,
            "",
            *lines,
            "",
            "Probability that a run of the row's method succeeds more often than one of the column's (95% interval),",
            "over the tasks that both have; ties count half. Above 0.5 the row is better.",
            "",
            f"| | {' | '.join(scores)} |",
            "|---" * (len(scores) + 1) + "|",
            *[f"{line} |" for line in better],
            "",
        ]
    )


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "missing"
    known = "" if row["published"] is None else f" [{row['published']:.0f}]"
    return f"{_estimate(row['mean'], row['low'], row['high'])}, n={row['runs']}{known}"


def _improvements(scores: Scores, resamples: int) -> dict[tuple[str, str], str]:
    """For each pair of methods with a shared task, what `improvement` is, with its interval."""
    found = {}
    for x, y in itertools.combinations(scores, 2):
        if shared := [task for task in scores[x] if task in scores[y]]:
            tasks = [scores[method][task] for method in (x, y) for task in shared]
            value, (low, high) = improvement(tasks), interval(tasks, improvement, resamples)
            for pair, (middle, *ends) in (((x, y), (value, low, high)), ((y, x), (1 - value, 1 - high, 1 - low))):
                found[pair] = f"{middle:.2f}" + ("" if np.isnan(low) else " ({:.2f} to {:.2f})".format(*ends))
    return found


def _estimate(value: float, low: float, high: float) -> str:
    value, low, high = (number + 1e-9 for number in (value, low, high))  # formats round halves to even: 98.5 to 98
    return f"{value:.0f}" if np.isnan(low) else f"{value:.0f} ({low:.0f} to {high:.0f})"


def draw(scores: Scores, table: list[dict[str, Any]], path: Path) -> None:
    """The interquartile means with intervals, and the share of runs above each success: the performance profile."""
    compared, about = over_all(scores), {row["method"]: row for row in table if row["task"] == "all"}
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 0.35 * len(scores) + 2), layout="constrained")
    methods = sorted(compared, key=lambda method: about[method]["iqm"])
    levels = np.linspace(0, max(np.concatenate(each).max() for each in compared.values()), 200)
    for height, method in enumerate(methods):
        row, runs = about[method], np.concatenate(compared[method])
        left.plot([row["iqm_low"], row["iqm_high"]], [height] * 2, linewidth=6, alpha=0.5, solid_capstyle="butt")
        left.plot(row["iqm"], height, "o", color="black", markersize=4)
        right.plot(levels, [(runs > level).mean() for level in levels], label=method)
    left.set_yticks(range(len(methods)), methods)
    left.set(xlabel="interquartile mean of success (%)")
    left.set_xlim(left=0)
    right.set(xlabel="success (%)", ylabel="share of runs above it", ylim=(0, 1))
    right.legend(fontsize="small", ncols=2)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    try:
        agents = read(args.files)
    except (ValueError, OSError) as error:
        sys.exit(f"table.py: {error}")
    scores = scores_of(agents)
    table = rows(scores, args.resamples)
    args.out.mkdir(parents=True, exist_ok=True)
    text = markdown(scores, table, args.resamples, differences(agents))
    (args.out / "table.md").write_text(text)
    with (args.out / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, table[0])
        writer.writeheader()
        writer.writerows(table)
    print(text)
    (args.out / "table.png").unlink(missing_ok=True)
    if over_all(scores):
        draw(scores, table, args.out / "table.png")
    else:
        print("No task has all methods, so there is no figure.")


if __name__ == "__main__":
    main()
