"""FQL: agreement of its losses and gradients with arrays that the published FQL code computed, to 1e-4 relative."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from algorithms import KEY, networks, start, transitions
from assertions import each
from jax.flatten_util import ravel_pytree
from reference import CLIP, assert_agrees, read

from shortcutrl import clipped, distill_loss, flow_matching_loss, fql, nn, q_loss, rollout_k, td_loss


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


# ----------------------------------------------------------------------------------- agreement


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


# ------------------------------------------------------------------------------------- mutants


def another_critic_loss(clip=CLIP, next_noise=lambda draws: draws.td_noise, target=True):
    """`fql.critic_loss` with its parts free; as they stand here it is right."""

    def loss(critic, state, batch, draws, *, config):
        actor = partial(clipped, state.student, clip=clip)
        critics = critic, state.target_critic if target else state.critic
        options = {"discount": config.discount, "aggregate": config.aggregate}
        losses, info = jax.vmap(partial(td_loss, *critics, actor, **options))(batch, next_noise(draws))
        return losses.mean(), info.q.mean()

    return loss


WRONG_CRITIC_LOSSES = {
    "the next action is not clipped": another_critic_loss(clip=None),
    "the policy's noise": another_critic_loss(next_noise=lambda draws: draws.noise),
    "the online critic as its target": another_critic_loss(target=False),
}


def test_the_copy_of_the_critics_loss_agrees(published):
    assert_critic_agrees(another_critic_loss(), published)


@each(WRONG_CRITIC_LOSSES)
def test_a_wrong_critic_loss_is_caught(published, mutant):
    with pytest.raises(AssertionError, match="relative error"):
        assert_critic_agrees(mutant, published)


def another_policy_loss(
    flow_clip=CLIP,
    distil_clip=None,
    q_clip=CLIP,
    alpha=lambda config: config.alpha,
    steps=lambda config: config.flow_steps,
    teacher=lambda flow: jax.tree.map(jax.lax.stop_gradient, flow),
    critic=lambda state: state.critic,
    aggregate="mean",
    distill=distill_loss,
    noise=lambda draws: draws.noise,
):
    """`fql.policy_loss` with its parts free; as they stand here it is right."""

    def loss(policy, state, batch, draws, *, config):
        flow, student = policy
        match = partial(flow_matching_loss, flow, h=0.0)
        flow_matching = jax.vmap(match)(batch.obs, batch.action, draws.flow_noise, draws.flow_t).mean()
        actor = partial(rollout_k, teacher(flow), k=steps(config), clip=flow_clip)
        imitate = partial(distill, partial(clipped, student, clip=distil_clip), actor)
        distillation = jax.vmap(imitate)(batch.obs, noise(draws)).mean()
        improve = partial(q_loss, partial(clipped, student, clip=q_clip), critic(state), aggregate=aggregate)
        losses, _ = jax.vmap(improve)(batch.obs, draws.noise)
        total = flow_matching + alpha(config) * distillation + losses.mean()
        return total, (flow_matching, distillation, losses.mean())

    return loss


def without_stop(student, teacher, obs, noise):
    return jnp.mean(jnp.square(student(obs, noise) - teacher(obs, noise)))


WRONG_POLICY_LOSSES = {
    "Q of the unclipped student": another_policy_loss(q_clip=None),
    "distillation of the unclipped flow": another_policy_loss(flow_clip=None),
    "distillation of the clipped student": another_policy_loss(distil_clip=CLIP),
    "a gradient into the flow": another_policy_loss(distill=without_stop, teacher=lambda flow: flow),
    "the sum over dimensions": another_policy_loss(distill=lambda *args: 3 * distill_loss(*args)),
    "no weight on distillation": another_policy_loss(alpha=lambda config: 1.0),
    "one step too few": another_policy_loss(steps=lambda config: config.flow_steps - 1),
    "one jump": another_policy_loss(steps=lambda config: 1),
    "the minimum of the ensemble": another_policy_loss(aggregate="min"),
    "the target critic": another_policy_loss(critic=lambda state: state.target_critic),
    "the noise of flow matching": another_policy_loss(noise=lambda draws: draws.flow_noise),
}


def test_the_copy_of_the_policys_loss_agrees(published):
    assert_policy_agrees(another_policy_loss(), published)


@each(WRONG_POLICY_LOSSES)
def test_a_wrong_policy_loss_is_caught(published, mutant):
    with pytest.raises(AssertionError, match="relative error"):
        assert_policy_agrees(mutant, published)


# ------------------------------------------------- the same without the arrays, on random networks


def assert_is_the_copy(name, loss):
    """`loss` and its gradient are those of the copy that agrees with the published code, where clipping matters."""
    config = fql.Config(alpha=3.0, flow_steps=3, aggregate="min", clip=(-0.1, 0.1))
    state, batch = start(fql), transitions()
    state = state._replace(target_critic=networks(fql, jax.random.key(1)).critic)
    draws = fql.draw(KEY, batch)
    learning, copy = {
        "critic": (state.critic, another_critic_loss(clip=config.clip)),
        "policy": ((state.flow, state.student), another_policy_loss(flow_clip=config.clip, q_clip=config.clip)),
    }[name]
    results = [
        jax.jit(jax.value_and_grad(partial(each, config=config), has_aux=True))(learning, state, batch, draws)
        for each in (loss, copy)
    ]
    (ours, _), (right, _) = (ravel_pytree((value, grad)) for (value, _), grad in results)
    np.testing.assert_allclose(ours, right, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["critic", "policy"])
def test_the_losses_are_their_copies(name):
    assert_is_the_copy(name, getattr(fql, f"{name}_loss"))


@pytest.mark.parametrize("loss", WRONG_POLICY_LOSSES)
def test_the_mutants_of_the_policys_loss_are_not(loss):
    with pytest.raises(AssertionError, match="Not equal"):
        assert_is_the_copy("policy", WRONG_POLICY_LOSSES[loss])


@pytest.mark.parametrize("loss", WRONG_CRITIC_LOSSES)
def test_the_mutants_of_the_critics_loss_are_not(loss):
    with pytest.raises(AssertionError, match="Not equal"):
        assert_is_the_copy("critic", WRONG_CRITIC_LOSSES[loss])


# ------------------------------------------------------------------------ what the update adds


def test_the_normalised_q_loss_is_divided_by_the_mean_magnitude(published):
    state, draws, config = state_of(published), draws_of(published), config_of(published)
    policy = state.flow, state.student
    terms = fql.policy_loss(policy, state, published.batch, draws, config=config)[1]
    normalised, same = fql.policy_loss(
        policy, state, published.batch, draws, config=fql.Config(alpha=0.0, normalize_q=True)
    )
    student = jax.vmap(partial(clipped, state.student, clip=CLIP))(published.batch.obs, draws.noise)
    q = jax.vmap(state.critic)(published.batch.obs, student).mean(axis=1)
    assert_agrees(normalised, terms[0] + terms[2] / jnp.abs(q).mean())
    assert_agrees(same, terms)


def test_the_agent_acts_with_the_clipped_student(published):
    state, noise = state_of(published), 9 * draws_of(published).noise
    actor = fql.actor(state, config=config_of(published))
    actions = jax.vmap(actor)(published.batch.obs, noise)
    raw = jax.vmap(state.student)(published.batch.obs, noise)
    assert jnp.abs(raw).max() > 1
    assert_agrees(actions, jnp.clip(raw, *CLIP))
