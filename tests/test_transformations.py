"""Every public function under every transformation: one table, and a test that it is complete."""

import inspect
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import shortcutrl
from shortcutrl import Transition, nn, sorl

CONFIG = sorl.Config(num_steps=2, max_jumps=1, optimizer=optax.adam(1e-2), clip=None)


class Case(NamedTuple):
    """A call, the names of its arguments (see `inputs`), and how many of these its value is differentiable in."""

    call: Callable
    arguments: str
    smooth: int = 0


TABLE = {
    "shortcut_step": Case(shortcutrl.shortcut_step, "velocity obs x t h", 5),
    "rollout_k": Case(lambda *args: shortcutrl.rollout_k(*args, k=4, clip=(-9, 9)), "velocity obs x", 3),
    "consistency_gap": Case(shortcutrl.consistency_gap, "velocity obs x t h", 5),
    "flow_matching_loss": Case(
        lambda *args: shortcutrl.flow_matching_loss(*args[:-1], h=args[-1]), "velocity obs action noise t h", 6
    ),
    "self_consistency_loss": Case(shortcutrl.self_consistency_loss, "velocity teacher obs action noise t h", 1),
    "shortcut_loss": Case(
        lambda *args: shortcutrl.shortcut_loss(*args[:-1], num_steps=8, key=args[-1]),
        "velocity teacher obs action key",
        1,
    ),
    "td_target": Case(lambda *args: shortcutrl.td_target(*args, k=2, discount=0.9), "critic velocity transition noise"),
    "td_loss": Case(
        lambda *args: shortcutrl.td_loss(*args, k=2, discount=0.9, aggregate="min"),
        "critic target_critic velocity transition noise",
        1,
    ),
    "q_loss": Case(lambda *args: shortcutrl.q_loss(*args, k=2), "velocity critic obs noise", 4),
    "bon_select": Case(lambda *args: shortcutrl.bon_select(*args, k=2), "velocity critic obs noises", 4),
    "sorl.init": Case(lambda *args: sorl.init(*args, config=CONFIG), "velocity critic", 2),
    "sorl.draw_jumps": Case(lambda key: sorl.draw_jumps(key, config=CONFIG), "key"),
    "sorl.update": Case(lambda *args: sorl.update(*args[:-1], config=CONFIG, key=args[-1]), "state batch key"),
    "nn.ShortcutPolicy": Case(lambda policy, *args: policy(*args), "velocity obs x t h", 5),
    "nn.EnsembleCritic": Case(lambda critic, *args: critic(*args), "critic obs action", 3),
}

cases = pytest.mark.parametrize("case", TABLE.values(), ids=TABLE.keys())


def test_the_table_is_complete():
    functions = {name for name, value in vars(shortcutrl).items() if inspect.isfunction(value)}
    functions |= {
        f"sorl.{name}" for name, value in vars(sorl).items() if is_own_function(value, sorl) and name[0] != "_"
    }
    functions |= {f"nn.{name}" for name, value in vars(nn).items() if inspect.isclass(value)}
    assert functions == set(TABLE)


def is_own_function(value, module):
    return inspect.isfunction(value) and value.__module__ == module.__name__


def inputs(case, seed):
    """The arguments of `case`, drawn anew, in float64."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.uniform(-1, 1, shape))
    keys = jax.random.split(jax.random.key(seed), 5)

    def transition(*batch):
        return Transition(draw(*batch, 3), draw(*batch, 2), draw(*batch), jnp.ones(batch), draw(*batch, 3))

    def policy(i):
        return nn.ShortcutPolicy(3, 2, width=4, depth=1, key=keys[i])

    def critic(i):
        return nn.EnsembleCritic(3, 2, width=4, depth=1, key=keys[i])

    make = {
        "velocity": lambda: policy(0),
        "teacher": lambda: policy(1),
        "critic": lambda: critic(2),
        "target_critic": lambda: critic(3),
        "state": lambda: sorl.init(policy(0), critic(2), config=CONFIG),
        "transition": transition,
        "batch": lambda: transition(4),
        "obs": lambda: draw(3),
        "noises": lambda: draw(5, 2),
        "t": lambda: jnp.asarray(rng.uniform(0.1, 0.5)),
        "h": lambda: jnp.asarray(rng.uniform(0.1, 0.5)),
        "key": lambda: keys[4],
    }
    return tuple(make.get(name, lambda: draw(2))() for name in case.arguments.split())


def assert_close(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.shape == y.shape
        assert x.dtype == y.dtype
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-11)


def stack(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@cases
def test_eager_is_jit_is_vmap_and_nothing_is_traced_twice(case):
    traces = []

    @jax.jit
    def compiled(*args):
        traces.append(None)
        return case.call(*args)

    several = [inputs(case, seed) for seed in range(3)]
    loop = [compiled(*args) for args in several]
    assert len(traces) == 1
    assert_close(loop[0], case.call(*several[0]))
    assert_close(jax.jit(jax.vmap(case.call))(*stack(several)), stack(loop))


def assert_gradient_is_right(case):
    """Along a random direction in all smooth arguments at once, forward and reverse, against finite differences."""
    args = inputs(case, 0)
    point, unravel = ravel_pytree(args[: case.smooth])

    @jax.jit
    def value(point):
        leaves = jax.tree.leaves(case.call(*unravel(point), *args[case.smooth :]))
        return sum(jnp.sum(jnp.sin(leaf + 1)) for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact))

    direction = np.random.default_rng(1).normal(size=point.shape)
    direction /= np.linalg.norm(direction)
    step = 1e-5
    numerical = (value(point + step * direction) - value(point - step * direction)) / (2 * step)
    _, forward = jax.jvp(value, (point,), (direction,))
    assert abs(numerical) > 1e-3
    np.testing.assert_allclose(jax.grad(value)(point) @ direction, numerical, rtol=1e-6)
    np.testing.assert_allclose(forward, numerical, rtol=1e-6)


@pytest.mark.parametrize("name", [name for name, case in TABLE.items() if case.smooth])
def test_gradients_are_those_of_finite_differences(name):
    assert_gradient_is_right(TABLE[name])


def test_a_wrong_gradient_is_caught():
    half = Case(lambda x, obs: x * jax.lax.stop_gradient(x), "x obs", 1)
    with pytest.raises(AssertionError, match="Not equal"):
        assert_gradient_is_right(half)
