"""The two regularisers: zero at the exact solution, minimised by it, and no gradient into the teacher."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from assertions import assert_caught, assert_to_rounding, each, seeds, wide
from hypothesis import given
from hypothesis import strategies as st
from oracles import FLOWS, GAUSSIAN, Gaussian, Wrong, fixed, jumps, kinds, wrong_velocities

from shortcutrl import flow_matching_loss, self_consistency_loss

# ------------------------------------------------- self-consistency, zero for a mean velocity


@partial(jax.jit, static_argnames="loss")
def loss_and_rounding(loss, velocity, flow, action, t, h):
    """With the noise at the origin, and the rounding of a mean velocity over `h`."""
    x, t_wide, h_wide = wide(t * action, t, h)
    middle = flow.transport(x, t_wide, h_wide / 2)
    rounding = flow.rounding(x, t, h) + flow.rounding(middle, t_wide + h_wide / 2, h_wide / 2)
    return loss(velocity, velocity, None, action, jnp.zeros_like(action), t, h), rounding / h_wide


def assert_self_consistent(loss, velocity, jump, *, slack=1.0):
    value, rounding = loss_and_rounding(loss, velocity, *jump)
    assert value.dtype == jump.x.dtype
    assert value.shape == ()
    assert_to_rounding(jnp.sqrt(value), rounding, slack=slack)


@kinds
@given(data=st.data())
def test_a_mean_velocity_is_self_consistent(kind, data):
    jump = data.draw(jumps(kind))
    assert_self_consistent(self_consistency_loss, jump.flow, jump)


@wrong_velocities()
def test_a_wrong_velocity_is_not_self_consistent(flow, velocity):
    assert_caught(assert_self_consistent, self_consistency_loss, velocity, fixed(flow))


def another_self_consistency(start=0.5, told=0.5, moved=0.5, first=0.5, second=0.5, stop=jax.lax.stop_gradient):
    """The loss with its constants free; as they stand here it is right."""

    def loss(velocity, teacher, obs, action, noise, t, h):
        x = (1 - t) * noise + t * action
        one = teacher(obs, x, t, told * h)
        two = teacher(obs, x + moved * h * one, t + start * h, told * h)
        return jnp.mean((velocity(obs, x, t, h) - stop(first * one + second * two)) ** 2)

    return loss


WRONG_SELF_CONSISTENCIES = {
    "second half at t": another_self_consistency(start=0.0),
    "second half at t + h": another_self_consistency(start=1.0),
    "second half from x": another_self_consistency(moved=0.0),
    "first half moves by the whole h": another_self_consistency(moved=1.0),
    "half-jumps told the whole h": another_self_consistency(told=1.0),
    "the average is missing": another_self_consistency(first=1.0, second=1.0),
    "only the second half": another_self_consistency(first=0.0, second=1.0),
    "wrong sign": another_self_consistency(first=-0.5, second=-0.5),
}


@each(WRONG_SELF_CONSISTENCIES)
def test_a_wrong_self_consistency_is_caught(mutant):
    assert_caught(assert_self_consistent, mutant, GAUSSIAN, fixed(GAUSSIAN))


# ---------------------------------------------------------------- who stops the gradient


def assert_the_teacher_is_fixed(loss, student, teacher):
    """Not a bit of gradient for the teacher, even where it is the student itself; some for the student."""
    args = None, jnp.array([0.3, -0.8, 1.1]), jnp.array([1.0, 0.2, -0.4]), jnp.array(0.25), jnp.array(0.5)
    gradient = jax.grad(lambda student, teacher: loss(student, teacher, *args), argnums=(0, 1))
    student_grad, teacher_grad = gradient(student, teacher)
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(student_grad))
    assert all(jnp.all(leaf == 0) for leaf in jax.tree.leaves(teacher_grad)), "gradient reached the teacher"
    both_grad = jax.grad(lambda both: loss(both, both, *args))(student)
    alone_grad, _ = gradient(student, student)
    assert eqx.tree_equal(both_grad, alone_grad), "gradient reached the teacher"


@given(seed=seeds)
def test_no_gradient_reaches_the_teacher(seed):
    rng = np.random.default_rng(seed)
    student, teacher = (FLOWS["gaussian"].random(rng, 3) for _ in range(2))
    assert_the_teacher_is_fixed(jax.jit(self_consistency_loss), student, teacher)


def test_a_missing_stop_gradient_is_caught():
    with pytest.raises(AssertionError, match="reached the teacher"):
        assert_the_teacher_is_fixed(another_self_consistency(stop=lambda x: x), GAUSSIAN, Gaussian.point(jnp.ones(3)))


# --------------------------------------- flow matching, zero where there is one path only


def assert_matches_a_point_mass(loss, sign, action, noise, t, *, slack=1.0):
    velocity = Wrong(Gaussian.point(action), scale=(sign, 0.0))
    value = loss(velocity, None, action, noise, t, h=0.0)
    rounding = (jnp.abs(action).max() + jnp.abs(noise).max()) / (1 - t)
    assert_to_rounding(jnp.sqrt(value), rounding, slack=slack)


compiled_flow_matching = jax.jit(flow_matching_loss)


@given(seed=seeds, size=st.sampled_from([1, 3]), t=st.integers(0, 63), dtype=st.sampled_from(["float32", "float64"]))
def test_flow_matching_is_zero_for_one_action(seed, size, t, dtype):
    action, noise = jnp.asarray(np.random.default_rng(seed).normal(size=(2, size)), dtype)
    assert_matches_a_point_mass(compiled_flow_matching, 1.0, action, noise, t / 64)


def another_flow_matching(path=lambda z, a, t: (1 - t) * z + t * a, target=lambda z, a: a - z):
    def loss(velocity, obs, action, noise, t, *, h):
        return jnp.mean((velocity(obs, path(noise, action, t), t, h) - target(noise, action)) ** 2)

    return loss


WRONG_FLOW_MATCHINGS = {
    "wrong sign": another_flow_matching(target=lambda z, a: z - a),
    "target is the action": another_flow_matching(target=lambda z, a: a),
    "path backwards": another_flow_matching(path=lambda z, a, t: (1 - t) * a + t * z),
    "path keeps all the noise": another_flow_matching(path=lambda z, a, t: z + t * a),
    "always at the noise": another_flow_matching(path=lambda z, a, t: z),
}


@each(WRONG_FLOW_MATCHINGS)
def test_a_wrong_flow_matching_is_caught(mutant):
    action, noise = jnp.array([0.3, -0.8]), jnp.array([1.0, 0.5])
    assert_caught(assert_matches_a_point_mass, mutant, 1.0, action, noise, 0.25)


def test_flow_matching_is_not_zero_for_the_wrong_sign():
    action, noise = jnp.array([0.3, -0.8]), jnp.array([1.0, 0.5])
    assert_caught(assert_matches_a_point_mass, flow_matching_loss, -1.0, action, noise, 0.25)


# -------------------------------------- flow matching, minimised by the tangent of the flow


class Bent(eqx.Module):
    """A velocity and a polynomial on top, by which the loss can fall if the velocity is not its minimiser."""

    velocity: eqx.Module
    bend: jax.Array

    def __call__(self, obs, x, t, h):
        return self.velocity(obs, x, t, h) + jnp.polyval(self.bend, x)


@partial(jax.jit, static_argnames="loss")
def slope_at_the_minimum(loss, velocity, flow, t, h):
    """The gradient of the expected loss with respect to `bend`, by Gauss-Hermite quadrature: exact for a Gaussian."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(12)
    weights = weights / weights.sum()

    def expected(bend):
        one = lambda z, a: loss(Bent(velocity, bend), None, a[None], z[None], t, h=h)
        losses = jax.vmap(jax.vmap(one, (None, 0)), (0, None))(nodes, flow.mean + flow.std * nodes)
        return weights @ losses @ weights

    return jax.grad(expected)(jnp.zeros(3))


def assert_minimal(loss, velocity, flow, t, h=0.0, *, slack=1.0):
    assert_to_rounding(slope_at_the_minimum(loss, velocity, flow, t, h), 100.0, slack=slack)


@given(seed=seeds, t=st.floats(0, 1))
def test_the_tangent_minimises_flow_matching(seed, t):
    flow = FLOWS["gaussian"].random(np.random.default_rng(seed), 1)
    assert_minimal(flow_matching_loss, flow, flow, t)


ONE = FLOWS["gaussian"].random(np.random.default_rng(7), 1)


@each(WRONG_FLOW_MATCHINGS)
def test_a_wrong_flow_matching_has_another_minimum(mutant):
    assert_caught(assert_minimal, mutant, ONE, ONE, 0.25)


@pytest.mark.parametrize(
    "change", [{"scale": (-1.0, 0.0)}, {"time": (1.0, -1.0, 0.0)}, {"time": (0.1, 1.0, 0.0)}], ids=str
)
def test_a_wrong_tangent_does_not_minimise_flow_matching(change):
    assert_caught(assert_minimal, flow_matching_loss, Wrong(ONE, **change), ONE, 0.25)


def test_for_a_finite_step_flow_matching_asks_for_the_tangent_not_the_mean_velocity():
    tangent = Wrong(ONE, step=0.0)
    assert_minimal(flow_matching_loss, tangent, ONE, 0.25, h=0.125)
    assert_caught(assert_minimal, flow_matching_loss, ONE, ONE, 0.25, 0.125)
