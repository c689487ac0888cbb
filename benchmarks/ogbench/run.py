"""Train methods on OGBench tasks, evaluate them, and append one JSON line for each finished agent.

    python benchmarks/ogbench/run.py --methods iql sorl --tasks scene-play-singletask-task2-v0 --seeds 4

The same command resumes, and skips agents that are finished; --minutes bounds the training. On accelerators the agents
of a method train in one vmapped program, for all tasks of an environment and all seeds; on CPUs one after the other.
Each agent has its own folder, so any machine can resume: --episodes 0 only trains, and --minutes 0 only evaluates.
Several machines that share the folder of the results each train a part of the agents: --share 0/4 is the first of four.
A method is a name of `shortcutrl.algorithms`, or the path of your own file with the same contract.

In a row, `dataset`, `commit` and `device` are those of the training. It took `seconds`, for `together` agents at once.
"""

import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import inspect
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

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
    minutes: float = float("inf")  # after which no agent trains; the same command resumes

    updates: int = 50_000  # gradient steps
    batch_size: int = 256
    width: int = 256  # of each hidden layer; published: 512
    depth: int = 3  # hidden layers; published: 4
    n_step: int = 1  # steps that a TD target looks ahead
    learning_rate: float | None = None  # peak of the `optimizers` below; by default each method has its published ones
    data_episodes: int | None = None  # of a dataset generated locally; by default OGBench's number
    updates_per_checkpoint: int = 5_000
    episodes: int = 50  # of the evaluation of each agent; 0 only trains
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


class Agent(NamedTuple):
    task: str
    seed: int
    run: Run


@functools.lru_cache(maxsize=1)
def load_tasks(names: tuple[str, ...], episodes: int | None) -> dict[str, Task]:
    """Tasks of one environment by their names. They share the arrays that relabelling does not change."""
    tasks: dict[str, Task] = {}
    for name in names:
        task = ogbench.load(name, episodes=episodes)
        first = next(iter(tasks.values()), task).dataset
        tasks[name] = task._replace(dataset=first._replace(reward=task.dataset.reward, mask=task.dataset.mask))
    return tasks


def sampling(args: Args, config: Any) -> dict[str, Any]:
    return {"n_step": args.n_step, "discount": getattr(config, "discount", 0.99)}


def restore(args: Args, module: ModuleType, config: Any, dataset: data.Dataset, agent: Agent) -> Any:
    """The state of the last checkpoint, or the initial one."""
    example = data.sample(dataset, jax.random.key(0), batch_size=1, **sampling(args, config))
    networks = module.networks(example, width=args.width, depth=args.depth, key=jax.random.key(agent.seed))
    return agent.run.restore(module.init(networks, config=config, optimizers=optimizers(args, module)))


@functools.cache  # compiled once for all agents that train one after the other
def program(args: Args, module: ModuleType, config: Any, count: int, together: bool) -> Callable[..., Any]:
    """`count` updates of one agent, or of several: state, seed, rewards and masks then have a leading axis."""
    options = {"config": config, "optimizers": optimizers(args, module)}
    share_jumps = "jumps_key" in inspect.signature(module.update).parameters

    def advance(state, seed, dataset, first):
        def one(state, step):
            batch_key, update_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), step))
            # One draw for all agents: under vmap, `lax.switch` would otherwise evaluate every branch.
            shared = {"jumps_key": jax.random.key(step)} if share_jumps else {}
            batch = data.sample(dataset, batch_key, batch_size=args.batch_size, **sampling(args, config))
            return module.update(state, batch, key=update_key, **options, **shared)

        state, info = jax.lax.scan(one, state, first + jnp.arange(count))
        return state, jax.tree.map(jnp.mean, info)

    axes: Any = data.Dataset(None, None, 0, 0, None)  # pyright: ignore[reportArgumentType]
    return jax.jit(jax.vmap(advance, (0, 0, axes, None)) if together else advance, donate_argnums=0)


def train(
    args: Args, module: ModuleType, config: Any, tasks: dict[str, Task], group: list[Agent], until: int, end: float
) -> None:
    """Train agents of one environment that have reached the same update, up to the update `until` or the time `end`."""
    before, done, first = time.monotonic(), group[0].run.step, tasks[group[0].task]
    together = len(group) > 1
    *_, label, task, seed = group[0].run.folder.parts
    name = f"{label}, {len(group)} agents" if together else f"{label}, {task}, {seed}"
    stack = lambda *leaves: jnp.stack(leaves) if together else leaves[0]
    state = jax.tree.map(stack, *(restore(args, module, config, first.dataset, agent) for agent in group))
    seeds = stack(*(jnp.array(agent.seed) for agent in group))
    rewards, masks = ([getattr(tasks[agent.task].dataset, name) for agent in group] for name in ("reward", "mask"))
    dataset = first.dataset._replace(reward=stack(*rewards), mask=stack(*masks))
    facts = {"dataset": Path(first.source).name, "sha256": checksum(Path(first.source)), "commit": commit()}
    facts |= {"device": jax.devices()[0].device_kind, "together": len(group)}
    with tqdm(total=args.updates, initial=done, desc=name, unit="update") as bar:
        while done < until:
            count = min(500, args.updates_per_checkpoint - done % args.updates_per_checkpoint, until - done)
            advance = program(args, module, config, count, together)
            state, info = jax.block_until_ready(advance(state, seeds, dataset, done))
            done += count
            bar.update(count)  # finished updates
            if done % args.updates_per_checkpoint and done < until:
                continue
            seconds, before = time.monotonic() - before, time.monotonic()
            saved = jax.device_get((state, info))
            for i, agent in enumerate(group):
                part, means = jax.tree.map(lambda leaf: leaf[i], saved) if together else saved  # noqa: B023
                agent.run.log(done, {name: float(value) for name, value in means._asdict().items()})
                append_row(agent.run.folder, "training", {"step": done, "seconds": seconds, **facts})
                agent.run.save(done, part)
            if time.monotonic() > end:
                return


def trained(run: Run) -> dict[str, Any]:
    """The facts of the last part of a training, and the seconds of all parts."""
    rows = {row.pop("step"): row for row in read_rows(run.folder, "training")}  # a part that was repeated counts once
    *_, last = rows.values()
    return last | {"seconds": sum(row["seconds"] for row in rows.values())}


def noise_shape(module: ModuleType, config: Any, size: int, chosen: dict[str, Any]) -> tuple[int, ...]:
    """The shape of the noise of the method's actor: its own `noise_shape`, or that of one action."""
    shape = getattr(module, "noise_shape", None)
    return (size,) if shape is None else shape(size, config=config, **chosen)


@functools.cache
def checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
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
    tables = [path.stem for path in args.out.glob("agents*.jsonl") if path.stem.isidentifier()]
    return {(row["method"], row["task"], row["seed"]) for table in tables for row in read_rows(args.out, table)}


def agents(args: Args, method: str, names: tuple[str, ...], mine: list[tuple[str, int]], end: float) -> int:
    """Train and evaluate those agents of a method that are missing, and return how many are left to train.

    `names` are tasks of one environment, and `mine` a task and a seed for each agent.
    """
    module, label, done = load(method), Path(method).stem + args.label, finished(args)
    config, chosen = configure(args, module, method, names[0]), options(args.act, method, "act")
    settings = {"config": dataclasses.asdict(config), "act": chosen} | {key: getattr(args, key) for key in TRAINING}
    folder = args.out / label
    with ExitStack() as stack:
        missing = [
            Agent(task, seed, stack.enter_context(Run(folder / task / f"seed-{seed}", {"seed": seed, **settings})))
            for task, seed in mine
            if (label, task, seed) not in done
        ]
        while (left := [agent for agent in missing if agent.run.step < args.updates]) and time.monotonic() < end:
            tasks, least = load_tasks(names, args.data_episodes), min(agent.run.step for agent in left)
            group = [agent for agent in left if agent.run.step == least]
            # Up to the update that others have reached: from there on, they train together.
            until = min((agent.run.step for agent in left if agent.run.step > least), default=args.updates)
            if jax.default_backend() == "cpu":
                group, until = left[:1], args.updates
            train(args, module, config, tasks, group, until, end)
        ready = [agent for agent in missing if agent.run.step >= args.updates and args.episodes != 0]
        for name, group in itertools.groupby(ready, lambda agent: agent.task):
            task = load_tasks(names, args.data_episodes)[name]
            shape = noise_shape(module, config, task.dataset.action.shape[-1], chosen)
            with EnvPool(task.make_env, processes=args.processes) as pool:
                for agent in group:
                    state = restore(args, module, config, task.dataset, agent)
                    actor = keyed(module.actor(state, config=config, **chosen), shape)
                    result: Evaluation = evaluate(actor, pool, episodes=args.episodes)
                    row = {"method": label, "task": name, "seed": agent.seed, **settings, **trained(agent.run)}
                    row |= {package: version(package) for package in ("shortcutrl", "jax", "ogbench", "mujoco")}
                    append_row(args.out, table_name(args), row | {"success": result.success.astype(int).tolist()})
                    print(f"{label} on {name}, seed {agent.seed}: success {result.success_rate:.2f}", flush=True)
        return len(left)


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    end = time.monotonic() + 60 * args.minutes
    try:
        for method, name in itertools.product(args.methods, args.tasks):  # before anything is trained
            configure(args, load(method), method, name)
        which, count = parse_share(args.share)
        args.out.mkdir(parents=True, exist_ok=True)
        every = list(itertools.product(args.tasks, args.methods, range(args.seeds)))
        groups: dict[str, list[str]] = {}  # the tasks that train together, by environment
        for name in args.tasks:
            environment = name if jax.default_backend() == "cpu" else name.split("-singletask")[0]
            groups.setdefault(environment, []).append(name)
        untrained = 0
        for names, method in itertools.product(groups.values(), args.methods):
            mine = [(name, seed) for name, of, seed in every[which::count] if name in names and of == method]
            untrained += agents(args, method, tuple(names), mine, end)
        done = finished(args)
        left = sum((Path(method).stem + args.label, name, seed) not in done for name, method, seed in every)
        print(f"{len(every) - left} of {len(every)} agents are trained and evaluated, by all processes")
        print(f"{untrained} agents of this process are left to train")
    except (ValueError, OSError) as error:
        sys.exit(f"run.py (share {args.share}): {error}")
    except KeyboardInterrupt:
        sys.exit("run.py: interrupted; the same command resumes")


if __name__ == "__main__":
    main()
