"""Print the memory of OGBench's datasets on the device: the bytes of a row, times the rows that OGBench publishes.

    python benchmarks/memory.py

The five tasks of an environment share a dataset and differ in its rewards.
"""

import math

import jax
import numpy as np

from shortcutrl import data
from shortcutrl.suites import ogbench

MILLION = {  # rows, in millions
    **{"antmaze-large-navigate": 1, "antmaze-giant-navigate": 1, "antsoccer-arena-navigate": 1},
    **{"humanoidmaze-medium-navigate": 2, "humanoidmaze-large-navigate": 2},
    **{"cube-single-play": 1, "cube-double-play": 1, "scene-play": 1, "puzzle-3x3-play": 1, "puzzle-4x4-play": 1},
}
SAMPLE = 1000  # rows that are stored to count their bytes


def megabytes(obs: np.ndarray, action_size: int, millions: int) -> float:
    dataset = data.from_arrays(
        observations=obs, actions=np.zeros((SAMPLE, action_size)), rewards=np.zeros(SAMPLE), terminals=np.zeros(SAMPLE)
    )
    return sum(leaf.nbytes for leaf in jax.tree.leaves(dataset)) / SAMPLE * millions


def main() -> None:
    print("| environment | observation | action | rows | memory |\n|---|---|---|---|---|")
    for name, millions in MILLION.items():
        env = ogbench.make_env(f"{name}-singletask-v0")
        obs_size, action_size = (math.prod(space.shape or ()) for space in (env.observation_space, env.action_space))
        size = megabytes(np.zeros((SAMPLE, obs_size)), action_size, millions)
        print(f"| {name} | {obs_size} | {action_size} | {millions},000,000 | {size:,.0f} MB |")
    size = megabytes(np.zeros((SAMPLE, 64, 64, 3), np.uint8), 5, 1)
    print(f"| visual-cube-single-play | 64 x 64 x 3 | 5 | 1,000,000 | {size:,.0f} MB |")


if __name__ == "__main__":
    main()
