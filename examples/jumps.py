"""Measure what each number of jumps does in a run of sorl.py, on states of its dataset: why some k act better.

gap: how far the first jump, of 1/k, lands from two of half the size; zero where self-consistency holds. It is not
measured for the smallest jump, because half jumps of that size are not trained.
distance: of the action from the action in the dataset. Gap and distance are root mean squares over dimensions.
gain: Q of the action minus Q of the action in the dataset, in standard deviations of Q over the dataset.
spread: the standard deviation of Q between the critics, in the same unit.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import tyro

from shortcutrl import consistency_gap, data, sorl
from shortcutrl.runs import load_checkpoint, load_settings
from shortcutrl.suites import ogbench


@partial(jax.jit, static_argnames=("config", "k"))
def measure(state: sorl.State, batch: Any, noise: jax.Array, *, config: sorl.Config, k: int) -> dict[str, jax.Array]:
    actor = sorl.actor(state, config=config, k=k)
    critic = partial(state.target_critic, k=k) if config.condition_critic_on_k else state.target_critic

    def one(obs, action, noise):
        acted, gap = actor(obs, noise), consistency_gap(state.target_policy, obs, noise, 0.0, 1 / k)
        return gap, acted - action, critic(obs, acted), critic(obs, action)

    gap, distance, q, q_data = jax.vmap(one)(batch.obs, batch.action, noise)
    unit = q_data.mean(axis=1).std()
    return {
        "gap": jnp.sqrt(jnp.mean(gap**2)),
        "distance": jnp.sqrt(jnp.mean(distance**2)),
        "gain": (q - q_data).mean() / unit,
        "spread": q.std(axis=1).mean() / unit,
    }


def main(
    run: Annotated[Path, tyro.conf.Positional],  # a folder of sorl.py
    states: int = 4096,  # drawn from its dataset
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
    not_needed: Any = None  # the states of the optimizers
    state = load_checkpoint(run, sorl.State(*networks, *networks, not_needed, not_needed))
    print(f"{'k':>2} {'gap':>8} {'distance':>8} {'gain':>8} {'spread':>8}")
    for k in [2**i for i in range(int(config.num_steps).bit_length())]:
        values = measure(state, batch, noise, config=config, k=k)
        told = [f"{values[name]:.3f}" for name in ("gap", "distance", "gain", "spread")]
        told[0] = told[0] if k < config.num_steps else "-"
        print(f"{k:>2}", *(f"{value:>8}" for value in told))


if __name__ == "__main__":
    try:
        tyro.cli(main, description=__doc__)
    except (ValueError, OSError) as error:
        sys.exit(f"jumps.py: {error}")
