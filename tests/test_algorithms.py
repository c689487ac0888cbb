"""The contract of every algorithm; an algorithm that is added is found by its file and tested without edits here."""

import ast
import copy
import dataclasses
import functools
import inspect
import itertools
import json
import pickle
from functools import partial
from typing import Literal, get_args, get_origin

import cloudpickle
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from algorithms import (
    ACTION,
    BATCH,
    KEY,
    MODULES,
    every_algorithm,
    every_algorithm_in_time,
    is_own,
    learner,
    losses,
    name_of,
    networks,
    noise_shape,
    optimizers,
    own_networks,
    small,
    start,
    transitions,
)

from shortcutrl import algorithms, nn
from shortcutrl.runs import Run, load_checkpoint

SHARED = {"sorl": {"jumps_key": jax.random.key(9)}}
"""Draws that the agents of one `vmap` share, so that a switch stays one."""


@every_algorithm
def test_the_fixed_names_are_there(module):
    functions = {name for name in vars(module) if is_own(module, name) and not name.startswith("_")}
    contract = {"networks", "init", "draw", "update", "actor"}
    assert contract <= functions
    assert functions - contract - {"noise_shape"} == set(losses(module))
    assert {"policy_loss"} <= set(losses(module))
    for kind in (module.Networks, module.State, module.Draws, module.Info):
        assert issubclass(kind, tuple)
        assert hasattr(kind, "_fields")
    assert isinstance(module.OPTIMIZERS, module.Networks)
    assert set(module.Networks._fields) <= set(module.State._fields)
    assert {f"{name}_opt_state" for name in module.Networks._fields} <= set(module.State._fields)


def test_every_file_is_exported():
    assert {name for name, value in vars(algorithms).items() if inspect.ismodule(value)} == set(MODULES)


@every_algorithm
def test_signatures_are_the_same_everywhere(module):
    parameters = lambda function: list(inspect.signature(function).parameters.values())
    positional = lambda function: [p.name for p in parameters(function) if p.kind == p.POSITIONAL_OR_KEYWORD]
    required = lambda function: {p.name for p in parameters(function) if p.default is p.empty}
    assert positional(module.networks) == ["example"]
    assert positional(module.init) == ["networks"]
    assert positional(module.draw) == ["key", "batch"]
    assert positional(module.update) == ["state", "batch"]
    assert positional(module.actor) == ["state"]
    assert required(module.networks) == {"example", "key"}
    assert required(module.draw) == {"key", "batch", "config"}
    assert required(module.init) == {"networks", "config", "optimizers"}
    assert required(module.update) == {"state", "batch", "config", "optimizers", "key"}
    assert required(module.actor) == {"state", "config"}
    if hasattr(module, "noise_shape"):
        assert positional(module.noise_shape) == ["action_size"]
        options = lambda function: {p.name: p.default for p in parameters(function) if p.kind == p.KEYWORD_ONLY}
        assert options(module.noise_shape) == options(module.actor)
    for name in losses(module):
        assert positional(getattr(module, name))[1:] == ["state", "batch", "draws"]
        assert required(getattr(module, name)) == {*positional(getattr(module, name)), "config"}


@every_algorithm_in_time
def test_the_actor_takes_noise_of_its_shape(module):
    config = small(module)
    names = inspect.signature(module.actor).parameters
    for options in [{}] + [{"n": n} for n in (1, 4) if "n" in names]:
        act = module.actor(start(module), config=config, **options)
        noise = jnp.zeros(noise_shape(module, ACTION, config=config, **options))
        assert act(transitions().obs[0], noise).shape == (ACTION,)
        if options.get("n", 1) > 1:
            with pytest.raises(ValueError, match="`noise` must have one row for each of 4 candidates"):
                act(transitions().obs[0], noise[:3])


@every_algorithm
def test_an_algorithm_has_at_most_150_lines_of_code(module):
    source = inspect.getsource(module)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Expr)]
    texts = [node for node in nodes if isinstance(node.value, ast.Constant)]
    documentation = {line for node in texts for line in range(node.lineno, node.end_lineno + 1)}
    lines = enumerate(map(str.strip, source.splitlines()), 1)
    assert sum(i not in documentation and line[:1] not in ("", "#") for i, line in lines) <= 150


# ----------------------------------------------------------------------- the hyperparameters

OWN_SIZES = {
    ("cac", "policy"): {"policy_width": 256, "policy_depth": 3},
    ("idql", "policy"): {"policy_width": 256, "blocks": 3},
    ("srpo", "diffusion"): {"diffusion_width": 256, "blocks": 3},
}
"""The published sizes of a network, by their arguments, where these are not `width` and `depth`."""


def hidden(network):
    """The width of each hidden layer, or of each block."""
    if isinstance(network, nn.ResidualDenoiser):
        return [block.narrow.bias.size for block in network.blocks]
    mlp = network.members if isinstance(network, nn.EnsembleCritic) else network.mlp
    return [bias.shape[-1] for bias in mlp.biases[:-1]]


@every_algorithm
def test_networks_have_the_sizes_that_are_asked_for_and_by_default_the_published_ones(module):
    arguments = inspect.signature(module.networks).parameters
    names = [name for name in arguments if name.endswith(("width", "depth", "blocks"))]
    for asked in ({}, {name: size for size, name in enumerate(names, 2)}):
        made = eqx.filter_eval_shape(partial(module.networks, **asked), transitions(), key=KEY)
        for name, network in made._asdict().items():
            published = OWN_SIZES.get((name_of(module), name), {"width": 512, "depth": 4})
            width, depth = (asked.get(argument, size) for argument, size in published.items())
            assert hidden(network) == [width] * depth, name


@every_algorithm
def test_the_published_optimizers_step_by_their_learning_rate(module):
    rate = 1e-4 if name_of(module) == "sorl" else 3e-4
    assert len(module.OPTIMIZERS) == len(module.Networks._fields)
    for optimizer in module.OPTIMIZERS:
        updates, _ = optimizer.update(jnp.array([3.0, -4e5]), optimizer.init(jnp.zeros(2)), jnp.zeros(2))
        np.testing.assert_allclose(updates, [-rate, rate], rtol=1e-2)


def numpy_like(value):
    """The same value as NumPy gives it."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, tuple):
        return [np.float64(each) for each in value]
    return np.int64(value) if isinstance(value, int) else np.float64(value)


@every_algorithm
def test_a_config_is_plain_data(module):
    config = small(module)
    fields = dataclasses.asdict(config)
    assert module.Config(**json.loads(json.dumps(fields))) == config
    assert pickle.loads(pickle.dumps(config)) == config
    assert hash(dataclasses.replace(config)) == hash(config)
    assert {config: 1}[dataclasses.replace(config)] == 1
    as_numpy = module.Config(**{name: numpy_like(value) for name, value in fields.items()})
    assert as_numpy == config
    assert hash(module.Config(clip=[np.array(-1.0), jnp.array(1.0)])) == hash(module.Config(clip=(-1.0, 1.0)))
    assert hash(as_numpy) == hash(config)
    for name, value in dataclasses.asdict(as_numpy).items():
        assert type(value) is type(fields[name])
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.clip = None


BAD = {
    "text": "3",
    "None": None,
    "NaN": float("nan"),
    "infinity": float("inf"),
    "a list": [1.0],
    "an array": np.ones(2),
    "complex": 1j,
}
NOT_A_FIELD_VALUE = {
    bool: {"an integer": 1, "text": "yes", "None": None},
    int: BAD | {"zero": 0, "negative": -1, "a float": 2.0, "a flag": True},
    float: BAD | {"negative": -0.5, "a flag": True},
    str: {"an unknown name": "no such name", "a number": 3, "None": None},
    tuple: {
        "upside down": (1.0, -1.0),
        "empty": (1.0, 1.0),
        "one number": 1.0,
        "three": (-1.0, 0.0, 1.0),
        "text": ("a", "b"),
        "arrays": (jnp.array([-1.0, -1.0]), jnp.array([1.0, 1.0])),
        "NaN": (float("nan"), 1.0),
    },
}
ABOVE = {"above one": 1.1}
OUT_OF_RANGE = {"discount": ABOVE, "tau": ABOVE, "expectile": ABOVE, "num_levels": {"one": 1, "too many": 4097}}
OUT_OF_RANGE |= {"schedule_updates": {"beyond int32": 2**31}}
CASES = [
    pytest.param(module, field.name, bad, id=f"{name}-{field.name}-{kind}")
    for name, module in MODULES.items()
    for field in dataclasses.fields(module.Config)
    for kind, bad in (NOT_A_FIELD_VALUE[type(field.default)] | OUT_OF_RANGE.get(field.name, {})).items()
]


@pytest.mark.parametrize(("module", "name", "bad"), CASES)
def test_a_config_is_validated(module, name, bad):
    with pytest.raises((ValueError, TypeError)) as error:
        module.Config(**{name: bad})
    first = str(error.value).splitlines()[0]
    assert first.startswith(f"`{name}`"), first
    assert len(first) < 300, first


@every_algorithm
def test_an_unknown_field_is_named(module):
    with pytest.raises(TypeError, match="nonsense"):
        module.Config(nonsense=1)


@every_algorithm
def test_a_call_without_an_argument_or_with_another_is_explained(module):
    for options in ({}, {"config": small(module), "nonsense": 1}):
        with pytest.raises(
            TypeError, match=r"`update`: .* Its arguments are \(state, batch, \*, config, optimizers, key"
        ):
            module.update(start(module), **options)


@every_algorithm
def test_every_name_is_accepted(module):
    for field in dataclasses.fields(module.Config):
        if get_origin(field.type) is Literal:
            for name in get_args(field.type):
                assert getattr(module.Config(**{field.name: name}), field.name) == name


# -------------------------------------------------------------------------------- the update


def assert_finite(tree):
    for path, leaf in jax.tree.leaves_with_path(tree):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            assert jnp.isfinite(leaf).all(), jax.tree_util.keystr(path)


def assert_close(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-8)


def differs(a, b):
    return any(bool(jnp.any(x != y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@functools.cache
def compiled(module):
    """The update of the published networks, small."""
    return jax.jit(partial(module.update, config=small(module), optimizers=optimizers(module)))


@every_algorithm_in_time
def test_an_update_is_finite_and_a_loop_compiles_once(module):
    """Its state is like the one before, down to weak types; every network and every average moves."""
    first = state = start(module)
    for seed in range(3):
        state, info = compiled(module)(state, transitions(seed), key=jax.random.key(seed))
        assert_finite((state, info))
        assert all(leaf.shape == () for leaf in jax.tree.leaves(info))
    assert compiled(module)._cache_size() == 1
    for name in module.State._fields:
        if not name.endswith("opt_state"):
            assert differs(getattr(first, name), getattr(state, name)), f"{name} stands still"


@pytest.mark.parametrize("batch", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("dtypes", [[jnp.float64] * 2, [jnp.float32] * 2, [jnp.float32, jnp.float64]])
@every_algorithm
def test_networks_and_data_may_have_different_dtypes(module, dtypes, batch):
    """Also from one network to the next. Each network keeps its own."""
    options = {"config": small(module), "optimizers": optimizers(module)}
    pairs = zip(networks(module), itertools.cycle(dtypes), strict=False)
    mixed = [jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype), network) for network, dtype in pairs]
    state = module.init(mixed, **options)
    after, _ = jax.eval_shape(lambda *args: module.update(*args, **options, key=KEY), state, transitions(dtype=batch))
    assert [leaf.dtype for leaf in jax.tree.leaves(after)] == [leaf.dtype for leaf in jax.tree.leaves(state)]


@every_algorithm_in_time
def test_agents_under_vmap_are_the_loop(module):
    keys = jax.random.split(jax.random.key(1), 3)
    states = [start(module, key) for key in keys]
    together = jax.vmap(lambda state, key: compiled(module)(state, transitions(), key=key))
    outputs = together(jax.tree.map(lambda *leaves: jnp.stack(leaves), *states), keys)
    for i, (state, key) in enumerate(zip(states, keys, strict=True)):
        alone = compiled(module)(state, transitions(), key=key)
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], outputs), alone)


@pytest.mark.parametrize("name", SHARED)
def test_agents_that_share_a_draw_keep_the_switch(name):
    """Otherwise each agent computes every branch."""
    module = MODULES[name]
    keys = jax.random.split(jax.random.key(1), 2)
    states = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), start(module))

    def program(**options):
        step = partial(module.update, config=small(module), optimizers=optimizers(module), **options)
        return str(jax.make_jaxpr(jax.vmap(lambda state, key: step(state, transitions(), key=key)))(states, keys))

    assert " cond[" in program(**SHARED[name])
    assert " cond[" not in program()


@every_algorithm
def test_the_draws_depend_on_the_key_alone(module):
    config = small(module)
    one, same, other = (module.draw(jax.random.key(seed), transitions(), config=config) for seed in (0, 0, 1))
    assert eqx.tree_equal(one, same)
    floats = lambda tree: [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(jnp.asarray(leaf).dtype, float)]
    assert all(differs(a, b) for a, b in zip(floats(one), floats(other), strict=True))


LOSSES = [
    pytest.param(module, loss, id=f"{name}-{loss}") for name, module in MODULES.items() for loss in losses(module)
]


@pytest.mark.parametrize(("module", "loss"), LOSSES)
def test_a_loss_trains_its_own_networks_alone(module, loss):
    """Its gradient with respect to all else is zero, even where the state holds the networks that learn."""
    config, state, drawn = small(module), start(module), module.draw(KEY, transitions(), config=small(module))
    networks = {name: value for name, value in state._asdict().items() if not name.endswith("opt_state")}

    @eqx.filter_jit
    @eqx.filter_grad
    def gradients(args):
        network, networks, batch, drawn = args
        return getattr(module, loss)(network, state._replace(**networks), batch, drawn, config=config)[0]

    own, of_state, *of_data = gradients((learner(module, loss, state), networks, transitions(), drawn))
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(own))
    for name, grads in {**of_state, "batch and draws": of_data}.items():
        assert all(jnp.all(leaf == 0) for leaf in jax.tree.leaves(grads)), f"gradient reached `{name}`"


@every_algorithm
def test_an_update_takes_other_losses(module):
    """With the sum of a network's parameters as its loss, they move by the learning rate."""
    config = small(module, **{"policy_period": 1} if module is MODULES["rebrac"] else {})
    batch, options = transitions(), {"config": config, "optimizers": optimizers(module, optax.sgd(0.25))}
    state = module.init(networks(module), **options)

    def another(name):
        own, drawn = partial(getattr(module, name), config=config), module.draw(KEY, batch, config=config)
        _, terms = jax.eval_shape(own, learner(module, name, state), state, batch, drawn)

        def loss(network, state, batch, draws, *, config):
            return sum(map(jnp.sum, jax.tree.leaves(network))), jax.tree.map(lambda term: 7.0, terms)

        return loss

    others = {name: another(name) for name in losses(module)}
    new, _ = jax.jit(partial(module.update, **others, **options))(state, batch, key=KEY)
    for name in module.Networks._fields:
        for old, moved in zip(*(jax.tree.leaves(getattr(each, name)) for each in (state, new)), strict=True):
            np.testing.assert_allclose(moved, old - 0.25, rtol=1e-6, err_msg=name)


def test_another_loss_must_return_what_the_own_one_does():
    options = {"config": small(MODULES["sorl"]), "optimizers": optimizers(MODULES["sorl"])}
    forgets_terms = lambda policy, state, batch, draws, *, config: jnp.zeros(())
    said = r"`policy_loss` must return a tuple \(scalar, \(scalar, scalar, scalar\)\), .* got shapes \(\)"
    with pytest.raises(TypeError, match=said):
        MODULES["sorl"].update(start(MODULES["sorl"]), transitions(), key=KEY, policy_loss=forgets_terms, **options)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda policy, state, batch, draws: jnp.zeros(()), "`policy_loss` cannot be called with .* It takes"),
        (lambda *_, config: ("a", (0.0, 0.0, 0.0)), r"`policy_loss\(...\)\[0\]` must be a number, got 'a'"),
        (lambda *_, config: (3, (0.0, 0.0, 0.0)), "`policy_loss` must return a float as the loss, got 3"),
    ],
    ids=["without config", "text", "an integer"],
)
def test_another_loss_is_named_in_errors(loss, message):
    options = {"config": small(MODULES["sorl"]), "optimizers": optimizers(MODULES["sorl"])}
    with pytest.raises(TypeError, match=message):
        MODULES["sorl"].update(start(MODULES["sorl"]), transitions(), key=KEY, policy_loss=loss, **options)


@pytest.mark.parametrize(("module", "loss"), LOSSES)
def test_a_loss_is_differentiable_through_every_transformation(module, loss):
    """Of the loss inside `jit`, `checkpoint`, `cond`, `scan` and `map`, and forwards; by their shapes alone."""
    state, batch, config = start(module), transitions(), small(module)
    several = jax.vmap(lambda key: module.draw(key, batch, config=config))(jax.random.split(KEY, 2))

    def alone(learner, draw):
        return getattr(module, loss)(learner, state, batch, draw, config=config)[0]

    def scanned(learner, draw):
        return jax.lax.scan(lambda total, _: (total + alone(learner, draw), None), 0.0, None, 2)[0]

    def mapped(learner, draw):
        return jax.lax.map(lambda each: alone(learner, each[0]), (several, jnp.arange(2))).sum()

    def chosen(learner, draw):
        return jax.lax.cond(jnp.array(True), alone, lambda *_: 0.0, learner, draw)

    first = learner(module, loss, state)
    for form in (jax.jit(alone), jax.checkpoint(alone), scanned, mapped, chosen):
        grads = jax.eval_shape(jax.grad(form), first, module.draw(KEY, batch, config=config))
        assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, first)
    forwards = lambda learner, draw: jax.jvp(lambda learner: alone(learner, draw), (learner,), (learner,))
    assert jax.eval_shape(forwards, first, module.draw(KEY, batch, config=config))[1].shape == ()


# ------------------------------------------------------------------- memory that is not shared

OPTIMIZERS = {
    "adam": optax.adam(1e-2),
    "prodigy": optax.contrib.prodigy(),
    "dog": optax.contrib.dog(),
    "cocob": optax.contrib.cocob(),
}
"""The last three keep the parameters they started from in their state."""


def buffers(tree):
    return [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree) if eqx.is_array(leaf) and leaf.size]


@every_algorithm
def test_a_state_without_optimizers_loads_a_checkpoint_and_acts(module, tmp_path):
    config, trained = small(module), start(module)
    with Run(tmp_path, {}) as run:
        run.save(1, trained)
    empty = module.init(networks(module, jax.random.key(7)), config=config, optimizers=None)
    state = load_checkpoint(tmp_path, empty)
    assert all(getattr(state, name) is None for name in state._fields if name.endswith("opt_state"))
    noise = jnp.ones(noise_shape(module, ACTION, config=config))
    acts = [module.actor(each, config=config)(transitions().obs[0], noise) for each in (state, trained)]
    np.testing.assert_array_equal(*acts)
    with pytest.raises(ValueError, match=r"`state\.\w+_opt_state` is None: .* made without `optimizers`"):
        module.update(state, transitions(), key=KEY, config=config, optimizers=optimizers(module))


@every_algorithm
def test_a_state_shares_no_memory(module):
    """Neither with the user's networks nor within itself: what shares memory cannot be donated."""
    mine = networks(module)
    for optimizer in OPTIMIZERS.values():
        state = module.init(mine, config=small(module), optimizers=optimizers(module, optimizer))
        assert len({*buffers(mine), *buffers(state)}) == len(buffers(mine)) + len(buffers(state))


class Ordered(eqx.Module):
    """A network with integers among its leaves."""

    network: eqx.Module
    order: jax.Array

    def __call__(self, obs, *args, **options):
        return self.network(obs[self.order], *args, **options)


def test_a_state_shares_no_memory_after_an_eager_update():
    module = MODULES["fql"]
    mine = networks(module)._replace(critic=Ordered(networks(module).critic, jnp.arange(transitions().obs.shape[-1])))
    options = {"config": small(module), "optimizers": optimizers(module)}
    state, _ = module.update(module.init(mine, **options), transitions(), key=KEY, **options)
    assert len(buffers(state)) == len(set(buffers(state)))
    jax.jit(partial(module.update, **options), donate_argnums=0)(state, transitions(), key=KEY)


@pytest.mark.parametrize("optimizer", ["prodigy", "dog", "cocob"])
def test_a_donated_state_leaves_the_users_networks(optimizer):
    module, group = MODULES["sorl"], optimizers(MODULES["sorl"], OPTIMIZERS[optimizer])
    mine = networks(module, jax.random.key(1))
    state = module.init(mine, config=small(module, max_jumps=1), optimizers=group)
    step = partial(module.update, config=small(module, max_jumps=1), optimizers=group)
    state, info = jax.jit(step, donate_argnums=0)(state, transitions(), key=KEY)
    assert_finite((state, info, mine))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(mine))


# --------------------------------------------------------------------- networks and optimizers


def frozen_in_attention(params):
    name = lambda path: "frozen" if ".attention" in jax.tree_util.keystr(path) else "trained"
    return jax.tree_util.tree_map_with_path(lambda path, _: name(path), params)


def in_attention(params):
    return jax.tree.map(lambda label: label == "frozen", frozen_in_attention(params))


FREEZING = {
    "multi_transform": optax.multi_transform(
        {"trained": optax.adam(0.1), "frozen": optax.set_to_zero()}, frozen_in_attention
    ),
    "masked": optax.chain(optax.adam(0.1), optax.masked(optax.set_to_zero(), in_attention)),
}


@every_algorithm_in_time
def test_networks_of_equinox_with_frozen_parts(module):
    """Activation functions and flags are leaves of these networks; their attention is frozen."""
    mine, (frozen, *others) = own_networks(module), module.Networks._fields
    group = optimizers(module, FREEZING["masked"])._replace(**{frozen: FREEZING["multi_transform"]})
    first = state = module.init(mine, config=small(module), optimizers=group)
    step = jax.jit(partial(module.update, config=small(module), optimizers=group))
    for seed in range(2):
        state, info = step(state, transitions(seed), key=jax.random.key(seed))
    assert_finite((state, info))
    assert step._cache_size() == 1
    for name, network in zip(module.Networks._fields, mine, strict=True):
        assert jax.tree.structure(getattr(state, name).unwrap()) == jax.tree.structure(network)
        assert getattr(state, name).mlp.depth == 1
        with pytest.raises(AttributeError, match="'Own' object has no attribute 'logits'"):
            _ = getattr(state, name).logits
    attention = len(jax.tree.leaves(eqx.filter(mine[0].attention, eqx.is_array)))
    for name in (frozen, *others):
        before, after = (jax.tree.leaves(getattr(each, name)) for each in (first, state))
        assert all(jnp.array_equal(*pair) for pair in zip(before[:attention], after[:attention], strict=True))
        assert all(differs(*pair) for pair in zip(before[attention:], after[attention:], strict=True))


@every_algorithm_in_time
def test_a_batch_of_numpy_is_converted(module, without_x64):
    """Without the warnings of JAX that it has no float64."""
    batch = jax.tree.map(np.asarray, transitions(dtype=np.float32))
    wide = jax.tree.map(lambda leaf: leaf.astype(np.float64), batch)
    options = {"config": small(module), "optimizers": optimizers(module)}
    state = jax.eval_shape(lambda: module.init(networks(module, KEY, example=batch), **options))
    update = lambda state, batch: module.update(state, batch, **options, key=jax.random.key(0))
    assert jax.eval_shape(partial(update, batch=wide), state) == jax.eval_shape(update, state, batch)


@every_algorithm
def test_a_network_keeps_its_form_for_the_optimizer(module):
    """An optimizer sees the user's own tree, in which parts have names."""
    seen = []

    def look(params):
        seen.append([jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(params)])
        return optax.adam(0.1).init(params)

    optimizer = optax.GradientTransformation(look, optax.adam(0.1).update)
    module.init(own_networks(module), config=small(module), optimizers=optimizers(module, optimizer))
    assert all(".mlp.layers[0].weight" in paths for paths in seen)


UNSUPPORTED = {
    "lookahead": optax.lookahead(optax.sgd(0.1), 5, 0.5),
    "lbfgs": optax.lbfgs(),
    "reduce_on_plateau": optax.chain(optax.adam(0.1), optax.contrib.reduce_on_plateau()),
}


@every_algorithm
def test_an_optimizer_that_needs_more_than_gradients_is_refused(module):
    name = module.Networks._fields[-1]
    for optimizer in UNSUPPORTED.values():
        group = optimizers(module)._replace(**{name: optimizer})
        with pytest.raises(ValueError, match=rf"`optimizers\.{name}` is not supported") as error:
            module.init(networks(module), config=small(module), optimizers=group)
        assert all(kind in str(error.value) for kind in UNSUPPORTED)


def test_a_structure_that_does_not_fit_a_state_is_named():
    """The paths of a state are equal if they look the same, on which JAX relies to explain a mismatch."""
    module = MODULES["fbrac"]
    state = module.init(own_networks(module), config=small(module), optimizers=optimizers(module))
    assert dict(jax.tree.leaves_with_path(state)).keys() == dict(jax.tree.leaves_with_path(state)).keys()
    with pytest.raises(TypeError, match="carry"):
        jax.lax.scan(lambda carry, _: ((carry[0], (carry[1],)), None), (state, 0.0), length=2)


def test_states_of_own_networks_are_copied_and_pickled():
    module = MODULES["fbrac"]
    options = {"config": small(module), "optimizers": optimizers(module)}
    state = module.init(own_networks(module), **options)
    for again in (copy.deepcopy(state), cloudpickle.loads(cloudpickle.dumps(state))):
        assert_close(jax.tree.leaves(again), jax.tree.leaves(state))
        after, _ = jax.eval_shape(lambda state: module.update(state, transitions(), **options, key=KEY), again)
        assert jax.tree.structure(after) == jax.tree.structure(again)
    assert jax.tree.structure(copy.deepcopy(state)) == jax.tree.structure(state)


@every_algorithm
def test_dtypes_are_not_promoted_implicitly(module, without_x64):
    options = {"config": small(module), "optimizers": optimizers(module, optax.sgd(0.1))}
    state = module.init(networks(module, KEY), **options)
    with jax.numpy_dtype_promotion("strict"):
        jax.eval_shape(lambda state: module.update(state, transitions(), **options, key=KEY), state)


def test_a_hyperparameter_may_be_set_to_a_number():
    module = MODULES["bc"]
    group = optimizers(module, optax.inject_hyperparams(optax.sgd)(0.1))
    state = module.init(networks(module), config=small(module), optimizers=group)
    state.policy_opt_state.hyperparams["learning_rate"] = 0.0
    after, _ = module.update(state, transitions(), config=small(module), optimizers=group, key=KEY)
    assert not differs(after.policy, state.policy)


@every_algorithm
def test_a_state_of_another_optimizer_is_refused(module):
    state = start(module)
    for name in module.Networks._fields:
        group = optimizers(module)._replace(**{name: optax.sgd(0.1)})
        with pytest.raises(ValueError, match=rf"`state\.{name}_opt_state` belongs to another optimizer"):
            jax.eval_shape(
                partial(module.update, config=small(module), optimizers=group), state, transitions(), key=KEY
            )


NOT_OPTIMIZERS = {
    "one": optax.adam(0.1),
    "a name": "adam",
    "nine": [optax.adam(0.1)] * 9,
    "a function": optax.adam,
    "functions": [optax.adam] * 4,
}


@every_algorithm
def test_one_optimizer_for_each_network(module):
    state = start(module)
    for bad in NOT_OPTIMIZERS.values():
        for call in (
            lambda bad: module.init(networks(module), config=small(module), optimizers=bad),
            lambda bad: jax.eval_shape(
                partial(module.update, config=small(module), optimizers=bad), state, transitions(), key=KEY
            ),
        ):
            with pytest.raises(TypeError, match=r"`optimizers(\.\w+)?` must be"):
                call(bad)
    with pytest.raises(TypeError, match="`optimizers` must be a tuple, got None"):
        module.update(state, transitions(), key=KEY, config=small(module), optimizers=None)


@every_algorithm
def test_parameters_of_few_digits_are_refused(module):
    """In bfloat16 an average that moves by 0.5% stands still."""
    half = lambda network: jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), network)
    for name in module.Networks._fields:
        mine = networks(module)
        mine = mine._replace(**{name: half(getattr(mine, name))})
        with pytest.raises(ValueError, match=rf"`networks\.{name}` has parameters of bfloat16.*float32"):
            module.init(mine, config=small(module), optimizers=optimizers(module))


@every_algorithm
def test_what_cannot_be_trained_is_refused(module):
    for name in module.Networks._fields:
        for bad in (None, 3, jnp.ones(2), lambda *args: args[0], "policy"):
            mine = networks(module)._replace(**{name: bad})
            with pytest.raises((TypeError, ValueError), match=rf"`networks\.{name}`"):
                module.init(mine, config=small(module), optimizers=optimizers(module))


BAD_BATCHES = {
    "empty": lambda batch: jax.tree.map(lambda leaf: leaf[:0], batch),
    "one transition": lambda batch: jax.tree.map(lambda leaf: leaf[0], batch),
    "another length": lambda batch: batch._replace(reward=jnp.ones(3)),
    "rewards in a column": lambda batch: batch._replace(reward=jnp.ones((BATCH, 1))),
    "a mask in a column": lambda batch: batch._replace(mask=jnp.ones((BATCH, 1))),
    "integer actions": lambda batch: batch._replace(action=jnp.zeros((BATCH, ACTION), int)),
    "actions with an axis too many": lambda batch: batch._replace(action=jnp.zeros((BATCH, 1, ACTION))),
    "actions with an axis too few": lambda batch: batch._replace(action=jnp.zeros(BATCH)),
    "text": lambda batch: batch._replace(reward=np.array(["1"] * BATCH)),
    "dates": lambda batch: batch._replace(mask=np.array(["2020-01-01"] * BATCH, "datetime64[D]")),
    "objects": lambda batch: batch._replace(action=np.full((BATCH, ACTION), None)),
    "complex": lambda batch: batch._replace(reward=jnp.ones(BATCH) * 1j),
    "a list": lambda batch: batch._replace(action=[[0.0] * ACTION] * BATCH),
    "no rewards": lambda batch: batch._replace(reward=None),
    "masked": lambda batch: batch._replace(reward=np.ma.masked_array(np.ones(BATCH), [True] + [False] * (BATCH - 1))),
}


@every_algorithm
@pytest.mark.parametrize("spoil", BAD_BATCHES.values(), ids=BAD_BATCHES)
def test_a_bad_batch_is_refused(module, spoil):
    with pytest.raises((ValueError, TypeError)) as error:
        module.update(start(module), spoil(transitions()), config=small(module), optimizers=optimizers(module), key=KEY)
    first = str(error.value).splitlines()[0]
    assert "`batch" in first or "`transition" in first, first
    assert len(first) < 300, first


@pytest.mark.parametrize("module", [getattr(algorithms, name) for name in ("iql", "ifql", "idql", "fawac", "srpo")])
def test_the_value_that_a_loss_reports_is_the_mean_over_the_batch(module):
    state, batch, config = start(module), transitions(), small(module)
    _, v = module.value_loss(state.value, state, batch, module.draw(KEY, batch, config=config), config=config)
    np.testing.assert_allclose(jnp.ravel(jnp.asarray(v))[0], jax.vmap(state.value)(batch.obs).mean(), rtol=1e-6)
