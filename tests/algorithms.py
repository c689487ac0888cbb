"""Every algorithm of the library, found by its file, at a small size: for the tests of their common contract."""

import functools
import importlib
import inspect
import pkgutil
import typing
from types import ModuleType

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from shortcutrl import Transition, algorithms, nn

OBS, ACTION, ENSEMBLE, BATCH = 3, 2, 2, 4
KEY = jax.random.key(0)

MODULES: dict[str, ModuleType] = {
    name: importlib.import_module(f"shortcutrl.algorithms.{name}")
    for _, name, _ in pkgutil.iter_modules(algorithms.__path__)
}

every_algorithm = pytest.mark.parametrize("module", MODULES.values(), ids=MODULES.keys())

FIRST = {"sorl", "fql"}
every_algorithm_in_time = pytest.mark.parametrize(
    "module",
    [pytest.param(module, marks=[pytest.mark.slow] * (name not in FIRST), id=name) for name, module in MODULES.items()],
)
"""For tests that compile or train for seconds: by default with two algorithms, and with the others as slow tests."""

SMALL = {"num_steps": 2, "max_jumps": 2, "flow_steps": 2, "denoising_steps": 2, "num_candidates": 3}
"""Fields of a `Config` that make a test quick, where there are such fields."""


def name_of(module):
    return module.__name__.rpartition(".")[2]


def small(module, **options):
    fields = module.Config.__dataclass_fields__
    return module.Config(**{name: size for name, size in SMALL.items() if name in fields} | options)


def noise_shape(module, size, *, config, **options):
    """The shape of an actor's noise: that of one action, where the algorithm does not say."""
    shape = getattr(module, "noise_shape", lambda size, **_: (size,))
    return shape(size, config=config, **options)


def transitions(seed=0, n=BATCH, dtype=float):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.uniform(-1, 1, (n, *shape)), dtype)
    mask = jnp.asarray(rng.integers(0, 2, n), dtype)
    return Transition(draw(OBS), draw(ACTION), draw(), mask, draw(OBS), draw(ACTION))


def networks(module, key=None, *, example=None, width=8, depth=1):
    """The published networks, small; without a key always the same."""
    if key is None:
        return _networks(module)
    options = inspect.signature(module.networks).parameters
    sizes = {name: width for name in options if name.endswith("width")}
    sizes |= {name: depth for name in options if name in ("depth", "blocks")}
    return module.networks(transitions() if example is None else example, **sizes, key=key)


@functools.cache
def _networks(module):
    return networks(module, KEY)


def optimizers(module, optimizer=None):
    return module.Networks(*[optimizer or optax.adam(1e-2)] * len(module.Networks._fields))


def start(module, key=None):
    return module.init(networks(module, key), config=small(module), optimizers=optimizers(module))


def losses(module):
    """Each loss by the fields of the state that it trains: `critic_loss` trains `critic`; a tuple, what is left."""
    names = [name for name in vars(module) if name.endswith("_loss") and is_own(module, name)]
    single = {name: (name.removesuffix("_loss"),) for name in names if not trains_several(module, name)}
    taken = [field for fields in single.values() for field in fields]
    rest = tuple(field for field in module.Networks._fields if field not in taken)
    return {name: single.get(name, rest) for name in names}


def is_own(module, name):
    return inspect.isfunction(vars(module)[name]) and vars(module)[name].__module__ == module.__name__


def trains_several(module, name):
    hint = next(iter(inspect.signature(getattr(module, name)).parameters.values())).annotation
    return (typing.get_origin(hint) or hint) is tuple


def learner(module, name, state):
    """What a loss takes first: the network that learns, or a tuple of them."""
    networks = tuple(getattr(state, field) for field in losses(module)[name])
    return networks if trains_several(module, name) else networks[0]


def assert_update(module, state, batch, config, *, in_turn=False):
    """An update steps each network down the gradient of its loss, then moves the averages by `config.tau`.

    The losses see the state before the update; `in_turn`, each sees what those before it have stepped. Returns what the
    update returned.
    """
    state, batch = jax.tree.map(jnp.asarray, (state, batch))
    fields, key = module.Networks._fields, jax.random.key(0)
    rates = {name: 0.1 * i for i, name in enumerate(fields, 1)}
    optimizers = module.Networks(*map(optax.sgd, rates.values()))
    targets = {name: getattr(state, name) for name in state._fields if name.startswith("target_")}
    networks = tuple(getattr(state, name) for name in fields)
    old = expected = module.init(networks, config=config, optimizers=optimizers)._replace(**targets)
    new, info = module.update(old, batch, config=config, optimizers=optimizers, key=key)
    for name, trained in losses(module).items():
        seen = expected if in_turn else old
        gradient = jax.grad(functools.partial(getattr(module, name), config=config), has_aux=True)
        grads, _ = gradient(learner(module, name, seen), seen, batch, module.draw(key, batch, config=config))
        for field, grad in zip(trained, grads if trains_several(module, name) else (grads,), strict=True):
            step = lambda leaf, grad, rate=rates[field]: leaf - rate * grad
            expected = expected._replace(**{field: jax.tree.map(step, getattr(old, field), grad)})
    for name, target in targets.items():
        move = lambda old, new: old + config.tau * (new - old)
        expected = expected._replace(**{name: jax.tree.map(move, target, getattr(expected, name[len("target_") :]))})
    for name in (*fields, *targets):
        for leaf, known in zip(*(jax.tree.leaves(getattr(state, name)) for state in (new, expected)), strict=True):
            np.testing.assert_allclose(leaf, known, rtol=1e-9, err_msg=name)
    return new, info


class Own(eqx.Module):
    """A network of the user's own, of parts of Equinox that have leaves other than arrays: activations and flags."""

    attention: eqx.nn.MultiheadAttention
    mlp: eqx.nn.MLP
    size: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, size, key):
        attention_key, mlp_key = jax.random.split(key)
        self.attention = eqx.nn.MultiheadAttention(2, 4, key=attention_key)
        self.mlp = eqx.nn.MLP(16, int(np.prod(size)), 8, 1, key=mlp_key)
        self.size = size

    def __call__(self, *args, **options):
        x = jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves((args, options))])
        tokens = jnp.pad(x, (0, 16 - len(x))).reshape(4, 4)
        return self.mlp(self.attention(tokens, tokens, tokens).ravel()).reshape(self.size)


def own_networks(module, key=KEY):
    """Such networks in the place of the published ones."""
    sizes = {nn.EnsembleCritic: (ENSEMBLE,), nn.Value: ()}
    published = networks(module, key)
    keys = jax.random.split(key, len(published))
    return module.Networks(
        *(Own(sizes.get(type(network), (ACTION,)), key) for network, key in zip(published, keys, strict=True))
    )
