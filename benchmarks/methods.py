"""Measure an update of each method, and its floor: the matrix products of the same shapes and nothing else.

python benchmarks/methods.py
python benchmarks/methods.py --methods fql iql ifql rebrac --fql PATH

`--fql PATH` also measures the update of a checkout of the FQL repository, whose requirements must be installed. On one
core, put `taskset -c 0` before it. The second command writes the columns of both for the methods that both have.
"""

import inspect
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from jax.extend.core import ClosedJaxpr, Jaxpr
from speed import ACTION, AGENTS, BATCH, OBS, agent_of, dataset, even_keys, floor, second_key

from shortcutrl import Transition, algorithms, data

UPDATES = 20  # in one scan

PASSES: dict[str, dict[str, float]] = {
    "bc": {"policy": 3},
    "iql": {"policy": 3, "critic": 2 + 3, "value": 2 + 3},
    "rebrac": {"policy": 1 + 3 / 2, "critic": 1 + 3 + 2 / 2},
    "idql": {"policy": 3, "critic": 1 + 3, "value": 1 + 3},
    "srpo": {"diffusion": 3 + 1, "policy": 3, "critic": 1 + 3 + 2, "value": 1 + 3},
    "cac": {"policy": 10 * 2 + 3 + 1 + 2 * 3, "critic": 10 + 3 + 2},
    "fawac": {"policy": 10 + 3, "critic": 3 + 3, "value": 1 + 3},
    "fbrac": {"policy": 10 + 3 + 10 * 3, "critic": 1 + 3 + 2},
    "ifql": {"policy": 3, "critic": 1 + 3, "value": 1 + 3},
    "fql": {"flow": 3 + 10, "student": 1 + 3, "critic": 1 + 3 + 2},
    "sorl": {"policy": 3.75 + 3 + 5 + 3 * 3.75, "critic": 1 + 3 + 2},
}
"""Passes of one update, by network, with the published settings. What the compiler shares counts once.

A backward pass counts as two forward passes, or as one where only the input's gradient is needed. SORL: the mean over
its numbers of jumps.
"""


def product_flops(jaxpr: Any) -> float:
    """Multiplications and additions of the matrix products in a program without loops."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * jnp.prod(jnp.array([shape[axis] for axis in contracted]))
        for inner in jax.tree.leaves(equation.params):
            if isinstance(inner, (Jaxpr, ClosedJaxpr)):
                total += product_flops(getattr(inner, "jaxpr", inner))
    return float(total)


def pass_flops(network: Any) -> float:
    """Of one pass of one sample."""
    inputs = jnp.ones(OBS), jnp.ones(ACTION), jnp.float32(0), jnp.float32(0)
    call = partial(network, k=1) if getattr(network, "condition_on_k", False) else network
    count = sum(p.default is p.empty for p in inspect.signature(call).parameters.values())
    return product_flops(jax.make_jaxpr(call)(*inputs[:count]).jaxpr)


def ours(module: ModuleType, dataset: data.Dataset, batch: Transition, width: int, depth: int):
    """Programs of `UPDATES` updates each: one scan, and calls from a loop in Python on one batch; and their flops."""
    options = {"config": module.Config(), "optimizers": module.OPTIMIZERS}
    networks = module.networks(batch, width=width, depth=depth, key=jax.random.key(0))
    state, keys = module.init(networks, **options), jax.random.split(jax.random.key(1), UPDATES)
    loop_keys = keys
    if module is algorithms.sorl:  # a few random draws of k would do more or less work than the mean
        keys, loop_keys = even_keys(options["config"], UPDATES, second_key), even_keys(options["config"], UPDATES)

    def step(state, key):
        batch_key, update_key = jax.random.split(key)
        batch = data.sample(dataset, batch_key, batch_size=BATCH)
        return module.update(state, batch, key=update_key, **options)

    scan = jax.jit(lambda state, keys: jax.lax.scan(step, state, keys))
    update = jax.jit(partial(module.update, **options))

    def loop():
        current = state
        for key in loop_keys:
            current, _ = update(current, batch, key=key)
        return current

    flops = sum(
        count * pass_flops(getattr(networks, name)) for name, count in PASSES[module.__name__.split(".")[-1]].items()
    )
    return {"scan": partial(scan, state, keys), "loop": loop}, BATCH * flops


def theirs(path: Path, method: str, batch: Transition, width: int, depth: int) -> Callable[[], Any]:
    """The same loop with the agent of a checkout of the FQL repository."""
    start, config, batch_of_theirs = agent_of(path, method, batch, width, depth)

    def loop():
        agent = start
        for i in range(UPDATES):
            options = {"full_update": i % config.actor_freq != 0} if method == "rebrac" else {}
            agent, _ = agent.update(batch_of_theirs, **options)
        return agent.network.params

    return loop


def milliseconds(programs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Of one update by each program: the least of `repeats`, measured in turns."""
    for program in programs.values():
        jax.block_until_ready(program())
    least = dict.fromkeys(programs, float("inf"))
    for _ in range(repeats):
        for name, program in programs.items():
            started = time.perf_counter()
            jax.block_until_ready(program())
            least[name] = min(least[name], 1e3 * (time.perf_counter() - started) / UPDATES)
    return least


def main(
    methods: tuple[str, ...] = tuple(PASSES),  # which to measure
    fql: Path | None = None,  # a checkout of the FQL repository, measured too
    width: int = 512,  # of the hidden layers; networks of another kind keep their own
    depth: int = 4,
    repeats: int = 7,
) -> None:
    rows = dataset()
    batch = data.sample(rows, jax.random.key(0), batch_size=BATCH)
    print("Milliseconds of one update; lower is better.\n")
    print("| method | scan | floor | floor / scan | loop | FQL repository, loop | ours / theirs |")
    print("|---|---|---|---|---|---|---|")
    for method in methods:
        programs, flops = ours(getattr(algorithms, method), rows, batch, width, depth)
        if fql is not None and method in AGENTS and method != "sorl":
            programs["theirs"] = theirs(fql, method, batch, width, depth)
        took = milliseconds(programs, repeats)
        least = 1e3 * floor(BATCH, width, flops)
        cells = [f"{took['scan']:.1f}", f"{least:.1f}", f"{least / took['scan']:.0%}", f"{took['loop']:.1f}"]
        cells += [f"{took['theirs']:.1f}", f"{took['loop'] / took['theirs']:.2f}"] if "theirs" in took else ["", ""]
        print(f"| {method} | {' | '.join(cells)} |".replace("  ", " "), flush=True)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
