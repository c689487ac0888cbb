"""IDQL: its losses, its updates and its choice of action are the published ones; what is subtly wrong is caught."""

from functools import partial

import diffusing
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import ring
from algorithms import assert_update
from assertions import assert_caught, assert_to_rounding, assert_uniform, assert_unrelated, each, seeds
from diffusing import LinearDenoiser, signal
from hypothesis import given
from losses import (
    ACTION,
    BATCH,
    WRONG_CRITIC_LOSSES,
    WRONG_VALUE_LOSSES,
    LinearValue,
    QuadraticCritic,
    assert_loss,
    critic_oracle,
    mean,
    random_batch,
    rows,
    value_oracle,
)
from scipy.stats import kstest

from shortcutrl import ddpm_sample, idql, vp_schedule

CONFIG = idql.Config()
STEPS, SEED = 5, 3


def problem(seed):
    rng = np.random.default_rng(seed)
    networks = LinearDenoiser.random(rng), QuadraticCritic.random(rng), LinearValue.random(rng)
    state = idql.State(*networks, LinearDenoiser.random(rng), QuadraticCritic.random(rng), None, None, None)
    draws = idql.Draws(rng.normal(size=(BATCH, ACTION)), rng.integers(1, STEPS + 1, BATCH) / STEPS)
    return state, random_batch(rng), draws, rng


# ------------------------------------------------------------------- plain oracles, and mutants


def policy_oracle(policy, state, batch, draws, config):
    pairs = zip(rows(batch), rows(draws), strict=True)
    return mean([policy.denoising(row.action, draw.diffusion_noise, draw.diffusion_t, 10.0) for row, draw in pairs])


CHECKS = {
    "value": (idql.value_loss, value_oracle),
    "critic": (idql.critic_loss, critic_oracle),
    "policy": (idql.policy_loss, policy_oracle),
}


def check(loss, name, seed, *, slack=1.0):
    state, batch, draws, _ = problem(seed)
    assert_loss(loss, CHECKS[name][1], getattr(state, name), state, batch, draws, CONFIG, slack=slack)


@pytest.mark.parametrize("name", CHECKS)
@given(seed=seeds)
def test_the_losses_are_the_oracles(name, seed):
    check(CHECKS[name][0], name, seed)


def another_policy_loss(beta_max=10.0, shift=0.0, sign=1, reduce=jnp.mean, power=0.5):
    """The loss with its parts free; as they stand here it is right."""

    def loss(policy, state, batch, draws, *, config):
        def one(row, draw):
            keep = jnp.exp(vp_schedule(draw.diffusion_t - shift, beta_max=beta_max))
            x = keep**power * row.action + (1 - keep) ** power * draw.diffusion_noise
            return reduce((policy(row.obs, x, draw.diffusion_t) - sign * draw.diffusion_noise) ** 2)

        return jnp.mean(jax.vmap(one)(batch, draws)), None

    return loss


WRONG_POLICY_LOSSES = {
    "the schedule of SRPO": another_policy_loss(beta_max=20.0),
    "a step early": another_policy_loss(shift=1 / STEPS),
    "wrong sign": another_policy_loss(sign=-1),
    "a sum over the dimensions": another_policy_loss(reduce=jnp.sum),
    "no roots": another_policy_loss(power=1.0),
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


# ------------------------------------------------------------------- the choice of an action


def sampled(denoiser, noise, steps=STEPS, clip=(-1, 1)):
    """By the published recursion over the betas, clipped after each step."""
    i = np.arange(1, steps + 1)
    alphas = np.exp(-0.1 / steps - 0.5 * (10 - 0.1) * (2 * i - 1) / steps**2)
    products, x = np.cumprod(alphas), noise[0]
    for step in reversed(range(steps)):
        predicted = denoiser.rate * x + (step + 1) / steps * denoiser.b
        x = (x - (1 - alphas[step]) / np.sqrt(1 - products[step]) * predicted) / np.sqrt(alphas[step])
        x = x + np.sqrt(1 - alphas[step]) * noise[steps - step] if step > 0 else x
        x = np.clip(x, *clip)
    return x


def assert_chooses(choose, seed, *, slack=1.0):
    state, batch, _, rng = problem(seed)
    noise, obs = rng.normal(size=(8, STEPS, ACTION)), batch.obs[0]
    candidates = [sampled(state.target_policy, each) for each in noise]
    best = max(candidates, key=lambda action: min(state.target_critic(obs, action)))
    args = jax.tree.map(jnp.asarray, (state, obs, noise))
    assert_to_rounding(jax.jit(choose)(*args) - best, 100.0, slack=slack)


def act(state, obs, noise):
    return idql.actor(state, config=CONFIG, n=8)(obs, noise)


@given(seed=seeds)
def test_the_agent_takes_the_best_sample(seed):
    assert_chooses(act, seed)


def another_choice(
    policy="target_policy", critic="target_critic", score=jnp.min, best=jnp.argmax, clip=(-1.0, 1.0), late=False
):
    def choose(state, obs, noise):
        options = {"steps": STEPS, "schedule": partial(vp_schedule, beta_max=10.0), "clip": clip}
        candidates = jax.vmap(partial(ddpm_sample, getattr(state, policy), obs, **options))(noise)
        candidates = jnp.clip(candidates, -1, 1) if late else candidates
        q = jax.vmap(lambda action: score(getattr(state, critic)(obs, action)))(candidates)
        return candidates[best(q)]

    return choose


def test_the_other_choices_differ_from_a_right_one():
    assert_chooses(another_choice(), SEED)


WRONG_CHOICES = {
    "the online policy": another_choice(policy="policy"),
    "the online critic": another_choice(critic="critic"),
    "the mean of the ensemble": another_choice(score=jnp.mean),
    "the worst": another_choice(best=jnp.argmin),
    "the first": another_choice(best=lambda q: 0),
    "not clipped": another_choice(clip=None),
    "clipped at the end alone": another_choice(clip=None, late=True),
}


@each(WRONG_CHOICES)
def test_a_wrong_choice_is_caught(mutant):
    assert_caught(assert_chooses, mutant, SEED)


def test_one_candidate_needs_no_critic():
    state, batch, _, rng = problem(SEED)
    noise = rng.normal(size=(STEPS, ACTION))
    act = idql.actor(state._replace(target_critic=None), config=CONFIG, n=1)
    np.testing.assert_allclose(act(batch.obs[0], noise), sampled(state.target_policy, noise), rtol=1e-10)


# ------------------------------------------------------------------- updates, draws and defaults


def test_an_update_steps_each_network_by_its_own_loss_and_then_the_averages():
    assert_update(idql, *problem(SEED)[:2], idql.Config(tau=0.25))


def test_the_published_defaults():
    assert idql.Config() == idql.Config(0.9, 32, 5, 0.99, 0.005, (-1.0, 1.0))
    assert idql.actor(problem(0)[0], config=idql.Config(num_candidates=1)).func is ddpm_sample
    assert np.isclose(np.exp(idql.SCHEDULE(0.4)), signal(0.4, 10.0))


def test_the_draws_are_standard_normal_and_of_each_step():
    batch = random_batch(np.random.default_rng(0))
    batch = jax.tree.map(lambda leaf: jnp.repeat(jnp.asarray(leaf), 1000, axis=0), batch)
    draws = idql.draw(jax.random.key(0), batch, config=CONFIG)
    assert kstest(np.ravel(draws.diffusion_noise), "norm").pvalue > 1e-3
    assert_uniform(np.rint(STEPS * draws.diffusion_t), np.arange(1, STEPS + 1))
    assert_unrelated(draws.diffusion_t, *draws.diffusion_noise.T)


# ------------------------------------------------------------------- on the ring of five modes


@pytest.fixture(scope="module")
def trained():
    config = idql.Config(denoising_steps=10, tau=0.02)
    sizes = {"width": 8, "depth": 1, "policy_width": 32, "blocks": 2}
    networks = idql.networks(ring.sample(jax.random.key(0), 1), **sizes, key=jax.random.key(0))
    return diffusing.train(idql, networks, config, updates=4000), config


@pytest.mark.slow
def test_the_diffusion_keeps_all_modes(trained):
    """A Gaussian of the data's moments has 72% of its samples far from every mode."""
    state, config = trained
    actions = ring.act(idql.actor(state, config=config, n=1), shape=(10, 2))
    assert ring.shares(actions).min() > 0.12
    assert ring.strays(actions) < 0.25


@pytest.mark.slow
def test_the_best_of_many_is_better_and_within_the_data(trained):
    state, config = trained
    one, best = (
        ring.act(idql.actor(state, config=config, n=n), shape=shape) for n, shape in ((1, (10, 2)), (32, (32, 10, 2)))
    )
    assert best[:, 0].mean() > one[:, 0].mean() + 0.6
    assert ring.shares(best)[0] > 0.8
    assert ring.strays(best) < 0.25
