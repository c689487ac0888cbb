"""Train many agents in one program: every task of an OGBench environment times several seeds. Evaluate them all.

The tasks share a dataset and differ in its rewards. All agents take the same number of jumps in an update, so that the
program computes for each what it would compute for one. On several devices each device holds some of the agents.
"""

import dataclasses
import re
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from runs import Run
from sorl import Args, evaluate_cell, initial_state, parse, settings_of, table_of
from tqdm import tqdm

from shortcutrl import data, sorl
from shortcutrl.evaluate import EnvPool


@dataclasses.dataclass(frozen=True)
class ManyArgs(Args):
    out: Path = Path("runs/many")  # the folder of the run; in it one for each agent, as `sorl.py` makes them
    seeds: int = 8  # agents of each task, from `seed` on
    tasks: tuple[int, ...] = (1, 2, 3, 4, 5)  # of the environment that `env` names

    def agents(self) -> list[Args]:
        common = {field.name: getattr(self, field.name) for field in dataclasses.fields(Args)}
        return [
            Args(**common | {"env": self.name(task), "seed": seed, "out": self.out / f"task{task}-seed{seed}"})
            for task in self.tasks
            for seed in range(self.seed, self.seed + self.seeds)
        ]

    def name(self, task: int) -> str:
        return re.sub(r"singletask(-task\d+)?", f"singletask-task{task}", self.env)


def train(args: ManyArgs, config: sorl.Config, tasks: list[data.Task], run: Run) -> sorl.State:
    """The states of all agents, along one leading axis."""
    datasets = [data.n_step(task.dataset, task.episode_end, n=args.n_step, discount=args.discount) for task in tasks]
    dataset = datasets[0]._replace(  # one column for each task
        reward=jnp.stack([each.reward for each in datasets], axis=-1),
        mask=jnp.stack([each.mask for each in datasets], axis=-1),
    )
    agents = args.agents()
    names = [agent.out.name for agent in agents]
    column = jnp.array([args.tasks.index(task) for task in args.tasks for _ in range(args.seeds)])
    keys = jnp.stack([jax.random.split(jax.random.key(agent.seed)) for agent in agents])
    sizes = dataset.obs.shape[-1], dataset.action.shape[-1]
    init = jax.jit(jax.vmap(lambda key: initial_state(args, config, sizes, key)))

    mesh = Mesh(jax.devices(), ("agents",))
    of_agents, of_all = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["agents"], []))
    states, keys, column = jax.device_put((run.restore(init(keys[:, 0])), keys[:, 1], column), of_agents)
    dataset = jax.device_put(dataset, of_all)

    @partial(jax.jit, donate_argnums=0)
    def many_updates(states, dataset, keys, column, steps):
        def one_agent(state, key, column, jumps):
            batch_key, update_key = jax.random.split(key)
            batch = data.sample(dataset, batch_key, batch_size=args.batch_size)
            batch = batch._replace(reward=batch.reward[:, column], mask=batch.mask[:, column])
            return sorl.update(state, batch, config=config, key=update_key, jumps=jumps)

        def one_update(states, step):
            jumps = sorl.draw_jumps(jax.random.fold_in(jax.random.key(args.seed), step), config=config)
            now = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, step)
            return jax.vmap(one_agent, in_axes=(0, 0, 0, None))(states, now, column, jumps)

        states, info = jax.lax.scan(one_update, states, steps)
        return states, jax.tree.map(lambda x: x.mean(axis=0), info)

    with tqdm(total=args.updates, initial=run.step, desc=f"training {len(agents)} agents", unit="update") as bar:
        done = run.step
        while done < args.updates:
            count = min(args.updates_per_dispatch, args.updates - done)
            states, info = many_updates(states, dataset, keys, column, jnp.arange(done, done + count))
            info = {name: np.asarray(value).tolist() for name, value in info._asdict().items()}
            done += count
            bar.update(count)
            bar.set_postfix({name: f"{np.mean(info[name]):.3g}" for name in ("td", "q", "flow_matching")})
            rows = {f"{name}/{names[i]}": value for name, values in info.items() for i, value in enumerate(values)}
            run.log(done, rows)
            if done % args.updates_per_checkpoint == 0 or done == args.updates:
                run.save(done, states)
    return states


def evaluate_all(args: ManyArgs, states: sorl.State, tasks: list[data.Task]) -> np.ndarray:
    """The success rates, tasks by seeds. Each agent gets a folder as `sorl.py` makes it, with its checkpoint."""
    agents, rates = args.agents(), []
    with tqdm(total=len(agents), desc="evaluating", unit="agent") as bar:
        for i, task in enumerate(tasks):
            with EnvPool(task.make_env, processes=args.processes) as pool:
                for j in range(i * args.seeds, (i + 1) * args.seeds):
                    state = jax.tree.map(lambda x, j=j: x[j], states)
                    with Run(agents[j].out, settings_of(agents[j], task)) as run:
                        if run.step == 0:
                            run.save(args.updates, state)
                        if (cell := (args.k, args.n, args.episodes)) not in table_of(run):
                            k, n, episodes = cell
                            evaluate_cell(agents[j], state, pool, run, k=k, n=n, episodes=episodes)
                        rates.append(table_of(run)[cell].success_rate)
                    bar.update()
    return np.reshape(rates, (len(tasks), args.seeds))


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
        tasks = [data.load_ogbench(args.name(task), episodes=args.data_episodes) for task in args.tasks]
        with Run(args.out, settings_of(args, tasks[0])) as run:
            states = train(args, config, tasks, run)
        rates = evaluate_all(args, states, tasks)
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
