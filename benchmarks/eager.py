"""Measure the functions outside of `jit`, with networks of 2 x 64, after their first call.

python benchmarks/eager.py
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import tyro

from shortcutrl import Transition, bon_select, ddpm_sample, nn, q_loss, rollout_k, shortcut_loss, td_loss, vp_schedule

KEY = jax.random.key(0)


def functions() -> dict[str, Callable[[], Any]]:
    obs, noise, shape = jnp.ones(28), jnp.ones(5), {"width": 64, "depth": 2, "key": KEY}
    policy, critic = nn.ShortcutPolicy(28, 5, **shape), nn.EnsembleCritic(28, 5, **shape)
    denoiser = nn.ResidualDenoiser(28, 5, width=64, blocks=2, key=KEY)
    actor = partial(rollout_k, policy, k=4, clip=(-1.0, 1.0))
    transition = Transition(obs, noise, jnp.float32(1), jnp.float32(1), obs)
    best, several = partial(bon_select, actor, critic), (jnp.ones((4, 28)), jnp.ones((4, 8, 5)))
    sample = partial(ddpm_sample, denoiser, steps=5, schedule=vp_schedule, clip=(-1.0, 1.0))
    return {
        "the policy": lambda: policy(obs, noise, 0.0, 1.0),
        "the critic": lambda: critic(obs, noise),
        "rollout_k, k = 4": lambda: actor(obs, noise),
        "rollout_k, k = 8": lambda: rollout_k(policy, obs, noise, k=8),
        "rollout_k, k = 16": lambda: rollout_k(policy, obs, noise, k=16),
        "bon_select, n = 8, k = 4": lambda: best(obs, jnp.ones((8, 5))),
        "bon_select, n = 8, k = 4, in a `vmap` over 4 observations": lambda: jax.vmap(best)(*several),
        "ddpm_sample, 5 steps": lambda: sample(obs, jnp.ones((5, 5))),
        "td_loss, k = 4": lambda: td_loss(critic, critic, actor, transition, noise, discount=0.99),
        "q_loss, k = 4": lambda: q_loss(actor, critic, obs, noise),
        "shortcut_loss": lambda: shortcut_loss(policy, policy, obs, noise, num_steps=8, key=KEY),
    }


def main(repeats: int = 50) -> None:
    compilations: list[str] = []

    def listen(event: str, *_: Any, **__: Any) -> None:
        if "backend_compile" in event:
            compilations.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    print("| call | processor time | compilations after the first call |\n|---|---|---|")
    for name, function in functions().items():
        function()
        before = len(compilations)
        times = []
        for _ in range(repeats):
            start = time.process_time()
            jax.block_until_ready(function())
            times.append(time.process_time() - start)
        print(f"| {name} | {1e3 * sorted(times)[repeats // 2]:.1f} ms | {len(compilations) - before} |", flush=True)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
