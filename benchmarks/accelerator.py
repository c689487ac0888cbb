"""Measure the library on an accelerator, each program with its floor: the matrix products of the same shapes.

python benchmarks/accelerator.py --out docs/benchmarks-accelerator
python benchmarks/accelerator.py --sorl PATH --fql PATH

Takes at most eight minutes on one GPU, needs no network, and creates its data. Writes a table in Markdown, and in
JSON. The second command also measures the updates of checkouts of the authors' code and of FQL's, whose requirements
must be installed. First, threads compile all programs; then each is measured alone. Programs that are not compiled
after two thirds of the time are left out, and listed. They may still compile while the others are measured.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from methods import PASSES, UPDATES, ours, theirs
from speed import ACTION, BATCH, OBS, Size, dataset, even_keys, floor, memory, one_update, second_key, shared_key, start

from shortcutrl import algorithms, best_of_n, data, rollout_k


@dataclass(frozen=True)
class Args:
    out: Path = Path("accelerator")  # with .md and .json appended
    minutes: float = 8.0
    threads: int = 12  # that compile
    width: int = 512
    depth: int = 4
    updates: int = 96  # in one scan
    agents: tuple[int, ...] = (8, 40, 160)  # that train at once
    observations: tuple[int, ...] = (1, 64, 4096)  # of the best of 32
    repeats: int = 5
    sorl: Path | None = None  # a checkout of the authors' code
    fql: Path | None = None  # a checkout of the FQL repository


@dataclass(frozen=True)
class Case:
    program: Any  # jitted, unless it has no arguments
    args: tuple[Any, ...]
    per: int  # results of one call
    flops: float = 0.0  # of one result
    rows: int = BATCH  # of its matrix products
    agents: int = 1  # that train at once
    profile: bool = False  # whether to count kernels


def scan_of(size: Size, updates: int, *, agents: int | None = None, **networks: Any) -> tuple[Any, tuple[Any, ...]]:
    """A program of many updates and its arguments; with `agents`, of all of them at once, sharing their jumps."""
    config, keys = size.config(), jax.random.split(jax.random.key(0), (agents or 1, updates))
    jumps = even_keys(config, updates, second_key if agents is None else shared_key)

    def many(state, keys, shared, rows):
        def step(state, keys):
            return one_update(config, rows, state, keys[0], None if agents is None else keys[1])

        return jax.lax.scan(step, state, (keys, shared))

    if agents is None:
        return jax.jit(many), (start(size, config, **networks), jumps, jumps, dataset())
    states = jax.jit(jax.vmap(lambda _: start(size, config, **networks)))(keys[:, 0])
    return jax.jit(jax.vmap(many, in_axes=(0, 0, None, None))), (states, keys, jumps, dataset())


def act_of(size: Size, observations: int, k: int = 8, n: int = 32) -> tuple[Any, tuple[Any, ...]]:
    def act(networks, obs, key):
        noise = jax.random.normal(key, (observations, n, ACTION))
        actor = partial(rollout_k, networks.policy, k=k, clip=(-1.0, 1.0))
        return jax.vmap(partial(best_of_n, actor, networks.critic))(obs, noise)

    return jax.jit(act), (size.networks(), jnp.ones((observations, OBS)), jax.random.key(0))


def cases(args: Args) -> Iterator[tuple[str, str | None, Callable[[], Case]]]:
    """Names, precisions of matrix products, and what makes the programs. The most important ones first."""
    size = Size(args.width, args.depth, 8)

    def updates(size: Size, **networks: Any) -> Case:
        program, inputs = scan_of(size, args.updates, **networks)
        return Case(program, inputs, args.updates, size.update_flops(), profile=True)

    def many(agents: int, **networks: Any) -> Case:
        program, inputs = scan_of(size, args.updates, agents=agents, **networks)
        return Case(program, inputs, args.updates * agents, size.update_flops(), agents=agents)

    def act(observations: int) -> Case:
        rows = 32 * observations
        return Case(*act_of(size, observations), 1, rows * size.products(8, 1), rows)

    rows = dataset()
    batch = data.sample(rows, jax.random.key(0), batch_size=BATCH)

    def method(name: str, kind: str) -> Case:
        programs, flops = ours(getattr(algorithms, name), rows, batch, args.width, args.depth)
        if kind == "loop":
            return Case(programs["loop"], (), UPDATES, flops)
        return Case(programs["scan"].func, programs["scan"].args, UPDATES, flops, profile=True)

    one_import_at_a_time = Lock()  # both checkouts have modules of the same names

    def published(path: Path, name: str) -> Case:
        with one_import_at_a_time:
            return Case(theirs(path, name, batch, args.width, args.depth), (), UPDATES)

    yield "update, float32", "highest", partial(updates, size)
    yield "update, TF32", "tensorfloat32", partial(updates, size)
    yield "update, bfloat16", "tensorfloat32", partial(updates, size, matmul_dtype=jnp.bfloat16)
    for agents in args.agents:
        yield f"update of one of {agents} agents, TF32", "tensorfloat32", partial(many, agents)
    for agents in args.agents[-2:]:
        faster = partial(many, agents, matmul_dtype=jnp.bfloat16)
        yield f"update of one of {agents} agents, bfloat16", "tensorfloat32", faster
    for path, names in ((args.sorl, ("sorl",)), (args.fql, ("fql", "iql", "ifql", "rebrac"))):
        for name in names if path is not None else ():
            yield f"update of {name} in a loop", None, partial(method, name, "loop")
            yield f"update of {name} in a loop, published code", None, partial(published, path, name)  # pyright: ignore
    for name in PASSES:
        if name != "sorl":  # "update, TF32" is SORL's, but for the critic's input k
            yield f"update of {name}", None, partial(method, name, "scan")
    for max_jumps in (1, 2, 4):
        yield f"update, M_BTT = {max_jumps}", None, partial(updates, Size(args.width, args.depth, max_jumps))
    for observations in args.observations:
        yield f"best of 32, k = 8, {observations} observations", None, partial(act, observations)


def prepare(make: Callable[[], Case], precision: str | None) -> tuple[Case, Callable[[], Any], dict[str, Any]]:
    """A case, its compiled program, and what the compiler says of it."""
    with nullcontext() if precision is None else jax.default_matmul_precision(precision):
        case = make()
        began = time.perf_counter()
        if not case.args:
            jax.block_until_ready(case.program())  # compiles what it calls
            return case, case.program, {}
        compiled = case.program.lower(*case.args).compile()
    said = {"compile_s": time.perf_counter() - began, "memory_mb": memory(compiled) / 1e6}
    return case, partial(compiled, *case.args), said


def prepare_all(args: Args, seconds: float) -> dict[str, tuple[str | None, Future[Any]]]:
    """Every program by its name, with its precision; those that are not ready in time are not done, or cancelled."""
    pool = ThreadPoolExecutor(args.threads)
    jobs = {name: (precision, pool.submit(prepare, make, precision)) for name, precision, make in cases(args)}
    wait([job for _, job in jobs.values()], timeout=seconds)
    pool.shutdown(wait=False, cancel_futures=True)
    return jobs


def kernels(call: Callable[[], Any], per: int) -> dict[str, float]:
    """Kernels of one result and the share of the time in which none runs, from a profile; nothing without a GPU."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(call())
        planes = [
            plane
            for file in Path(folder).rglob("*.xplane.pb")
            for plane in jax.profiler.ProfileData.from_file(str(file)).planes
            if plane.name.startswith("/device:GPU")
        ]
        lines = [line for plane in planes for line in plane.lines if "Stream" in line.name]
        spans = sorted((event.start_ns, event.start_ns + event.duration_ns) for line in lines for event in line.events)
    return {"kernels": len(spans) / per, "idle": idle_share(spans)} if spans else {}


def idle_share(spans: list[tuple[float, float]]) -> float:
    """The share of the time between the first start and the last end that no span covers; sorted by their starts."""
    covered, end = 0.0, spans[0][0]
    for begin, stop in spans:
        covered += max(0.0, stop - max(begin, end))
        end = max(end, stop)
    return 1 - covered / (end - spans[0][0])


def measure(
    case: Case, call: Callable[[], Any], said: dict[str, Any], precision: str | None, *, repeats: int, width: int
) -> dict[str, Any]:
    """Times in milliseconds of one result."""
    took = []
    jax.block_until_ready(call())
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(call())
        took.append(1e3 * (time.perf_counter() - began) / case.per)
    row = {"milliseconds": sorted(took)[len(took) // 2], **said}
    if case.flops:
        with nullcontext() if precision is None else jax.default_matmul_precision(precision):
            row["floor"] = 1e3 * floor(case.rows, width, case.flops, case.agents)
    return row | (kernels(call, case.per) if case.profile else {})


def table(rows: list[dict[str, Any]], machine: str, left_out: list[str]) -> str:
    columns = {
        "milliseconds": "{:.3g}",
        "floor": "{:.3g}",
        "compile_s": "{:.1f}",
        "memory_mb": "{:.0f}",
        "kernels": "{:.0f}",
        "idle": "{:.0%}",
    }
    lines = [machine, "", "| | ms | per s | floor, ms | compile, s | memory, MB | kernels | idle |", "|" + "---|" * 8]
    for row in rows:
        cells = {name: form.format(row[name]) if name in row else "" for name, form in columns.items()}
        first, *rest = cells.values()
        lines.append(f"| {row['name']} | {first} | {1e3 / row['milliseconds']:,.0f} | {' | '.join(rest)} |")
    return "\n".join([*lines, "", f"Left out: {', '.join(left_out) or 'nothing'}.", ""])


def main() -> None:
    args, began = tyro.cli(Args, description=__doc__), time.monotonic()
    device = jax.devices()[0]
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "jaxlib", "equinox", "optax"))
    flags = os.environ.get("XLA_FLAGS") or "no XLA_FLAGS"
    machine = f"{device.device_kind}; {' '.join(device.client.platform_version.split())}; {versions}; {flags}."
    rows, left_out, failed = [], [], []
    for name, (precision, job) in prepare_all(args, 40 * args.minutes).items():
        if not job.done() or job.cancelled() or time.monotonic() - began > 60 * args.minutes:
            left_out.append(name)
            continue
        try:
            case, call, said = job.result()
            row = measure(case, call, said, precision, repeats=args.repeats, width=args.width)
        except Exception as error:  # such as too little memory, which must not lose the other rows
            failed.append(f"{name} ({type(error).__name__}: {str(error).partition(chr(10))[0]})")
            continue
        rows.append({"name": name, **row})
        print(rows[-1], flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".md").write_text(table(rows, machine, left_out + failed))
    results = {"machine": machine, "rows": rows, "left_out": left_out, "failed": failed}
    args.out.with_suffix(".json").write_text(json.dumps(results, indent=1))
    print(f"{args.out.with_suffix('.md')}, after {(time.monotonic() - began) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # Python would wait for the threads that still compile
