"""Train SORL on an OGBench task, evaluate it for several numbers of jumps and candidates, and draw the result.

OGBench's dataset is downloaded if its host can be reached, and generated locally if not. The same command resumes.
"""

import argparse
import dataclasses
import sys
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import tyro
from tqdm import tqdm

from shortcutrl import data, sorl
from shortcutrl.evaluate import EnvPool, Evaluation, evaluate, keyed
from shortcutrl.runs import Run, append_row, read_rows
from shortcutrl.suites import Task, ogbench

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Args:
    """The options. Those of the method default to the published values; the presets change some of them."""

    preset: Literal["laptop", "paper", "smoke"] = "laptop"  # minutes on two cores, the published training, or a test
    env: str = "scene-play-singletask-task1-v0"  # an OGBench single-task dataset
    out: Path = Path("runs/sorl")  # the folder of the run; the same command resumes
    data_episodes: int = 1_000  # episodes of a dataset that is generated locally
    seed: int = 0  # seed of the networks and of the training

    updates: int = 1_000_000  # gradient steps of each network
    updates_per_dispatch: int = 1_000  # updates in one call of the compiled program, and one row of metrics
    updates_per_checkpoint: int = 10_000  # updates between checkpoints, a multiple of updates_per_dispatch
    batch_size: int = 256  # transitions in one update
    width: int = 512  # units in each hidden layer
    depth: int = 4  # number of hidden layers
    learning_rate: float = 1e-4  # learning rate of Adam, at its peak
    schedule: Literal["cosine", "constant"] = "constant"  # cosine: rises over a tenth of the updates, then falls to 0
    n_step: int = 1  # environment steps that a TD target looks ahead

    num_steps: int = 8  # M, the largest number of jumps that the policy learns
    max_jumps: int = 8  # M_BTT, the largest number of jumps that Q is maximised through
    q_weight: float = 100.0  # weight of maximising Q; 0 is behaviour cloning
    flow_matching_weight: float = 10.0  # weight of imitating the dataset with the smallest jumps
    self_consistency_weight: float = 10.0  # weight of landing with one jump where two jumps of half the size land
    discount: float = 0.99  # discount of the rewards, gamma
    tau: float = 0.005  # how far the target networks move at each update
    aggregate: Literal["min", "mean"] = "mean"  # how the TD target combines the target critics
    condition_critic_on_k: bool = True  # whether the critic sees the number of jumps
    remat: bool = False  # whether to compute jumps again in the backward pass: less memory, more time

    k: int = 8  # jumps to act with
    n: int = 1  # candidates to act with
    episodes: int = 50  # episodes of the evaluation with this k and n
    table_episodes: int = 20  # episodes of the evaluation with each other k and n
    processes: int = 4  # processes for the environments of the evaluation; two for each core are best

    @property
    def config(self) -> sorl.Config:
        names = [field.name for field in dataclasses.fields(sorl.Config) if hasattr(self, field.name)]
        return sorl.Config(**{name: getattr(self, name) for name in names})

    def check(self) -> sorl.Config:
        """The method's settings. Finds what would fail only after hours of training."""
        positive = ("data_episodes", "updates", "updates_per_dispatch", "updates_per_checkpoint", "k", "n")
        for name in (*positive, "episodes", "table_episodes", "processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.updates_per_checkpoint % self.updates_per_dispatch:
            raise ValueError(
                f"`updates_per_checkpoint` must be a multiple of `updates_per_dispatch` = {self.updates_per_dispatch}, "
                f"got {self.updates_per_checkpoint}."
            )
        return self.config


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "laptop": {
        # 25 times fewer updates of smaller networks: minutes instead of days on two cores.
        **{"updates": 40_000, "updates_per_dispatch": 200, "updates_per_checkpoint": 2_000},
        **{"width": 256, "depth": 3, "data_episodes": 250},
        # Learn more in each update: larger steps that end at 0, faster targets, values that travel five steps.
        **{"learning_rate": 1e-3, "schedule": "cosine", "tau": 0.01, "n_step": 5},
        # Q is less accurate after so few updates: follow it less. With this weight, four jumps succeed most often.
        **{"q_weight": 30.0, "k": 4},
    },
    "smoke": {
        **{"updates": 20, "updates_per_dispatch": 10, "updates_per_checkpoint": 10, "data_episodes": 1},
        **{"width": 32, "depth": 1, "num_steps": 2, "max_jumps": 2, "q_weight": 10.0, "n_step": 5},
        **{"k": 1, "episodes": 1, "table_episodes": 1, "processes": 1},
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


def parse() -> Args:
    """Read the command line. The preset in it sets the defaults of the other options."""
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--preset", choices=PRESETS, default=Args.preset)
    peek.add_argument("--env", default=Args.env)
    peek.add_argument("--q-weight", "--q_weight")
    given, _ = peek.parse_known_args()
    family, own = given.env.split("-singletask")[0], {}
    if given.preset == "paper":
        own = PUBLISHED.get(family, {})
        if not own and given.q_weight is None:
            sys.exit(f"sorl.py: no published `q_weight` for {family}: choose one by --q-weight (published: 10 to 500).")
    return tyro.cli(Args, description=__doc__, default=Args(preset=given.preset, **PRESETS[given.preset], **own))


def settings_of(args: Args, task: Task) -> dict[str, Any]:
    """All that the result depends on. The rest may change when a run resumes."""
    free = ("preset", "out", "k", "n", "episodes", "table_episodes", "processes")
    config = dataclasses.asdict(args.config)
    settings = {name: value for name, value in dataclasses.asdict(args).items() if name not in (*free, *config)}
    sizes = {"obs_size": task.dataset.obs.shape[-1], "action_size": task.dataset.action.shape[-1]}
    return {**settings, **sizes, "dataset": task.source.name, "config": config}


def train(args: Args, dataset: data.Dataset, run: Run) -> sorl.State:
    config = args.config
    cosine = optax.warmup_cosine_decay_schedule(0.0, args.learning_rate, args.updates // 10, args.updates)
    adam = optax.adam(cosine if args.schedule == "cosine" else args.learning_rate)
    optimizers = sorl.Networks(*[optax.chain(optax.clip_by_global_norm(1.0), adam)] * 2)
    sample = partial(data.sample, batch_size=args.batch_size, n_step=args.n_step, discount=args.discount)

    init_key, train_key = jax.random.split(jax.random.key(args.seed))
    networks = sorl.networks(
        sample(dataset, init_key),
        width=args.width,
        depth=args.depth,
        condition_critic_on_k=args.condition_critic_on_k,
        key=init_key,
    )
    state = run.restore(sorl.init(networks, config=config, optimizers=optimizers))

    @partial(jax.jit, donate_argnums=0)
    def many_updates(state, dataset, keys):
        def one_update(state, key):
            batch_key, update_key = jax.random.split(key)
            batch = sample(dataset, batch_key)
            return sorl.update(state, batch, config=config, optimizers=optimizers, key=update_key)

        state, info = jax.lax.scan(one_update, state, keys)
        return state, jax.tree.map(jnp.mean, info)

    with tqdm(total=args.updates, initial=run.step, desc="training", unit="update") as bar:
        while (done := bar.n) < args.updates:
            count = min(args.updates_per_dispatch, args.updates - done)
            keys = jax.random.split(jax.random.fold_in(train_key, done), count)
            state, info = many_updates(state, dataset, keys)
            run.log(done + count, info._asdict())
            bar.set_postfix({name: f"{getattr(info, name):.3g}" for name in ("td", "q", "flow_matching")})
            bar.update(count)
            if bar.n % args.updates_per_checkpoint == 0 or bar.n == args.updates:
                run.save(bar.n, state)
    return state


def evaluate_table(args: Args, state: sorl.State, task: Task) -> dict[tuple[int, int], Evaluation]:
    """The results for each number of jumps and candidates. Cells that are in the run's table are not repeated."""
    ks = sorted({2**i for i in range(args.num_steps.bit_length())} | {args.k})
    cells = dict.fromkeys([(k, n) for n in sorted({1, 8, args.n}) for k in ks], args.table_episodes)
    cells[args.k, args.n] = args.episodes

    def done():
        rows = {(row["k"], row["n"], row["episodes"]): row for row in read_rows(args.out, "table")}
        return {(k, n): rows[k, n, cells[k, n]] for k, n in cells if (k, n, cells[k, n]) in rows}

    if missing := cells.keys() - done().keys():
        with EnvPool(task.make_env, processes=args.processes) as pool:
            for k, n in tqdm(sorted(missing, key=list(cells).index), desc="evaluating", unit="cell"):
                options = {"config": args.config, "k": k, "n": n}
                act = keyed(sorl.actor(state, **options), sorl.noise_shape(*pool.action_shape, **options))
                result = evaluate(act, pool, episodes=cells[k, n])
                append_row(args.out, "table", {"k": k, "n": n, "episodes": cells[k, n], **result._asdict()})
    rows = done()
    return {cell: Evaluation(*(np.array(rows[cell][name]) for name in Evaluation._fields)) for cell in cells}


def draw(args: Args, metrics: list[dict[str, float]], table: dict[tuple[int, int], Evaluation]) -> Figure:
    figure, axes = plt.subplots(1, 4, figsize=(16, 3.6), layout="constrained")
    for axis, names in zip(axes, (["td"], ["q"], ["flow_matching", "self_consistency"]), strict=False):
        for name in names:
            axis.plot([row["step"] for row in metrics], [row[name] for row in metrics], label=name)
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


def main() -> None:
    args = parse()
    try:
        args.check()
        args.out.mkdir(parents=True, exist_ok=True)  # fails now if it cannot be written
        task = ogbench.load(args.env, episodes=args.data_episodes)
        with Run(args.out, settings_of(args, task)) as run:
            state = train(args, task.dataset, run)
        table = evaluate_table(args, state, task)
        draw(args, read_rows(args.out, "metrics"), table).savefig(args.out / "sorl.png", dpi=120)
    except ValueError as error:
        sys.exit(f"sorl.py: {error}")
    except OSError as error:
        sys.exit(f"sorl.py: {error} ({args.out} is kept: the same command resumes)")
    except KeyboardInterrupt:
        sys.exit("sorl.py: interrupted; the same command resumes")
    print("success (95% interval)")
    for (k, n), cell in table.items():
        low, high = cell.success_interval()
        episodes = f"{len(cell.success)} episodes"
        print(f"k = {k}, n = {n}: {cell.success_rate:.2f} ({low:.2f} to {high:.2f}), {episodes}")
    print(f"acting with k = {args.k}, n = {args.n}: {table[args.k, args.n].success_rate:.2f}")
    print(f"metrics, picture and checkpoints: {args.out}")


if __name__ == "__main__":
    main()
