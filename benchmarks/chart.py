"""Draw the times in the tables that table.py printed, ours next to the authors' code.

python benchmarks/chart.py docs/benchmarks-speed-one-core.md
"""

import re
from pathlib import Path

import matplotlib
import tyro

matplotlib.use("Agg")
from matplotlib import pyplot as plt

UPDATES = {
    "ours, scan": "updates in a scan: 4x512",
    "ours, loop": "updates one by one: 4x512",
    "SORL's code": "published updates",
    "FQL's code": "fql updates",
}
ACTIONS = {
    f"k={k}, n={n}": (f"best of n: k={k}, n={n}, one observation", f"published best of n: k={k}, n={n}")
    for k, n in ((1, 1), (4, 8), (8, 8), (8, 32))
}


def medians(table: str) -> dict[str, float]:
    """The median of each row, in milliseconds."""
    rows = re.findall(r"^\| ([^|]+) \| ([\d.,]+) ms \|", table, re.MULTILINE)
    return {name: float(number.replace(",", "")) for name, number in rows}


def main(
    tables: tyro.conf.Positional[tuple[Path, ...]],  # of table.py, one for each machine
    out: Path = Path("docs/img/speed.png"),  # the chart
) -> None:
    figure, axes = plt.subplots(
        2, len(tables), figsize=(6, 6), layout="constrained", sharex="row", sharey="row", squeeze=False
    )
    for path, (updates, actions) in zip(tables, axes.T, strict=True):
        text = path.read_text()
        times = medians(text)
        bars = updates.barh(list(UPDATES), [times[name] for name in UPDATES.values()], color=["C0", "C0", "C1", "C1"])
        updates.bar_label(bars, fmt="%.0f", padding=2)
        updates.set(title=text.split(", ")[1].split(";")[0], xlabel="ms per update")
        updates.margins(x=0.15)
        for i, (whose, color) in enumerate((("ours", "C0"), ("SORL's code", "C1"))):
            places = [row + 0.4 * i for row in range(len(ACTIONS))]
            bars = actions.barh(places, [times[pair[i]] for pair in ACTIONS.values()], 0.4, color=color, label=whose)
            actions.bar_label(bars, fmt="%.2f", padding=2)
        actions.set_yticks([row + 0.2 for row in range(len(ACTIONS))], list(ACTIONS))
        actions.set(xlabel="ms per action")
        actions.margins(x=0.15)
    for axis in axes[:, 0]:
        axis.invert_yaxis()
    axes[1, -1].legend(loc="upper right")
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(out)
    print(f"chart: {out}")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
