"""Policy improvement: maximise Q, through every jump; distil a policy; weight by the advantage."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from assertions import assert_caught, assert_to_rounding, each, seeds
from control import LQR
from hypothesis import given
from hypothesis import strategies as st
from losses import aggregated
from oracles import euler

from shortcutrl import QInfo, advantage_weight, distill_loss, q_loss, rollout_k

ks = st.sampled_from([1, 2, 3, 8])

# ------------------------------------------------------- minus Q, and its gradient, by hand

SLOPES = jnp.array([[1.0, -2.0, 0.5], [0.2, 0.3, -1.0]])


def linear_critic(obs, action):
    return SLOPES @ action + obs


def mostly_the_second(q):
    """An aggregate of the user's own."""
    return 0.25 * q[0] + 0.75 * q[1]


@partial(jax.jit, static_argnames=("loss", "k", "aggregate"))
def value_and_slope(loss, rate, obs, noise, k, aggregate):
    def of_rate(rate):
        return loss(partial(rollout_k, euler(rate), k=k), linear_critic, obs, noise, aggregate=aggregate)

    return jax.value_and_grad(of_rate, has_aux=True)(rate)


def assert_minus_q(loss, rate, obs, noise, k, *, slack=1.0):
    """Euler jumps along dx/dt = rate x make (1 + rate / k)^k noise, on which the critic is linear."""
    growth = 1 + rate / k
    action = growth**k * noise
    each_q = linear_critic(obs, action)
    lower = SLOPES[jnp.argmin(each_q)]
    weighted = jnp.array([0.25, 0.75])
    rounding = 100 * (1 + jnp.abs(noise).max() + jnp.abs(obs).max()) * (1 + abs(rate)) ** k
    for aggregate, q, weight in [
        ("min", each_q.min(), lower),
        ("mean", each_q.mean(), SLOPES.mean(axis=0)),
        (mostly_the_second, weighted @ each_q, weighted @ SLOPES),
    ]:
        (value, info), slope = value_and_slope(loss, jnp.asarray(rate), obs, noise, k, aggregate)
        assert_to_rounding(value + q, rounding, slack=slack)
        assert_to_rounding(info.q - q, rounding, slack=slack)
        assert_to_rounding(info.action - action, rounding, slack=slack)
        assert_to_rounding(slope + growth ** (k - 1) * weight @ noise, rounding, slack=slack)


@given(rate=st.floats(-2, 2), k=ks, seed=seeds)
def test_the_loss_is_minus_q_of_the_action(rate, k, seed):
    rng = np.random.default_rng(seed)
    assert_minus_q(q_loss, rate, jnp.asarray(rng.normal(size=2)), jnp.asarray(rng.normal(size=3)), k)


def last_jump_only(actor, obs, noise):
    """The gradient only of the last jump."""
    velocity, k = actor.args[0], actor.keywords["k"]
    x = noise
    for i in range(k):
        x = jax.lax.stop_gradient(x)
        x = x + velocity(obs, x, i / k, 1 / k) / k
    return x


def half_the_jumps(actor, obs, noise):
    return rollout_k(*actor.args, obs, noise, k=actor.keywords["k"] // 2)


def another_q_loss(act=lambda actor, obs, noise: actor(obs, noise), aggregated=aggregated, sign=-1):
    """The loss with its parts free; as they stand here it is right."""

    def loss(actor, critic, obs, noise, *, aggregate="mean"):
        action = act(actor, obs, noise)
        q = aggregated(critic(obs, action), aggregate)
        return sign * q, QInfo(q, action)

    return loss


WRONG_Q_LOSSES = {
    "wrong sign": another_q_loss(sign=1),
    "only the last jump learns": another_q_loss(act=last_jump_only),
    "half of the jumps": another_q_loss(act=half_the_jumps),
    "no policy": another_q_loss(act=lambda actor, obs, noise: noise),
    "no gradient": another_q_loss(act=lambda actor, obs, noise: jax.lax.stop_gradient(actor(obs, noise))),
    "always the mean": another_q_loss(aggregated=lambda q, aggregate: q.mean()),
    "always the minimum": another_q_loss(aggregated=lambda q, aggregate: q.min()),
    "the function of the negative": another_q_loss(aggregated=lambda q, aggregate: -aggregated(-q, aggregate)),
}


def test_the_copy_is_right():
    assert_minus_q(another_q_loss(), 0.7, jnp.array([0.1, -0.4]), jnp.array([1.0, -0.5, 2.0]), 4)


@each(WRONG_Q_LOSSES)
def test_a_wrong_loss_is_caught(mutant):
    assert_caught(assert_minus_q, mutant, 0.7, jnp.array([0.1, -0.4]), jnp.array([1.0, -0.5, 2.0]), 4)


# --------------------------------------------------------------- at rest at the optimal policy


@partial(jax.jit, static_argnames=("loss", "k"))
def slope_of_the_gain(loss, policy, critic, obs, noise, k):
    def of_gain(gain):
        actor = partial(rollout_k, eqx.tree_at(lambda policy: policy.gain, policy, gain), k=k)
        return loss(actor, critic, obs, noise)[0]

    return jax.grad(of_gain)(policy.gain)


def assert_at_rest(seed, k, offset=0.0, *, slack=1.0):
    """At the optimal gain, moved by `offset`, nothing is left to improve for any observation."""
    rng = np.random.default_rng(seed)
    policy, critic = LQR.random(rng).optimum([0.0, 0.0])
    policy = eqx.tree_at(lambda policy: policy.gain, policy, policy.gain + offset)
    obs, noise = jnp.asarray(rng.normal(size=3)), jnp.asarray(rng.normal(size=2))
    largest = max(np.abs(obs).max(), np.abs(noise).max()) * (1 + np.abs(policy.gain).max())
    rounding = 100 * np.abs(critic.hessian).sum() * (1 + largest) ** 2
    assert_to_rounding(slope_of_the_gain(q_loss, policy, critic, obs, noise, k), rounding, slack=slack)


@given(seed=seeds, k=ks)
def test_the_optimal_policy_of_a_control_problem_is_at_rest(seed, k):
    assert_at_rest(seed, k)


def test_another_policy_is_not():
    assert_caught(assert_at_rest, 7, 2, 0.01)


def test_descending_the_loss_finds_the_optimal_policy():
    """Policy improvement against the exact Q of each policy in turn ends at the Riccati solution."""
    rng = np.random.default_rng(3)
    lqr = LQR.random(rng)
    best, _ = lqr.optimum([0.0])
    policy = lqr.policy(rng)
    obs, noise = jnp.asarray(rng.normal(size=(64, 3))), jnp.asarray(rng.normal(size=(64, 2)))
    slopes = jax.jit(jax.vmap(partial(slope_of_the_gain, q_loss, k=2), in_axes=(None, None, 0, 0)))
    start = np.abs(policy.gain - best.gain).max()
    for _ in range(100):
        critic = lqr.critic(policy, [0.0])
        step = np.asarray(slopes(policy, critic, obs, noise).mean(axis=0)) / np.linalg.norm(critic.hessian, 2) / 4
        policy = eqx.tree_at(lambda policy: policy.gain, policy, policy.gain - step)
    assert np.abs(policy.gain - best.gain).max() < 1e-8 * start


# ------------------------------------------------------------------------------------ clipping


def test_no_gradient_where_the_action_is_clipped():
    def push(speed):
        actor = partial(rollout_k, lambda obs, x, t, h: speed, k=2, clip=(-1, 1))
        return q_loss(actor, linear_critic, jnp.zeros(2), jnp.zeros(3), aggregate="mean")

    (loss, info), slope = jax.value_and_grad(push, has_aux=True)(jnp.array([2.0, -0.5, -2.0]))
    assert jnp.array_equal(info.action, jnp.array([1.0, -0.5, -1.0]))
    assert jnp.allclose(slope, jnp.array([0.0, 0.85, 0.0]))
    assert loss == -linear_critic(jnp.zeros(2), info.action).mean()


# -------------------------------------------------------------------------------- distillation


class LinearActor(eqx.Module):
    """a = gain s + std z: of two such actors the expected distillation loss has a closed form."""

    gain: jax.Array
    std: jax.Array

    def __call__(self, obs, noise):
        return self.gain @ obs + self.std * noise


@partial(jax.jit, static_argnames="loss")
def expected_distillation(loss, student, teacher, obs):
    """The loss over all noise, by quadrature, and its gradients for student and teacher."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(4)
    noise = jnp.stack(jnp.meshgrid(nodes, nodes), axis=-1).reshape(-1, 2)
    weights = np.outer(weights, weights).ravel() / weights.sum() ** 2

    def expected(student, teacher):
        return weights @ jax.vmap(lambda noise: loss(student, teacher, obs, noise))(noise)

    return jax.value_and_grad(expected, argnums=(0, 1))(student, teacher)


def assert_distills(loss, seed, *, slack=1.0):
    """E |gain' s - gain s|² / d + |std' - std|² / d, with the gradient of the student alone."""
    rng = np.random.default_rng(seed)
    student, teacher = (
        LinearActor(jnp.asarray(rng.normal(size=(2, 3))), jnp.asarray(rng.normal(size=2))) for _ in range(2)
    )
    obs = jnp.asarray(rng.normal(size=3))
    value, (grads, teacher_grads) = expected_distillation(loss, student, teacher, obs)
    assert all(jnp.all(leaf == 0) for leaf in jax.tree.leaves(teacher_grads)), "gradient reached the teacher"
    ahead, wider = (student.gain - teacher.gain) @ obs, student.std - teacher.std
    rounding = 100 * (1 + jnp.abs(obs).max()) ** 3
    assert_to_rounding(value - (jnp.mean(ahead**2) + jnp.mean(wider**2)), rounding, slack=slack)
    assert_to_rounding(grads.gain - jnp.outer(ahead, obs), rounding, slack=slack)
    assert_to_rounding(grads.std - wider, rounding, slack=slack)


@given(seed=seeds)
def test_the_student_moves_to_the_teacher(seed):
    assert_distills(distill_loss, seed)


def another_distillation(
    stop=jax.lax.stop_gradient, teach=lambda teacher, obs, noise: teacher(obs, noise), of=jnp.mean, fixed=lambda a: a
):
    def loss(student, teacher, obs, noise):
        return of(jnp.square(fixed(student(obs, noise)) - stop(teach(teacher, obs, noise))))

    return loss


WRONG_DISTILLATIONS = {
    "the sum of dimensions": another_distillation(of=jnp.sum),
    "noise of the other sign": another_distillation(teach=lambda teacher, obs, noise: teacher(obs, -noise)),
    "the mean action only": another_distillation(teach=lambda teacher, obs, noise: teacher(obs, 0 * noise)),
    "another observation": another_distillation(teach=lambda teacher, obs, noise: teacher(-obs, noise)),
    "no gradient": another_distillation(fixed=jax.lax.stop_gradient),
}


def test_the_copy_of_the_distillation_is_right():
    assert_distills(another_distillation(), 7)


@each(WRONG_DISTILLATIONS)
def test_a_wrong_distillation_is_caught(mutant):
    assert_caught(assert_distills, mutant, 7)


@each(
    {
        "no stop": another_distillation(stop=lambda a: a),
        "student and teacher swapped": lambda student, teacher, *args: distill_loss(teacher, student, *args),
    }
)
def test_a_gradient_into_the_teacher_is_caught(mutant):
    with pytest.raises(AssertionError, match="reached the teacher"):
        assert_distills(mutant, 7)


def test_the_teacher_is_fixed_even_where_it_is_made_of_the_student():
    actor = LinearActor(jnp.ones((2, 3)), jnp.ones(2))
    one = lambda actor: distill_loss(actor, lambda obs, noise: 2 * actor(obs, noise), jnp.ones(3), jnp.zeros(2))
    grads = jax.grad(one)(actor)
    assert jnp.allclose(grads.gain, -3.0)  # towards the teacher's 6 from 3, as if the teacher were fixed


# --------------------------------------------------------------------- weights by the advantage

TEMPERATURE = 1.7


def assert_weights_the_data(weight, seed, *, slack=1.0):
    """Weighted regression on N(mean, std²) with Q linear in the action is the mean of the tilted Gaussian.

    exp(temperature slope a) tilts it to the mean + temperature slope std². Exact by quadrature, without a cap.
    """
    rng = np.random.default_rng(seed)
    mean, std, slope, v = rng.normal(), rng.uniform(0.2, 0.6), rng.normal(), rng.normal()
    nodes, probability = np.polynomial.hermite_e.hermegauss(60)
    action = jnp.asarray(mean + std * nodes)
    weights = jax.vmap(lambda a: weight(slope * a + v, jnp.asarray(v), temperature=TEMPERATURE, cap=1e30))(action)
    tilted = (weights * probability) @ action / (weights @ probability)
    exact = mean + TEMPERATURE * slope * std**2
    assert_to_rounding(tilted - exact, 100 * (1 + abs(exact)), slack=slack)
    level = jnp.exp(TEMPERATURE * slope * mean + (TEMPERATURE * slope * std) ** 2 / 2)
    assert_to_rounding(weights @ probability / probability.sum() / level - 1, 100.0, slack=slack)


@given(seed=seeds)
def test_weighted_regression_tilts_the_data_by_q(seed):
    assert_weights_the_data(advantage_weight, seed)


WRONG_WEIGHTS = {
    "v minus q": lambda q, v, *, temperature, cap: advantage_weight(v, q, temperature=temperature, cap=cap),
    "q alone": lambda q, v, *, temperature, cap: advantage_weight(q, 0.0, temperature=temperature, cap=cap),
    "divided by the temperature": lambda q, v, *, temperature, cap: advantage_weight(
        q, v, temperature=1 / temperature, cap=cap
    ),
    "not the exponential": lambda q, v, *, temperature, cap: 1 + temperature * (q - v),
    "a cap where none is asked for": lambda q, v, *, temperature, cap: advantage_weight(
        q, v, temperature=temperature, cap=1.0
    ),
}


@each(WRONG_WEIGHTS)
def test_a_wrong_weight_is_caught(mutant):
    assert_caught(assert_weights_the_data, mutant, 7)


@given(q=st.floats(-100, 100), v=st.floats(-100, 100), temperature=st.floats(0, 10), cap=st.floats(0.01, 1e4))
def test_the_weight_is_capped(q, v, temperature, cap):
    weight = advantage_weight(jnp.asarray(q), v, temperature=temperature, cap=cap)
    with np.errstate(over="ignore"):
        right = np.minimum(np.exp(temperature * (q - v)), cap)
    assert 0 <= weight <= cap
    np.testing.assert_allclose(weight, right, rtol=1e-9)


def test_the_default_cap_is_published():
    assert advantage_weight(jnp.array(9.0), 0.0, temperature=3.0) == 100.0


def test_a_temperature_of_zero_is_behaviour_cloning():
    assert advantage_weight(jnp.array(9.0), 0.0, temperature=0.0) == 1.0


def test_no_gradient_flows_out_of_the_weight():
    gradients = jax.grad(lambda q, v: advantage_weight(q, v, temperature=1.0), argnums=(0, 1))
    assert gradients(jnp.array(0.5), jnp.array(0.1)) == (0, 0)
    assert gradients(jnp.array(1e6), jnp.array(0.1)) == (0, 0)  # beyond the cap, where exp is infinite
