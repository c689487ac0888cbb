"""Train one policy on many devices, of one process or of several. Each computes its share of every batch.

The program is that of one device. The sharding of the batch says who computes what; XLA adds the sum of the gradients.

On one machine, with all its devices (or eight that it simulates):

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python examples/many_devices.py

On several machines, the same command on each, with its own --process:

    python examples/many_devices.py --processes 2 --coordinator host-0:9876 --process 0
"""

import sys
from functools import partial
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import tyro
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from shortcutrl import Transition, sorl

CONFIG = sorl.Config(max_jumps=4, q_weight=1.0)


def experience(key, batch_size: int) -> Transition:
    """Episodes of one step: actions from a ring of five modes, rewarded for where they point."""
    mode_key, noise_key, obs_key = jax.random.split(key, 3)
    angle = jax.random.randint(mode_key, (batch_size,), 0, 5) * 0.4 * jnp.pi
    action = 0.8 * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
    action += 0.06 * jax.random.normal(noise_key, action.shape)
    obs = jax.random.normal(obs_key, (batch_size, 2))
    return Transition(obs, action, jnp.sum(obs * action, axis=-1), jnp.zeros(batch_size), obs)


def main(
    batch_size: int = 256,  # over all devices
    updates: int = 1000,
    width: int = 256,
    depth: int = 3,
    out: Path | None = None,  # a file for the trained state
    processes: int = 1,
    process: int = 0,  # which of them this is
    coordinator: str = "localhost:9876",  # where process 0 can be reached
) -> None:
    if processes > 1:
        jax.distributed.initialize(coordinator, processes, process)
    if batch_size % jax.device_count():
        sys.exit(f"`batch_size` must be a multiple of the {jax.device_count()} devices, got {batch_size}.")
    mesh = Mesh(jax.devices(), ("batch",))
    shared, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("batch"))

    @partial(jax.jit, out_shardings=shared)
    def start(key):
        networks = sorl.networks(experience(key, 1), width=width, depth=depth, key=key)
        return sorl.init(networks, config=CONFIG, optimizers=sorl.OPTIMIZERS)

    @partial(jax.jit, donate_argnums=0, out_shardings=shared)
    def train(state, key):
        def one_update(state, key):
            batch_key, update_key = jax.random.split(key)
            batch = jax.lax.with_sharding_constraint(experience(batch_key, batch_size), split)
            return sorl.update(state, batch, config=CONFIG, optimizers=sorl.OPTIMIZERS, key=update_key)

        return jax.lax.scan(one_update, state, jax.random.split(key, updates))

    state, info = train(start(jax.random.key(0)), jax.random.key(1))
    last = jax.tree.map(lambda x: float(x[-1]), info)
    if process == 0:
        print(f"{len(jax.devices())} devices: td {last.td:.6f}, q {last.q:.6f}, flow matching {last.flow_matching:.6f}")
        if out is not None:
            eqx.tree_serialise_leaves(out, (state, info))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
