"""The options of run.py, and the module, the settings and the optimizers of a method that follow from them."""

import dataclasses
import functools
import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import optax
from published import SETTINGS

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

    updates: int = 50_000  # gradient steps of each network
    batch_size: int = 256
    width: int = 256  # of each hidden layer; published: 512
    depth: int = 3  # hidden layers; published: 4
    n_step: int = 1  # steps, or chunks of them, that a TD target looks ahead
    chunk: int = 1  # actions that the policy chooses at once
    learning_rate: float | None = None  # peak of the `optimizers` below; by default each method has its published ones
    data_episodes: int | None = None  # of a dataset generated locally; by default OGBench's number
    updates_per_checkpoint: int = 5_000
    episodes: int = 50  # of the evaluation of each agent; 0 only trains
    processes: int | None = None  # that hold the environments


@functools.cache  # the same classes for every agent
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
    found = options(args.set, method, "set")
    changes = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
    if unknown := changes.keys() - {field.name for field in dataclasses.fields(module.Config)}:
        raise ValueError(f"`set`: {method} has no setting {', '.join(sorted(unknown))}.")
    try:
        config = SETTINGS.get(method, {}).get(task.split("-singletask")[0]) or module.Config()
        return dataclasses.replace(config, **changes)
    except TypeError as error:
        raise ValueError(f"`set`: the settings {changes} do not fit {method}: {error}") from error


@functools.cache  # the same object for every agent
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
