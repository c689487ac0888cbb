"""Every public function under every transformation: one table, and a test that it is complete."""

import dataclasses
import inspect
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from algorithms import losses, optimizers, small, start, transitions
from jax.flatten_util import ravel_pytree

import shortcutrl
from shortcutrl import Transition, nn, rollout_k, sorl

CONFIG = small(sorl, max_jumps=1, clip=None)
OPTIONS = {"config": CONFIG, "optimizers": optimizers(sorl)}


class Case(NamedTuple):
    """A call, the names of its arguments (see `inputs`), and how many of these its value is differentiable in."""

    call: Callable
    arguments: str
    smooth: int = 0


def rolls(function, **options):
    """`function` of an actor, bound to one that makes 3 jumps of the velocity that comes first."""
    return lambda velocity, *args: function(partial(rollout_k, velocity, k=3), *args, **options)


def of_loss(function):
    """The loss alone, not divided by the batch's mean |Q|: no gradient flows into the divisor and the terms."""
    config = dataclasses.replace(CONFIG, normalize_q=False)
    return lambda network, state, batch, key: function(
        network, state, batch, sorl.draw(key, batch, config=config)._replace(td_k=1, q_k=1), config=config
    )[0]


TABLE = {
    "shortcut_step": Case(shortcutrl.shortcut_step, "velocity obs x t h", 5),
    "rollout_k": Case(lambda *args: shortcutrl.rollout_k(*args, k=3, clip=(-9, 9)), "velocity obs x", 3),
    "consistency_gap": Case(shortcutrl.consistency_gap, "velocity obs x t h", 5),
    "interpolate": Case(shortcutrl.interpolate, "noise action t", 3),
    "draw_flow_matching": Case(lambda key: shortcutrl.draw_flow_matching(key, num_steps=8), "key"),
    "draw_self_consistency": Case(lambda key: shortcutrl.draw_self_consistency(key, num_steps=8), "key"),
    "flow_matching_loss": Case(
        lambda *args: shortcutrl.flow_matching_loss(*args[:-1], h=args[-1]), "velocity obs action noise t h", 6
    ),
    "self_consistency_loss": Case(shortcutrl.self_consistency_loss, "velocity teacher obs action noise t h", 1),
    "shortcut_loss": Case(
        lambda *args: shortcutrl.shortcut_loss(*args[:-1], num_steps=8, key=args[-1]),
        "velocity teacher obs action key",
        1,
    ),
    "gaussian_nll": Case(shortcutrl.gaussian_nll, "mean action", 2),
    "bellman_target": Case(lambda step, q: shortcutrl.bellman_target(step, q, discount=0.9), "transition t"),
    "td_target": Case(
        lambda critic, velocity, *args: shortcutrl.td_target(
            critic, partial(rollout_k, velocity, k=2), *args, discount=0.9
        ),
        "critic velocity transition noise",
    ),
    "td_loss": Case(
        lambda critic, target, velocity, *args: shortcutrl.td_loss(
            critic, target, partial(rollout_k, velocity, k=2), *args, discount=0.9, aggregate="min"
        ),
        "critic target_critic velocity transition noise",
        1,
    ),
    "critic_loss": Case(shortcutrl.critic_loss, "critic transition t", 1),
    "expectile_loss": Case(lambda *args: shortcutrl.expectile_loss(*args, expectile=0.9), "value obs t", 1),
    "q_loss": Case(rolls(shortcutrl.q_loss, aggregate=lambda q: q.mean() - q.std()), "velocity critic obs noise", 4),
    "distill_loss": Case(
        lambda student, velocity, *args: shortcutrl.distill_loss(student, partial(rollout_k, velocity, k=2), *args),
        "student velocity obs noise",
        1,
    ),
    "advantage_weight": Case(lambda q, v: shortcutrl.advantage_weight(q, v, temperature=3.0), "t h"),
    "clipped": Case(lambda *args: shortcutrl.clipped(*args, clip=(-9, 9)), "student obs noise", 3),
    "noiseless": Case(shortcutrl.noiseless, "student obs noise", 2),
    "bon_select": Case(rolls(shortcutrl.bon_select), "velocity critic obs noises", 4),
    "best_of_n": Case(rolls(shortcutrl.best_of_n), "velocity critic obs noises", 1),
    "sorl.init": Case(lambda *args: sorl.init(args, **OPTIONS), "velocity critic", 2),
    "sorl.draw": Case(lambda batch, key: sorl.draw(key, batch, config=CONFIG), "batch key"),
    "sorl.critic_loss": Case(of_loss(sorl.critic_loss), "critic_of_k state batch key", 1),
    "sorl.policy_loss": Case(of_loss(sorl.policy_loss), "velocity state batch key", 1),
    "sorl.update": Case(lambda *args: sorl.update(*args[:-1], **OPTIONS, key=args[-1]), "state batch key"),
    "sorl.actor": Case(lambda state, *args: sorl.actor(state, config=CONFIG, k=3, n=5)(*args), "state obs noises", 3),
    "nn.ShortcutPolicy": Case(lambda policy, *args: policy(*args), "velocity obs x t h", 5),
    "nn.FlowPolicy": Case(lambda policy, *args: policy(*args), "flow obs x t h", 4),
    "nn.OneStepPolicy": Case(lambda policy, *args: policy(*args), "student obs noise", 3),
    "nn.EnsembleCritic": Case(lambda critic, *args: critic(*args), "critic obs action", 3),
    "nn.Value": Case(lambda value, *args: value(*args), "value obs", 2),
    "nn.GaussianPolicy": Case(lambda policy, *args: policy(*args), "gaussian obs noise", 3),
    "nn.DeterministicPolicy": Case(lambda policy, *args: policy(*args), "deterministic obs noise", 2),
    "nn.Impala": Case(lambda encoder, *args: encoder(*args), "encoder image", 1),
}
"""Functions of diffusion and consistency models are in the tests of their own, as are the other algorithms."""

ELSEWHERE = {
    *("vp_schedule", "diffuse", "denoising_loss", "ddpm_sample", "score_distillation_loss"),
    *("noise_level", "consistency_function", "consistency_loss", "consistency_sample"),
    *("nn.ResidualDenoiser", "nn.Features", "sorl.networks", "keep_memory"),
}

cases = pytest.mark.parametrize("case", TABLE.values(), ids=TABLE.keys())


def test_the_table_is_complete():
    functions = {name for name, value in vars(shortcutrl).items() if inspect.isfunction(value)}
    own = {name for name, value in vars(sorl).items() if is_own_function(value, sorl) and name[0] != "_"}
    functions |= {f"sorl.{name}" for name in own - {"noise_shape"}}  # which takes no arrays
    functions |= {f"nn.{name}" for name, value in vars(nn).items() if inspect.isclass(value)}
    assert functions == set(TABLE) | ELSEWHERE
    assert {f"sorl.{name}" for name in losses(sorl)} <= set(TABLE)


def is_own_function(value, module):
    return inspect.isfunction(value) and value.__module__ == module.__name__


def inputs(case, seed):
    """The arguments of `case` for a seed, in float64."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.uniform(-1, 1, shape))
    keys = jax.random.split(jax.random.key(seed), 5)
    shape = {"width": 4, "depth": 1}

    def transition(*batch):
        return Transition(draw(*batch, 3), draw(*batch, 2), draw(*batch), jnp.ones(batch), draw(*batch, 3))

    def policy(i, make=nn.ShortcutPolicy):
        return make(3, 2, **shape, key=keys[i])

    def critic(i, **options):
        return nn.EnsembleCritic(3, 2, **shape, **options, key=keys[i])

    make = {
        "velocity": lambda: policy(0),
        "teacher": lambda: policy(1),
        "critic": lambda: critic(2),
        "target_critic": lambda: critic(3),
        "critic_of_k": lambda: critic(2, condition_on_k=True),
        "flow": lambda: policy(0, nn.FlowPolicy),
        "student": lambda: policy(0, nn.OneStepPolicy),
        "gaussian": lambda: policy(0, nn.GaussianPolicy),
        "deterministic": lambda: policy(0, nn.DeterministicPolicy),
        "value": lambda: nn.Value(3, **shape, key=keys[0]),
        "encoder": lambda: nn.Impala((6, 6, 2), channels=(2, 2), width=4, key=keys[0]),
        "image": lambda: jnp.asarray(rng.integers(0, 256, (6, 6, 2)), jnp.uint8),
        "state": lambda: start(sorl, keys[0]),
        "transition": transition,
        "batch": lambda: transitions(seed),
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
