"""Train methods on OGBench tasks, evaluate them, and append one JSON line for each finished agent.

    python benchmarks/ogbench/run.py --methods iql sorl --tasks scene-play-singletask-task2-v0 --seeds 4

The same command resumes, and skips agents that are finished; --minutes bounds the training. On accelerators the agents
of a method train in one vmapped program, for all tasks of an environment and all seeds; on CPUs one after the other.
Each agent has its own folder, so any machine can resume: --episodes 0 only trains, and --minutes 0 only evaluates.
Several machines that share the folder of the results each train a part of the agents: --share 0/4 is the first of four.
A method is a name of `shortcutrl.algorithms`, or the path of your own file with the same contract. An edited file
needs another --label.

In a row, `dataset`, `commit` and `device` are those of the training. It took `seconds`, for `together` agents at once.
"""

import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import gymnasium
import jax
import tyro
from settings import Args, configure, load, options
from training import Agent, check_actor, check_update, checksum, load_tasks, noise_shape, restore, train, trained

from shortcutrl import algorithms
from shortcutrl.evaluate import ChunkedActions, EnvPool, Evaluation, evaluate, keyed
from shortcutrl.runs import Run, append_row, read_rows

TRAINING = ("updates", "batch_size", "width", "depth", "n_step", "chunk", "learning_rate", "data_episodes")


def parse_share(share: str) -> tuple[int, int]:
    which, _, count = share.partition("/")
    if not (which.isdecimal() and count.isdecimal() and int(which) < int(count)):
        raise ValueError(f"`share` must be like 0/4, 1/4, ..., 3/4, got {share!r}.")
    return int(which), int(count)


def check_names(methods: tuple[str, ...]) -> None:
    """The name of a file tells its agents from those of other methods."""
    stems = [Path(method).stem for method in methods]
    own = [module.name for module in iter_modules(algorithms.__path__)]
    for method, stem in zip(methods, stems, strict=True):
        if stems.count(stem) > 1 or (method.endswith(".py") and stem in own):
            raise ValueError(f"`methods`: another method has the name of {method}. Rename the file, or name it once.")


def check_changes(methods: tuple[str, ...], flag: str, changes: tuple[str, ...]) -> None:
    """Each change is of one of the methods."""
    stems = [Path(method).stem for method in methods]
    for change in changes:
        if change.partition("=")[0].rpartition(".")[0] not in stems:
            raise ValueError(f"`{flag}`: {change!r} changes none of {', '.join(stems)}.")


def table_name(args: Args) -> str:
    """Each process has a table of its own."""
    which, count = parse_share(args.share)
    return "agents" if count == 1 else f"agents_{which}_of_{count}"


def finished(args: Args) -> dict[tuple[str, str, int], dict[str, Any]]:
    tables = [path.stem for path in args.out.glob("agents*.jsonl") if path.stem.isidentifier()]
    rows = [row for table in tables for row in read_rows(args.out, table)]
    return {(row["method"], row["task"], row["seed"]): row for row in rows}


def check_same(args: Args, key: tuple[str, str, int], settings: dict[str, Any], row: dict[str, Any]) -> None:
    """The finished agent was trained with these settings."""
    settings = json.loads(json.dumps(settings))  # as in the row
    changed = [name for name in settings if settings[name] != row.get(name)]
    was, now = ({name: each.get(name) for name in changed} for each in (row, settings))
    if changed:
        raise ValueError(f"`label`: {args.out} has an agent {key} with {was}, not {now}. Choose another label.")


def chunked(make_env: Callable[[], gymnasium.Env], length: int) -> gymnasium.Env:
    """Make an environment for chunks. A function inside of `agents` would send the dataset to the workers, too."""
    return ChunkedActions(make_env(), length)


def agents(args: Args, method: str, names: tuple[str, ...], mine: list[tuple[str, int]], end: float) -> int:
    """Train and evaluate those agents of a method that are missing, and return how many are left to train.

    `names` are tasks of one environment, and `mine` a task and a seed for each agent.
    """
    module, label, done = load(method), Path(method).stem + args.label, finished(args)
    config, chosen = configure(args, module, method, names[0]), options(args.act, method, "act")
    settings = {"config": dataclasses.asdict(config), "act": chosen} | {key: getattr(args, key) for key in TRAINING}
    if method.endswith(".py"):
        settings["file"] = checksum(Path(method))
    folder = args.out / label
    for task, seed in mine:
        if row := done.get((label, task, seed)):
            check_same(args, (label, task, seed), settings, row)
    todo = [(task, seed) for task, seed in mine if (label, task, seed) not in done]
    if todo:  # before any folder is made, because a folder keeps the checksum of the file
        dataset = load_tasks(names, args.data_episodes)[names[0]].dataset
        check_update(args, module, config, dataset)
        check_actor(args, module, config, dataset, chosen)
    with ExitStack() as stack:
        missing = [
            Agent(task, seed, stack.enter_context(Run(folder / task / f"seed-{seed}", {"seed": seed, **settings})))
            for task, seed in todo
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
            shape = noise_shape(args, module, config, task.dataset, chosen)
            with EnvPool(partial(chunked, task.make_env, args.chunk), processes=args.processes) as pool:
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
            options(args.act, method, "act")
        check_names(args.methods)
        check_changes(args.methods, "set", args.set)
        check_changes(args.methods, "act", args.act)
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
