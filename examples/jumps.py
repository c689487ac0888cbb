"""Measure what each number of jumps does in a run of sorl.py, to see why some k act better.

    python examples/jumps.py runs/sorl --visited 10 --k 4

It measures states of the dataset, and states that the policy visits with k jumps in --visited episodes. For a visited
state, the action in the dataset is that of the dataset's nearest state. Distances between states are in standard
deviations of each number of the observation.

gap: how far the first jump, of size 1/k, lands from two jumps of half the size; zero where self-consistency holds. It
is not measured for the smallest jump, because jumps of half its size are not trained.
distance: how far the action is from the action in the dataset. Gap and distance are root mean squares over dimensions.
gain: Q of the action minus Q of the action in the dataset, in standard deviations of Q over the dataset.
spread: the standard deviation of Q between the critics, in the same unit.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import tyro

from shortcutrl import consistency_gap, data, sorl
from shortcutrl.evaluate import keyed
from shortcutrl.runs import load_checkpoint, load_settings
from shortcutrl.suites import ogbench


@partial(jax.jit, static_argnames=("config", "k"))
def measure(
    state: sorl.State, obs: Any, action: Any, noise: jax.Array, *, config: sorl.Config, k: int
) -> dict[str, jax.Array]:
    actor = sorl.actor(state, config=config, k=k)
    critic = partial(state.target_critic, k=k) if config.condition_critic_on_k else state.target_critic

    def one(obs, action, noise):
        acted, gap = actor(obs, noise), consistency_gap(state.target_policy, obs, noise, 0.0, 1 / k)
        return gap, acted - action, critic(obs, acted), critic(obs, action)

    gap, distance, q, q_data = jax.vmap(one)(obs, action, noise)
    return {
        "gap": jnp.sqrt(jnp.mean(gap**2)),
        "distance": jnp.sqrt(jnp.mean(distance**2)),
        "gain": (q - q_data).mean(),
        "spread": q.std(axis=1).mean(),
        "unit": q_data.mean(axis=1).std(),
    }


def visit(act: Any, env: Any, episodes: int) -> np.ndarray:
    """The observations of some episodes."""
    act, visited = eqx.filter_jit(act), []
    for seed in range(episodes):
        (obs, _), key, done = env.reset(seed=seed), jax.random.key(seed), False
        while not done:
            visited.append(obs)
            key, action_key = jax.random.split(key)
            obs, _, terminated, truncated, _ = env.step(np.asarray(act(obs, key=action_key)))
            done = terminated or truncated
    return np.array(visited, np.float32)


@jax.jit
def nearest(obs: jax.Array, known: jax.Array) -> jax.Array:
    """For each observation, the row of the nearest one that is known."""
    known, obs = known / (scale := known.std(axis=0, keepdims=True) + 1e-3), obs / scale
    lengths = jnp.sum(known**2, axis=1)
    return jax.lax.map(lambda x: jnp.argmin(lengths - 2 * known @ x), obs)


def main(
    run: Annotated[Path, tyro.conf.Positional],  # the folder of a run of sorl.py
    states: int = 4096,  # states that are drawn from the dataset, and from those that the policy visits
    visited: int = 0,  # episodes in which the policy visits states; 0 for none
    k: int = 4,  # jumps of the policy in these episodes
) -> None:
    settings = load_settings(run)
    if not {"config", "seed"} <= settings.keys():
        raise ValueError(f"{run} holds no run of sorl.py.")
    dataset = ogbench.load(settings["env"], episodes=settings["data_episodes"]).dataset
    batch_key, noise_key = jax.random.split(jax.random.key(0))
    batch = data.sample(dataset, batch_key, batch_size=states)
    noise = jax.random.normal(noise_key, batch.action.shape)
    config, shape = sorl.Config(**settings["config"]), {"width": settings["width"], "depth": settings["depth"]}
    networks = sorl.networks(batch, **shape, condition_critic_on_k=config.condition_critic_on_k, key=noise_key)
    state = load_checkpoint(run, sorl.init(networks, config=config, optimizers=None))
    places = {"the dataset": (batch.obs, batch.action)}
    if visited > 0:
        act = keyed(sorl.actor(state, config=config, k=k), batch.action.shape[1:])
        found = visit(act, ogbench.make_env(settings["env"]), visited)
        found = found[np.random.default_rng(0).integers(len(found), size=states)]
        places[f"{visited} episodes with k = {k}"] = found, dataset.action[nearest(found, dataset.obs)]
    units = {}
    for place, (obs, action) in places.items():
        print(f"{states} states of {place}")
        print(f"{'k':>2} {'gap':>8} {'distance':>8} {'gain':>8} {'spread':>8}")
        for each in [2**i for i in range(int(config.num_steps).bit_length())]:
            values = measure(state, obs, action, noise, config=config, k=each)
            unit = units.setdefault(each, values["unit"])  # of the dataset
            scaled = values | {name: values[name] / unit for name in ("gain", "spread")}
            told = [f"{scaled[name]:.3f}" for name in ("gap", "distance", "gain", "spread")]
            told[0] = told[0] if each < config.num_steps else "-"
            print(f"{each:>2}", *(f"{value:>8}" for value in told))


if __name__ == "__main__":
    try:
        tyro.cli(main, description=__doc__)
    except (ValueError, OSError) as error:
        sys.exit(f"jumps.py: {error}")
