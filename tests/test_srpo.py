"""SRPO: its losses and updates are the published ones; what is subtly wrong is caught."""

from functools import partial

import diffusing
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import ring
from algorithms import assert_update
from assertions import assert_caught, assert_unrelated, each, seeds
from diffusing import LinearDenoiser, signal
from hypothesis import given
from losses import (
    ACTION,
    BATCH,
    WRONG_CRITIC_LOSSES,
    WRONG_VALUE_LOSSES,
    LinearPolicy,
    LinearValue,
    QuadraticCritic,
    assert_loss,
    critic_oracle,
    mean,
    random_batch,
    rows,
    same,
    value_oracle,
)
from scipy.stats import kstest

from shortcutrl import denoising_loss, score_distillation_loss, srpo, vp_schedule

CONFIG, NORMALIZED = srpo.Config(beta=0.7), srpo.Config(beta=0.7, normalize_q=True)
SEED, BETA_MAX = 3, 20.0


def problem(seed):
    rng = np.random.default_rng(seed)
    networks = (
        LinearDenoiser.random(rng),
        LinearPolicy.random(rng),
        QuadraticCritic.random(rng),
        LinearValue.random(rng),
    )
    state = srpo.State(*networks, QuadraticCritic.random(rng), None, None, None, None)
    noise = rng.normal(size=(2, BATCH, ACTION))
    draws = srpo.Draws(noise[0], rng.uniform(0.001, 1, BATCH), noise[1], rng.uniform(0.02, 0.98, BATCH))
    return state, random_batch(rng), draws


# ------------------------------------------------------------------- plain oracles, and mutants


def policy_oracle(policy, state, batch, draws, config):
    diffusion, policy = policy

    def term(row, draw):
        denoising, grad = diffusion.denoising(row.action, draw.diffusion_noise, draw.diffusion_t, BETA_MAX)
        action = policy.w @ row.obs
        keep = signal(draw.policy_t, BETA_MAX)
        x = np.sqrt(keep) * action + np.sqrt(1 - keep) * draw.policy_noise
        direction = (1 - keep) * (diffusion.rate * x + draw.policy_t * diffusion.b - draw.policy_noise)
        clipped, inside = np.clip(action, -1, 1), np.abs(action) < 1
        slope = clipped - state.target_critic.goal.mean(axis=0)  # of minus Q
        size = np.sqrt(np.mean(slope**2)) if config.normalize_q else 1.0
        minus_q = -state.target_critic(row.obs, clipped).mean() / size
        by_action = direction + config.beta * slope / size * inside
        both = grad, LinearPolicy(np.outer(by_action, row.obs))
        return denoising + direction @ action + config.beta * minus_q, both

    return mean([term(row, draw) for row, draw in zip(rows(batch), rows(draws), strict=True)])


CHECKS = {
    "value": (srpo.value_loss, value_oracle),
    "critic": (srpo.critic_loss, critic_oracle),
    "policy": (srpo.policy_loss, policy_oracle),
}


def check(loss, name, seed, *, slack=1.0):
    state, batch, draws = problem(seed)
    network = (state.diffusion, state.policy) if name == "policy" else getattr(state, name)
    for config in (CONFIG, NORMALIZED) if name == "policy" else (CONFIG,):
        assert_loss(loss, CHECKS[name][1], network, state, batch, draws, config, slack=slack)


@pytest.mark.parametrize("name", CHECKS)
@given(seed=seeds)
def test_the_losses_are_the_oracles(name, seed):
    check(CHECKS[name][0], name, seed)


def another_policy_loss(
    distil=score_distillation_loss,
    diffusion_of=lambda policy, state: policy[0],
    critic=lambda state: state.target_critic,
    beta=lambda config: config.beta,
    gamma=lambda config: 1.0,
    reduce=jnp.mean,
    clip=lambda action: jnp.clip(action, -1, 1),
    stop=jax.lax.stop_gradient,
    schedule=vp_schedule,
    size=lambda slope: jnp.sqrt(jnp.mean(slope**2)),
    exchange=False,
):
    """The loss with its parts free; as they stand here it is right."""

    def loss(policy, state, batch, draws, *, config):
        def one(row, draw):
            action = policy[1](row.obs, jnp.zeros(ACTION))
            data, own = (draw.diffusion_noise, draw.diffusion_t), (draw.policy_noise, draw.policy_t)
            data, own = (own, data) if exchange else (data, own)
            denoising = denoising_loss(policy[0], row.obs, row.action, *data, schedule=schedule)
            distillation = distil(diffusion_of(policy, state), row.obs, action, *own, schedule=schedule)
            q = lambda action: reduce(stop(critic(state))(row.obs, action))
            slope = size(jax.lax.stop_gradient(jax.grad(q)(clip(action)))) if config.normalize_q else 1.0
            return denoising + gamma(config) * distillation - beta(config) * q(clip(action)) / slope

        return jnp.mean(jax.vmap(one)(batch, draws)), None

    return loss


def through_the_diffusion(denoiser, obs, action, noise, t, *, schedule):
    keep = jnp.exp(schedule(t))
    x = jnp.sqrt(keep) * action + jnp.sqrt(1 - keep) * noise
    return jnp.sum((1 - keep) * (denoiser(obs, x, t) - noise) * action)


def another_weight(weight):
    def distil(*args, schedule):
        signal = jnp.exp(schedule(args[-1]))
        return weight(signal) / (1 - signal) * score_distillation_loss(*args, schedule=schedule)

    return distil


WRONG_POLICY_LOSSES = {
    "a gradient into the diffusion": another_policy_loss(distil=through_the_diffusion),
    "the score's weight": another_policy_loss(distil=another_weight(lambda signal: jnp.sqrt(signal / (1 - signal)))),
    "no weight": another_policy_loss(distil=another_weight(lambda signal: 1.0)),
    "the online critic": another_policy_loss(critic=lambda state: state.critic),
    "a gradient into the critic": another_policy_loss(stop=same),
    "beta on the regulariser": another_policy_loss(beta=lambda config: 1.0, gamma=lambda config: config.beta),
    "1 / beta": another_policy_loss(beta=lambda config: 1 / config.beta),
    "the minimum of the ensemble": another_policy_loss(reduce=jnp.min),
    "Q of the unclipped action": another_policy_loss(clip=same),
    "the schedule of IDQL": another_policy_loss(schedule=partial(vp_schedule, beta_max=10.0)),
    "the noise of the other term": another_policy_loss(exchange=True),
    "the norm for the root mean square": another_policy_loss(size=lambda slope: jnp.sqrt(jnp.sum(slope**2))),
}
WRONG = {
    f"{name}: {wrong}": (name, loss)
    for name, losses in {
        "value": WRONG_VALUE_LOSSES,
        "critic": WRONG_CRITIC_LOSSES,
        "policy": WRONG_POLICY_LOSSES,
    }.items()
    for wrong, loss in losses.items()
}


def test_the_mutants_differ_from_a_right_loss():
    check(another_policy_loss(), "policy", SEED)


@each(WRONG)
def test_a_wrong_loss_is_caught(mutant):
    name, loss = mutant
    assert_caught(check, loss, name, SEED)


# ------------------------------------------------------------------- updates, draws and defaults


def test_an_update_steps_each_network_by_its_own_loss_and_then_the_average():
    assert_update(srpo, *problem(SEED)[:2], srpo.Config(tau=0.25))


def test_the_published_defaults():
    assert srpo.Config() == srpo.Config(0.3, False, 0.9, 0.99, 0.005, (-1.0, 1.0))


def test_a_flat_q_is_not_divided_by_zero():
    state, batch, draws = jax.tree.map(jnp.asarray, problem(SEED))
    flat = lambda obs, action: jnp.stack([obs[0], obs[1]]) + 0 * action[0]
    networks = state.diffusion, state.policy
    loss, (_, minus_q) = srpo.policy_loss(networks, state._replace(target_critic=flat), batch, draws, config=NORMALIZED)
    assert jnp.isfinite(loss)
    np.testing.assert_allclose(minus_q, -batch.obs[:, :2].mean(), rtol=1e-12)


def test_the_agent_acts_without_noise():
    state = problem(0)[0]._replace(policy=lambda obs, noise: jnp.array([0.5, 3.0]) + noise)
    act = srpo.actor(state, config=CONFIG)
    assert act(None, jnp.array([0.25, 0.25])).tolist() == [0.5, 1.0]


def test_the_draws_are_standard_normal_and_uniform():
    batch = random_batch(np.random.default_rng(0))
    batch = jax.tree.map(lambda leaf: jnp.repeat(jnp.asarray(leaf), 1000, axis=0), batch)
    draws = srpo.draw(jax.random.key(0), batch, config=srpo.Config())
    for noise in (draws.diffusion_noise, draws.policy_noise):
        assert kstest(np.ravel(noise), "norm").pvalue > 1e-3
    assert kstest((draws.diffusion_t - 0.001) / 0.999, "uniform").pvalue > 1e-3
    assert kstest((draws.policy_t - 0.02) / 0.96, "uniform").pvalue > 1e-3
    assert_unrelated(draws.diffusion_t, draws.policy_t, *draws.diffusion_noise.T, *draws.policy_noise.T)


# ------------------------------------------------------------------- on the ring of five modes


def trained(beta):
    config = srpo.Config(beta=beta)
    sizes = {"width": 16, "depth": 1, "diffusion_width": 32, "blocks": 2}
    networks = srpo.networks(ring.sample(jax.random.key(0), 1), **sizes, key=jax.random.key(0))
    state = diffusing.train(srpo, networks, config, updates=4000)
    return srpo.actor(state, config=config)(jnp.ones(1, jnp.float32), jnp.zeros(2, jnp.float32))


@pytest.mark.slow
def test_the_policy_takes_the_best_mode():
    """Without the regulariser it would end at 1, the bound."""
    action = trained(beta=0.15)
    assert jnp.linalg.norm(action - ring.MODES[0]) < 0.15


@pytest.mark.slow
def test_a_large_beta_leaves_the_data():
    action = trained(beta=10.0)
    assert action[0] > 0.98
