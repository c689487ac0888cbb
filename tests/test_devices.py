"""Several devices, and several processes: the same result as one device, from a share of the work."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from running import finish, start

SMALL = ["many_devices.py", "--width", "32", "--depth", "2"]


def begin(home, devices, *args, updates=20, cache="1"):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    before = ["env", f"XLA_FLAGS={flags}", f"JAX_ENABLE_COMPILATION_CACHE={cache}"]
    return start(home, *SMALL, "--updates", str(updates), *args, before=before)


def saved(folder):
    """The arrays of the trained state."""
    with np.load(folder / "checkpoints" / "20" / "state.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def alone(home, tmp_path_factory):
    folder = tmp_path_factory.mktemp("devices") / "alone"
    assert "1 devices" in finish(begin(home, 1, "--out", folder))
    return saved(folder)


def assert_same(arrays, others):
    assert arrays.keys() == others.keys()
    assert len(arrays) > 60
    for name, one in arrays.items():
        np.testing.assert_allclose(one, others[name], rtol=1e-5, atol=1e-5 * np.abs(one).max(), err_msg=name)


def test_eight_devices_are_one_and_each_computes_its_share(home, alone, tmp_path):
    """In the program of each, the products with a hidden layer have 256 / 8 rows."""
    dump = f"--xla_dump_to={tmp_path} --xla_dump_hlo_module_re=.*many_updates.*"
    assert "8 devices" in finish(begin(home, f"8 {dump}", "--out", tmp_path / "eight", cache="0"))
    assert_same(alone, saved(tmp_path / "eight"))
    (program,) = tmp_path.glob("*jit_many_updates*after_optimizations.txt")
    rows = {int(rows) for rows in re.findall(r"= f32\[(\d+),32\]\S* dot\(", program.read_text())}
    assert 32 in rows
    assert 256 not in rows


@pytest.mark.slow
def test_a_run_resumes_on_fewer_devices(home, alone, tmp_path):
    for devices, updates in ((8, 6), (4, 13), (1, 20)):
        said = finish(begin(home, devices, "--out", tmp_path, updates=updates))
        assert said.startswith(f"{devices} devices, {updates} updates")
    assert_same(alone, saved(tmp_path))


def begin_two(home, folder, **options):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    both = ["--processes", "2", "--coordinator", f"localhost:{port}", "--out", folder, "--process"]
    return [begin(home, 2, *both, str(process), **options) for process in range(2)]


@pytest.mark.slow
def test_a_process_says_so_and_stops_when_another_is_killed(home, tmp_path):
    first, second = begin_two(home, tmp_path, updates=10**6)
    with first, second:
        try:
            assert any("4 devices, 200 updates" in line for line in first.stdout)
            second.kill()
            complained = first.stderr.read()
        finally:
            first.kill()
            second.kill()
    assert first.returncode != 0
    # Ours, or that of JAX where the program was waiting for the other one.
    assert "the same command resumes" in complained or "another task died" in complained
    assert (tmp_path / "checkpoints" / "200").exists()


@pytest.mark.slow
def test_two_processes_are_one(home, alone, tmp_path):
    for updates in (7, 20):  # the second time they resume
        first, second = begin_two(home, tmp_path, updates=updates)
        try:
            assert f"4 devices, {updates} updates" in finish(first)
            assert "updates" not in finish(second)  # only the first one reports and saves
        finally:
            first.kill()
            second.kill()
    assert_same(alone, saved(tmp_path))


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


SHARED = """
import jax, jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec as P
from shortcutrl import Transition, sorl

draw = lambda seed, *shape: jax.random.uniform(jax.random.key(seed), shape, minval=-1)
batch = Transition(draw(0, 8, 3), draw(1, 8, 2), draw(2, 8), jnp.ones(8), draw(3, 8, 3))
config, key = sorl.Config(num_steps=2, max_jumps=2, normalize_q=False), jax.random.key(0)
networks = sorl.networks(batch, width=8, depth=1, key=key)
state = sorl.init(networks, config=config, optimizers=sorl.OPTIMIZERS)
draws = sorl.draw(key, batch, config=config)
mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,))
parts = jax.tree.map(lambda leaf: P("batch") if leaf.ndim else P(), draws)

for loss, network in ((sorl.critic_loss, state.critic), (sorl.policy_loss, state.policy)):

    def alone(network, batch, draws, k):
        return loss(network, state, batch, draws._replace(td_k=k, q_k=k), config=config)[0]

    def mean(*args):
        return jax.grad(lambda network: jax.lax.pmean(alone(network, *args[1:]), "batch"))(args[0])

    def own(network, batch, draws, k):
        return mean(network, batch, draws, k[0])

    for k, spec, function in ((jnp.array(2), P(), mean), (jnp.array([1, 2]), P("batch"), own)):
        both = jax.shard_map(function, mesh=mesh, in_specs=(P(), P("batch"), parts, spec), out_specs=P())
        halves = jax.jit(both)(network, batch, draws, k)
        parted = [jax.tree.map(lambda x: x[i : i + 4] if x.ndim else x, (batch, draws)) for i in (0, 4)]
        one, two = (jax.grad(alone)(network, *part, int(each)) for part, each in zip(parted, jnp.broadcast_to(k, 2)))
        jax.tree.map(lambda a, b, c: print(float(jnp.abs(a - (b + c) / 2).max())), halves, one, two)
"""


def test_gradients_inside_shard_map_are_those_of_one_device():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run([sys.executable, "-c", SHARED], env=os.environ | flags, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    differences = [float(line) for line in done.stdout.split()]
    assert len(differences) > 16
    assert max(differences) < 1e-5


LOOPS = """
import jax, jax.numpy as jnp, numpy as np
from functools import partial
from jax.sharding import AxisType, PartitionSpec as P
from algorithms import MODULES, networks, optimizers, transitions
from shortcutrl import ddpm_sample, rollout_k, vp_schedule

mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,))
shared = lambda function, out: jax.shard_map(function, mesh=mesh, in_specs=(P("batch"), P()), out_specs=out)
obs, noise = jnp.arange(8.0).reshape(4, 2) / 8, jnp.ones((20, 2))
for sample, size in (
    (partial(rollout_k, lambda obs, x, t, h: obs - t * x, k=20), noise[0]),
    (partial(rollout_k, lambda obs, x, t, h: obs - t * x, k=20, remat=True), noise[0]),
    (partial(ddpm_sample, lambda obs, x, t: obs - t * x, steps=20, schedule=vp_schedule), noise),
):
    both = jax.vmap(sample, in_axes=(0, None))
    halves = jax.jit(shared(both, P("batch")))(obs, size)
    np.testing.assert_allclose(halves, jax.jit(both)(obs, size), rtol=1e-5)

batch, key = transitions(n=4), jax.random.key(0)
for name in ("fawac", "fbrac", "fql"):  # whose flows make ten steps
    module = MODULES[name]
    options = {"config": module.Config(), "optimizers": optimizers(module)}
    state = module.init(networks(module, key), **options)
    def info(batch, key):
        return jax.lax.pmean(module.update(state, batch, key=key, **options)[1], "batch")
    jax.eval_shape(shared(info, P()), batch, key)
"""


@pytest.mark.slow
def test_loops_inside_shard_map_take_noise_that_all_devices_share():
    env = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, "-c", LOOPS], env=os.environ | env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


EXPLICIT = """
import jax, numpy as np
from functools import partial
from jax.sharding import AxisType, PartitionSpec as P
from algorithms import MODULES, networks, optimizers, small, transitions
from shortcutrl import data

jax.set_mesh(jax.make_mesh((4,), ("devices",), axis_types=(AxisType.Explicit,)))
batch, key = transitions(n=8), jax.random.key(0)
split, keys = jax.sharding.reshard((batch, jax.random.split(key, 8)), P("devices"))
is_split = lambda tree: any("devices" in getattr(leaf.sharding, "spec", ()) for leaf in jax.tree.leaves(tree))
for name, module in MODULES.items():
    options = {"config": small(module), "optimizers": optimizers(module)}
    jumps = {"jumps_key": key} if name == "sorl" else {}
    update = partial(module.update, **options, **jumps)
    state = jax.eval_shape(lambda: module.init(networks(module, key, example=split), **options))
    one, _ = jax.eval_shape(partial(update, key=key), state, split)
    assert not is_split(one), name
    def replaced(policy, state, batch, draws, *, config):  # uses the draws itself
        jax.vmap(lambda action, *drawn: action)(batch.action, *(leaf for leaf in jax.tree.leaves(draws) if leaf.ndim))
        return module.policy_loss(policy, state, batch, draws, config=config)
    jax.eval_shape(partial(update, key=key, policy_loss=replaced), state, split)
    for_each = jax.vmap(lambda state, key: update(state, batch, key=key), in_axes=(None, 0))
    agents, _ = jax.eval_shape(for_each, state, keys)
    assert is_split(agents), name

images = jax.random.normal(key, (8, 6, 6, 3))
batch = batch._replace(obs=images, next_obs=images)
both = batch, jax.sharding.reshard(batch, P("devices"))
jax.tree.map(np.testing.assert_array_equal, *[data.random_crop(each, key) for each in both])
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(jax, "set_mesh"), reason="in this JAX, explicit axes are experimental")
def test_updates_can_be_traced_on_a_mesh_of_explicit_axes():
    env = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, "-c", EXPLICIT], env=os.environ | env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
