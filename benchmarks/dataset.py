"""Measure `data.sample`, an update with sampled successors and one with stored ones, and the bytes of each layout.

taskset -c 0 python benchmarks/dataset.py
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
import tyro
from speed import BATCH, OBS, dataset

from shortcutrl import Transition, data, sorl

STEPS = 20  # in one scan


def stored_twice(dataset: data.Dataset) -> Transition:
    """The layout of other libraries: each row holds its successor too."""
    return Transition(*dataset[:4], jnp.roll(dataset.obs, -1, axis=0))


def rows_of(dataset: Transition, key: jax.Array) -> Transition:
    index = jax.random.randint(key, (BATCH,), 0, len(dataset.reward))
    return jax.tree.map(lambda x: x[index], dataset)


def scan(draw: Callable[..., Transition], use: Callable[..., Any]) -> Callable[..., Any]:
    """A program of `STEPS` batches, each drawn and then used."""

    @jax.jit
    def run(state, dataset, keys):
        return jax.lax.scan(lambda state, key: (use(state, draw(dataset, key), key), None), state, keys)[0]

    return run


def compare(title: str, programs: dict[str, Callable[[], Any]], repeats: int) -> None:
    """Print the CPU time of a step of each program, measured in turns, and its ratio to the first.

    CPU time, because it depends less on what else the machine does.
    """
    for program in programs.values():
        jax.block_until_ready(program())
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(repeats):
        for name, program in programs.items():
            start = time.process_time()
            jax.block_until_ready(program())
            times[name].append((time.process_time() - start) / STEPS * 1e3)
    print(f"{title}: milliseconds of CPU time, the least of {repeats}, and the ratio to the first; lower is better")
    first = min(next(iter(times.values())))
    for name, taken in times.items():
        print(f"  {name:28} {min(taken):8.3f} {min(taken) / first:8.3f}")


def touch(total: jax.Array, batch: Transition, key: jax.Array) -> jax.Array:
    """Read each array that an update reads."""
    return total + sum(leaf.sum() for leaf in batch[:5])


def main(rows: int = 100_000, width: int = 256, depth: int = 3, repeats: int = 15) -> None:
    keys = jax.random.split(jax.random.key(0), STEPS)
    once, zero = dataset(rows), jnp.float32(0)
    twice = stored_twice(once)

    def sampled(use, state, **options):
        draw = partial(data.sample, batch_size=BATCH, discount=0.99, **options)
        return partial(scan(draw, use), state, once, keys)

    programs = {"rows of stored successors": partial(scan(rows_of, touch), zero, twice, keys)}
    programs["sample"] = sampled(touch, zero)
    for options in ({"n_step": 5}, {"n_step": 100}, {"chunk": 5}, {"frame_stack": 3}):
        programs[f"sample {options}"] = sampled(touch, zero, **options)
    compare(f"a batch of {BATCH}", programs, repeats)

    networks = sorl.networks(jax.tree.map(lambda x: x[0], twice), width=width, depth=depth, key=jax.random.key(1))
    config, optimizers = sorl.Config(num_steps=4, max_jumps=1), (optax.adam(3e-4), optax.adam(3e-4))
    state = sorl.init(networks, config=config, optimizers=optimizers)

    def update(state, batch, key):
        return sorl.update(state, batch, config=config, optimizers=optimizers, key=key)[0]

    programs = {"rows of stored successors": partial(scan(rows_of, update), state, twice, keys)}
    programs |= {f"sample n_step={n}": sampled(update, state, n_step=n) for n in (1, 5)}
    compare(f"an update of {depth} x {width}, one jump", programs, repeats)

    print("bytes of 1,000,000 rows")
    image = 64 * 64 * 3 * 1_000_000
    for name, stored in {"stored twice": twice, "stored once": once}.items():
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(stored)) / rows * 1_000_000
        print(f"  {OBS} numbers, {name:20} {size:16,.0f}")
        numbers = sum(leaf.nbytes for leaf in jax.tree.leaves((stored.obs, stored.next_obs))) / rows * 1_000_000
        images = image * (1 + (stored.next_obs is not None))
        print(f"  64 x 64 x 3 uint8, {name:13} {size - numbers + images:16,.0f}")


if __name__ == "__main__":
    tyro.cli(main)
