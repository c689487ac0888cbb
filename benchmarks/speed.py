"""Measure the time of the functions, each with its floor: the matrix products of the same shapes and nothing else.

pytest benchmarks/speed.py --benchmark-json speed.json && python benchmarks/table.py speed.json

On one core, put `taskset -c 0` before it. `--sorl PATH` and `--fql PATH` also measure the update of checkouts of
the authors' code and of FQL's (flow Q-learning). Their requirements must be installed.
"""

import functools
import importlib
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shortcutrl import Transition, best_of_n, data, nn, rollout_k, sorl

OBS, ACTION, BATCH, ENSEMBLE = 28, 5, 256, 2  # cube-single's sizes
UPDATES = 40  # in one scan


class Size(NamedTuple):
    width: int
    depth: int
    max_jumps: int

    def policy(self, **options) -> nn.ShortcutPolicy:
        return nn.ShortcutPolicy(OBS, ACTION, width=self.width, depth=self.depth, key=jax.random.key(0), **options)

    def critic(self, **options) -> nn.EnsembleCritic:
        return nn.EnsembleCritic(OBS, ACTION, width=self.width, depth=self.depth, key=jax.random.key(1), **options)

    def networks(self, **options) -> sorl.Networks:
        return sorl.Networks(self.policy(**options), self.critic(**options))

    def config(self, **options) -> sorl.Config:
        """Without conditioning the critic on k, which costs one more input."""
        return sorl.Config(num_steps=8, max_jumps=self.max_jumps, condition_critic_on_k=False, **options)

    def products(self, k: float, n: float = 0) -> float:
        """Multiplications and additions of `k` passes through the policy and `n` through the critic, of one sample."""
        hidden = (self.depth - 1) * self.width**2
        policy = (OBS + 2 * ACTION + 2) * self.width + hidden
        critic = ENSEMBLE * ((OBS + ACTION + 1) * self.width + hidden)
        return 2 * (k * policy + n * critic)

    def update_flops(self) -> float:
        """The mean over k. A backward pass is two forward passes, or one where only the input's gradient is needed."""
        k = sum(2**i for i in range(self.max_jumps.bit_length())) / self.max_jumps.bit_length()
        td_target, td, imitation, improvement = (k, 1), (0, 3), (3 + 3 + 2, 0), (3 * k, 2)
        return BATCH * sum(self.products(*passes) for passes in (td_target, td, imitation, improvement))


PAPER, LAPTOP = Size(512, 4, 8), Size(256, 3, 4)  # the published size, and a smaller one
sizes = pytest.mark.parametrize("size", [PAPER, LAPTOP], ids=["4x512", "3x256"])
KN = [(1, 1), (4, 8), (8, 8), (8, 32)]
jumps_and_candidates = pytest.mark.parametrize(("k", "n"), KN, ids=[f"k={k}, n={n}" for k, n in KN])


def floor(rows: int, width: int, flops: float, agents: int = 1) -> float:
    """The seconds that `flops` operations take in products (rows, width) x (width, width), measured at this moment.

    With `agents`, in products of all of them at once.
    """
    count = flops / (2 * agents * rows * width**2)
    rounds = max(1, min(10, round(count / 4)))  # of four products
    axis = () if agents == 1 else (agents,)
    shape = (*axis, width, width)
    weights = [jax.random.normal(key, shape) / width**0.5 for key in jax.random.split(jax.random.key(0), 4)]
    loops = 1 if jax.default_backend() == "cpu" else 20  # on accelerators, so that starting the call adds little

    @jax.jit
    def products(x, weights):
        def chain(_, x):
            for _ in range(rounds):
                for weight in weights:
                    x = x @ weight
            return x

        return jax.lax.fori_loop(0, loops, chain, x)

    x, took = jnp.ones((*axis, rows, width)), []
    jax.block_until_ready(products(x, weights))
    while sum(took) < 0.5 or len(took) < 5:
        start = time.perf_counter()
        jax.block_until_ready(products(x, weights))
        took.append(time.perf_counter() - start)
    return sorted(took)[len(took) // 2] * count / (4 * rounds * loops)


def measure(benchmark, call, *args, per: int, flops: float, rows: int = BATCH, width: int, **extra) -> None:
    """Time `call(*args)`, which computes `per` results of `flops` operations each."""
    jax.block_until_ready(call(*args))
    benchmark.extra_info.update(per=per, floor=floor(rows, width, flops), **extra)
    benchmark.pedantic(lambda: jax.block_until_ready(call(*args)), rounds=7)


def dataset(size: int = 10_000) -> data.Dataset:
    rng = np.random.default_rng(2)
    return data.from_arrays(
        observations=rng.normal(size=(size, OBS)),
        actions=rng.uniform(-1, 1, (size, ACTION)),
        rewards=-np.ones(size),
        terminals=np.zeros(size),
        timeouts=np.arange(size) % 1000 == 999,
    )


def start(size: Size, config: sorl.Config, **networks) -> sorl.State:
    return sorl.init(size.networks(**networks), config=config, optimizers=sorl.OPTIMIZERS)


def one_update(config: sorl.Config, data_: data.Dataset, state, key, jumps_key=None):
    batch_key, update_key = jax.random.split(key)
    batch = data.sample(data_, batch_key, batch_size=BATCH)
    return sorl.update(state, batch, config=config, optimizers=sorl.OPTIMIZERS, key=update_key, jumps_key=jumps_key)


def scan(config: sorl.Config):
    @jax.jit
    def many_updates(state, data_, keys):
        return jax.lax.scan(partial(one_update, config, data_), state, keys)

    return many_updates


def even_keys(config: sorl.Config, count: int, keys_of: Callable[..., Any] = lambda key: {"key": key}) -> jax.Array:
    """Keys with which SORL draws each number of jumps equally often; `keys_of(key)` are the keys of an update."""
    one, sizes = jnp.ones((1, 1)), int(config.max_jumps).bit_length()
    batch = Transition(one, one, one[0], one[0], one)
    candidates = jax.random.split(jax.random.key(3), 64 * sizes**2)
    drawn = jax.vmap(lambda key: jnp.stack(sorl.draw(**keys_of(key), batch=batch, config=config)[:2]))(candidates)
    i = np.arange(count)
    wanted = 2 ** np.stack([i % sizes, (i + i // sizes) % sizes], axis=-1)
    matches = (np.asarray(drawn) == wanted[:, None]).all(axis=-1)
    assert matches.any(axis=1).all()
    return candidates[matches.argmax(axis=1)]


def second_key(key):
    """The key of the update in `one_update`."""
    return {"key": jax.random.split(key)[1]}


def shared_key(key):
    """The keys of an update where `key` chooses the jumps of all agents."""
    return {"key": key, "jumps_key": key}


@functools.cache
def update_keys() -> jax.Array:
    return even_keys(sorl.Config(), UPDATES, second_key)


def memory(compiled) -> int:
    """Bytes that the compiled program needs in addition to its arguments and results."""
    return compiled.memory_analysis().temp_size_in_bytes


def measure_scan(benchmark, size: Size, config: sorl.Config, **networks) -> None:
    args = start(size, config, **networks), dataset(), update_keys()
    compiled = scan(config).lower(*args).compile()
    measure(
        benchmark,
        compiled,
        *args,
        per=UPDATES,
        flops=size.update_flops(),
        width=size.width,
        memory=memory(compiled),
    )


@sizes
def test_updates_in_a_scan(benchmark, size):
    measure_scan(benchmark, size, size.config())


@sizes
def test_updates_one_by_one(benchmark, size):
    """As in a Python loop that calls a jitted update."""
    config = size.config()
    update = jax.jit(lambda state, data_, key: one_update(config, data_, state, key), donate_argnums=0)
    states = [start(size, config)]
    keys = list(update_keys())

    def loop(data_):
        for key in keys:
            states[0], _ = update(states[0], data_, key)
        return states[0]

    measure(benchmark, loop, dataset(), per=UPDATES, flops=size.update_flops(), width=size.width)


def test_updates_with_remat(benchmark):
    measure_scan(benchmark, PAPER, PAPER.config(remat=True))


def test_updates_with_bfloat16_products(benchmark):
    measure_scan(benchmark, PAPER, PAPER.config(), matmul_dtype=jnp.bfloat16)


@pytest.mark.parametrize("in_turn", [True, False], ids=["in turn", "at once"])
@pytest.mark.parametrize("agents", [1, 8], ids=["one", "eight"])
def test_many_agents(benchmark, agents, in_turn):
    """Small ones: one after the other, or at once and with the same numbers of jumps."""
    size = Size(128, 2, 8)
    config, shared_keys = size.config(), update_keys()

    @jax.jit
    def many_updates(states, data_, keys):
        def updates(state, keys):
            def step(state, keys):
                own, shared = keys
                return one_update(config, data_, state, own, *([] if in_turn else [shared]))

            return jax.lax.scan(step, state, (keys, shared_keys))

        return jax.lax.map(lambda each: updates(*each), (states, keys)) if in_turn else jax.vmap(updates)(states, keys)

    keys = jax.random.split(jax.random.key(0), (agents, UPDATES))
    states = jax.vmap(lambda _: start(size, config))(keys[:, 0])
    flops = agents * size.update_flops()
    measure(benchmark, many_updates, states, dataset(), keys, per=UPDATES, flops=flops, width=size.width)


@pytest.mark.parametrize("observations", [1, 64], ids=["one observation", "64 observations"])
@jumps_and_candidates
def test_best_of_n(benchmark, k, n, observations):
    @jax.jit
    def act(networks, obs, key):
        noise = jax.random.normal(key, (observations, n, ACTION))
        actor = partial(best_of_n, partial(rollout_k, networks.policy, k=k, clip=(-1.0, 1.0)), networks.critic)
        return jax.vmap(actor)(obs, noise) if observations > 1 else actor(obs[0], noise[0])

    flops = n * PAPER.products(k, 1 if n > 1 else 0)
    args = PAPER.networks(), jnp.ones((observations, OBS)), jax.random.key(0)

    def often(*args):
        return [act(*args) for _ in range(20)]

    measure(benchmark, often, *args, per=20 * observations, flops=flops, rows=observations * n, width=PAPER.width)


def test_first_call(benchmark):
    """Trace and compile the scan of updates."""
    config = PAPER.config()
    args = start(PAPER, config), dataset(), update_keys()
    benchmark.extra_info.update(per=1)
    benchmark.pedantic(lambda: scan(config).lower(*args).compile(), rounds=3)


# ------------------------------------------------------------- the code of others, if checkouts are given


AGENTS = {"fql": "FQLAgent", "iql": "IQLAgent", "ifql": "IFQLAgent", "rebrac": "ReBRACAgent", "sorl": "SORLAgent"}
"""Of the FQL repository, and of SORL's, which has its form: the module and the class."""


def agent_of(path: Path, method: str, batch: Transition, width: int, depth: int) -> tuple[Any, Any, dict[str, Any]]:
    """An agent of a checkout, its config, and the batch by their names."""
    for known in [known for known in sys.modules if known.split(".")[0] in ("agents", "utils")]:
        del sys.modules[known]  # modules of another checkout
    sys.path.insert(0, str(path))
    module = importlib.import_module(f"agents.{method}")
    config = module.get_config()
    config.actor_hidden_dims = config.value_hidden_dims = (width,) * depth
    names = ("observations", "actions", "rewards", "masks", "next_observations", "next_actions")
    agent = getattr(module, AGENTS[method]).create(0, batch.obs, batch.action, config)
    return agent, config, dict(zip(names, batch, strict=True))


def checkout(request, method: str):
    """An agent of the checkout of this option, with the sizes of `PAPER`, and a batch."""
    if (path := request.config.getoption(f"--{method}")) is None:
        pytest.skip(f"needs a checkout: --{method} PATH")
    batch = data.sample(dataset(), jax.random.key(0), batch_size=BATCH)
    agent, _, batch = agent_of(path, method, batch, PAPER.width, PAPER.depth)
    return agent, batch


@pytest.fixture
def published(request):
    return checkout(request, "sorl")


def measure_agent(benchmark, agent, batch, flops: float) -> None:
    count = UPDATES // 4

    def loop(agent, batch):
        for _ in range(count):
            agent, _ = agent.update(batch)
        return agent.network.params

    measure(benchmark, loop, agent, batch, per=count, flops=flops, width=PAPER.width)


def test_published_updates(benchmark, published):
    measure_agent(benchmark, *published, flops=PAPER.update_flops())


def test_fql_updates(benchmark, request):
    """Flow Q-learning: ten steps of a flow teach a one-step policy, without backpropagation through jumps."""
    fql = checkout(request, "fql")
    td_target, td, flow, teacher, student = (1, 1), (0, 3), (3, 0), (10, 0), (3 + 1, 2)
    flops = BATCH * sum(PAPER.products(*passes) for passes in (td_target, td, flow, teacher, student))
    measure_agent(benchmark, *fql, flops=flops)


def test_published_first_call(benchmark, published):
    agent, batch = published
    benchmark.extra_info.update(per=1)
    benchmark.pedantic(lambda: type(agent).update.lower(agent, batch).compile(), rounds=1)


@jumps_and_candidates
def test_published_best_of_n(benchmark, published, k, n):
    agent, batch = published

    def often(obs, key):
        return [agent.sample_actions(obs, seed=key, inference_timesteps=k, n=n) for _ in range(20)]

    args = batch["observations"][0], jax.random.PRNGKey(0)
    flops = n * PAPER.products(k, 1 if n > 1 else 0)
    measure(benchmark, often, *args, per=20, flops=flops, rows=n, width=PAPER.width)
