"""Train SORL on images of an OGBench task, and evaluate it in rendered environments.

    MUJOCO_GL=egl python examples/visual.py

By default, this is a small training for two cores. The next command is for an accelerator. It uses what is published:
SORL's settings for cube-single-play with states, and FQL's updates, batch size, crops, stacks and encoder for images.

    MUJOCO_GL=egl python examples/visual.py --data-episodes 1000 --updates 500000 --updates-per-row 1000
    --updates-per-checkpoint 10000 --batch-size 256 --width 512 --depth 4 --learning-rate 1e-4 --q-weight 10
    --tau 0.005 --episodes 50 --processes 32

OGBench's dataset is downloaded if its host can be reached, and rendered locally if not. The same command resumes.
"""

import dataclasses
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from tqdm import tqdm

from shortcutrl import data, nn, sorl
from shortcutrl.evaluate import EnvPool, StackedFrames, evaluate, keyed
from shortcutrl.runs import Run
from shortcutrl.suites import Task, ogbench


@dataclasses.dataclass(frozen=True)
class Args:
    """The options."""

    env: str = "visual-cube-single-play-singletask-task1-v0"  # an OGBench single-task dataset of images
    out: Path = Path("runs/visual")  # the folder of the run
    data_episodes: int = 2  # episodes of a dataset rendered locally; a tenth as many, at least one, are held out
    seed: int = 0  # seed of the networks and of the training

    updates: int = 300  # gradient steps of each network
    updates_per_row: int = 10  # updates in one row of metrics, which holds their means
    updates_per_checkpoint: int = 50  # updates between checkpoints, a multiple of updates_per_row
    batch_size: int = 32  # transitions in one update
    width: int = 256  # units in each hidden layer after the encoder
    depth: int = 2  # hidden layers after the encoder
    learning_rate: float = 1e-3  # learning rate of Adam
    q_weight: float = 1.0  # weight of maximising Q; 0 is behaviour cloning
    tau: float = 0.05  # how far the target networks move at each update; the usual 0.005 is too small for few updates

    frame_stack: int = 3  # images that become one observation
    crop_probability: float = 0.5  # probability that the images of a batch move by up to three pixels

    k: int = 8  # jumps to act with
    episodes: int = 2  # episodes of the evaluation
    processes: int = 1  # processes for the environments of the evaluation


def train(args: Args, dataset: data.Dataset, run: Run, config: sorl.Config) -> tuple[sorl.State, sorl.State]:
    """The untrained and the trained state."""
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(args.learning_rate))  # as SORL's published code
    optimizers = sorl.Networks(optimizer, optimizer)
    sample = partial(data.sample, batch_size=args.batch_size, frame_stack=args.frame_stack)
    crop = partial(data.random_crop, probability=args.crop_probability)

    init_key, encoder_key, train_key = jax.random.split(jax.random.key(args.seed), 3)
    example = sample(dataset, init_key)
    encoder = nn.Impala(example.obs.shape[1:], key=encoder_key)  # policy and critic each train a copy
    networks = sorl.networks(example, width=args.width, depth=args.depth, encoder=encoder, key=init_key)
    untrained = sorl.init(networks, config=config, optimizers=optimizers)
    state = run.restore(untrained)

    @jax.jit  # no scan over updates: on a CPU, convolutions in a loop of XLA take many times as long
    def update(state, dataset, key):
        batch_key, crop_key, update_key = jax.random.split(key, 3)
        batch = crop(sample(dataset, batch_key), crop_key)
        return sorl.update(state, batch, config=config, optimizers=optimizers, key=update_key)

    infos = []
    with tqdm(total=args.updates, initial=run.step, desc="training", unit="update") as bar:
        for step in range(run.step + 1, args.updates + 1):
            state, info = update(state, dataset, jax.random.fold_in(train_key, step))
            infos.append(info)
            bar.update()
            if step % args.updates_per_row == 0:
                row = {name: float(np.mean([getattr(each, name) for each in infos])) for name in info._fields}
                run.log(step, row)
                bar.set_postfix({name: f"{row[name]:.3g}" for name in ("td", "q", "flow_matching")})
                infos.clear()
            if step % args.updates_per_checkpoint == 0 or step == args.updates:
                run.save(step, state)
    return untrained, state


def held_out(task: Task, frame_stack: int, size: int = 1_000) -> tuple[Any, Any]:
    """Observations and actions of the validation set: consecutive rows, which share no episode with the training."""
    with np.load(task.source.with_name(f"{task.source.stem}-val.npz")) as file:
        images, actions, ends = (file[name][:size] for name in ("observations", "actions", "terminals"))
    start = np.maximum.accumulate(np.where(np.append(True, ends[:-1]), np.arange(len(ends)), 0))
    frames = [images[np.maximum(np.arange(len(ends)) - back, start)] for back in reversed(range(frame_stack))]
    return np.concatenate(frames, axis=-1), actions


def squared_error(state: sorl.State, config: sorl.Config, k: int, obs: Any, actions: Any, samples: int = 16) -> Any:
    """Of the mean of several actions, for each row; the mean over the action's dimensions."""

    @jax.jit
    def errors(obs, actions, keys):
        def one(obs, action, key):
            noise = jax.random.normal(key, (samples, *action.shape))
            mean = jax.vmap(partial(sorl.actor(state, config=config, k=k), obs))(noise).mean(0)
            return jnp.square(mean - action).mean()

        return jax.vmap(one)(obs, actions, keys)

    rows = obs, actions, jax.random.split(jax.random.key(0), len(actions))
    parts = [jax.tree.map(lambda x, i=i: x[i : i + 100], rows) for i in range(0, len(actions), 100)]
    return np.concatenate([errors(*part) for part in parts])


def interval(values: Any, blocks: int = 20) -> str:
    """The mean and its 95% interval, from means of consecutive rows, because neighbours are alike."""
    means = np.array([block.mean() for block in np.array_split(values, blocks)])
    half = 1.96 * means.std(ddof=1) / np.sqrt(blocks)
    return f"{means.mean():.4f} ({means.mean() - half:.4f} to {means.mean() + half:.4f})"


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    try:
        if args.updates_per_checkpoint % args.updates_per_row:  # a run that resumes would lose a part of a row
            raise ValueError(
                f"`updates_per_checkpoint` must be a multiple of `updates_per_row` = {args.updates_per_row}, "
                f"got {args.updates_per_checkpoint}."
            )
        config = sorl.Config(q_weight=args.q_weight, tau=args.tau)
        args.out.mkdir(parents=True, exist_ok=True)
        task = ogbench.load(args.env, episodes=args.data_episodes)
        free = ("out", "k", "episodes", "processes")
        settings = {name: value for name, value in dataclasses.asdict(args).items() if name not in free}
        with Run(args.out, settings) as run:
            untrained, state = train(args, task.dataset, run, config)
        obs, actions = held_out(task, args.frame_stack)
        policy, start = (squared_error(each, config, args.k, obs, actions) for each in (state, untrained))
        mean_action = np.square(actions - np.asarray(task.dataset.action.mean(0))).mean(-1)
        print(f"held-out action error (95% interval), n = {len(actions)} rows; lower is better")
        print(f"  policy: {interval(policy)}")
        print(f"  lower than the untrained policy by {interval(start - policy)}")
        print(f"  lower than the dataset's mean action by {interval(mean_action - policy)}")
        make_env, frames = task.make_env, args.frame_stack
        with EnvPool(lambda: StackedFrames(make_env(), frames), processes=args.processes, envs_per_process=2) as pool:
            act = keyed(sorl.actor(state, config=config, k=args.k), pool.action_shape)
            began = time.perf_counter()
            result = evaluate(act, pool, episodes=args.episodes)
            rate = result.episode_length.sum() / (time.perf_counter() - began)
    except (ValueError, OSError) as error:
        sys.exit(f"visual.py: {error}")
    except KeyboardInterrupt:
        sys.exit("visual.py: interrupted; the same command resumes")
    low, high = result.success_interval()
    print(f"success (95% interval), n = {args.episodes} episodes: {result.success_rate:.2f} ({low:.2f} to {high:.2f})")
    print(f"rendered steps of the evaluation: {rate:.1f} per second, {args.processes} processes")


if __name__ == "__main__":
    main()
