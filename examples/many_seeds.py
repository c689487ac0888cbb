"""Train many agents in one program: every task of an OGBench environment times several seeds. Evaluate them all.

The tasks share a dataset and differ in its rewards. All agents take the same number of jumps in an update, so that the
program computes for each what it would compute for one. On several devices each device holds some of the agents.
"""

import dataclasses
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from runs import Run
from sorl import Args, evaluate_cell, initial_state, parse, settings_of, table_of
from tqdm import tqdm

from shortcutrl import Transition, data, sorl
from shortcutrl.evaluate import EnvPool


@dataclasses.dataclass(frozen=True)
class ManyArgs(Args):
    out: Path = Path("runs/many")  # the folder of the run; in it one for each agent, as `sorl.py` makes them
    seeds: int = 8  # agents of each task, from `seed` on
    tasks: tuple[int, ...] = (1, 2, 3, 4, 5)  # of the environment that `env` names

    def agents(self) -> list[Args]:
        seeds = range(self.seed, self.seed + self.seeds)
        return [self.agent(task, seed) for task in self.tasks for seed in seeds]

    def agent(self, task: int, seed: int) -> Args:
        common = {field.name: getattr(self, field.name) for field in dataclasses.fields(Args)}
        return Args(**common | {"env": self.name(task), "seed": seed, "out": self.out / f"task{task}-seed{seed}"})

    def name(self, task: int) -> str:
        return re.sub(r"singletask(-task\d+)?", f"singletask-task{task}", self.env)


class Tasks(NamedTuple):
    dataset: Transition  # its reward and mask have a column for each task; all else the tasks share
    make_envs: list[Callable[[], gymnasium.Env]]
    settings: list[dict[str, Any]]  # of the first agent of each task


def load_tasks(args: ManyArgs) -> Tasks:
    datasets, make_envs, settings = [], [], []
    for task in args.tasks:
        loaded = data.load_ogbench(args.name(task), episodes=args.data_episodes)
        dataset = data.n_step(loaded.dataset, loaded.episode_end, n=args.n_step, discount=args.discount)
        datasets.append(dataset._replace(obs=None, next_obs=None) if datasets else dataset)  # the first's will do
        make_envs.append(loaded.make_env)
        settings.append(settings_of(args.agent(task, args.seed), loaded))
    reward, mask = (jnp.stack([getattr(each, name) for each in datasets], axis=-1) for name in ("reward", "mask"))
    return Tasks(datasets[0]._replace(reward=reward, mask=mask), make_envs, settings)


def train(args: ManyArgs, config: sorl.Config, dataset: Transition, run: Run) -> sorl.State:
    """The states of all agents, along one leading axis."""
    agents = args.agents()
    names = [agent.out.name for agent in agents]
    column = jnp.array([args.tasks.index(task) for task in args.tasks for _ in range(args.seeds)])
    keys = jnp.stack([jax.random.split(jax.random.key(agent.seed), 3) for agent in agents])
    init_keys, train_keys, jumps_key = keys[:, 0], keys[:, 1], keys[0, 2]
    sizes = dataset.obs.shape[-1], dataset.action.shape[-1]
    states = run.restore(jax.jit(jax.vmap(lambda key: initial_state(args, config, sizes, key)))(init_keys))

    mesh = Mesh(jax.devices(), ("agents",))
    states, train_keys, column = jax.device_put(
        (states, train_keys, column), NamedSharding(mesh, PartitionSpec("agents"))
    )
    dataset, jumps_key = jax.device_put((dataset, jumps_key), NamedSharding(mesh, PartitionSpec()))

    @partial(jax.jit, donate_argnums=0)
    def many_updates(states, dataset, train_keys, jumps_key, steps):
        def one_agent(state, key, column, jumps):
            batch_key, update_key = jax.random.split(key)
            batch = data.sample(dataset, batch_key, batch_size=args.batch_size)
            batch = batch._replace(reward=batch.reward[:, column], mask=batch.mask[:, column])
            return sorl.update(state, batch, config=config, key=update_key, jumps=jumps)

        def one_update(states, step):
            jumps = sorl.draw_jumps(jax.random.fold_in(jumps_key, step), config=config)
            keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(train_keys, step)
            return jax.vmap(one_agent, in_axes=(0, 0, 0, None))(states, keys, column, jumps)

        states, info = jax.lax.scan(one_update, states, steps)
        return states, jax.tree.map(lambda x: x.mean(axis=0), info)

    with tqdm(total=args.updates, initial=run.step, desc=f"training {len(agents)} agents", unit="update") as bar:
        done = run.step
        while done < args.updates:
            count = min(args.updates_per_dispatch, args.updates - done)
            states, info = many_updates(states, dataset, train_keys, jumps_key, jnp.arange(done, done + count))
            info = {name: np.asarray(value).tolist() for name, value in info._asdict().items()}
            done += count
            bar.update(count)
            bar.set_postfix({name: f"{np.mean(info[name]):.3g}" for name in ("td", "q", "flow_matching")})
            rows = {f"{name}/{names[i]}": value for name, values in info.items() for i, value in enumerate(values)}
            run.log(done, rows)
            if done % args.updates_per_checkpoint == 0 or done == args.updates:
                run.save(done, states)
    return states


def evaluate_all(args: ManyArgs, states: sorl.State, tasks: Tasks, metrics: list[dict[str, float]]) -> np.ndarray:
    """The success rates, tasks by seeds. Each agent gets a folder as `sorl.py` makes it."""
    agents, rates = args.agents(), []
    cell = args.k, args.n, args.episodes
    with tqdm(total=len(agents), desc="evaluating", unit="agent") as bar:
        for i, (make_env, settings) in enumerate(zip(tasks.make_envs, tasks.settings, strict=True)):
            with EnvPool(make_env, processes=args.processes) as pool:
                for j, agent in list(enumerate(agents))[i * args.seeds : (i + 1) * args.seeds]:
                    state = jax.tree.map(lambda x, j=j: x[j], states)
                    with Run(agent.out, settings | {"seed": agent.seed}) as run:
                        if run.step == 0:
                            for row in metrics:
                                run.log(int(row["step"]), own_columns(row, agent.out.name))
                            run.save(args.updates, state)
                        if cell not in table_of(run):
                            evaluate_cell(agent, state, pool, run, k=args.k, n=args.n, episodes=args.episodes)
                        rates.append(table_of(run)[cell].success_rate)
                    bar.update()
    return np.reshape(rates, (len(args.tasks), args.seeds))


def own_columns(row: dict[str, float], agent: str) -> dict[str, float]:
    return {name.split("/")[0]: value for name, value in row.items() if name.endswith(f"/{agent}")}


def report(args: ManyArgs, rates: np.ndarray) -> str:
    lines = [f"success over {args.episodes} episodes with k = {args.k}, n = {args.n}"]
    for name, row in zip([*args.tasks, "mean"], [*rates, rates.mean(axis=0)], strict=True):
        lines.append(f"task {name}: {row.mean():.2f} (seeds: {', '.join(f'{rate:.2f}' for rate in row)})")
    return "\n".join(lines)


def main() -> None:
    args = parse(ManyArgs, __doc__)
    try:
        config = args.check()
        if args.seeds < 1 or not args.tasks:
            raise ValueError(f"`seeds` and `tasks` must not be empty, got {args.seeds} and {args.tasks}.")
        if len(args.agents()) % jax.device_count():
            raise ValueError(
                f"the number of agents must be a multiple of the {jax.device_count()} devices, got {len(args.tasks)} "
                f"tasks with `seeds` = {args.seeds}."
            )
        args.out.mkdir(parents=True, exist_ok=True)
        tasks = load_tasks(args)
        settings = tasks.settings[0] | {"tasks": args.tasks, "seeds": args.seeds}
        with Run(args.out, settings) as run:
            states = train(args, config, tasks.dataset, run)
            rates = evaluate_all(args, states, tasks, run.rows("metrics"))
    except ValueError as error:
        sys.exit(f"many_seeds.py: {error}")
    except OSError as error:
        sys.exit(f"many_seeds.py: {error} (what {args.out} holds is kept: the same command goes on from there)")
    except KeyboardInterrupt:
        sys.exit("many_seeds.py: interrupted; the same command goes on from what is done")
    print(report(args, rates))
    print(f"metrics, checkpoints and tables of each agent: {args.out}")


if __name__ == "__main__":
    main()
