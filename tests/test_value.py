"""Targets and losses of Q and V: zero at the exact Q of a control problem, and no gradient but the learner's."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from assertions import assert_caught, assert_to_rounding, each, seeds
from control import DISCOUNT, LQR
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from losses import aggregated

from shortcutrl import (
    TDInfo,
    Transition,
    bellman_target,
    clipped,
    critic_loss,
    expectile_loss,
    rollout_k,
    td_loss,
    td_target,
)

SPREAD = np.array([-1.0, 0.0, 1.0])
OFFSETS = {
    "min": [0.0, 1.0, 3.0],
    "mean": [-2.0, -1.0, 3.0],
    "low_estimate": SPREAD + SPREAD.std() / 3,
}
"""Of a target ensemble whose estimate is exact if it is aggregated by this name."""

ks = st.sampled_from([1, 2, 3, 8])


def low_estimate(q):
    """The mean minus a third of the standard deviation: an aggregate of the user's own."""
    return q.mean() - q.std() / 3


class Problem(NamedTuple):
    """What `td_loss` takes, at its exact solution."""

    critic: jax.Array
    target_critic: jax.Array
    velocity: jax.Array
    transition: jax.Array
    noise: jax.Array

    def call(self, loss, k=1, **options):
        actor = partial(rollout_k, self.velocity, k=k)
        return loss(self.critic, self.target_critic, actor, self.transition, self.noise, **options)


def problem(seed, aggregate="mean", std=0.0):
    """A linear policy of a random linear system, with its exact Q; `target_critic` needs the right `aggregate`."""
    rng = np.random.default_rng(seed)
    lqr = LQR.random(rng)
    policy = lqr.policy(rng, std)
    transition = lqr.transition(rng.normal(size=3), rng.normal(size=2))
    critics = lqr.critic(policy, [0.0]), lqr.critic(policy, OFFSETS[getattr(aggregate, "__name__", aggregate)])
    return jax.tree.map(jnp.asarray, Problem(*critics, policy, transition, rng.normal(size=2)))


# ------------------------------------------------------------------------- zero at the exact Q


@partial(jax.jit, static_argnames=("loss", "k", "aggregate"))
def evaluate(loss, args, k, aggregate):
    return args.call(loss, k, discount=DISCOUNT, aggregate=aggregate)


def assert_bellman(loss, seed, k, *, slack=1.0):
    """The loss is zero, to the rounding of terms as large as those that Q is the sum of."""
    for aggregate in ("min", "mean", low_estimate):
        args = problem(seed, aggregate)
        value, info = evaluate(loss, args, k, aggregate)
        largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves((args.transition, args.noise)))
        rounding = 10 * jnp.abs(args.critic.hessian).sum() * (1 + largest) ** 2
        assert_to_rounding(jnp.sqrt(value), rounding, slack=slack)
        assert_to_rounding(info.error, rounding, slack=slack)
        assert_to_rounding(info.q - info.target, rounding, slack=slack)


@given(seed=seeds, k=ks)
def test_the_loss_is_zero_at_the_exact_q(seed, k):
    assert_bellman(td_loss, seed, k)


def another_td_loss(
    next_obs=lambda step: step.next_obs,
    power=1,
    aggregated=aggregated,
    act=lambda actor, obs, noise: actor(obs, noise),
    stop=jax.lax.stop_gradient,
    sign=1,
    mask=lambda step: step.mask,
):
    """The loss with its parts free; as they stand here it is right."""

    def loss(critic, target_critic, actor, step, noise, *, discount, aggregate):
        obs = next_obs(step)
        next_q = aggregated(target_critic(obs, act(actor, obs, noise)), aggregate)
        target = stop(step.reward + sign * discount**power * mask(step) * next_q)
        q = critic(step.obs, step.action)
        return jnp.mean((q - target) ** 2), TDInfo(q.mean(), target, q.mean() - target)

    return loss


WRONG_TD_LOSSES = {
    "bootstraps from obs": another_td_loss(next_obs=lambda step: step.obs),
    "forgot the discount": another_td_loss(power=0),
    "discounts twice": another_td_loss(power=2),
    "wrong sign": another_td_loss(sign=-1),
    "the mask upside down": another_td_loss(mask=lambda step: 1 - step.mask),
    "always the mean": another_td_loss(aggregated=lambda q, aggregate: q.mean()),
    "always the minimum": another_td_loss(aggregated=lambda q, aggregate: q.min()),
    "the noise as the action": another_td_loss(act=lambda actor, obs, noise: noise),
}


def test_the_copy_is_right():
    assert_bellman(another_td_loss(), 7, 2)


@each(WRONG_TD_LOSSES)
def test_a_wrong_loss_is_caught(mutant):
    assert_caught(assert_bellman, mutant, 7, 2)


# ------------------------------------------------------------- of a policy that is truly random


@partial(jax.jit, static_argnames=("loss", "k"))
def expected_slope(loss, args, k):
    """The gradient for the critic of the loss over all noise, by quadrature, which is exact for a quadratic Q."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(4)
    noise = jnp.stack(jnp.meshgrid(nodes, nodes), axis=-1).reshape(-1, 2)
    weights = np.outer(weights, weights).ravel() / weights.sum() ** 2

    def expected(critic):
        of = args._replace(critic=critic)
        one = lambda noise: of._replace(noise=noise).call(loss, k, discount=DISCOUNT, aggregate="mean")[0]
        return weights @ jax.vmap(one)(noise)

    return jax.grad(expected)(args.critic)


def assert_minimal(loss, seed, k, *, slack=1.0):
    args = problem(seed, std=0.5)
    slope = jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(expected_slope(loss, args, k))])
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(args.transition))
    assert_to_rounding(slope, 100 * jnp.abs(args.critic.hessian).sum() * (1 + largest) ** 4, slack=slack)


@given(seed=seeds, k=ks)
def test_the_exact_q_of_a_random_policy_minimises_the_expected_loss(seed, k):
    assert_minimal(td_loss, seed, k)


def mean_action(actor, obs, noise):
    return actor(obs, jnp.zeros_like(noise))


WRONG_ON_AVERAGE = WRONG_TD_LOSSES | {"the mean action": another_td_loss(act=mean_action)}
WRONG_ON_AVERAGE.pop("always the mean")  # which is asked for here


@each(WRONG_ON_AVERAGE)
def test_a_wrong_loss_has_another_minimum(mutant):
    assert_caught(assert_minimal, mutant, 7, 2)


# ---------------------------------------------------------------------- who stops the gradient


@partial(jax.jit, static_argnames="loss")
def gradients(loss, args):
    """Of the loss for each argument; and of the square of the TD error, its target held fixed, for the critic."""
    options = {"k": 2, "discount": DISCOUNT, "aggregate": "mean"}
    y = args.call(loss, **options)[1].target
    fixed = jax.grad(lambda critic: jnp.mean((critic(*args.transition[:2]) - y) ** 2))(args.critic)
    return jax.grad(lambda args: args.call(loss, **options)[0])(args), fixed


def assert_only_the_critic_learns(loss, seed):
    """No gradient for the target critic, the policy, its noise or the reward, and the critic's is that of y fixed."""
    args = problem(seed, std=0.5)
    args = args._replace(transition=args.transition._replace(reward=args.transition.reward + 1))
    grads, fixed = gradients(loss, args)
    others = grads.target_critic, grads.velocity, grads.noise, grads.transition.reward, grads.transition.next_obs
    assert all(jnp.all(leaf == 0) for leaf in jax.tree.leaves(others)), "gradient reached another than the critic"
    assert jnp.any(fixed.hessian != 0)
    for ours, right in zip(jax.tree.leaves(grads.critic), jax.tree.leaves(fixed), strict=True):
        assert jnp.allclose(ours, right, rtol=1e-10, atol=1e-10)


@given(seed=seeds)
def test_only_the_critic_learns(seed):
    assert_only_the_critic_learns(td_loss, seed)


def test_a_missing_stop_gradient_is_caught():
    with pytest.raises(AssertionError, match="another than the critic"):
        assert_only_the_critic_learns(another_td_loss(stop=lambda y: y), 7)


def no_critic(loss):
    """`loss` without its first argument."""
    return lambda critic, *args, **options: loss(*args, **options)


def test_no_gradient_flows_out_of_the_target():
    grads = jax.grad(lambda args: args.call(no_critic(td_target), k=2, discount=DISCOUNT))(problem(7, std=0.5))
    assert all(jnp.all(leaf == 0) for leaf in jax.tree.leaves(grads))


# ----------------------------------------------------------------------- the parts of the target


@partial(jax.jit, static_argnames=("k", "aggregate", "clip"))
def compiled_target(args, k, discount, aggregate="mean", clip=None):
    actor = partial(rollout_k, args.velocity, k=k, clip=clip)
    return td_target(args.target_critic, actor, args.transition, args.noise, discount=discount, aggregate=aggregate)


@given(seed=seeds, discount=st.floats(0, 1), mask=st.floats(0, 1), aggregate=st.sampled_from(["min", "mean"]))
def test_the_target_is_reward_plus_what_follows(seed, discount, mask, aggregate):
    args = problem(seed, aggregate)
    transition = args.transition._replace(mask=jnp.asarray(mask))
    y = compiled_target(args._replace(transition=transition), 1, discount, aggregate)
    q = args.target_critic(transition.next_obs, args.velocity.gain @ transition.next_obs)
    right = transition.reward + discount * mask * (min(q) if aggregate == "min" else sum(q) / 3)
    assert jnp.allclose(y, right, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("change", "discount"), [({"mask": jnp.zeros(())}, 0.9), ({}, 0.0)])
def test_nothing_follows_the_end(change, discount):
    args = problem(7)
    args = args._replace(transition=args.transition._replace(**change))
    assert args.call(no_critic(td_target), discount=discount) == args.transition.reward


def test_the_next_action_is_clipped_where_the_actor_clips():
    args = problem(7)
    next_action = args.velocity.gain @ args.transition.next_obs
    bound = float(jnp.abs(next_action).max()) / 2
    y = compiled_target(args, 4, DISCOUNT, clip=(-bound, bound))
    q = args.target_critic(args.transition.next_obs, jnp.clip(next_action, -bound, bound)).mean()
    assert jnp.allclose(y, args.transition.reward + DISCOUNT * q)
    assert not jnp.allclose(y, compiled_target(args, 4, DISCOUNT))


# ----------------------------------------------------------------- the Bellman target of a value


def assert_telescopes(target, rewards, masks, values, discount, *, slack=1.0):
    """Chained over an episode it is the discounted return, up to the first terminal step, plus what is left."""
    y = values[-1]
    for reward, mask in zip(rewards[::-1], masks[::-1], strict=True):
        y = target(Transition(None, np.zeros(1), reward, mask, None), y, discount=discount)
    weights = np.cumprod(np.concatenate([[1.0], discount * masks]))
    exact = weights[:-1] @ rewards + weights[-1] * values[-1]
    assert_to_rounding(y - exact, len(rewards) * (1 + np.abs(rewards).max() + abs(values[-1])), slack=slack)


numbers = st.floats(-10, 10)


@given(
    rewards=arrays(float, 5, elements=numbers),
    masks=arrays(float, 5, elements=st.sampled_from([0.0, 0.9, 1.0])),
    value=numbers,
    discount=st.floats(0, 1),
)
def test_chained_targets_are_the_discounted_return(rewards, masks, value, discount):
    assert_telescopes(bellman_target, rewards, masks, jnp.array([value]), discount)


WRONG_TARGETS = {
    "wrong sign": lambda step, v, *, discount: step.reward - discount * step.mask * v,
    "forgot the mask": lambda step, v, *, discount: step.reward + discount * v,
    "forgot the discount": lambda step, v, *, discount: step.reward + step.mask * v,
    "forgot the reward": lambda step, v, *, discount: discount * step.mask * v,
    "discounts the reward": lambda step, v, *, discount: discount * (step.reward + step.mask * v),
    "the mask on the reward": lambda step, v, *, discount: step.mask * step.reward + discount * v,
}


@each(WRONG_TARGETS)
def test_a_wrong_target_is_caught(mutant):
    rewards, masks = np.array([1.0, -2.0, 3.0, 0.5, 2.0]), np.array([1.0, 0.9, 1.0, 0.0, 1.0])
    assert_caught(assert_telescopes, mutant, rewards[:3], masks[:3], jnp.array([7.0]), 0.8)


def assert_no_gradient(function, *args):
    grads = jax.grad(lambda args: function(*args))(args)
    assert all(jnp.all(leaf == 0) for leaf in jax.tree.leaves(grads)), "a gradient flows out"


ONE, TWO = jnp.array(1.0), jnp.array(2.0)


def a_bellman_target(target):
    return lambda reward, mask, v: target(Transition(None, np.zeros(1), reward, mask, None), v, discount=0.9)


def test_no_gradient_flows_out_of_the_bellman_target():
    assert_no_gradient(a_bellman_target(bellman_target), ONE, ONE, TWO)
    with pytest.raises(AssertionError, match="a gradient flows out"):
        assert_no_gradient(a_bellman_target(lambda step, v, *, discount: step.reward + v), ONE, ONE, TWO)


# --------------------------------------------------------------- the critic's loss, for any target


class LinearCritic(NamedTuple):
    """Each member linear in (observation, action), so that the least squares fit has a closed form."""

    weights: jax.Array

    def __call__(self, obs, action):
        return self.weights @ jnp.concatenate([obs, action])


@partial(jax.jit, static_argnames="loss")
def slope_of_critic_loss(loss, critic, batch, targets):
    def total(critic, targets):
        losses, info = jax.vmap(partial(loss, critic))(batch, targets)
        return losses.mean(), info

    return jax.grad(total, argnums=(0, 1), has_aux=True)(critic, targets)


def assert_least_squares(loss, seed, *, slack=1.0):
    """The regression on any targets is at rest at the least squares solution; `info` is what the residual is."""
    rng = np.random.default_rng(seed)
    obs, action, targets = rng.normal(size=(20, 3)), rng.normal(size=(20, 2)), rng.normal(size=20)
    solution = np.linalg.lstsq(np.concatenate([obs, action], axis=1), targets, rcond=None)[0]
    critic = LinearCritic(jnp.asarray(np.stack([solution, solution])))
    zeros = np.zeros(20)
    batch = jax.tree.map(jnp.asarray, Transition(obs, action, zeros, zeros, obs))
    (slope, target_slope), info = slope_of_critic_loss(loss, critic, batch, jnp.asarray(targets))
    size = np.abs(obs).max() * (1 + np.abs(targets).max()) * 10
    assert_to_rounding(slope.weights, size, slack=slack)
    assert jnp.all(target_slope == 0), "a gradient flows out of the target"
    assert_to_rounding(info.target - targets, size, slack=slack)
    assert_to_rounding(info.error - (info.q - targets), size, slack=slack)


@given(seed=seeds)
def test_the_critic_is_fitted_by_least_squares(seed):
    assert_least_squares(critic_loss, seed)


def test_every_member_counts_the_same():
    step = Transition(ONE[None], ONE[None], ONE, ONE, ONE[None])
    loss, info = critic_loss(lambda obs, action: jnp.array([3.0, 5.0, 10.0]), step, 4.0)
    assert (loss, info) == ((1 + 1 + 36) / 3, TDInfo(6.0, 4.0, 2.0))


def another_critic_loss(inputs=lambda step: step[:2], stop=jax.lax.stop_gradient, residual=lambda q, y: q - y):
    def loss(critic, step, target):
        q = critic(*inputs(step))
        return jnp.mean(residual(q, stop(target)) ** 2), TDInfo(q.mean(), target, q.mean() - target)

    return loss


WRONG_CRITIC_LOSSES = {
    "wrong sign": another_critic_loss(residual=lambda q, y: q + y),
    "the mean of the ensemble, then another square": another_critic_loss(residual=lambda q, y: (q - y) ** 2),
    "no action": another_critic_loss(inputs=lambda step: (step.obs, 0 * step.action)),
    "twice the observation": another_critic_loss(inputs=lambda step: (2 * step.obs, step.action)),
}


def test_the_copy_of_the_critics_loss_is_right():
    assert_least_squares(another_critic_loss(), 7)


@each(WRONG_CRITIC_LOSSES)
def test_a_wrong_critic_loss_is_caught(mutant):
    assert_caught(assert_least_squares, mutant, 7)


def test_a_gradient_into_the_target_is_caught():
    with pytest.raises(AssertionError, match="out of the target"):
        assert_least_squares(another_critic_loss(stop=lambda y: y), 7)


# ------------------------------------------------------------------------------- expectiles of Q


@partial(jax.jit, static_argnames="loss")
def expected_slopes(loss, v, q, probability, expectile):
    """The gradient of the expected loss, for V and for Q."""

    def expected(v, q):
        return probability @ jax.vmap(lambda q: loss(lambda obs: v, None, q, expectile=expectile))(q)

    return jax.grad(expected, argnums=(0, 1))(v, q)


def expectile_of(q, probability, expectile):
    """The root of tau E[(q - v)+] = (1 - tau) E[(v - q)+]: the left side minus the right falls, linear between atoms.

    Exact: between two neighbouring atoms the root is that of a line.
    """
    order = np.argsort(q)
    q, probability = q[order], probability[order]
    for split in range(1, len(q)):
        weight = probability * np.where(np.arange(len(q)) < split, 1 - expectile, expectile)
        v = weight @ q / weight.sum()
        if q[split - 1] <= v <= q[split]:
            return v
    raise AssertionError("no root")


def assert_finds_the_expectile(loss, seed, expectile, *, slack=1.0):
    """Over a distribution of few atoms the expected loss is at rest at its expectile; nothing flows into Q."""
    rng = np.random.default_rng(seed)
    q, probability = rng.normal(size=6), rng.dirichlet(np.ones(6))
    v = expectile_of(q, probability, expectile)
    slope, q_slope = expected_slopes(loss, jnp.asarray(v), jnp.asarray(q), jnp.asarray(probability), expectile)
    assert jnp.all(q_slope == 0), "a gradient flows into Q"
    assert_to_rounding(slope, 10 * np.abs(q).max(), slack=slack)
    elsewhere = expected_slopes(loss, jnp.asarray(v + 1), jnp.asarray(q), jnp.asarray(probability), expectile)[0]
    assert elsewhere > 0.01, "no minimum"


@given(seed=seeds, expectile=st.floats(0.01, 0.99))
def test_v_is_the_expectile_of_q(seed, expectile):
    assert_finds_the_expectile(expectile_loss, seed, expectile)


def test_half_is_the_mean_and_one_the_maximum():
    q, probability = np.array([1.0, 5.0, -2.0]), np.array([0.5, 0.25, 0.25])
    assert np.isclose(expectile_of(q, probability, 0.5), probability @ q)
    assert expectile_loss(lambda obs: jnp.array(4.0), None, 3.0, expectile=1.0) == 0
    assert expectile_loss(lambda obs: jnp.array(1.0), None, 3.0, expectile=1.0) == 4


def another_expectile_loss(side=lambda q, v: q < v, stop=jax.lax.stop_gradient, power=2, swap=False):
    def loss(value, obs, q, *, expectile):
        v, q = (stop(q), value(obs)) if swap else (value(obs), stop(q))
        return jnp.abs(expectile - side(q, v)) * jnp.abs(q - v) ** power

    return loss


WRONG_EXPECTILES = {
    "the other side": another_expectile_loss(side=lambda q, v: q > v),
    "v and q swapped": another_expectile_loss(swap=True),
    "the quantile": another_expectile_loss(power=1),
    "the mean": another_expectile_loss(side=lambda q, v: 0),
}


def test_the_copy_of_the_expectile_is_right():
    assert_finds_the_expectile(another_expectile_loss(), 7, 0.8)


@each(WRONG_EXPECTILES)
def test_a_wrong_expectile_is_caught(mutant):
    assert_caught(assert_finds_the_expectile, mutant, 7, 0.8)


def test_a_gradient_into_q_is_caught():
    with pytest.raises(AssertionError, match="flows into Q"):
        assert_finds_the_expectile(another_expectile_loss(stop=lambda q: q), 7, 0.8)


# ------------------------------------------------------------------------- actors within bounds


@given(seed=seeds, low=st.floats(-2, -0.1), high=st.floats(0.1, 2))
def test_a_clipped_actor_acts_within_bounds(seed, low, high):
    """As the actor does inside of them; with its gradient there, and none outside."""
    noise = 2 * np.random.default_rng(seed).normal(size=4)
    actor = lambda obs, noise: 3 * noise + obs
    action, slope = jax.value_and_grad(lambda noise: clipped(actor, 0.5, noise, clip=(low, high)).sum(), has_aux=False)(
        jnp.asarray(noise)
    )
    right = np.clip(3 * noise + 0.5, low, high)
    assert_to_rounding(action - right.sum(), 10)
    assert jnp.array_equal(slope, 3.0 * ((3 * noise + 0.5 > low) & (3 * noise + 0.5 < high)))


def test_a_clipped_actor_without_bounds_is_the_actor():
    assert jnp.array_equal(clipped(lambda obs, noise: 3 * noise, None, jnp.array([1.0, 9.0]), clip=None), [3.0, 27.0])


def test_bounds_of_a_clipped_actor_keep_its_dtype():
    action = clipped(lambda obs, noise: noise, None, jnp.ones(2, "bfloat16"), clip=(np.float32(-1), np.zeros(2) + 0.5))
    assert action.dtype == "bfloat16"
    assert jnp.array_equal(action, jnp.full(2, 0.5, "bfloat16"))
