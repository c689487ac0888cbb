"""Measure the environment steps per second of `evaluate`, after a first call, and of the environments alone.

python benchmarks/evaluation.py
python benchmarks/evaluation.py --env visual-cube-single-play-singletask-task1-v0 --episodes 4 --steps 20 --most 1
"""

import multiprocessing
import time
from functools import partial

import jax
import numpy as np
import tyro

from shortcutrl import nn, rollout_k
from shortcutrl._processes import cores as available_cores
from shortcutrl.evaluate import EnvPool, evaluate, keyed
from shortcutrl.suites import ogbench


def environment_alone(name: str, seconds: float, ready, answers) -> None:
    env, rng = ogbench.make_env(name), np.random.default_rng(0)
    env.reset(seed=0)
    ready.wait()  # all processes step at the same time
    steps, start = 0, time.perf_counter()
    while time.perf_counter() < start + seconds:
        _, _, terminated, truncated, _ = env.step(rng.uniform(-1, 1, env.action_space.shape))
        steps += 1
        if terminated or truncated:
            env.reset()
    answers.put(steps / (time.perf_counter() - start))


def raw_rate(name: str, processes: int, seconds: float) -> float:
    """Steps per second of environments without a policy, one in each process."""
    context = multiprocessing.get_context("spawn")
    ready, answers = context.Barrier(processes), context.Queue()
    workers = [
        context.Process(target=environment_alone, args=(name, seconds, ready, answers)) for _ in range(processes)
    ]
    for worker in workers:
        worker.start()
    rates = [answers.get() for _ in workers]
    for worker in workers:
        worker.join()
    return sum(rates)


def main(
    env: str = "cube-single-play-singletask-task1-v0",
    cores: int = available_cores(),
    episodes: int = 64,
    seconds: float = 10.0,  # to measure the environments alone
    steps: int | None = None,  # of an episode, to end it earlier
    most: int = 16,  # environments in each process
) -> None:
    make_env = partial(ogbench.make_env, env, **({} if steps is None else {"max_episode_steps": steps}))
    example, key = make_env(), jax.random.key(0)
    shape, (action_size,) = example.observation_space.shape or (0,), example.action_space.shape or (0,)
    encoder = nn.Impala(shape, key=key) if len(shape) == 3 else None
    obs_size = shape[0] if encoder is None else 512
    policy = nn.ShortcutPolicy(obs_size, action_size, width=512, depth=4, encoder=encoder, key=key)
    raw = raw_rate(env, cores, seconds)
    print(f"environments alone, {cores} processes: {raw:.3g} steps/s")
    pools = {"one environment at a time": {"processes": 0, "envs_per_process": 1}}
    pools |= {
        f"evaluate, {p} processes of {m}": {"processes": p, "envs_per_process": m}
        for p, m in [(cores, 1), (cores, 4), (2 * cores, 4), (2 * cores, 8), (2 * cores, 16)]
        if m <= most
    }
    for name, options in pools.items():
        with EnvPool(make_env, **options) as pool:
            act = keyed(partial(rollout_k, policy, k=1, clip=(-1.0, 1.0)), pool.action_shape)
            evaluate(act, pool, episodes=pool.groups)  # compiles
            count = min(episodes, 4) if options["processes"] == 0 else episodes
            start = time.perf_counter()
            played = evaluate(act, pool, episodes=count).episode_length.sum()
            rate = played / (time.perf_counter() - start)
        print(f"{name}: {rate:.3g} steps/s, {rate / raw:.0%} of the environments alone")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
