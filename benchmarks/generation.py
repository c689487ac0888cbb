"""Measure how fast datasets are generated, compared with one process of OGBench's oracle alone. Higher is better.

python benchmarks/generation.py
MUJOCO_GL=egl python benchmarks/generation.py --dataset visual-cube-single-play-v0 --episodes 4 --steps 100 --alone 1
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import tyro

from shortcutrl._processes import cores
from shortcutrl.suites import ogbench
from shortcutrl.suites.ogbench import _oracles  # private: the oracle without what `generate` adds


def main(
    dataset: str = "cube-single-play-v0",
    processes: int = cores(),
    episodes: int = 150,  # of OGBench's 1,001 steps; a tenth as many are added for validation
    alone: int = 6,  # episodes by one process alone
    steps: int | None = None,  # of each episode; by default OGBench's
) -> None:
    steps = _oracles.RECIPES[dataset].episode_steps if steps is None else steps
    behaviour = _oracles.make_behaviour(dataset, steps)
    _oracles.record(behaviour, np.random.SeedSequence(0))  # warms up
    start = time.perf_counter()
    for seed in range(alone):
        _oracles.record(behaviour, np.random.SeedSequence(seed))
    single = alone * steps / (time.perf_counter() - start)
    print(f"one process, oracle alone: {single:.3g} steps/s")
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        ogbench.generate(
            dataset, Path(folder) / "data.npz", episodes=episodes, episode_steps=steps, processes=processes
        )
        rate = (episodes + max(episodes // 10, 1)) * steps / (time.perf_counter() - start)
    print(f"generate, {processes} processes, start-up and writing included: {rate:.3g} steps/s, ", end="")
    print(f"{rate / (processes * single):.0%} of {processes} times one process")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
