"""The critic's target and loss: zero at the exact Q of a control problem, and no gradient but the critic's."""

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

from shortcutrl import TDInfo, rollout_k, td_loss, td_target

OFFSETS = {"min": [0.0, 1.0, 3.0], "mean": [-2.0, -1.0, 3.0]}
"""Of a target ensemble whose verdict is right when it is aggregated as it should be."""

ks = st.sampled_from([1, 2, 4, 8])


class Problem(NamedTuple):
    """What `td_loss` takes, at its exact solution."""

    critic: jax.Array
    target_critic: jax.Array
    policy: jax.Array
    transition: jax.Array
    noise: jax.Array


def problem(seed, aggregate="mean", std=0.0):
    rng = np.random.default_rng(seed)
    lqr = LQR.random(rng)
    policy = lqr.policy(rng, std)
    transition = lqr.transition(rng.normal(size=3), rng.normal(size=2))
    critics = lqr.critic(policy, [0.0]), lqr.critic(policy, OFFSETS[aggregate])
    return jax.tree.map(jnp.asarray, Problem(*critics, policy, transition, rng.normal(size=2)))


# ------------------------------------------------------------------------- zero at the exact Q


@partial(jax.jit, static_argnames=("loss", "k", "aggregate"))
def evaluate(loss, args, k, aggregate):
    return loss(*args, k=k, discount=DISCOUNT, aggregate=aggregate)


def assert_bellman(loss, seed, k, *, slack=1.0):
    """The loss is zero, to the rounding of terms as large as those that Q is the sum of."""
    for aggregate in OFFSETS:
        args = problem(seed, aggregate)
        value, info = evaluate(loss, args, k, aggregate)
        largest = max(float(jnp.abs(leaf).max()) for leaf in (*args.transition, args.noise))
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
    verdict=lambda q, aggregate: q.min() if aggregate == "min" else q.mean(),
    act=rollout_k,
    stop=jax.lax.stop_gradient,
    sign=1,
):
    """The loss with its parts free; as they stand here it is right."""

    def loss(critic, target_critic, velocity, step, noise, *, k, discount, aggregate):
        obs = next_obs(step)
        next_q = verdict(target_critic(obs, act(velocity, obs, noise, k=k)), aggregate)
        target = stop(step.reward + sign * discount**power * step.mask * next_q)
        q = critic(step.obs, step.action)
        return jnp.mean((q - target) ** 2), TDInfo(q.mean(), target, q.mean() - target)

    return loss


WRONG_TD_LOSSES = {
    "bootstraps from obs": another_td_loss(next_obs=lambda step: step.obs),
    "forgot the discount": another_td_loss(power=0),
    "discounts twice": another_td_loss(power=2),
    "wrong sign": another_td_loss(sign=-1),
    "always the mean": another_td_loss(verdict=lambda q, aggregate: q.mean()),
    "always the minimum": another_td_loss(verdict=lambda q, aggregate: q.min()),
    "the noise as the action": another_td_loss(act=lambda velocity, obs, noise, *, k: noise),
}


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
        one = lambda noise: loss(critic, *args[1:-1], noise, k=k, discount=DISCOUNT, aggregate="mean")[0]
        return weights @ jax.vmap(one)(noise)

    return jax.grad(expected)(args.critic)


def assert_minimal(loss, seed, k, *, slack=1.0):
    args = problem(seed, std=0.5)
    slope = jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(expected_slope(loss, args, k))])
    largest = max(float(jnp.abs(leaf).max()) for leaf in args.transition)
    assert_to_rounding(slope, 100 * jnp.abs(args.critic.hessian).sum() * (1 + largest) ** 4, slack=slack)


@given(seed=seeds, k=ks)
def test_the_exact_q_of_a_random_policy_minimises_the_expected_loss(seed, k):
    assert_minimal(td_loss, seed, k)


WRONG_ON_AVERAGE = WRONG_TD_LOSSES | {"the mean action": another_td_loss(act=lambda s, obs, noise, *, k: s.gain @ obs)}
WRONG_ON_AVERAGE.pop("always the mean")  # which is asked for here


@each(WRONG_ON_AVERAGE)
def test_a_wrong_loss_has_another_minimum(mutant):
    assert_caught(assert_minimal, mutant, 7, 2)


# ---------------------------------------------------------------------- who stops the gradient


@partial(jax.jit, static_argnames="loss")
def gradients(loss, args):
    """Of the loss for each argument; and of the square of the TD error, its target held fixed, for the critic."""
    options = {"k": 2, "discount": DISCOUNT, "aggregate": "mean"}
    y = loss(*args, **options)[1].target
    fixed = jax.grad(lambda critic: jnp.mean((critic(*args.transition[:2]) - y) ** 2))(args.critic)
    return jax.grad(lambda args: loss(*args, **options)[0])(args), fixed


def assert_only_the_critic_learns(loss, seed):
    """No gradient for the target critic, the policy, its noise or the reward, and the critic's is that of y fixed."""
    args = problem(seed, std=0.5)
    args = args._replace(transition=args.transition._replace(reward=args.transition.reward + 1))
    grads, fixed = gradients(loss, args)
    others = grads.target_critic, grads.policy, grads.noise, grads.transition.reward, grads.transition.next_obs
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


def test_no_gradient_flows_out_of_the_target():
    args = problem(7, std=0.5)[1:]
    grads = jax.grad(lambda args: td_target(*args, k=2, discount=DISCOUNT))(args)
    assert all(jnp.all(leaf == 0) for leaf in jax.tree.leaves(grads))


# ----------------------------------------------------------------------- the parts of the target


@given(seed=seeds, discount=st.floats(0, 1), mask=st.floats(0, 1), aggregate=st.sampled_from(["min", "mean"]))
def test_the_target_is_reward_plus_what_follows(seed, discount, mask, aggregate):
    _, target_critic, policy, transition, noise = problem(seed, aggregate)
    transition = transition._replace(mask=jnp.asarray(mask))
    y = compiled_target(target_critic, policy, transition, noise, k=1, discount=discount, aggregate=aggregate)
    q = target_critic(transition.next_obs, policy.gain @ transition.next_obs)
    right = transition.reward + discount * mask * (min(q) if aggregate == "min" else sum(q) / 3)
    assert jnp.allclose(y, right, rtol=1e-9, atol=1e-9)


compiled_target = jax.jit(td_target, static_argnames=("k", "aggregate", "clip"))


@pytest.mark.parametrize(("change", "discount"), [({"mask": jnp.zeros(())}, 0.9), ({}, 0.0)])
def test_nothing_follows_the_end(change, discount):
    _, target_critic, policy, transition, noise = problem(7)
    transition = transition._replace(**change)
    assert td_target(target_critic, policy, transition, noise, k=1, discount=discount) == transition.reward


def test_the_next_action_is_clipped_if_asked():
    _, target_critic, policy, transition, noise = problem(7)
    next_action = policy.gain @ transition.next_obs
    bound = float(jnp.abs(next_action).max()) / 2
    y = td_target(target_critic, policy, transition, noise, k=4, discount=DISCOUNT, clip=(-bound, bound))
    q = target_critic(transition.next_obs, jnp.clip(next_action, -bound, bound)).mean()
    assert jnp.allclose(y, transition.reward + DISCOUNT * q)
    assert not jnp.allclose(y, td_target(target_critic, policy, transition, noise, k=4, discount=DISCOUNT))
