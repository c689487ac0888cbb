"""Train SORL on an OGBench task, evaluate it for several numbers of jumps and candidates, and draw what happened.

The dataset is OGBench's own where it can be downloaded; elsewhere OGBench's scripted oracles make one on the spot.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import tyro
from runs import Run, load_checkpoint
from tqdm import tqdm

from shortcutrl import Transition, bon_select, data, nn, sorl
from shortcutrl.evaluate import EnvPool, Evaluation, evaluate

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

Parsed = TypeVar("Parsed", bound="Args")


@dataclasses.dataclass(frozen=True)
class Args:
    preset: Literal["laptop", "paper", "smoke"] = "laptop"  # a coffee break, the published million updates, or 20

    env: str = "scene-play-singletask-task1-v0"  # an OGBench single-task dataset
    out: Path = Path("runs/sorl")  # the folder of the run; the same command again goes on where it stopped
    data_episodes: int = 250  # episodes of a dataset that is made on the spot
    seed: int = 0  # of the networks and the training

    updates: int = 16_000  # gradient steps
    updates_per_dispatch: int = 200  # gradient steps in one call of the compiled program, and one line of metrics
    updates_per_checkpoint: int = 1_000  # a multiple of them
    batch_size: int = 256  # transitions in one gradient step
    width: int = 256  # of each hidden layer
    depth: int = 3  # hidden layers
    matmul_dtype: Literal["float32", "bfloat16"] = "float32"  # of the matrix products between hidden layers
    learning_rate: float = 1e-3  # Adam's, at its peak
    schedule: Literal["cosine", "constant"] = "cosine"  # cosine: rises over a tenth of the updates, then falls to 0
    flow_matching_weight: float = 10.0  # of matching the data's velocity by the smallest step
    self_consistency_weight: float = 10.0  # of two half-jumps landing where one jump lands
    q_weight: float = 10.0  # of maximising Q; 0 is behaviour cloning
    num_steps: int = 8  # M, the largest number of jumps that the policy learns
    max_jumps: int = 4  # M_BTT, the largest number of jumps that Q is maximised through
    discount: float = 0.99  # gamma
    tau: float = 0.02  # how far the target networks move at each update
    remat: bool = False  # computing jumps anew in the backward pass: less memory, more time
    condition_on_k: bool = False  # whether the critic sees the number of jumps
    n_step: int = 5  # steps that a TD target looks ahead
    aggregate: Literal["min", "mean"] = "mean"  # of the ensemble of critics

    k: int = 1  # jumps to act with, the headline of the table
    n: int = 1  # candidates to act with
    episodes: int = 50  # to evaluate the policy on that acts with this k and n
    table_episodes: int = 20  # to evaluate each other cell of the table on
    processes: int = 4  # that hold the environments of the evaluation, four in each; two for each core are best

    @property
    def jumps(self) -> list[int]:
        return [2**i for i in range(self.num_steps.bit_length())]

    def check(self) -> sorl.Config:
        """The training's configuration; finds out before hours of work what would fail after them."""
        sizes = ("data_episodes", "updates", "updates_per_dispatch", "batch_size", "width", "depth", "n_step")
        for name in (*sizes, "n", "episodes", "table_episodes", "processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.updates_per_checkpoint < 1 or self.updates_per_checkpoint % self.updates_per_dispatch:
            raise ValueError(
                f"`updates_per_checkpoint` must be a multiple of `updates_per_dispatch` = {self.updates_per_dispatch}, "
                f"got {self.updates_per_checkpoint}."
            )
        if self.k not in self.jumps:
            raise ValueError(f"`k` must be a power of two up to `num_steps` = {self.num_steps}, got {self.k}.")
        cosine = optax.warmup_cosine_decay_schedule(0.0, self.learning_rate, self.updates // 10, self.updates)
        adam = optax.adam(cosine if self.schedule == "cosine" else self.learning_rate)
        return sorl.Config(  # checks the rest
            num_steps=self.num_steps,
            max_jumps=self.max_jumps,
            flow_matching_weight=self.flow_matching_weight,
            self_consistency_weight=self.self_consistency_weight,
            q_weight=self.q_weight,
            discount=self.discount,
            tau=self.tau,
            aggregate=self.aggregate,
            remat=self.remat,
            optimizer=optax.chain(optax.clip_by_global_norm(1.0), adam),
        )


PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {},
    "paper": {
        "updates": 1_000_000,
        "updates_per_dispatch": 1_000,
        "updates_per_checkpoint": 10_000,
        "width": 512,
        "depth": 4,
        "max_jumps": 8,
        "learning_rate": 1e-4,
        "schedule": "constant",
        "tau": 0.005,
        "n_step": 1,
        "condition_on_k": True,
        "data_episodes": 1_000,
    },
    "smoke": {
        "data_episodes": 1,
        "updates": 20,
        "updates_per_dispatch": 10,
        "updates_per_checkpoint": 10,
        "width": 32,
        "depth": 1,
        "num_steps": 2,
        "max_jumps": 2,
        "episodes": 1,
        "table_episodes": 1,
        "processes": 1,
    },
}

# What the published configuration sets for each environment, from the README of the authors' code.
PUBLISHED: dict[str, dict[str, Any]] = {
    "antmaze-large-navigate": {"q_weight": 500.0, "aggregate": "min"},
    "antmaze-giant-navigate": {"q_weight": 500.0, "aggregate": "min", "discount": 0.995},
    "humanoidmaze-medium-navigate": {"q_weight": 100.0, "discount": 0.995},
    "humanoidmaze-large-navigate": {"q_weight": 500.0, "discount": 0.995},
    "antsoccer-arena-navigate": {"q_weight": 500.0, "discount": 0.995},
    "cube-single-play": {"q_weight": 10.0},
    "cube-double-play": {"q_weight": 50.0},
    "scene-play": {"q_weight": 100.0},
}


def parse(kind: type[Parsed], description: str | None) -> Parsed:
    """The arguments of the command line; the preset among them says which defaults the others have."""
    peek = argparse.ArgumentParser(add_help=False)
    for name in ("--preset", "--env", "--q-weight"):
        peek.add_argument(name)
    given, _ = peek.parse_known_args()
    default = kind(**PRESETS.get(given.preset, {}))
    if given.preset == "paper":
        family = (given.env or default.env).split("-singletask")[0]
        if family not in PUBLISHED and given.q_weight is None:
            script = Path(sys.argv[0]).name
            sys.exit(
                f"{script}: no published `q_weight` for {family}: choose one by `--q-weight` (they are 10 to 500)."
            )
        default = dataclasses.replace(default, preset="paper", **PUBLISHED.get(family, {}))
    return tyro.cli(kind, description=description, default=default)


def settings_of(args: Args, task: data.Task) -> dict[str, Any]:
    """All that a run's result depends on; the rest may change when it goes on."""
    free = ("preset", "out", "k", "n", "episodes", "table_episodes", "processes")
    settings = {name: value for name, value in dataclasses.asdict(args).items() if name not in free}
    sizes = {"obs_size": task.dataset.obs.shape[-1], "action_size": task.dataset.action.shape[-1]}
    return settings | sizes | {"dataset": task.path.name}


def initial_state(args: Args, config: sorl.Config, sizes: tuple[int, int], key) -> sorl.State:
    policy_key, critic_key = jax.random.split(key)
    shape: dict[str, Any] = {"width": args.width, "depth": args.depth, "matmul_dtype": args.matmul_dtype}
    policy = nn.ShortcutPolicy(*sizes, **shape, key=policy_key)
    critic = nn.EnsembleCritic(*sizes, **shape, condition_on_k=args.condition_on_k, key=critic_key)
    return sorl.init(policy, critic, config=config)


def train(args: Args, config: sorl.Config, dataset: Transition, run: Run) -> sorl.State:
    init_key, train_key = jax.random.split(jax.random.key(args.seed))
    state = run.restore(initial_state(args, config, (dataset.obs.shape[-1], dataset.action.shape[-1]), init_key))

    @partial(jax.jit, donate_argnums=0)
    def many_updates(state, dataset, keys):
        def one_update(state, key):
            batch_key, update_key = jax.random.split(key)
            batch = data.sample(dataset, batch_key, batch_size=args.batch_size)
            return sorl.update(state, batch, config=config, key=update_key)

        state, info = jax.lax.scan(one_update, state, keys)
        return state, jax.tree.map(jnp.mean, info)

    with tqdm(total=args.updates, initial=run.step, desc="training", unit="update") as bar:
        done = run.step
        while done < args.updates:
            count = min(args.updates_per_dispatch, args.updates - done)
            keys = jax.random.split(jax.random.fold_in(train_key, done), count)
            state, info = many_updates(state, dataset, keys)
            values = {name: float(value) for name, value in info._asdict().items()}
            done += count
            bar.update(count)
            bar.set_postfix({name: f"{values[name]:.3g}" for name in ("td", "q", "flow_matching")})
            run.log(done, values)
            if done % args.updates_per_checkpoint == 0 or done == args.updates:
                run.save(done, state)
    return state


def load(folder: Path) -> tuple[Args, sorl.State]:
    """The settings and the last checkpoint of a run."""
    try:
        settings = json.loads((folder / "settings.json").read_text())
    except FileNotFoundError as error:
        raise ValueError(f"{folder} holds no run: train there first, by `sorl.py --out {folder}`.") from error
    args = Args(out=folder, **{name: value for name, value in settings.items() if name in Args.__dataclass_fields__})
    sizes = settings["obs_size"], settings["action_size"]
    return args, load_checkpoint(folder, initial_state(args, args.check(), sizes, jax.random.key(0)))


def act(policy, critic, obs, *, k: int, n: int, action_size: int, aggregate: str, key):
    noise = jax.random.normal(key, (n, action_size))
    return bon_select(policy, critic, obs, noise, k=k, aggregate=aggregate, clip=(-1.0, 1.0))[0]


def verifier(args: Args, state: sorl.State, *, k: int) -> Callable:
    """The averaged critic of actions that took k jumps."""
    return eqx.Partial(state.target_critic, k=k) if args.condition_on_k else state.target_critic


def actor(args: Args, state: sorl.State, *, k: int, n: int, action_size: int) -> eqx.Partial:
    """The policy that takes k jumps to each of n candidates and the best of them, by the averaged networks."""
    critic = verifier(args, state, k=k)
    return eqx.Partial(act, state.target_policy, critic, k=k, n=n, action_size=action_size, aggregate=args.aggregate)


def evaluate_cell(args: Args, state: sorl.State, pool: EnvPool, run: Run, *, k: int, n: int, episodes: int) -> None:
    """Append a row to the run's table; the starts are the same for all cells."""
    policy = actor(args, state, k=k, n=n, action_size=run.settings["action_size"])
    cell = evaluate(policy, pool, episodes=episodes)
    row = {"k": k, "n": n, "episodes": episodes}
    run.append("table", row | {name: values.tolist() for name, values in cell._asdict().items()})


def table_of(run: Run) -> dict[tuple[int, int, int], Evaluation]:
    """What was evaluated, by k, n and the number of episodes."""
    return {
        (row["k"], row["n"], row["episodes"]): Evaluation(*(np.array(row[name]) for name in Evaluation._fields))
        for row in run.rows("table")
    }


def evaluate_table(args: Args, state: sorl.State, task: data.Task, run: Run) -> dict[tuple[int, int], Evaluation]:
    """Success for every number of jumps and of candidates; the cells that are done are kept."""
    cells = dict.fromkeys([(k, n) for n in sorted({1, 8, args.n}) for k in args.jumps], args.table_episodes)
    cells[args.k, args.n] = args.episodes
    if missing := [(k, n, episodes) for (k, n), episodes in cells.items() if (k, n, episodes) not in table_of(run)]:
        with EnvPool(task.make_env, processes=args.processes) as pool:
            for k, n, episodes in tqdm(missing, desc="evaluating", unit="cell"):
                evaluate_cell(args, state, pool, run, k=k, n=n, episodes=episodes)
    table = table_of(run)
    return {(k, n): table[k, n, episodes] for (k, n), episodes in cells.items()}


def draw(args: Args, history: list[dict[str, float]], table: dict[tuple[int, int], Evaluation]) -> Figure:
    figure, axes = plt.subplots(1, 4, figsize=(16, 3.6), layout="constrained")
    updates = [row["step"] for row in history]
    for axis, names in zip(axes, [["td"], ["q"], ["flow_matching", "self_consistency"]], strict=False):
        for name in names:
            axis.plot(updates, [row[name] for row in history], label=name)
        axis.set(xlabel="updates", yscale="linear" if names == ["q"] else "log")
        axis.legend()
    ks, ns = sorted({k for k, _ in table}), sorted({n for _, n in table})
    axes[3].imshow([[table[k, n].success_rate for k in ks] for n in ns], vmin=0, vmax=1, cmap="viridis")
    for (k, n), cell in table.items():
        color = "black" if cell.success_rate > 0.5 else "white"
        axes[3].text(ks.index(k), ns.index(n), f"{cell.success_rate:.2f}", ha="center", va="center", color=color)
    axes[3].set(xlabel="jumps k", ylabel="candidates n", title="success")
    axes[3].set_xticks(range(len(ks)), ks)
    axes[3].set_yticks(range(len(ns)), ns)
    figure.suptitle(args.env)
    return figure


def report(args: Args, table: dict[tuple[int, int], Evaluation]) -> str:
    lines = ["success (95% interval)"]
    for (k, n), cell in table.items():
        low, high = cell.success_interval()
        lines.append(
            f"k = {k}, n = {n}: {cell.success_rate:.2f} ({low:.2f} to {high:.2f}), {len(cell.success)} episodes"
        )
    lines.append(f"acting with k = {args.k}, n = {args.n}: {table[args.k, args.n].success_rate:.2f}")
    return "\n".join(lines)


def main() -> None:
    args = parse(Args, __doc__)
    try:
        config = args.check()
        args.out.mkdir(parents=True, exist_ok=True)  # an unwritable folder is found out now
        task = data.load_ogbench(args.env, episodes=args.data_episodes)
        dataset = data.n_step(task.dataset, task.episode_end, n=args.n_step, discount=args.discount)
        with Run(args.out, settings_of(args, task)) as run:
            state = train(args, config, dataset, run)
            table = evaluate_table(args, state, task, run)
            draw(args, run.rows("metrics"), table).savefig(args.out / "sorl.png", dpi=120)
    except ValueError as error:
        sys.exit(f"sorl.py: {error}")
    except OSError as error:
        sys.exit(f"sorl.py: {error} (what {args.out} holds is kept: the same command goes on from there)")
    except KeyboardInterrupt:
        sys.exit("sorl.py: interrupted; the same command goes on from what is done")
    print(report(args, table))
    print(f"metrics, picture and checkpoints: {args.out}")


if __name__ == "__main__":
    main()
