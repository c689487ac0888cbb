"""Measure how the cost of an update grows: time, memory, and the share of the matrix products.

    python benchmarks/growth.py --out docs/results/growth.csv --figure docs/img/growth.png

One setting changes at a time; the others are those of examples/sorl.py: batches of 256, 3 x 256, M = M_BTT = 8, two
critics, one agent, 5 actions. Agents train one after the other. On one core, put `taskset -c 0` before it.
"""

import csv
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import tyro
from speed import OBS, even_keys, floor

from shortcutrl import Transition, nn, sorl

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, ScalarFormatter

USUAL = {"batch": 256, "width": 256, "jumps": 8, "ensemble": 2, "agents": 1, "action": 5}
GROWING = {
    "batch": (64, 256, 1024, 4096),
    "width": (64, 128, 256, 512, 1024, 2048),
    "jumps": (1, 2, 4, 8, 16, 32),
    "ensemble": (2, 4, 6, 8, 10),
    "agents": (1, 2, 4, 8, 40),
    "action": (2, 5, 20, 50, 200),
}
LABELS = {
    "batch": "transitions in a batch",
    "width": "width of 3 hidden layers",
    "jumps": "jumps, M = M_BTT",
    "ensemble": "critics",
    "agents": "agents, one after the other",
    "action": "numbers of an action or chunk",
}
DEPTH = 3


def update_flops(batch: int, width: int, jumps: int, ensemble: int, action: int) -> float:
    """Of the matrix products of one update, the mean over its numbers of jumps.

    A backward pass counts as two passes, or as one where only the input's gradient is needed.
    """
    k = sum(2**i for i in range(jumps.bit_length())) / jumps.bit_length()
    policy = (OBS + 2 * action + 2) * width + (DEPTH - 1) * width**2
    critic = ensemble * ((OBS + action + 2) * width + (DEPTH - 1) * width**2)
    imitation = 3 + (5 if jumps > 1 else 0)
    return 2 * batch * ((k + imitation + 3 * k) * policy + (1 + 3 + 2) * critic)


def measure(*, batch: int, width: int, jumps: int, ensemble: int, agents: int, action: int) -> dict[str, Any]:
    """Milliseconds and megabytes of one update of all agents, and the share of the products."""
    config = sorl.Config(num_steps=jumps, max_jumps=jumps)
    options: dict[str, Any] = {"config": config, "optimizers": sorl.OPTIMIZERS}
    noise = jax.random.normal(jax.random.key(0), (2, batch, OBS))
    actions = jax.random.uniform(jax.random.key(1), (batch, action), minval=-1.0)
    rows = Transition(noise[0], actions, jnp.ones(batch), jnp.ones(batch), noise[1])
    shape: dict[str, Any] = {"width": width, "depth": DEPTH}

    def start(key):
        policy = nn.ShortcutPolicy(OBS, action, **shape, key=key)
        critic = nn.EnsembleCritic(OBS, action, **shape, ensemble=ensemble, condition_on_k=True, key=key)
        return sorl.init(sorl.Networks(policy, critic), **options)

    def updates(agent):
        state, keys = agent
        return jax.lax.scan(lambda state, key: sorl.update(state, rows, key=key, **options), state, keys)[0]

    # Each number of jumps is drawn equally often.
    flops, numbers = agents * update_flops(batch, width, jumps, ensemble, action), jumps.bit_length()
    count = numbers * max(1, min(64, round(3e10 / flops)) // numbers)
    keys = jnp.broadcast_to(even_keys(config, count), (agents, count))
    args = jax.vmap(start)(keys[:, 0]), keys
    if agents > 1:
        program = jax.jit(partial(jax.lax.map, updates))
    else:
        program, args = jax.jit(updates), jax.tree.map(lambda leaf: leaf[0], args)
    compiled: Any = program.lower(args).compile()
    jax.block_until_ready(compiled(args))
    took = []
    for _ in range(3):
        began = time.perf_counter()
        jax.block_until_ready(compiled(args))
        took.append((time.perf_counter() - began) / count)
    seconds = sorted(took)[1]
    return {
        "milliseconds": 1e3 * seconds,
        "megabytes": compiled.memory_analysis().temp_size_in_bytes / 1e6,
        "share": floor(batch, width, flops) / seconds,
    }


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    figure, axes = plt.subplots(3, 2, figsize=(6, 7.5), layout="constrained")
    for name, axis in zip(GROWING, axes.flat, strict=True):
        if not (own := [row for row in rows if row["setting"] == name]):
            continue
        x = [row["value"] for row in own]
        axis.plot(x, [row["milliseconds"] for row in own], marker="o", label="milliseconds")
        axis.plot(x, [row["megabytes"] for row in own], marker="s", label="megabytes")
        axis.plot(x, [100 * row["share"] for row in own], marker="^", ls=":", label="products, % of the time")
        axis.set(xscale="log", yscale="log", xlabel=LABELS[name])
        axis.set_xticks(x, x)
        axis.minorticks_off()
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.yaxis.set_major_formatter(ScalarFormatter())
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    figure.savefig(path)


def main(
    out: Path = Path("growth.csv"),  # rows that are in it are not measured again
    figure: Path = Path("growth.png"),
    settings: tuple[str, ...] = tuple(GROWING),  # which to change
) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    columns = ["setting", "value", "milliseconds", "megabytes", "share"]
    rows: list[dict[str, Any]] = []
    if out.exists():
        with out.open(newline="") as file:
            for row in csv.DictReader(file):
                numbers = {name: float(row[name]) for name in columns[2:]}
                rows.append({"setting": row["setting"], "value": int(row["value"]), **numbers})
    for name in settings:
        for value in GROWING[name]:
            if (name, value) in {(row["setting"], row["value"]) for row in rows}:
                continue
            rows.append({"setting": name, "value": value, **measure(**USUAL | {name: value})})
            print(rows[-1], flush=True)
            with out.open("w", newline="") as file:
                writer = csv.DictWriter(file, columns, lineterminator="\n")
                writer.writeheader()
                writer.writerows({**row, **{key: f"{row[key]:.3g}" for key in columns[2:]}} for row in rows)
    draw(rows, figure)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
