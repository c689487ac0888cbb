"""Several devices, and several processes: the same result as one device, from a share of the work."""

import os
import re
import socket
import subprocess
import sys

import numpy as np
import pytest
from running import finish, start

SMALL = ["many_devices.py", "--updates", "20", "--width", "32", "--depth", "2"]


def begin(home, devices, *args, cache="1"):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    before = ["env", f"XLA_FLAGS={flags}", f"JAX_ENABLE_COMPILATION_CACHE={cache}"]
    return start(home, *SMALL, *args, before=before)


def saved(path):
    """The arrays of a trained state and of its losses."""
    arrays = []
    with path.open("rb") as file:
        while file.peek(1):
            arrays.append(np.load(file))
    return arrays


@pytest.fixture(scope="module")
def alone(home, tmp_path_factory):
    path = tmp_path_factory.mktemp("devices") / "alone.eqx"
    assert "1 devices" in finish(begin(home, 1, "--out", path))
    return saved(path)


def assert_same(arrays, others):
    assert len(arrays) == len(others) > 60
    for one, other in zip(arrays, others, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * np.abs(one).max())


def test_eight_devices_are_one_and_each_computes_its_share(home, alone, tmp_path):
    """In the program of each, the products with a hidden layer have 256 / 8 rows."""
    dump = f"--xla_dump_to={tmp_path} --xla_dump_hlo_module_re=.*train.*"
    assert "8 devices" in finish(begin(home, f"8 {dump}", "--out", tmp_path / "eight.eqx", cache="0"))
    assert_same(alone, saved(tmp_path / "eight.eqx"))
    (program,) = tmp_path.glob("*jit_train*after_optimizations.txt")
    rows = {int(rows) for rows in re.findall(r"= f32\[(\d+),32\]\S* dot\(", program.read_text())}
    assert 32 in rows
    assert 256 not in rows


@pytest.mark.slow
def test_two_processes_are_one(home, alone, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    both = ["--processes", "2", "--coordinator", f"localhost:{port}", "--out", tmp_path / "two.eqx", "--process"]
    first, second = begin(home, 2, *both, "0"), begin(home, 2, *both, "1")
    try:
        assert "4 devices" in finish(first)
        finish(second)
    finally:
        first.kill()
        second.kill()
    assert_same(alone, saved(tmp_path / "two.eqx"))


AGENTS = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from functools import partial
from shortcutrl import Transition, sorl

batch = Transition(jnp.ones((8, 3)), jnp.ones((8, 2)), jnp.ones(8), jnp.ones(8), jnp.ones((8, 3)))
options = {"config": sorl.Config(num_steps=4, max_jumps=2), "optimizers": sorl.OPTIMIZERS}

def start(key):
    return sorl.init(sorl.networks(batch, width=16, depth=2, key=key), **options)

@jax.jit
def train(states, keys):
    step = partial(sorl.update, **options, jumps_key=jax.random.key(1))
    return jax.vmap(lambda state, key: step(state, batch, key=key))(states, keys)

keys = jax.random.split(jax.random.key(0), 16)
states = jax.vmap(start)(keys)
on_one = train(states, keys)
mesh = Mesh(jax.devices(), ("agents",))
on_eight = train(*jax.device_put((states, keys), NamedSharding(mesh, PartitionSpec("agents"))))
for leaf in jax.tree.leaves(on_eight):
    assert len(leaf.sharding.device_set) == 8 and leaf.addressable_shards[0].data.shape[0] == 2
program = train.lower(*jax.device_put((states, keys), NamedSharding(mesh, PartitionSpec("agents")))).compile().as_text()
assert "all-reduce" not in program and "all-gather" not in program, "agents talk to each other"
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), on_one, on_eight)
"""


@pytest.mark.slow
def test_agents_on_eight_devices_are_those_on_one_and_do_not_talk():
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run([sys.executable, "-c", AGENTS], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
