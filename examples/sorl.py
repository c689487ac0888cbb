"""Train SORL on an OGBench task, evaluate it for several numbers of jumps and candidates, and draw what happened.

The dataset is OGBench's own where it can be downloaded; elsewhere OGBench's scripted oracles make one on the spot.
"""

import dataclasses
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib
import optax
import orbax.checkpoint as ocp
import tyro
from tqdm import tqdm

from shortcutrl import Transition, bon_select, data, nn, sorl
from shortcutrl.evaluate import ChunkedActions, Evaluation, evaluate, vector_env

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Args:
    preset: Literal["laptop", "paper", "smoke"] = "laptop"  # a quarter of an hour, the published million updates, or 20

    env: str = "scene-play-singletask-task1-v0"  # an OGBench single-task dataset
    out: Path = Path("runs/sorl")  # the folder for metrics, pictures and the checkpoint
    data_episodes: int = 200  # episodes of a dataset that is made on the spot
    seed: int = 0  # of the networks and the training

    updates: int = 8_000  # gradient steps
    updates_per_dispatch: int = 200  # gradient steps in one call of the compiled program
    batch_size: int = 256  # transitions in one gradient step
    width: int = 256  # of each hidden layer
    depth: int = 3  # hidden layers
    learning_rate: float = 1e-3  # Adam's, at its peak
    schedule: Literal["cosine", "constant"] = "cosine"  # cosine: rises over a tenth of the updates, then falls to 0
    flow_matching_weight: float = 10.0  # of matching the data's velocity by the smallest step
    self_consistency_weight: float = 10.0  # of two half-jumps landing where one jump lands
    q_weight: float = 1.0  # of maximising Q; 0 is behaviour cloning
    num_steps: int = 8  # M, the largest number of jumps that the policy learns
    max_jumps: int = 2  # M_BTT, the largest number of jumps that Q is maximised through
    discount: float = 0.99  # gamma
    tau: float = 0.02  # how far the target networks move at each update
    condition_on_k: bool = False  # whether the critic sees the number of jumps
    chunk: int = 5  # actions that the policy decides on at once, and then carries out
    aggregate: Literal["min", "mean"] = "mean"  # of the ensemble of critics

    k: int = 2  # jumps to act with, the headline of the table
    n: int = 8  # candidates to act with
    episodes: int = 50  # episodes to evaluate each cell of the table on
    num_envs: int = 4  # environments to evaluate in at once, each in a process of its own

    @property
    def jumps(self) -> list[int]:
        return [2**i for i in range(self.num_steps.bit_length())]

    def check(self) -> sorl.Config:
        """The training's configuration; finds out before hours of work what would fail after them."""
        sizes = ("data_episodes", "updates", "updates_per_dispatch", "batch_size", "width", "depth", "chunk")
        for name in (*sizes, "n", "episodes", "num_envs"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
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
            optimizer=optax.chain(optax.clip_by_global_norm(1.0), adam),
        )


PRESETS = {
    "laptop": Args(),
    "paper": Args(
        updates=1_000_000,
        updates_per_dispatch=1_000,
        width=512,
        depth=4,
        max_jumps=8,
        learning_rate=1e-4,
        q_weight=100.0,  # unless PUBLISHED says otherwise
        schedule="constant",
        tau=0.005,
        chunk=1,
        condition_on_k=True,
        data_episodes=1_000,
    ),
    "smoke": Args(data_episodes=1, updates=20, width=32, depth=1, num_steps=2, episodes=1, num_envs=1),
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
    args = tyro.cli(Args, description=__doc__)
    preset = PRESETS[args.preset]
    if args.preset == "paper":
        preset = dataclasses.replace(preset, **PUBLISHED.get(args.env.split("-singletask")[0], {}))
    return tyro.cli(Args, description=__doc__, default=preset)  # what is given still wins


def act(policy, critic, obs, *, k: int, n: int, action_size: int, aggregate: str, key):
    noise = jax.random.normal(key, (n, action_size))
    return bon_select(policy, critic, obs, noise, k=k, aggregate=aggregate, clip=(-1.0, 1.0))[0]


def train(args: Args, config: sorl.Config, dataset: Transition) -> tuple[sorl.State, list[dict[str, float]]]:
    policy_key, critic_key, key = jax.random.split(jax.random.key(args.seed), 3)
    sizes = dataset.obs.shape[-1], dataset.action.shape[-1]
    policy = nn.ShortcutPolicy(*sizes, width=args.width, depth=args.depth, key=policy_key)
    critic = nn.EnsembleCritic(
        *sizes, width=args.width, depth=args.depth, condition_on_k=args.condition_on_k, key=critic_key
    )

    @partial(jax.jit, donate_argnums=0)
    def many_updates(state, dataset, keys):
        def one_update(state, key):
            batch_key, update_key = jax.random.split(key)
            batch = data.sample(dataset, batch_key, batch_size=args.batch_size)
            return sorl.update(state, batch, config=config, key=update_key)

        state, info = jax.lax.scan(one_update, state, keys)
        return state, jax.tree.map(jnp.mean, info)

    state, history = sorl.init(policy, critic, config=config), []
    with tqdm(total=args.updates, desc="training", unit="update") as bar:
        while bar.n < args.updates:
            key, dispatch_key = jax.random.split(key)
            keys = jax.random.split(dispatch_key, min(args.updates_per_dispatch, args.updates - bar.n))
            state, info = many_updates(state, dataset, keys)
            bar.update(len(keys))
            history.append({"updates": bar.n, **{name: float(value) for name, value in info._asdict().items()}})
            bar.set_postfix({name: f"{history[-1][name]:.3g}" for name in ("td", "q", "flow_matching")})
    return state, history


def evaluate_table(args: Args, state: sorl.State, task: data.Task) -> dict[tuple[int, int], Evaluation]:
    """Success for every number of jumps and of candidates, from the same starts."""
    table, make_env, length = {}, task.make_env, args.chunk
    action_size = length * task.dataset.action.shape[-1]
    cells = [(k, n) for n in sorted({1, 8, args.n}) for k in args.jumps]
    with vector_env(lambda: ChunkedActions(make_env(), length), args.num_envs) as envs:
        for k, n in tqdm(cells, desc="evaluating", unit="cell"):
            critic = eqx.Partial(state.critic, k=k) if args.condition_on_k else state.critic
            options = {"k": k, "n": n, "action_size": action_size, "aggregate": args.aggregate}
            actor = eqx.Partial(act, state.policy, critic, **options)
            table[k, n] = evaluate(actor, envs, episodes=args.episodes)
    return table


def draw(args: Args, history: list[dict[str, float]], table: dict[tuple[int, int], Evaluation]) -> Figure:
    figure, axes = plt.subplots(1, 4, figsize=(16, 3.6), layout="constrained")
    updates = [row["updates"] for row in history]
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
    axes[3].set(xlabel="jumps k", ylabel="candidates n", title=f"success, {args.episodes} episodes")
    axes[3].set_xticks(range(len(ks)), ks)
    axes[3].set_yticks(range(len(ns)), ns)
    figure.suptitle(args.env)
    return figure


def report(args: Args, table: dict[tuple[int, int], Evaluation]) -> str:
    lines = [f"success over {args.episodes} episodes (95% interval)"]
    for (k, n), cell in table.items():
        low, high = cell.success_interval()
        lines.append(f"k = {k}, n = {n}: {cell.success_rate:.2f} ({low:.2f} to {high:.2f})")
    lines.append(f"acting with k = {args.k}, n = {args.n}: {table[args.k, args.n].success_rate:.2f}")
    return "\n".join(lines)


def main() -> None:
    args = parse()
    try:
        config = args.check()
        args.out.mkdir(parents=True, exist_ok=True)
        (metrics := args.out / "metrics.jsonl").touch()  # an unwritable folder is found out now
        task = data.load_ogbench(args.env, episodes=args.data_episodes)
        dataset = data.chunk(task.dataset, task.episode_end, length=args.chunk, discount=args.discount)
    except (ValueError, OSError) as error:
        sys.exit(f"sorl.py: {error}")
    except KeyboardInterrupt:
        sys.exit("sorl.py: interrupted; a dataset that is complete is kept, a half-made one is not")

    state, history = train(args, config, dataset)
    metrics.write_text("".join(json.dumps(row) + "\n" for row in history))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(args.out.absolute() / "checkpoint", state, force=True)
    table = evaluate_table(args, state, task)
    rows = [
        {"k": k, "n": n, "success": cell.success.tolist(), "return": cell.episode_return.tolist()}
        for (k, n), cell in table.items()
    ]
    (args.out / "table.json").write_text(json.dumps(rows))
    draw(args, history, table).savefig(args.out / "sorl.png", dpi=120)
    print(report(args, table))
    print(f"metrics, picture and checkpoint: {args.out}")


if __name__ == "__main__":
    main()
