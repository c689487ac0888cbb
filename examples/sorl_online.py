"""Go on online: act in the environment from a checkpoint of `sorl.py`, and train on what happens and on the old data.

Half of each batch is drawn from a replay of the new episodes, half from the offline dataset; the update is the same.
"""

import dataclasses
import json
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from runs import Run
from sorl import actor, load
from tqdm import tqdm

from shortcutrl import Transition, data, sorl
from shortcutrl.evaluate import EnvPool, evaluate


class Replay:
    """The last `capacity` steps, in the order in which they happened."""

    def __init__(self, example: Transition, capacity: int):
        self.steps = jax.tree.map(lambda x: np.zeros((capacity, *x.shape[1:]), np.float32), example)
        self.episode_end = np.zeros(capacity, bool)
        self.added = 0

    def add(self, *, end: bool, **step) -> None:
        index = self.added % len(self.episode_end)
        for name, value in step.items():
            getattr(self.steps, name)[index] = value
        self.episode_end[index] = end
        self.added += 1

    def __len__(self) -> int:
        return min(self.added, len(self.episode_end))


def play(policy, env, seed: int, replay: Replay) -> bool:
    """One episode into the replay; whether it succeeded."""
    obs, info = env.reset(seed=seed)
    key, ended = jax.random.key(seed), False
    while not ended:
        key, step_key = jax.random.split(key)
        action = np.asarray(policy(obs, step_key))
        next_obs, reward, terminated, truncated, info = env.step(action)
        ended = terminated or truncated
        step = {"obs": obs, "action": action, "reward": reward, "mask": 1.0 - terminated, "next_obs": next_obs}
        replay.add(**step, end=ended)
        obs = next_obs
    return bool(info.get("success", False))


def main(
    run: Annotated[Path, tyro.conf.Positional],  # a folder of `sorl.py`
    out: Path = Path("runs/online"),  # the folder for the results
    k: int = 1,  # jumps to act with
    n: int = 1,  # candidates to act with
    episodes: int = 50,  # to play
    updates_per_episode: int = 100,
    learning_rate: float = 1e-4,  # Adam's
    capacity: int = 100_000,  # steps that the replay holds
    evaluation_episodes: int = 50,  # before and after
) -> None:
    args, state = load(run)
    args = dataclasses.replace(args, schedule="constant", learning_rate=learning_rate, out=out)
    config = args.check()
    averages = {"target_policy": state.target_policy, "target_critic": state.target_critic}
    state = sorl.init(state.policy, state.critic, config=config)._replace(**averages)  # with a fresh optimiser
    task = data.load_ogbench(args.env, episodes=args.data_episodes)
    offline = data.n_step(task.dataset, task.episode_end, n=args.n_step, discount=args.discount)
    action_size = offline.action.shape[-1]
    choose = partial(actor, args, k=k, n=n, action_size=action_size)

    @jax.jit
    def decide(state, obs, key):
        return choose(state)(obs, key=key)

    @partial(jax.jit, donate_argnums=0)
    def learn(state, offline, steps, episode_end, size, key):
        online = data.n_step(steps, episode_end, n=args.n_step, discount=args.discount)

        def one_update(state, key):
            old_key, new_key, update_key = jax.random.split(key, 3)
            old = data.sample(offline, old_key, batch_size=args.batch_size // 2)
            index = jax.random.randint(new_key, (args.batch_size // 2,), 0, size)
            new = jax.tree.map(lambda x: x[index], online)
            batch = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), old, new)
            return sorl.update(state, batch, config=config, key=update_key)

        state, info = jax.lax.scan(one_update, state, jax.random.split(key, updates_per_episode))
        return state, jax.tree.map(jnp.mean, info)

    settings = json.loads((run / "settings.json").read_text())
    settings |= {"schedule": "constant", "learning_rate": learning_rate, "from": str(run), "capacity": capacity}
    replay, env, wins = Replay(offline, capacity), task.make_env(), 0
    with Run(out, settings) as log, EnvPool(task.make_env, processes=args.processes) as pool:
        if log.step:
            raise ValueError(f"{out} holds a run that has ended: choose another `out`.")
        before = evaluate(choose(state), pool, episodes=evaluation_episodes)
        for episode in tqdm(range(episodes), unit="episode"):
            success = play(partial(decide, state), env, 1_000_000 + episode, replay)  # none of the evaluation's seeds
            key = jax.random.fold_in(jax.random.key(args.seed + 1_000_000), episode)  # none of the training's
            state, info = learn(state, offline, replay.steps, replay.episode_end, len(replay), key)
            log.log(episode + 1, {"success": float(success), **{name: float(x) for name, x in info._asdict().items()}})
            wins += success
        log.save(episodes, state)
        after = evaluate(choose(state), pool, episodes=evaluation_episodes)
    for name, result in {"before": before, "after": after}.items():
        low, high = result.success_interval()
        print(
            f"{name}: success {result.success_rate:.2f} ({low:.2f} to {high:.2f}) over {len(result.success)} episodes"
        )
    print(f"meanwhile: {wins} of {episodes} episodes, {replay.added} steps; metrics and checkpoint: {out}")


if __name__ == "__main__":
    try:
        tyro.cli(main, description=__doc__)
    except (ValueError, OSError) as error:
        sys.exit(f"sorl_online.py: {error}")
    except KeyboardInterrupt:
        sys.exit("sorl_online.py: interrupted; metrics are kept, but the same command starts anew")
