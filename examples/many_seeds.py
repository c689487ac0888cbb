"""Train many agents in one program: every task of an OGBench environment times several seeds. Evaluate them all.

The tasks share a dataset and differ in its rewards. On one CPU, the agents train one after the other. On accelerators
they train at once, and all take the same number of jumps in an update. Otherwise the program would compute every number
of jumps for each agent. Each of several devices holds some of the agents.
"""

import csv
import dataclasses
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy.stats import sem, t
from tqdm import tqdm

from shortcutrl import data, sorl
from shortcutrl.evaluate import EnvPool, Evaluation, evaluate, keyed
from shortcutrl.runs import Run, append_row, read_rows
from shortcutrl.suites import Task, ogbench


@dataclasses.dataclass(frozen=True)
class Args:
    env: str = "scene-play-singletask-v0"  # an OGBench single-task dataset; `tasks` selects the tasks
    tasks: tuple[int, ...] = (1, 2, 3, 4, 5)  # numbers of the environment's tasks; each has its own rewards
    seeds: int = 8  # agents of each task
    out: Path = Path("runs/many")  # the folder of the run; it contains a run of sorl.py for each agent
    data_episodes: int = 250  # episodes of a dataset that is generated locally

    updates: int = 40_000  # gradient steps of each network
    updates_per_checkpoint: int = 1_000  # updates in one call of the compiled program
    batch_size: int = 256  # transitions in one update of one agent
    width: int = 256  # units in each hidden layer
    depth: int = 3  # number of hidden layers
    learning_rate: float = 1e-3  # peak learning rate of Adam; it rises over a tenth of the updates, then falls to 0
    n_step: int = 5  # environment steps that a TD target looks ahead
    num_steps: int = 8  # M, the largest number of jumps that the policy learns
    max_jumps: int = 8  # M_BTT, the largest number of jumps that Q is maximised through
    q_weight: float = 30.0  # weight of maximising Q; 0 is behaviour cloning
    discount: float = 0.99  # discount of the rewards, gamma
    tau: float = 0.01  # how far the target networks move at each update
    condition_critic_on_k: bool = True  # whether the critic sees the number of jumps

    k: int = 4  # jumps to act with
    n: int = 1  # candidates to act with
    episodes: int = 50  # episodes of the evaluation of each agent
    processes: int = 4  # processes for the environments of the evaluation; two for each core are best

    def agents(self) -> list[tuple[int, int]]:
        """Task and seed of each agent."""
        return [(task, seed) for task in self.tasks for seed in range(self.seeds)]

    def name(self, task: int) -> str:
        return re.sub(r"singletask(-task\d+)?", f"singletask-task{task}", self.env)

    def check(self) -> sorl.Config:
        if min(self.seeds, len(self.tasks), self.updates, self.updates_per_checkpoint, self.k, self.n) < 1:
            raise ValueError("`seeds`, `tasks`, `updates`, `updates_per_checkpoint`, `k`, `n` must not be 0 or empty.")
        if len(self.agents()) % jax.device_count():
            raise ValueError(
                f"the number of agents must be a multiple of the {jax.device_count()} devices, got {len(self.tasks)} "
                f"tasks with `seeds` = {self.seeds}."
            )
        names = [field.name for field in dataclasses.fields(sorl.Config) if hasattr(self, field.name)]
        return sorl.Config(**{name: getattr(self, name) for name in names})


def settings_of(args: Args, config: sorl.Config, task: Task) -> dict[str, Any]:
    """What the result depends on, by the names of sorl.py."""
    names = ("data_episodes", "updates", "batch_size", "width", "depth", "learning_rate", "n_step")
    sizes = {"obs_size": task.dataset.obs.shape[-1], "action_size": task.dataset.action.shape[-1]}
    dataset = {"dataset": task.source.name, "config": dataclasses.asdict(config)}
    return {name: getattr(args, name) for name in names} | sizes | dataset


def train(args: Args, config: sorl.Config, datasets: list[data.Dataset], run: Run) -> sorl.State:
    """The states of all agents, along one leading axis."""
    agents = args.agents()
    schedule = optax.warmup_cosine_decay_schedule(0.0, args.learning_rate, args.updates // 10, args.updates)
    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    options = {"config": config, "optimizers": sorl.Networks(adam, adam)}
    sample = partial(data.sample, batch_size=args.batch_size, n_step=args.n_step, discount=args.discount)

    def start(key):
        shape = {"width": args.width, "depth": args.depth, "condition_critic_on_k": args.condition_critic_on_k}
        return sorl.init(sorl.networks(sample(datasets[0], key), **shape, key=key), **options)

    # Each agent has the rewards of its task. All else is shared.
    which = [args.tasks.index(task) for task, _ in agents]
    reward, mask = (jnp.stack([getattr(datasets[i], name) for i in which]) for name in ("reward", "mask"))
    dataset = datasets[0]._replace(reward=reward, mask=mask)
    axes = data.Dataset(None, None, 0, 0, None, None)  # pyright: ignore[reportArgumentType]
    keys = jax.vmap(jax.random.split)(jnp.stack([jax.random.key(seed) for _, seed in agents]))
    states = run.restore(jax.jit(jax.vmap(start))(keys[:, 0]))
    split = NamedSharding(Mesh(jax.devices(), ("agents",)), PartitionSpec("agents"))
    shared = NamedSharding(split.mesh, PartitionSpec())
    places = data.Dataset(shared, shared, split, split, shared, shared)  # pyright: ignore[reportArgumentType]
    dataset = data.Dataset(*(jax.device_put(*each) for each in zip(dataset, places, strict=True)))
    states, keys = jax.device_put((states, keys[:, 1]), split)

    in_turn = jax.default_backend() == "cpu" and jax.device_count() == 1

    def updates(state, dataset, key, steps):
        def one_update(state, step):
            batch_key, update_key = jax.random.split(jax.random.fold_in(key, step))
            jumps_key = None if in_turn else jax.random.fold_in(jax.random.key(0), step)
            batch = sample(dataset, batch_key)
            return sorl.update(state, batch, **options, key=update_key, jumps_key=jumps_key)

        state, info = jax.lax.scan(one_update, state, steps)
        return state, jax.tree.map(jnp.mean, info)

    @partial(jax.jit, donate_argnums=0)
    def many_updates(states, dataset, keys, steps):
        if not in_turn:
            return jax.vmap(updates, in_axes=(0, axes, 0, None))(states, dataset, keys, steps)

        def one_agent(agent):
            state, reward, mask, key = agent
            return updates(state, dataset._replace(reward=reward, mask=mask), key, steps)

        return jax.lax.map(one_agent, (states, dataset.reward, dataset.mask, keys))

    with tqdm(total=args.updates, initial=run.step, desc=f"training {len(agents)} agents", unit="update") as bar:
        while (done := bar.n) < args.updates:
            count = min(args.updates_per_checkpoint, args.updates - done)
            states, info = many_updates(states, dataset, keys, jnp.arange(done, done + count))
            values = {name: np.asarray(value) for name, value in info._asdict().items()}
            bar.update(count)
            run.log(bar.n, {f"{name}/{folder(*agents[i])}": x for name, xs in values.items() for i, x in enumerate(xs)})
            run.save(bar.n, states)
    return states


def folder(task: int, seed: int) -> str:
    return f"task{task}-seed{seed}"


def evaluate_agent(args: Args, state: sorl.State, pool: EnvPool, run: Run, metrics: list[dict[str, Any]]) -> Evaluation:
    """The result of one agent, from its folder if it is there."""
    if run.step == 0:
        for row in metrics:
            own = {name: value for name, value in row.items() if name.endswith(f"/{run.folder.name}")}
            run.log(row["step"], {name.split("/")[0]: value for name, value in own.items()})
        run.save(args.updates, state)
    cell = {"k": args.k, "n": args.n, "episodes": args.episodes}
    while not (rows := [row for row in read_rows(run.folder, "table") if cell.items() <= row.items()]):
        shape = sorl.noise_shape(*pool.action_shape, config=args.check(), n=args.n)
        policy = keyed(sorl.actor(state, config=args.check(), k=args.k, n=args.n), shape)
        append_row(run.folder, "table", cell | evaluate(policy, pool, episodes=args.episodes)._asdict())
    return Evaluation(*(np.array(rows[-1][name]) for name in Evaluation._fields))


def run_all(args: Args) -> dict[tuple[int, int], Evaluation]:
    """Train and evaluate all agents. Results by task and seed."""
    config = args.check()
    args.out.mkdir(parents=True, exist_ok=True)
    tasks = [ogbench.load(args.name(task), episodes=args.data_episodes) for task in args.tasks]
    settings, results = settings_of(args, config, tasks[0]), {}
    with Run(args.out, settings | {"env": args.env, "tasks": args.tasks, "seeds": args.seeds}) as run:
        states = train(args, config, [task.dataset for task in tasks], run)
    with tqdm(total=len(args.agents()), desc="evaluating", unit="agent") as bar:
        for i, (number, task) in enumerate(zip(args.tasks, tasks, strict=True)):
            with EnvPool(task.make_env, processes=args.processes) as pool:
                for seed in range(args.seeds):
                    state = jax.tree.map(lambda x, agent=i * args.seeds + seed: x[agent], states)
                    own = settings | {"env": args.name(number), "seed": seed}
                    with Run(args.out / folder(number, seed), own) as run:
                        results[number, seed] = evaluate_agent(args, state, pool, run, read_rows(args.out, "metrics"))
                    bar.update()
    return results


def mean_of_seeds(rates: np.ndarray) -> str:
    """The mean with a 95% t interval. Seeds differ more than episodes do, so it is over seeds: one has none."""
    mean = rates.mean()
    if len(rates) == 1:
        return f"{mean:.2f}"
    half = t.ppf(0.975, len(rates) - 1) * sem(rates)
    return f"{mean:.2f} ({max(mean - half, 0):.2f} to {min(mean + half, 1):.2f})"


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    try:
        results = run_all(args)
    except ValueError as error:
        sys.exit(f"many_seeds.py: {error}")
    except OSError as error:
        sys.exit(f"many_seeds.py: {error} ({args.out} is kept: the same command resumes)")
    except KeyboardInterrupt:
        sys.exit("many_seeds.py: interrupted; the same command resumes")
    with (args.out / "results.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["task", "seed", "k", "n", "episodes", "successes"])
        for (task, seed), result in results.items():
            writer.writerow([task, seed, args.k, args.n, args.episodes, result.success.sum()])
    print(f"mean success with k = {args.k}, n = {args.n} (95% t interval over seeds)")
    for task in args.tasks:
        rates = np.array([results[task, seed].success_rate for seed in range(args.seeds)])
        seeds = ", ".join(f"{rate:.2f}" for rate in rates)
        print(f"task {task}: {mean_of_seeds(rates)}, seeds: {seeds}")
    print(f"mean of the tasks: {np.mean([result.success_rate for result in results.values()]):.2f}")
    print(f"metrics, checkpoints and tables of each agent, results.csv: {args.out}")


if __name__ == "__main__":
    main()
