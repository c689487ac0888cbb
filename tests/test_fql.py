"""FQL: its losses and gradients are the published ones, to 1e-4 relative, and those of a plain oracle."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from algorithms import assert_update
from assertions import assert_caught, assert_unrelated, each, seeds
from hypothesis import given
from losses import (
    ACTION,
    BATCH,
    LinearPolicy,
    LinearVelocity,
    QuadraticCritic,
    assert_loss,
    mean,
    random_batch,
    rows,
    same,
)
from reference import CLIP, assert_agrees, read
from scipy.stats import kstest

from shortcutrl import distill_loss, flow_matching_loss, fql, nn, rollout_k

CONFIG = fql.Config(alpha=0.7, discount=0.9, tau=0.25)
OTHER = fql.Config(alpha=0.7, discount=0.9, aggregate="min", flow_steps=3, normalize_q=True)
SEED = 0

# --------------------------------------------------------------------------- the published arrays


@pytest.fixture(scope="module")
def published():
    return read("fql_repo_baselines.npz")


def flow_of(published, folder):
    return published.policy(f"{folder}/actor_bc_flow", nn.FlowPolicy)


def student_of(published, folder):
    return published.policy(f"{folder}/actor_onestep_flow", nn.OneStepPolicy)


def state_of(published):
    critics = (published.critic(f"fql/params/{name}") for name in ("critic", "target_critic"))
    networks = flow_of(published, "fql/params"), student_of(published, "fql/params")
    return fql.State(*networks, *critics, None, None, None)


def config_of(published):
    meta = {name: published[f"fql/meta/{name}"] for name in ("alpha", "flow_steps", "discount", "normalize_q_loss")}
    return fql.Config(
        alpha=float(meta["alpha"]),
        flow_steps=int(meta["flow_steps"]),
        discount=float(meta["discount"]),
        aggregate="min" if published["fql/meta/q_agg_is_min"] else "mean",
        normalize_q=bool(meta["normalize_q_loss"]),
        clip=CLIP,
    )


def draws_of(published):
    folders = "fql/critic/noise", "fql/actor/noise", "fql/actor/flow_noise", "fql/actor/t"
    return fql.Draws(*(published[name] for name in folders))


def value_and_grad(loss, published, network):
    of_network = jax.jit(jax.value_and_grad(partial(loss, config=config_of(published)), has_aux=True))
    return of_network(network, state_of(published), published.batch, draws_of(published))


def assert_critic_agrees(loss, published):
    (value, q), grad = value_and_grad(loss, published, state_of(published).critic)
    assert_agrees(value, published["fql/critic/loss"])
    assert_agrees(grad, published.critic("fql/critic/grad/critic"))
    data_q = jax.vmap(state_of(published).critic)(*published.batch[:2]).mean()
    assert_agrees(q, data_q)


def assert_policy_agrees(loss, published):
    state = state_of(published)
    (value, terms), grads = value_and_grad(loss, published, (state.flow, state.student))
    names = "bc_flow_loss", "distill_loss", "q_loss"
    assert_agrees(value, published["fql/actor/loss"])
    assert_agrees(terms, tuple(published[f"fql/actor/{name}"] for name in names))
    assert_agrees(grads[0], flow_of(published, "fql/actor/grad"))
    assert_agrees(grads[1], student_of(published, "fql/actor/grad"))


def test_the_critics_loss_and_its_gradient(published):
    assert_critic_agrees(fql.critic_loss, published)


def test_the_policys_loss_and_its_gradients(published):
    assert_policy_agrees(fql.policy_loss, published)


def test_the_flows_actions(published):
    flow = partial(rollout_k, state_of(published).flow, k=config_of(published).flow_steps, clip=CLIP)
    actions = jax.jit(jax.vmap(flow))(published.batch.obs, published["fql/actor/noise"])
    assert_agrees(actions, published["fql/flow_actions"])


# --------------------------------------------------------------------------- plain oracles


def problem(seed):
    rng = np.random.default_rng(seed)
    networks = LinearVelocity.random(rng), LinearPolicy.random(rng), QuadraticCritic.random(rng)
    draws = fql.Draws(*rng.normal(size=(3, BATCH, ACTION)), rng.uniform(size=BATCH))
    return fql.State(*networks, QuadraticCritic.random(rng), None, None, None), random_batch(rng), draws


def critic_oracle(critic, state, batch, draws, config):
    def term(row, draw):
        next_action = np.clip(state.student.w @ row.next_obs + draw.td_noise, *config.clip)
        next_q = np.asarray(state.target_critic(row.next_obs, next_action))
        next_v = next_q.min() if config.aggregate == "min" else next_q.mean()
        error = critic(row.obs, row.action) - (row.reward + config.discount * row.mask * next_v)
        grad = QuadraticCritic(np.outer(error, row.obs), error[:, None] * (row.action - critic.goal))
        return np.mean(error**2), grad

    return mean([term(row, draw) for row, draw in zip(rows(batch), rows(draws), strict=True)])


def policy_oracle(policy, state, batch, draws, config):
    (low, high), (flow, student) = config.clip, policy
    pairs = list(zip(rows(batch), rows(draws), strict=True))
    acts = [student.w @ row.obs + draw.student_noise for row, draw in pairs]
    q = [np.mean(state.critic(row.obs, np.clip(act, low, high))) for (row, _), act in zip(pairs, acts, strict=True)]
    size = np.mean(np.abs(q)) if config.normalize_q else 1.0

    def term(row, draw, act, q):
        matching, grad = flow.matching(row.action, draw.flow_noise, draw.flow_t)
        error = act - np.clip(flow.euler(draw.student_noise, config.flow_steps)[0], low, high)
        slope = (np.clip(act, low, high) - state.critic.goal.mean(axis=0)) * ((low < act) & (act < high))  # of minus Q
        by_action = config.alpha * 2 * error / ACTION + slope / size
        loss = matching + config.alpha * np.mean(error**2) - q / size
        return loss, (grad, LinearPolicy(np.outer(by_action, row.obs)))

    return mean([term(*pair, *each) for pair, *each in zip(pairs, acts, q, strict=True)])


CHECKS = {"critic": (fql.critic_loss, critic_oracle), "policy": (fql.policy_loss, policy_oracle)}


def check(loss, name, seed, *, slack=1.0):
    state, batch, draws = problem(seed)
    network = (state.flow, state.student) if name == "policy" else state.critic
    for config in (CONFIG, OTHER):
        assert_loss(loss, CHECKS[name][1], network, state, batch, draws, config, slack=slack)


@pytest.mark.parametrize("name", CHECKS)
@given(seed=seeds)
def test_the_losses_are_the_oracles(name, seed):
    check(CHECKS[name][0], name, seed)


# --------------------------------------------------------------------------- mutants


def clip_to(action, config):
    return jnp.clip(action, *config.clip)


def unclipped(action, config):
    return action


def another_critic_loss(
    clip=clip_to,
    noise="td_noise",
    critic="target_critic",
    obs="next_obs",
    aggregate=lambda q, config: q.min() if config.aggregate == "min" else q.mean(),
    stop=jax.lax.stop_gradient,
):
    """The loss with its parts free; as they stand here it is right."""

    def loss(learning, state, batch, draws, *, config):
        def one(row, draw):
            seen = getattr(row, obs)
            action = clip(state.student(seen, getattr(draw, noise)), config)
            next_v = aggregate(getattr(state, critic)(seen, action), config)
            q = learning(row.obs, row.action)
            return jnp.mean((q - stop(row.reward + config.discount * row.mask * next_v)) ** 2), q.mean()

        return jax.tree.map(jnp.mean, jax.vmap(one)(batch, draws))

    return loss


def another_policy_loss(
    flow_clip=clip_to,
    distil_clip=unclipped,
    q_clip=clip_to,
    alpha=lambda config: config.alpha,
    steps=lambda config: config.flow_steps,
    teacher=lambda flow: jax.tree.map(jax.lax.stop_gradient, flow),
    critic="critic",
    stop=lambda critic: jax.tree.map(jax.lax.stop_gradient, critic),
    aggregate=jnp.mean,
    distil=distill_loss,
    noise="student_noise",
    q_noise="student_noise",
    size=lambda q, config: jax.lax.stop_gradient(jnp.abs(q).mean()) if config.normalize_q else 1.0,
):
    """The loss with its parts free; as they stand here it is right."""

    def loss(policy, state, batch, draws, *, config):
        flow, student = policy

        def one(row, draw):
            matching = flow_matching_loss(flow, row.obs, row.action, draw.flow_noise, draw.flow_t, h=0.0)
            imitate = lambda obs, noise: distil_clip(student(obs, noise), config)
            actor = lambda obs, noise: flow_clip(rollout_k(teacher(flow), obs, noise, k=steps(config)), config)
            distillation = distil(imitate, actor, row.obs, getattr(draw, noise))
            action = q_clip(student(row.obs, getattr(draw, q_noise)), config)
            return matching, distillation, aggregate(stop(getattr(state, critic))(row.obs, action))

        matching, distillation, q = jax.vmap(one)(batch, draws)
        terms = matching.mean(), distillation.mean(), -q.mean()
        return terms[0] + alpha(config) * terms[1] + terms[2] / size(q, config), terms

    return loss


def without_stop(student, teacher, obs, noise):
    return jnp.mean(jnp.square(student(obs, noise) - teacher(obs, noise)))


RIGHT = {"critic": another_critic_loss(), "policy": another_policy_loss()}
WRONG = {
    "critic: the next action is not clipped": ("critic", another_critic_loss(clip=unclipped)),
    "critic: the policy's noise": ("critic", another_critic_loss(noise="student_noise")),
    "critic: the online critic as its target": ("critic", another_critic_loss(critic="critic")),
    "critic: bootstraps from obs": ("critic", another_critic_loss(obs="obs")),
    "policy: Q of the unclipped student": ("policy", another_policy_loss(q_clip=unclipped)),
    "policy: distillation of the unclipped flow": ("policy", another_policy_loss(flow_clip=unclipped)),
    "policy: distillation of the clipped student": ("policy", another_policy_loss(distil_clip=clip_to)),
    "policy: a gradient into the flow": ("policy", another_policy_loss(distil=without_stop, teacher=same)),
    "policy: the sum over dimensions": ("policy", another_policy_loss(distil=lambda *args: 3 * distill_loss(*args))),
    "policy: no weight on distillation": ("policy", another_policy_loss(alpha=lambda config: 1.0)),
    "policy: one step too few": ("policy", another_policy_loss(steps=lambda config: config.flow_steps - 1)),
    "policy: one jump": ("policy", another_policy_loss(steps=lambda config: 1)),
    "policy: the minimum of the ensemble": ("policy", another_policy_loss(aggregate=jnp.min)),
    "policy: the target critic": ("policy", another_policy_loss(critic="target_critic")),
    "policy: the noise of flow matching": ("policy", another_policy_loss(noise="flow_noise")),
    "policy: Q of the target's noise": ("policy", another_policy_loss(q_noise="td_noise")),
}
UNPUBLISHED = {
    "critic: always the mean": ("critic", another_critic_loss(aggregate=lambda q, config: q.mean())),
    "critic: always the minimum": ("critic", another_critic_loss(aggregate=lambda q, config: q.min())),
    "critic: a gradient into the target": ("critic", another_critic_loss(stop=same)),
    "policy: a gradient into the critic": ("policy", another_policy_loss(stop=same)),
    "policy: Q never normalised": ("policy", another_policy_loss(size=lambda q, config: 1.0)),
    "policy: a gradient into the normaliser": (
        "policy",
        another_policy_loss(size=lambda q, config: jnp.abs(q).mean() if config.normalize_q else 1.0),
    ),
}
"""Those that the published arrays, of one config and of one gradient for each loss, cannot all tell apart."""


@pytest.mark.parametrize("name", CHECKS)
def test_the_mutants_differ_from_a_right_loss(name):
    check(RIGHT[name], name, SEED)


@each(WRONG | UNPUBLISHED)
def test_a_wrong_loss_is_caught(mutant):
    name, loss = mutant
    assert_caught(check, loss, name, SEED)


AGREES = {"critic": assert_critic_agrees, "policy": assert_policy_agrees}


@pytest.mark.parametrize("name", AGREES)
def test_the_right_copies_agree_with_the_published_arrays(published, name):
    AGREES[name](RIGHT[name], published)


@each(WRONG)
def test_the_published_arrays_catch_a_wrong_loss(published, mutant):
    name, loss = mutant
    with pytest.raises(AssertionError, match="relative error"):
        AGREES[name](loss, published)


# --------------------------------------------------------------------------- updates, draws and defaults


def test_an_update_steps_each_network_by_its_own_loss_and_then_the_average():
    assert_update(fql, *problem(SEED)[:2], CONFIG)


def test_the_terms_are_reported_before_weighting():
    state, batch, draws = jax.tree.map(jnp.asarray, problem(SEED))
    for config in (CONFIG, OTHER):
        _, terms = fql.policy_loss((state.flow, state.student), state, batch, draws, config=config)
        _, expected = RIGHT["policy"]((state.flow, state.student), state, batch, draws, config=config)
        np.testing.assert_allclose(terms, expected, rtol=1e-12)
    _, q = fql.critic_loss(state.critic, state, batch, draws, config=CONFIG)
    np.testing.assert_allclose(q, jax.vmap(state.critic)(batch.obs, batch.action).mean(), rtol=1e-12)


def test_the_agent_acts_with_the_clipped_student():
    state, batch, draws = jax.tree.map(jnp.asarray, problem(SEED))
    act = fql.actor(state, config=CONFIG)
    raw = batch.obs[0] @ state.student.w.T + 9 * draws.student_noise[0]
    assert jnp.abs(raw).max() > 1
    np.testing.assert_allclose(act(batch.obs[0], 9 * draws.student_noise[0]), jnp.clip(raw, -1, 1), rtol=1e-12)


def test_the_published_defaults():
    assert fql.Config() == fql.Config(10.0, 10, 0.99, "mean", False, 0.005, (-1.0, 1.0))


def test_the_draws_are_standard_normal_and_uniform():
    batch = jax.tree.map(lambda leaf: jnp.repeat(jnp.asarray(leaf), 1000, axis=0), problem(0)[1])
    draws = fql.draw(jax.random.key(0), batch, config=fql.Config())
    noises = draws.td_noise, draws.student_noise, draws.flow_noise
    assert all(kstest(np.ravel(noise), "norm").pvalue > 1e-3 for noise in noises)
    assert kstest(np.ravel(draws.flow_t), "uniform").pvalue > 1e-3
    assert_unrelated(draws.flow_t, *(row for noise in noises for row in noise.T))
