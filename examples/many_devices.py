"""Train one policy on many devices, in one process or several. Each device computes its share of every batch.

The program is the same as for one device. The sharding of the batch decides which device computes what, and XLA sums
the gradients. The same command resumes, also on another number of devices, because the checkpoint does not depend on
it.

On one machine with all its devices, or with eight simulated ones:

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python examples/many_devices.py

On several machines that share the folder of the run, start the same command on each, with its own --process:

    python examples/many_devices.py --processes 2 --coordinator host-0:9876 --process 0

On a Slurm cluster, where JAX finds the processes by itself:

    srun --nodes 2 --ntasks-per-node 1 --gpus-per-node 8 python examples/many_devices.py --cluster
"""

import dataclasses
import os
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import tyro
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from shortcutrl import Transition, sorl
from shortcutrl.runs import Run, load_checkpoint

CONFIG = sorl.Config(max_jumps=4, q_weight=1.0)


@dataclasses.dataclass(frozen=True)
class Args:
    out: Path = Path("runs/many_devices")  # the folder of the run
    batch_size: int = 256  # transitions in one update, over all devices
    updates: int = 1000  # gradient steps of each network
    updates_per_checkpoint: int = 200
    width: int = 256  # units in each hidden layer
    depth: int = 3  # number of hidden layers

    cluster: bool = False  # let JAX find the processes of Slurm, Open MPI, Kubernetes or Cloud TPUs
    processes: int = 1  # number of processes, without --cluster
    process: int = 0  # index of this process, without --cluster
    coordinator: str = "localhost:9876"  # address of process 0, without --cluster


def experience(key, batch_size: int) -> Transition:
    """Episodes of one step: actions from a ring of five modes, rewarded for where they point."""
    mode_key, noise_key, obs_key = jax.random.split(key, 3)
    angle = jax.random.randint(mode_key, (batch_size,), 0, 5) * 0.4 * jnp.pi
    action = 0.8 * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
    action += 0.06 * jax.random.normal(noise_key, action.shape)
    obs = jax.random.normal(obs_key, (batch_size, 2))
    return Transition(obs, action, jnp.sum(obs * action, axis=-1), jnp.zeros(batch_size), obs)


def train(args: Args) -> None:
    mesh = Mesh(jax.devices(), ("batch",))
    shared, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("batch"))

    @partial(jax.jit, out_shardings=shared)
    def start(key):
        networks = sorl.networks(experience(key, 1), width=args.width, depth=args.depth, key=key)
        return sorl.init(networks, config=CONFIG, optimizers=sorl.OPTIMIZERS)

    @partial(jax.jit, donate_argnums=0, out_shardings=shared)
    def many_updates(state, steps):
        def one_update(state, step):
            batch_key, update_key = jax.random.split(jax.random.fold_in(jax.random.key(1), step))
            batch = jax.lax.with_sharding_constraint(experience(batch_key, args.batch_size), split)
            return sorl.update(state, batch, config=CONFIG, optimizers=sorl.OPTIMIZERS, key=update_key)

        state, info = jax.lax.scan(one_update, state, steps)
        return state, jax.tree.map(jnp.mean, info)

    done, state = 0, start(jax.random.key(0))
    if any(path.name.isdecimal() for path in (args.out / "checkpoints").glob("*")):
        done, state = load_checkpoint(args.out, (done, state))
    # All processes load, and one of them writes.
    settings = {"batch_size": args.batch_size, "width": args.width, "depth": args.depth}
    run = Run(args.out, settings) if jax.process_index() == 0 else None
    while done < args.updates:
        count = min(args.updates_per_checkpoint, args.updates - done)
        state, info = many_updates(state, jnp.arange(done, done + count))
        done += count
        if run is not None:
            run.log(done, info._asdict())
            run.save(done, (done, state))
            print(f"{jax.device_count()} devices, {done} updates: td {info.td:.6f}, q {info.q:.6f}", flush=True)


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    if args.cluster:
        jax.distributed.initialize()
    elif args.processes > 1:
        jax.distributed.initialize(args.coordinator, args.processes, args.process)
    if args.batch_size % jax.device_count():
        sys.exit(f"`batch_size` must be a multiple of the {jax.device_count()} devices, got {args.batch_size}.")
    try:
        train(args)
    except Exception as error:
        name = f"process {jax.process_index()} of {jax.process_count()}"
        print(f"many_devices.py: {name} stopped: {error}", file=sys.stderr)
        print(
            f"If a process was lost, the same command resumes from the last checkpoint in {args.out}.", file=sys.stderr
        )
        sys.stderr.flush()
        os._exit(1)  # at once: a regular exit would wait for the other processes


if __name__ == "__main__":
    main()
