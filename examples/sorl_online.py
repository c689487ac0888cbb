"""Continue a run of sorl.py online: act in the environment, and train on the new episodes and the old dataset.

Half of each batch is drawn from a replay buffer of the new episodes, and half from the offline dataset.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from tqdm import tqdm

from shortcutrl import data, sorl
from shortcutrl.evaluate import EnvPool, evaluate, keyed
from shortcutrl.runs import Run, load_checkpoint, load_settings
from shortcutrl.suites import ogbench

add_step = jax.jit(data.add_step, donate_argnums=0)


def play(policy, env, seed: int, replay: data.Replay) -> tuple[data.Replay, bool]:
    """Add one episode to the replay buffer. Returns it, and whether the episode succeeded."""
    obs, info = env.reset(seed=seed)
    key, ended = jax.random.key(seed), False
    while not ended:
        key, step_key = jax.random.split(key)
        action = np.array(policy(obs, key=step_key))
        next_obs, reward, terminated, truncated, info = env.step(action)
        replay = add_step(replay, obs, action, reward, next_obs, terminated=terminated, truncated=truncated)
        obs, ended = next_obs, terminated or truncated
    return replay, bool(info.get("success", False))


def main(
    run: Annotated[Path, tyro.conf.Positional],  # the folder of a run of sorl.py
    out: Path = Path("runs/online"),  # a new folder for the results
    k: int = 4,  # jumps to act with
    n: int = 1,  # candidates to act with
    episodes: int = 50,  # new episodes
    updates_per_episode: int = 100,  # updates after each new episode
    learning_rate: float = 1e-4,  # learning rate of Adam
    capacity: int = 100_000,  # rows of the replay buffer
    evaluation_episodes: int = 50,  # episodes of the evaluations before and after
    processes: int | None = None,  # processes for the environments of the evaluation; by default two for each core
) -> None:
    settings = load_settings(run)
    if not {"config", "seed"} <= settings.keys():
        raise ValueError(f"{run} holds no run of sorl.py.")
    config, seed = sorl.Config(**settings["config"]), settings["seed"]
    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(learning_rate))
    options = {"config": config, "optimizers": sorl.Networks(adam, adam)}
    lookahead = {"n_step": settings["n_step"], "discount": config.discount}
    task = ogbench.load(settings["env"], episodes=settings["data_episodes"])

    example = data.sample(task.dataset, jax.random.key(0), batch_size=1)
    shape = {"width": settings["width"], "depth": settings["depth"], "key": jax.random.key(0)}
    networks = sorl.networks(example, **shape, condition_critic_on_k=config.condition_critic_on_k)
    trained = load_checkpoint(run, sorl.init(networks, config=config, optimizers=None))
    state = sorl.init((trained.policy, trained.critic), **options)
    state = state._replace(target_policy=trained.target_policy, target_critic=trained.target_critic)

    def policy(state: sorl.State):
        options: dict[str, Any] = {"config": config, "k": k, "n": n}
        return keyed(sorl.actor(state, **options), sorl.noise_shape(example.action.shape[-1], **options))

    @jax.jit
    def decide(state, obs, key):
        return policy(state)(obs, key=key)

    @partial(jax.jit, donate_argnums=0)
    def learn(state, offline, online, key):
        def one_update(state, key):
            old_key, new_key, update_key = jax.random.split(key, 3)
            size = settings["batch_size"] // 2
            old = data.sample(offline, old_key, batch_size=size, **lookahead)
            new = data.sample(online, new_key, batch_size=size, **lookahead)
            batch = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), old, new)
            return sorl.update(state, batch, **options, key=update_key)

        state, info = jax.lax.scan(one_update, state, jax.random.split(key, updates_per_episode))
        return state, jax.tree.map(jnp.mean, info)

    online = {"from": str(run), "online_learning_rate": learning_rate, "capacity": capacity}
    replay, env, successes = data.empty_replay(task.dataset, capacity=capacity), task.make_env(), 0
    with Run(out, settings | online) as log, EnvPool(task.make_env, processes=processes) as pool:
        if log.step:
            raise ValueError(f"{out} holds a run that has ended: choose another --out.")
        before = evaluate(policy(state), pool, episodes=evaluation_episodes)
        for episode in tqdm(range(1, episodes + 1), unit="episode"):
            seed_of_episode = 1_000_000 + episode  # no seed of the evaluation
            replay, success = play(partial(decide, state), env, seed_of_episode, replay)
            key = jax.random.fold_in(jax.random.key(seed + 1_000_000), episode)  # no key of the training
            state, info = learn(state, task.dataset, replay.dataset, key)
            log.log(episode, {"success": success, **info._asdict()})
            successes += success
        log.save(episodes, state)
        after = evaluate(policy(state), pool, episodes=evaluation_episodes)
    for name, result in {"before": before, "after": after}.items():
        low, high = result.success_interval()
        said = f"{result.success_rate:.2f} ({low:.2f} to {high:.2f}) over {len(result.success)} episodes"
        print(f"{name}: success {said}")
    print(f"online: {successes} of {episodes} episodes; metrics, checkpoint: {out}")


if __name__ == "__main__":
    try:
        tyro.cli(main, description=__doc__)
    except (ValueError, OSError) as error:
        sys.exit(f"sorl_online.py: {error}")
    except KeyboardInterrupt:
        sys.exit("sorl_online.py: interrupted; it cannot resume, choose another --out")
