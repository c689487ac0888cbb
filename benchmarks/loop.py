"""Measure a loop that calls a compiled update against a scan over the same updates: processor time, in turns.

python benchmarks/loop.py
python benchmarks/loop.py --keep-memory

On one core, put `taskset -c 0` before it.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from speed import BATCH, dataset

import shortcutrl
from shortcutrl import data, sorl

UPDATES = 16


def main(
    keep_memory: bool = False,  # whether to call `shortcutrl.keep_memory` first
    width: int = 512,  # of the hidden layers
    depth: int = 4,
    repeats: int = 9,
) -> None:
    if keep_memory and not shortcutrl.keep_memory():
        raise SystemExit("loop.py: `keep_memory` has no effect on this system.")
    batch = data.sample(dataset(), jax.random.key(0), batch_size=BATCH)
    options = {"config": sorl.Config(), "optimizers": sorl.OPTIMIZERS}
    networks = sorl.networks(batch, width=width, depth=depth, key=jax.random.key(1))
    start, keys = sorl.init(networks, **options), jax.random.split(jax.random.key(2), UPDATES)

    def one(state, key):
        return sorl.update(state, batch, key=key, **options)[0]

    update = jax.jit(one, donate_argnums=0)
    scan = jax.jit(lambda state: jax.lax.scan(lambda s, key: (one(s, key), None), state, keys)[0], donate_argnums=0)

    def loop(state):
        for key in keys:
            state = update(state, key)
        return state

    took = []
    for _ in range(repeats + 1):
        for program in (loop, scan):
            state = jax.block_until_ready(jax.tree.map(jnp.copy, start))
            before = time.process_time()
            jax.block_until_ready(program(state))
            took.append(1e3 * (time.process_time() - before) / UPDATES)
    loops, scans = np.reshape(took, (-1, 2))[1:].T  # the first call compiles
    print(f"milliseconds of one update, medians of {repeats}: loop {np.median(loops):.1f}, scan {np.median(scans):.1f}")
    print(f"loop / scan: {np.median(loops / scans):.3f} ({np.min(loops / scans):.3f} to {np.max(loops / scans):.3f})")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
