"""Measure behaviour cloning of images in the host's memory, with batches drawn ahead, and of images on the device.

taskset -c 0 python benchmarks/host.py
"""

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import grain
import jax
import numpy as np
import optax
import tyro

from shortcutrl import Transition, bc, data, nn


def frames(rows: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "observations": rng.integers(0, 256, (rows, 64, 64, 3)).astype(np.uint8),
        "actions": rng.uniform(-1, 1, (rows, 5)),
        "rewards": rng.normal(size=rows),
        "terminals": np.zeros(rows),
        "timeouts": np.arange(rows) % 1000 == 999,
    }


def ahead(draw: Callable[[jax.Array], Transition], keys: jax.Array, device: Any) -> Iterable[Transition]:
    """Batches on the device. A thread draws two of them before they are used."""
    batches = grain.MapDataset.range(len(keys)).map(lambda i: jax.device_put(draw(keys[i]), device))
    return batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))


def main(rows: int = 20_000, batch_size: int = 256, train_batch: int = 16, updates: int = 40, draws: int = 40) -> None:
    cpu, device = jax.devices("cpu")[0], jax.devices()[0]
    arrays = frames(rows)
    with jax.default_device(cpu):
        host = data.from_arrays(**arrays)
    host, keys = jax.device_put(host, cpu), jax.random.split(jax.random.key(0), draws)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(host))
    print(
        f"{rows} frames: {size / 1e9:.3f} GB, or {size / rows * 1_000_000 / 1e9:.2f} GB for 1,000,000; device: {device}"
    )

    def sample(dataset, key, size):
        return data.random_crop(data.sample(dataset, key, batch_size=size, frame_stack=3), key)

    numpy = jax.tree.map(np.asarray, host)
    drawers: dict[str, Any] = {"jit, in the host's memory": partial(jax.jit(partial(sample, size=batch_size)), host)}
    drawers["eager, NumPy arrays"] = lambda key: sample(numpy, key, batch_size)
    for name, draw in drawers.items():
        jax.block_until_ready(draw(keys[0]))
        start = time.process_time()
        for key in keys:
            jax.block_until_ready(draw(key))
        milliseconds = (time.process_time() - start) / draws * 1e3
        print(f"a batch of {batch_size}, stacked and cropped, {name}: {milliseconds:.1f} ms of CPU; lower is better")

    config, optimizers = bc.Config(), bc.Networks(optax.adam(3e-4))
    draw = partial(jax.jit(partial(sample, size=train_batch)), host)
    encoder = nn.Impala((64, 64, 9), key=keys[0])
    networks = bc.networks(draw(keys[0]), width=256, depth=2, encoder=encoder, key=keys[0])
    state = jax.device_put(bc.init(networks, config=config, optimizers=optimizers), device)

    @jax.jit
    def update(state, batch, key):
        return bc.update(state, batch, config=config, optimizers=optimizers, key=key)[0]

    def in_host(state, keys):
        for batch, key in zip(ahead(draw, keys, device), keys, strict=True):
            state = update(state, batch, key)
        return state

    there = jax.device_put(host, device)

    def on_device(state, keys):
        for key in keys:
            state = both(state, there, key)
        return state

    @jax.jit
    def both(state, dataset, key):
        return update(state, sample(dataset, key, train_batch), key)

    for name, run in {"on the device": on_device, "in the host's memory, drawn ahead": in_host}.items():
        jax.block_until_ready(run(state, keys[:1]))
        start = time.perf_counter()
        jax.block_until_ready(run(state, keys[:updates]))
        rate = updates / (time.perf_counter() - start)
        print(f"updates of {train_batch} transitions, {name}: {rate:.2f} per second; higher is better")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
