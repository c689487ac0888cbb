"""ReBRAC: its losses are the published ones, every second update moves the policy; what is subtly wrong is caught."""

from functools import partial

import fql_repo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import ring
from algorithms import assert_update
from assertions import assert_caught, each, seeds
from hypothesis import given
from losses import (
    ACTION,
    BATCH,
    LinearPolicy,
    QuadraticCritic,
    assert_loss,
    mean,
    random_batch,
    rows,
    same,
)
from scipy.stats import kstest

from shortcutrl import nn, rebrac

CONFIG = rebrac.Config(policy_penalty=0.3, critic_penalty=0.7, target_noise=0.4, discount=0.9, clip=(-0.7, 0.7))
SEED = 0

# ------------------------------------------------------------------- the published arrays

MAKE = {
    "policy": partial(nn.DeterministicPolicy, 7, 3),
    "critic": partial(nn.EnsembleCritic, 7, 3),
    "target_policy": partial(nn.DeterministicPolicy, 7, 3),
    "target_critic": partial(nn.EnsembleCritic, 7, 3),
}
SETTINGS = {
    "policy_penalty": "alpha_actor",
    "critic_penalty": "alpha_critic",
    "target_noise": "actor_noise",
    "target_noise_clip": "actor_noise_clip",
    "discount": "discount",
}


def published():
    nets = {
        name: fql_repo.network(f"rebrac/params/{name.replace('policy', 'actor')}", make) for name, make in MAKE.items()
    }
    config = rebrac.Config(**{ours: float(fql_repo.arrays()[f"rebrac/meta/{name}"]) for ours, name in SETTINGS.items()})
    return rebrac.State(**nets, policy_opt_state=None, critic_opt_state=None, updates=jnp.int32(0)), config


@pytest.mark.parametrize(
    ("loss", "name", "folder"),
    [(rebrac.critic_loss, "critic", "critic/critic"), (rebrac.policy_loss, "policy", "actor/actor")],
)
def test_the_losses_and_gradients_are_the_published_ones(loss, name, folder):
    state, config = published()
    draws = rebrac.Draws(fql_repo.arrays()["rebrac/critic/noise"])
    fql_repo.assert_loss_agrees(loss, getattr(state, name), state, draws, config, f"rebrac/{folder}", MAKE[name])


# ------------------------------------------------------------------- plain oracles, and mutants


def problem(seed):
    rng = np.random.default_rng(seed)
    policies = [LinearPolicy.random(rng, noisy=False) for _ in range(2)]
    critics = [QuadraticCritic.random(rng) for _ in range(2)]
    state = rebrac.State(policies[0], critics[0], policies[1], critics[1], None, None, np.int32(0))
    return state, random_batch(rng), rebrac.Draws(2 * rng.normal(size=(BATCH, ACTION)))


def critic_oracle(critic, state, batch, draws, config):
    def term(row, draw):
        size = config.target_noise_clip
        noise = np.clip(config.target_noise * draw.target_noise, -size, size)
        next_action = np.clip(state.target_policy.w @ row.next_obs + noise, *config.clip)
        penalty = config.critic_penalty * np.sum((next_action - row.next_action) ** 2)
        next_v = min(state.target_critic(row.next_obs, next_action)) - penalty
        error = critic(row.obs, row.action) - (row.reward + config.discount * row.mask * next_v)
        grad = QuadraticCritic(np.outer(error, row.obs), error[:, None] * (row.action - critic.goal))
        return np.mean(error**2), grad

    return mean([term(row, draw) for row, draw in zip(rows(batch), rows(draws), strict=True)])


def policy_oracle(policy, state, batch, draws, config):
    size = np.mean([abs(min(state.critic(row.obs, policy.w @ row.obs))) for row in rows(batch)])

    def term(row):
        mu = policy.w @ row.obs
        q = np.asarray(state.critic(row.obs, mu))
        slope = (mu - state.critic.goal[np.argmin(q)]) / size + 2 * config.policy_penalty * (mu - row.action)
        loss = -min(q) / size + config.policy_penalty * np.sum((mu - row.action) ** 2)
        return loss, LinearPolicy(np.outer(slope, row.obs), noisy=False)

    return mean([term(row) for row in rows(batch)])


CHECKS = {"critic": (rebrac.critic_loss, critic_oracle), "policy": (rebrac.policy_loss, policy_oracle)}


def check(loss, name, seed, *, slack=1.0):
    state, batch, draws = problem(seed)
    assert_loss(loss, CHECKS[name][1], getattr(state, name), state, batch, draws, CONFIG, slack=slack)


@pytest.mark.parametrize("name", CHECKS)
@given(seed=seeds)
def test_the_losses_are_the_oracles(name, seed):
    check(CHECKS[name][0], name, seed)


def clip(x, low, high):
    return jnp.clip(x, low, high)


def unclipped(x, low, high):
    return x


def another_critic_loss(
    clip_noise=clip,
    clip_action=clip,
    policy="target_policy",
    critic="target_critic",
    towards="next_action",
    penalty=1,
    least=jnp.min,
    reduce=jnp.sum,
    stop=jax.lax.stop_gradient,
):
    """The loss with its parts free; as they stand here it is right."""

    def loss(learning, state, batch, draws, *, config):
        def one(row, draw):
            size = config.target_noise_clip
            noise = clip_noise(config.target_noise * draw.target_noise, -size, size)
            action = clip_action(getattr(state, policy).w @ row.next_obs + noise, *config.clip)
            distance = config.critic_penalty * reduce((action - getattr(row, towards)) ** 2)
            next_v = least(getattr(state, critic)(row.next_obs, action)) - penalty * distance
            target = stop(row.reward + config.discount * row.mask * next_v)
            return jnp.mean((learning(row.obs, row.action) - target) ** 2)

        return jnp.mean(jax.vmap(one)(batch, draws)), None

    return loss


def another_policy_loss(
    towards="action",
    least=jnp.min,
    reduce=jnp.sum,
    stop=jax.lax.stop_gradient,
    stop_critic=jax.lax.stop_gradient,
    critic="critic",
):
    """The loss with its parts free; as they stand here it is right."""

    def loss(policy, state, batch, draws, *, config):
        action = jax.vmap(lambda obs: policy.w @ obs)(batch.obs)
        q = jax.vmap(lambda obs, action: least(stop_critic(getattr(state, critic))(obs, action)))(batch.obs, action)
        distance = jax.vmap(reduce)((action - getattr(batch, towards)) ** 2)
        return -q.mean() / stop(jnp.abs(q).mean()) + config.policy_penalty * distance.mean(), None

    return loss


RIGHT = {"critic": another_critic_loss(), "policy": another_policy_loss()}
WRONG = {
    "critic: noise not clipped": ("critic", another_critic_loss(clip_noise=unclipped)),
    "critic: no noise": ("critic", another_critic_loss(clip_noise=lambda x, low, high: 0 * x)),
    "critic: action not clipped": ("critic", another_critic_loss(clip_action=unclipped)),
    "critic: the online policy": ("critic", another_critic_loss(policy="policy")),
    "critic: the online critic": ("critic", another_critic_loss(critic="critic")),
    "critic: penalty on the wrong action": ("critic", another_critic_loss(towards="action")),
    "critic: penalty of the wrong sign": ("critic", another_critic_loss(penalty=-1)),
    "critic: penalty as a mean": ("critic", another_critic_loss(reduce=jnp.mean)),
    "critic: the mean of the ensemble": ("critic", another_critic_loss(least=jnp.mean)),
    "critic: gradient into the target": ("critic", another_critic_loss(stop=same)),
    "policy: penalty on the wrong action": ("policy", another_policy_loss(towards="next_action")),
    "policy: penalty as a mean": ("policy", another_policy_loss(reduce=jnp.mean)),
    "policy: the mean of the ensemble": ("policy", another_policy_loss(least=jnp.mean)),
    "policy: the target critic": ("policy", another_policy_loss(critic="target_critic")),
    "policy: gradient into the normaliser": ("policy", another_policy_loss(stop=same)),
    "policy: gradient into the critic": ("policy", another_policy_loss(stop_critic=same)),
}


@pytest.mark.parametrize("name", CHECKS)
def test_the_mutants_differ_from_a_right_loss(name):
    check(RIGHT[name], name, SEED)


@each(WRONG)
def test_a_wrong_loss_is_caught(mutant):
    name, loss = mutant
    assert_caught(check, loss, name, SEED)


# ------------------------------------------------------------------- the updates

OPTIMIZERS = rebrac.Networks(optax.sgd(0.1), optax.sgd(0.1))


def follow(update, config, count):
    """What each of `count` updates moves: policy, critic, target policy, target critic."""
    state, batch, _ = jax.tree.map(jnp.asarray, problem(SEED))
    state = rebrac.init((state.policy, state.critic), config=config, optimizers=OPTIMIZERS)
    jitted, moved = jax.jit(partial(update, config=config, optimizers=OPTIMIZERS)), []
    for i in range(count):
        before, (state, info) = state, jitted(state, batch, key=jax.random.key(i))
        moved.append(
            "".join(
                letter
                if (jax.tree.leaves(getattr(before, name))[0] != jax.tree.leaves(getattr(state, name))[0]).any()
                else "-"
                for letter, name in zip("pcPC", state._fields, strict=False)
            )
        )
        assert bool(info.policy_moved) == ("p" in moved[-1]) == bool(info.imitation) == bool(info.q_loss)
    assert jitted._cache_size() == 1
    assert state.updates == count
    return moved


@pytest.mark.parametrize(
    ("period", "expected"),
    [(1, ["pcPC"] * 4), (2, ["-c--", "pcPC"] * 2), (3, ["-c--", "-c--", "pcPC", "-c--"])],
)
def test_the_policy_and_the_targets_move_in_every_second_update(period, expected):
    assert follow(rebrac.update, rebrac.Config(policy_period=period), 4) == expected


def test_an_update_steps_each_network_by_its_own_loss_and_then_the_averages():
    assert_update(rebrac, *problem(SEED)[:2], rebrac.Config(policy_period=1, tau=0.25))


def update(state, batch, draws):
    return rebrac.update(state, batch, config=CONFIG, optimizers=OPTIMIZERS, key=jax.random.key(0))


def fit(state, batch, draws):
    return rebrac.critic_loss(state.critic, state, batch, draws, config=CONFIG)


@pytest.mark.parametrize("call", [update, fit])
@pytest.mark.parametrize("wrong", [None, jnp.ones((BATCH, 3)), jnp.ones(BATCH), [[0.0] * ACTION] * BATCH])
def test_a_batch_without_the_next_action_is_refused(call, wrong):
    state, batch, draws = jax.tree.map(jnp.asarray, problem(SEED))
    state = rebrac.init((state.policy, state.critic), config=CONFIG, optimizers=OPTIMIZERS)
    with pytest.raises((ValueError, TypeError), match=r"^`batch[^\n]*next_action") as raised:
        call(state, batch._replace(next_action=wrong), draws)
    assert wrong is not None or "`data.sample` gives it" in str(raised.value)


def test_the_initial_policy_acts_near_zero_and_within_the_range():
    policy, _ = rebrac.networks(problem(0)[1], width=64, depth=2, key=jax.random.key(0))
    bound = 0.1 * np.sqrt(6 / (64 + ACTION))
    assert 0.8 * bound < jnp.abs(policy.mlp.weights[-1]).max() <= bound
    far = 1e4 * jnp.ones(3)
    assert jnp.abs(policy(far, None)).max() <= 1
    assert jnp.allclose(policy(far, None), jnp.tanh(policy.mlp(far)))


def test_the_published_defaults():
    assert rebrac.Config() == rebrac.Config(0.01, 0.01, 0.2, 0.5, 2, 0.99, 0.005, (-1.0, 1.0))


def test_the_agent_acts_without_noise():
    state = problem(0)[0]._replace(policy=lambda obs, noise: jnp.array([0.5, 3.0]) + noise)
    act = rebrac.actor(state, config=rebrac.Config())
    assert act(None, jnp.array([0.25, 0.25])).tolist() == [0.5, 1.0]


def test_the_draws_are_standard_normal():
    batch = jax.tree.map(lambda leaf: jnp.repeat(jnp.asarray(leaf), 1000, axis=0), problem(0)[1])
    draws = rebrac.draw(jax.random.key(0), batch, config=rebrac.Config())
    assert kstest(np.ravel(draws.target_noise), "norm").pvalue > 1e-3


# ------------------------------------------------------------------- on the ring of five modes


@pytest.mark.slow
def test_the_penalty_decides_how_far_it_follows_q():
    """The data's mean is 0 and its best action 0.8: a light penalty leaves the data, a heavy one keeps to the mean."""
    right = {}
    for penalty in (0.1, 3.0):
        config = rebrac.Config(policy_penalty=penalty)
        actions = ring.act(rebrac.actor(ring.train(rebrac, config), config=config))
        assert jnp.ptp(actions, axis=0).max() < 1e-6  # one mode, whatever the noise
        right[penalty] = float(actions[0, 0])
    assert right[0.1] > 0.9
    assert 0.2 < right[3.0] < 0.7
