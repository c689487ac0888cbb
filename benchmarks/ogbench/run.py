"""Train methods on OGBench tasks, evaluate them, and append one JSON line for each finished agent.

    python benchmarks/ogbench/run.py --methods iql sorl --tasks scene-play-singletask-task2-v0 --seeds 4

The same command resumes, and skips agents that are finished; --minutes bounds the time of one command. On accelerators
the seeds of a method train in one vmapped program, on CPUs one after the other. Several machines that share the folder
of the results each train a part of the agents: --share 0/4 is the first of four. A method is a name of
`shortcutrl.algorithms`, or the path of your own file with the same contract.
"""

import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import itertools
import json
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import optax
import tyro
from published import SETTINGS
from tqdm import tqdm

from shortcutrl import data
from shortcutrl.evaluate import EnvPool, Evaluation, evaluate, keyed
from shortcutrl.runs import Run, append_row, read_rows
from shortcutrl.suites import Task, ogbench

TRAINING = ("updates", "batch_size", "width", "depth", "n_step", "learning_rate")
CONTRACT = ("Config", "OPTIMIZERS", "networks", "init", "update", "actor")


@dataclasses.dataclass(frozen=True)
class Args:
    methods: tuple[str, ...]  # names of shortcutrl.algorithms, or paths of your own files
    tasks: tuple[str, ...]  # OGBench single-task datasets
    seeds: int = 4  # agents of each method and task, with the seeds 0, 1, ...
    set: tuple[str, ...] = ()  # changes of the published settings, such as sorl.q_weight=30
    act: tuple[str, ...] = ()  # options of the method's `actor`, such as sorl.k=4
    label: str = ""  # appended to the method's name in the results, to tell changed settings apart
    out: Path = Path("runs/ogbench")  # the folder of checkpoints and of agents.jsonl
    share: str = "0/1"  # of the agents that this process trains, such as 3/4, the last of four
    minutes: float = float("inf")  # after which no agent goes on training; the same command resumes

    updates: int = 50_000  # gradient steps
    batch_size: int = 256
    width: int = 256  # of each hidden layer; published: 512
    depth: int = 3  # hidden layers; published: 4
    n_step: int = 1  # steps that a TD target looks ahead
    learning_rate: float | None = None  # peak of the `optimizers` below; by default each method has its published ones
    data_episodes: int | None = None  # of a dataset generated locally; by default OGBench's number
    updates_per_checkpoint: int = 5_000
    episodes: int = 50  # of the evaluation of each agent
    processes: int | None = None  # that hold the environments


def load(method: str) -> ModuleType:
    """An algorithm of the library by its name, or a user's file by its path."""
    if method.endswith(".py"):
        if not Path(method).exists():
            raise ValueError(f"`methods`: there is no file {method}.")
        spec = importlib.util.spec_from_file_location(Path(method).stem, method)
        module = importlib.util.module_from_spec(spec)  # pyright: ignore[reportArgumentType]
        sys.modules[spec.name] = module  # pyright: ignore[reportOptionalMemberAccess]
        spec.loader.exec_module(module)  # pyright: ignore[reportOptionalMemberAccess]
    else:
        try:
            module = importlib.import_module(f"shortcutrl.algorithms.{method}")
        except ModuleNotFoundError as error:
            raise ValueError(f"`methods`: there is no method {method!r} in shortcutrl.algorithms.") from error
    if missing := [name for name in CONTRACT if not hasattr(module, name)]:
        raise ValueError(f"`methods`: {method} has no {', '.join(missing)}.")
    return module


def options(changes: tuple[str, ...], method: str, flag: str) -> dict[str, Any]:
    """What `method.name=value` says of one method."""
    found = {}
    for change in changes:
        target, equals, value = change.partition("=")
        owner, dot, name = target.rpartition(".")
        if not equals or not dot:
            raise ValueError(f"`{flag}` must be like method.name=value, got {change!r}.")
        if owner == Path(method).stem:
            try:
                found[name] = json.loads(value)
            except json.JSONDecodeError:
                found[name] = value
    return found


def configure(args: Args, module: ModuleType, method: str, task: str) -> Any:
    """The published settings of the task's environment, with the changes of --set."""
    config = SETTINGS.get(method, {}).get(task.split("-singletask")[0], module.Config())
    changes = options(args.set, method, "set")
    if unknown := changes.keys() - {field.name for field in dataclasses.fields(config)}:
        raise ValueError(f"`set`: {method} has no setting {', '.join(sorted(unknown))}.")
    return dataclasses.replace(config, **changes)


def optimizers(args: Args, module: ModuleType) -> Any:
    """Those of the method, or Adam with clipped gradients and a rate that rises over a tenth and falls to 0."""
    if args.learning_rate is None:
        return module.OPTIMIZERS
    rate = optax.warmup_cosine_decay_schedule(0.0, args.learning_rate, args.updates // 10, args.updates)
    return jax.tree.map(
        lambda _: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate)),
        module.OPTIMIZERS,
        is_leaf=lambda node: isinstance(node, optax.GradientTransformation),
    )


def train(args: Args, module: ModuleType, config: Any, dataset: data.Dataset, seeds: list[int], run: Run, end: float):
    """The state of the agents after the last update, or None if the time was up; with a leading axis if several."""
    sampling = {"n_step": args.n_step, "discount": getattr(config, "discount", 0.99)}
    example = data.sample(dataset, jax.random.key(0), batch_size=1, **sampling)
    options = {"config": config, "optimizers": optimizers(args, module)}
    share_jumps = "jumps_key" in inspect.signature(module.update).parameters

    def start(seed):
        networks = module.networks(example, width=args.width, depth=args.depth, key=jax.random.key(seed))
        return module.init(networks, **options)

    def advance(state, seed, dataset, first):
        def one(state, step):
            batch_key, update_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), step))
            # One draw for all agents: under vmap, `lax.switch` would otherwise evaluate every branch.
            shared = {"jumps_key": jax.random.key(step)} if share_jumps else {}
            batch = data.sample(dataset, batch_key, batch_size=args.batch_size, **sampling)
            return module.update(state, batch, key=update_key, **options, **shared)

        state, info = jax.lax.scan(one, state, first + jnp.arange(chunk))
        return state, jax.tree.map(jnp.mean, info)

    chunk = min(500, args.updates_per_checkpoint)
    if len(seeds) > 1:
        start, advance = jax.vmap(start), jax.vmap(advance, (0, 0, None, None))
        which = jnp.array(seeds)
    else:
        which = jnp.array(seeds[0])
    advance = jax.jit(advance, donate_argnums=0)
    state = run.restore(start(which))
    with tqdm(total=args.updates, initial=run.step, desc=run.folder.name, unit="update") as bar:
        for done in range(run.step, args.updates, chunk):
            state, info = jax.block_until_ready(advance(state, which, dataset, done))  # the bar shows finished updates
            bar.update(chunk)
            done += chunk
            if done % args.updates_per_checkpoint == 0 or done >= args.updates:
                run.log(done, {name: float(jnp.mean(value)) for name, value in info._asdict().items()})
                run.save(done, state)
                if time.monotonic() > end and done < args.updates:
                    return None
    return state


def noise_shape(module: ModuleType, config: Any, size: int, chosen: dict[str, Any]) -> tuple[int, ...]:
    """The shape of the noise of the method's actor: its own `noise_shape`, or that of one action."""
    shape = getattr(module, "noise_shape", None)
    return (size,) if shape is None else shape(size, config=config, **chosen)


def checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"


def parse_share(share: str) -> tuple[int, int]:
    which, _, count = share.partition("/")
    if not (which.isdecimal() and count.isdecimal() and int(which) < int(count)):
        raise ValueError(f"`share` must be like 0/4, 1/4, ..., 3/4, got {share!r}.")
    return int(which), int(count)


def table_name(args: Args) -> str:
    """Each process has a table of its own."""
    which, count = parse_share(args.share)
    return "agents" if count == 1 else f"agents_{which}_of_{count}"


def finished(args: Args) -> set[tuple[str, str, int]]:
    rows = [
        row
        for path in args.out.glob("agents*.jsonl")
        if path.stem.isidentifier()
        for row in read_rows(args.out, path.stem)
    ]
    return {(row["method"], row["task"], row["seed"]) for row in rows}


def agents(args: Args, method: str, task: Task, name: str, seeds: list[int], pool: EnvPool, end: float) -> None:
    """Train and evaluate the seeds of one method on one task that are missing."""
    module, label = load(method), Path(method).stem + args.label
    config, chosen = configure(args, module, method, name), options(args.act, method, "act")
    missing = [seed for seed in seeds if (label, name, seed) not in finished(args)]
    groups = [missing] if jax.default_backend() != "cpu" else [[seed] for seed in missing]
    size, source = task.dataset.action.shape[-1], Path(task.source)
    for seeds in filter(None, groups):
        sizes = {
            key: getattr(args, key) for key in ("updates", "batch_size", "width", "depth", "n_step", "learning_rate")
        }
        settings = {"config": dataclasses.asdict(config), "act": chosen, "seeds": seeds, **sizes}
        before = time.monotonic()
        with Run(args.out / label / name / f"seed-{'-'.join(map(str, seeds))}", settings) as run:
            resumed = run.step
            state = train(args, module, config, task.dataset, seeds, run, end)
        if state is None:
            return
        seconds = time.monotonic() - before
        for i, seed in enumerate(seeds):
            each = state if len(seeds) == 1 else jax.tree.map(lambda leaf: leaf[i], state)  # noqa: B023
            actor = keyed(module.actor(each, config=config, **chosen), noise_shape(module, config, size, chosen))
            result: Evaluation = evaluate(actor, pool, episodes=args.episodes)
            row = {"method": label, "task": name, "seed": seed, **settings, "seconds": seconds, "resumed_at": resumed}
            row |= {"dataset": source.name, "sha256": checksum(source), "commit": commit()}
            row |= {package: version(package) for package in ("shortcutrl", "jax", "ogbench", "mujoco")}
            row |= {"device": jax.devices()[0].device_kind, "success": result.success.astype(int).tolist()}
            append_row(args.out, table_name(args), row)
            print(f"{label} on {name}, seed {seed}: success {result.success_rate:.2f}", flush=True)


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    end = time.monotonic() + 60 * args.minutes
    try:
        for method, name in itertools.product(args.methods, args.tasks):  # before anything is trained
            configure(args, load(method), method, name)
        which, count = parse_share(args.share)
        args.out.mkdir(parents=True, exist_ok=True)
        every = list(itertools.product(args.tasks, args.methods, range(args.seeds)))
        for name in args.tasks:
            task = ogbench.load(name, episodes=args.data_episodes)
            with EnvPool(task.make_env, processes=args.processes) as pool:
                for method in args.methods:
                    seeds = [seed for *cell, seed in every[which::count] if cell == [name, method]]
                    if time.monotonic() < end:
                        agents(args, method, task, name, seeds, pool, end)
        done = finished(args)
        left = sum((Path(method).stem + args.label, name, seed) not in done for name, method, seed in every)
        print(f"{len(every) - left} of {len(every)} agents are finished, those of other processes included")
    except (ValueError, OSError) as error:
        sys.exit(f"run.py (share {args.share}): {error}")
    except KeyboardInterrupt:
        sys.exit("run.py: interrupted; the same command resumes")


if __name__ == "__main__":
    main()
