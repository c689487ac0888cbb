"""Train agents of one environment, one or all together, and record the time, dataset and device of each training."""

import functools
import hashlib
import inspect
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from settings import Args, optimizers
from tqdm import tqdm

from shortcutrl import data
from shortcutrl.runs import Run, append_row, read_rows
from shortcutrl.suites import Task, ogbench


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
    return {"n_step": args.n_step, "chunk": args.chunk, "discount": getattr(config, "discount", 0.99)}


def initial(args: Args, module: ModuleType, config: Any, dataset: data.Dataset, seed: int) -> Any:
    example = data.sample(dataset, jax.random.key(0), batch_size=1, **sampling(args, config))
    # Settings that shape the networks, such as `condition_critic_on_k`.
    named = inspect.signature(module.networks).parameters.keys() - {"example", "width", "depth", "key"}
    shared = {name: getattr(config, name) for name in named if hasattr(config, name)}
    networks = module.networks(example, width=args.width, depth=args.depth, **shared, key=jax.random.key(seed))
    return module.init(networks, config=config, optimizers=optimizers(args, module))


def restore(args: Args, module: ModuleType, config: Any, dataset: data.Dataset, agent: Agent) -> Any:
    """The state of the last checkpoint, or the initial one."""
    return agent.run.restore(initial(args, module, config, dataset, agent.seed))


def noise_shape(
    args: Args, module: ModuleType, config: Any, dataset: data.Dataset, chosen: dict[str, Any]
) -> tuple[int, ...]:
    """The shape of the noise of the method's actor: its own `noise_shape`, or that of one action or chunk."""
    size, shape = args.chunk * dataset.action.shape[-1], getattr(module, "noise_shape", None)
    return (size,) if shape is None else shape(size, config=config, **chosen)


def check_actor(args: Args, module: ModuleType, config: Any, dataset: data.Dataset, chosen: dict[str, Any]) -> None:
    """Check that the actor accepts the options. Otherwise it would fail only after the training."""
    state = initial(args, module, config, dataset, 0)

    def act(obs: Any) -> Any:
        noise = jnp.zeros(noise_shape(args, module, config, dataset, chosen))
        return module.actor(state, config=config, **chosen)(obs, noise)

    try:
        jax.eval_shape(act, jax.tree.map(lambda leaf: leaf[0], dataset.obs))
    except (TypeError, ValueError) as error:
        raise ValueError(f"`act`: the actor of {module.__name__} cannot act with {chosen}: {error}") from error


def check_update(args: Args, module: ModuleType, config: Any, dataset: data.Dataset) -> None:
    """Check the state and what an update returns. Otherwise a training would fail after its first block of updates."""
    state = initial(args, module, config, dataset, 0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if not eqx.is_array_like(leaf):
            where = jax.tree_util.keystr(path)
            raise ValueError(
                f"`init` of {module.__name__} made a state with {where} = {leaf!r}, but `jit` carries arrays only. "
                "Keep it in a static field of your own network."
            )
    batch = data.sample(dataset, jax.random.key(0), batch_size=1, **sampling(args, config))
    update = functools.partial(module.update, config=config, optimizers=optimizers(args, module))
    result = jax.eval_shape(update, state, batch, key=jax.random.key(0))
    pair = isinstance(result, tuple) and len(result) == 2 and hasattr(result[1], "_asdict")
    if not pair or jax.tree.structure(result[0]) != jax.tree.structure(state):
        raise ValueError(f"`update` of {module.__name__} must return a state like that of `init` and a NamedTuple.")
    before = jax.tree_util.tree_leaves_with_path(jax.eval_shape(lambda: state))
    for (path, old), new in zip(before, jax.tree.leaves(result[0]), strict=True):
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            where = jax.tree_util.keystr(path)
            raise ValueError(
                f"`update` of {module.__name__} must return a state like that of `init`, but {where} is "
                f"{new.dtype}{list(new.shape)}, not {old.dtype}{list(old.shape)}."
            )


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
    facts = {"dataset": first.source.name, "sha256": checksum(first.source), "commit": commit()}
    for run in (agent.run for agent in group if agent.run.step):
        if (was := trained(run)["sha256"]) != facts["sha256"]:
            raise ValueError(f"`out`: {run.folder} was trained on another dataset, of checksum {was}. Choose another.")
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


@functools.cache
def checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"
