"""What each number of jumps does in a run of `sorl.py`, on states of its dataset: why some k act better than others.

gap: how far the first jump, of 1/k, lands from two of half the size; zero where the half-jump law holds. The smallest
jump has none, for nothing half its size is trained.
from data: how far the action lies from one that the data took there. Both are root mean squares over dimensions.
gain: by how much its Q is above that of the data's action, in the standard deviations that Q has over the data.
doubt: the critics' standard deviation about its Q, in the same unit.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import tyro
from sorl import load, verifier

from shortcutrl import consistency_gap, data, rollout_k


def measure(policy, critic, obs, action, noise, *, k: int) -> tuple[jax.Array, ...]:
    """Of one state: the squared gap and distance, Q of policy and of data, and the spread of the critics."""
    acted = rollout_k(policy, obs, noise, k=k, clip=(-1.0, 1.0))
    gap = consistency_gap(policy, obs, noise, 0.0, 1 / k)
    q, q_data = critic(obs, acted), critic(obs, action)
    return jnp.mean(gap**2), jnp.mean((acted - action) ** 2), q.mean(), q_data.mean(), q.std()


def main(
    run: Annotated[Path, tyro.conf.Positional],  # a folder of `sorl.py`
    states: int = 4096,  # drawn from its dataset
) -> None:
    try:
        args, state = load(run)
        dataset = data.load_ogbench(args.env, episodes=args.data_episodes).dataset
    except (ValueError, OSError) as error:
        sys.exit(f"jumps.py: {error}")
    batch_key, noise_key = jax.random.split(jax.random.key(0))
    batch = data.sample(dataset, batch_key, batch_size=states)
    noise = jax.random.normal(noise_key, batch.action.shape)
    print(f"{'k':>2} {'gap':>7} {'from data':>10} {'gain':>7} {'doubt':>7}")
    for k in args.jumps:
        each = jax.jit(jax.vmap(partial(measure, state.target_policy, verifier(args, state, k=k), k=k)))
        gap, far, q, q_data, spread = each(batch.obs, batch.action, noise)
        unit = q_data.std()
        missed = f"{jnp.sqrt(gap.mean()):.3f}" if k < args.num_steps else "-"
        gain, doubt = (q - q_data).mean() / unit, spread.mean() / unit
        print(f"{k:>2} {missed:>7} {jnp.sqrt(far.mean()):>10.3f} {gain:>7.3f} {doubt:>7.3f}")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
