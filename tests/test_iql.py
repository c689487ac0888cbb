"""IQL: its losses are the published ones and those of a plain oracle; what is subtly wrong is caught."""

from functools import partial

import fql_repo
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import ring
from algorithms import assert_update
from assertions import assert_caught, each, seeds
from hypothesis import given
from losses import (
    WRONG_CRITIC_LOSSES,
    WRONG_VALUE_LOSSES,
    LinearPolicy,
    LinearValue,
    QuadraticCritic,
    another_critic_loss,
    another_value_loss,
    assert_loss,
    critic_oracle,
    mean,
    random_batch,
    rows,
    same,
    value_oracle,
)

from shortcutrl import Transition, iql, nn

AWR = iql.Config(alpha=1.5, expectile=0.8, discount=0.9)
DDPGBC = iql.Config(policy="ddpgbc", alpha=0.3, clip=(-0.5, 0.5))
DRAWS = iql.Draws()
SEED = 22
"""Of a problem in which every mutant matters: a weight beyond the cap, a mean beyond the range of actions."""

# ------------------------------------------------------------------- the published arrays

MAKE = {
    "policy": partial(nn.GaussianPolicy, 7, 3),
    "critic": partial(nn.EnsembleCritic, 7, 3),
    "target_critic": partial(nn.EnsembleCritic, 7, 3),
    "value": partial(nn.Value, 7),
}


def published(agent):
    names = {"policy": "actor"}
    nets = {name: fql_repo.network(f"{agent}/params/{names.get(name, name)}", make) for name, make in MAKE.items()}
    meta = {name: float(fql_repo.arrays()[f"{agent}/meta/{name}"]) for name in ("alpha", "expectile", "discount")}
    state = iql.State(**nets, policy_opt_state=None, critic_opt_state=None, value_opt_state=None)
    return state, iql.Config(policy=agent.removeprefix("iql_"), **meta)


@pytest.mark.parametrize("agent", ["iql_awr", "iql_ddpgbc"])
@pytest.mark.parametrize(
    ("loss", "name", "folder"),
    [
        (iql.value_loss, "value", "value/value"),
        (iql.critic_loss, "critic", "critic/critic"),
        (iql.policy_loss, "policy", "actor/actor"),
    ],
)
def test_the_losses_and_gradients_are_the_published_ones(agent, loss, name, folder):
    state, config = published(agent)
    network = getattr(state, name)
    fql_repo.assert_loss_agrees(loss, network, state, DRAWS, config, f"{agent}/{folder}", MAKE[name])


def test_the_comparison_notices_the_other_policy_loss():
    state, config = published("iql_awr")
    other = iql.Config(policy="ddpgbc", alpha=config.alpha)
    with pytest.raises(AssertionError, match="relative error"):
        fql_repo.assert_loss_agrees(
            iql.policy_loss, state.policy, state, DRAWS, other, "iql_awr/actor/actor", MAKE["policy"]
        )


# ------------------------------------------------------------------- a plain oracle, and mutants


def problem(seed):
    rng = np.random.default_rng(seed)
    networks = LinearPolicy.random(rng), QuadraticCritic.random(rng), LinearValue.random(rng)
    return iql.State(*networks, QuadraticCritic.random(rng), None, None, None), random_batch(rng)


def nll(mu, action):
    return np.sum((action - mu) ** 2) / 2 + np.log(2 * np.pi) * len(action) / 2


def awr_oracle(policy, state, batch, draws, config):
    def term(row):
        q, v, mu = min(state.critic(row.obs, row.action)), state.value(row.obs), policy.w @ row.obs
        weight = min(np.exp(config.alpha * (q - v)), 100.0)
        return weight * nll(mu, row.action), LinearPolicy(weight * np.outer(mu - row.action, row.obs))

    return mean([term(row) for row in rows(batch)])


def ddpgbc_oracle(policy, state, batch, draws, config):
    low, high = config.clip
    actions = [np.clip(policy.w @ row.obs, low, high) for row in rows(batch)]
    size = np.mean([abs(min(state.critic(row.obs, action))) for row, action in zip(rows(batch), actions, strict=True)])

    def term(row):
        mu = policy.w @ row.obs
        action, inside = np.clip(mu, low, high), (low < mu) & (mu < high)
        q = np.asarray(state.critic(row.obs, action))
        minus_slope = (action - state.critic.goal[np.argmin(q)]) * inside
        loss = -min(q) / size + config.alpha * nll(mu, row.action)
        return loss, LinearPolicy(np.outer(minus_slope / size + config.alpha * (mu - row.action), row.obs))

    return mean([term(row) for row in rows(batch)])


def check_value(loss, seed, *, slack=1.0):
    state, batch = problem(seed)
    assert_loss(loss, value_oracle, state.value, state, batch, DRAWS, AWR, slack=slack)


def check_critic(loss, seed, *, slack=1.0):
    state, batch = problem(seed)
    assert_loss(loss, critic_oracle, state.critic, state, batch, DRAWS, AWR, slack=slack)


def check_awr(loss, seed, *, slack=1.0):
    state, batch = problem(seed)
    assert_loss(loss, awr_oracle, state.policy, state, batch, DRAWS, AWR, slack=slack)


def check_ddpgbc(loss, seed, *, slack=1.0):
    state, batch = problem(seed)
    assert_loss(loss, ddpgbc_oracle, state.policy, state, batch, DRAWS, DDPGBC, slack=slack)


CHECKS = {
    "value": (check_value, iql.value_loss),
    "critic": (check_critic, iql.critic_loss),
    "awr": (check_awr, iql.policy_loss),
    "ddpgbc": (check_ddpgbc, iql.policy_loss),
}


@pytest.mark.parametrize("name", CHECKS)
@given(seed=seeds)
def test_the_losses_are_the_oracles(name, seed):
    check, loss = CHECKS[name]
    check(loss, seed)


def another_awr_loss(
    cap=100.0,
    sign=1,
    power=1,
    critic=lambda state: state.critic,
    least=jnp.min,
    stop=jax.lax.stop_gradient,
    log_likelihood=lambda mu, action: -jnp.sum((action - mu) ** 2) / 2 - jnp.log(2 * jnp.pi),
):
    def loss(policy, state, batch, draws, *, config):
        def one(row):
            advantage = least(critic(state)(row.obs, row.action)) - state.value(row.obs)
            weight = stop(jnp.minimum(jnp.exp(sign * config.alpha**power * advantage), cap))
            return -weight * log_likelihood(policy.w @ row.obs, row.action)

        return jnp.mean(jax.vmap(one)(batch)), None

    return loss


def another_ddpgbc_loss(
    stop=jax.lax.stop_gradient, stop_critic=jax.lax.stop_gradient, least=jnp.min, clip=jnp.clip, imitate=lambda mu: mu
):
    def loss(policy, state, batch, draws, *, config):
        critic, means = stop_critic(state.critic), jax.vmap(lambda obs: policy.w @ obs)(batch.obs)
        q = jax.vmap(lambda obs, mu: least(critic(obs, clip(mu, *config.clip))))(batch.obs, means)
        nll = jnp.square(batch.action - imitate(means)).sum(axis=1) / 2 + jnp.log(2 * jnp.pi)
        return -q.mean() / stop(jnp.abs(q).mean()) + config.alpha * nll.mean(), None

    return loss


RIGHT = {
    "value": another_value_loss(),
    "critic": another_critic_loss(),
    "awr": another_awr_loss(),
    "ddpgbc": another_ddpgbc_loss(),
}
WRONG_AWR_LOSSES = {
    "not capped": another_awr_loss(cap=jnp.inf),
    "wrong sign": another_awr_loss(sign=-1),
    "divides by alpha": another_awr_loss(power=-1),
    "the target critic": another_awr_loss(critic=lambda state: state.target_critic),
    "the mean of the ensemble": another_awr_loss(least=jnp.mean),
    "gradient into the weight": another_awr_loss(stop=same),
    "mean over the dimensions": another_awr_loss(log_likelihood=lambda mu, action: -jnp.mean((action - mu) ** 2) / 2),
}
WRONG_DDPGBC_LOSSES = {
    "gradient into the normaliser": another_ddpgbc_loss(stop=same),
    "gradient into the critic": another_ddpgbc_loss(stop_critic=same),
    "the mean of the ensemble": another_ddpgbc_loss(least=jnp.mean),
    "Q of the unclipped action": another_ddpgbc_loss(clip=lambda mu, low, high: mu),
    "imitates with the clipped action": another_ddpgbc_loss(imitate=lambda mu: jnp.clip(mu, *DDPGBC.clip)),
}
WRONG = {
    f"{name}: {wrong}": (name, loss)
    for name, losses in {
        "value": WRONG_VALUE_LOSSES,
        "critic": WRONG_CRITIC_LOSSES,
        "awr": WRONG_AWR_LOSSES,
        "ddpgbc": WRONG_DDPGBC_LOSSES,
    }.items()
    for wrong, loss in losses.items()
}


@pytest.mark.parametrize("name", CHECKS)
def test_the_mutants_differ_from_a_right_loss(name):
    CHECKS[name][0](RIGHT[name], SEED)


@each(WRONG)
def test_a_wrong_loss_is_caught(mutant):
    name, loss = mutant
    assert_caught(CHECKS[name][0], loss, SEED)


# ------------------------------------------------------------------- networks, and what training reaches


def test_the_initial_networks_are_the_published_ones():
    """Glorot-uniform weights and zero biases; those of the policy's last layer are a tenth of that."""
    example = Transition(jnp.ones(7), jnp.ones(3), jnp.array(0.0), jnp.array(0.0), jnp.ones(7))
    policy, critic, value = iql.networks(example, width=64, depth=2, key=jax.random.key(0))
    for mlp, last in [(policy.mlp, 0.1), (critic.members, 1.0), (value.mlp, 1.0)]:
        for weight, scale in zip(mlp.weights, (1.0, 1.0, last), strict=True):
            bound = scale * np.sqrt(6 / sum(weight.shape[-2:]))
            assert 0.9 * bound < jnp.abs(weight).max() <= bound
        assert all(not bias.any() for bias in mlp.biases)
    assert (len(policy.mlp.norms), len(critic.members.norms), len(value.mlp.norms)) == (0, 2, 2)


@pytest.mark.parametrize("config", [AWR, DDPGBC], ids=lambda config: config.policy)
def test_networks_of_float64_fit_data_of_float32(config):
    state, batch = problem(SEED)
    oracle = awr_oracle if config is AWR else ddpgbc_oracle
    batch = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), batch)
    networks = jax.tree.map(jnp.asarray, state)
    loss, _ = iql.policy_loss(networks.policy, networks, batch, DRAWS, config=config)
    np.testing.assert_allclose(loss, oracle(state.policy, state, batch, DRAWS, config)[0], rtol=1e-5)


@pytest.mark.parametrize("policy", ["awr", "ddpgbc"])
def test_an_update_steps_each_network_by_its_own_loss_and_then_the_average(policy):
    assert_update(iql, *problem(SEED), iql.Config(policy=policy, alpha=0.3, tau=0.25))


def test_the_published_defaults():
    assert iql.Config() == iql.Config("awr", 10.0, 0.9, 0.99, 0.005, (-1.0, 1.0))


@pytest.mark.parametrize("expectile", [0.5, 0.9])
def test_v_reaches_the_expectile_of_q(expectile):
    """Q of 0 and of 1, equally often: the expectile of the two is `expectile` itself."""
    batch = Transition(jnp.ones((2, 1)), jnp.array([[0.0], [1.0]]), jnp.zeros(2), jnp.zeros(2), jnp.ones((2, 1)))
    state = iql.State(None, None, LinearValue(jnp.zeros(1)), lambda obs, action: action, None, None, None)
    config = iql.Config(expectile=expectile)
    slope = jax.grad(lambda v: iql.value_loss(LinearValue(v), state, batch, DRAWS, config=config)[0])
    np.testing.assert_allclose(slope(jnp.array([expectile])), 0.0, atol=1e-15)
    assert slope(jnp.array([expectile - 0.1])) < 0 < slope(jnp.array([expectile + 0.1]))


def test_the_agent_acts_by_its_mean_or_by_a_sample():
    state = iql.State(LinearPolicy(jnp.array([[0.5], [2.0]])), None, None, None, None, None, None)
    obs, noise = jnp.ones(1), jnp.array([0.25, -0.5])
    assert iql.actor(state, config=iql.Config())(obs, noise).tolist() == [0.5, 1.0]
    assert iql.actor(state, config=iql.Config(), sample=True)(obs, noise).tolist() == [0.75, 1.0]
    assert iql.actor(state, config=iql.Config(clip=None), sample=True)(obs, noise).tolist() == [0.75, 1.5]


# ------------------------------------------------------------------- on the ring of five modes


@pytest.mark.slow
def test_it_stays_within_the_data_and_takes_the_best_mode():
    config = iql.Config(alpha=10.0)
    actions = ring.act(iql.actor(ring.train(iql, config), config=config))
    assert ring.distances(actions)[:, 0].max() < 0.2


def test_without_the_advantage_it_is_behaviour_cloning():
    config = iql.Config(alpha=0.0)
    actions = ring.act(iql.actor(ring.train(iql, config, updates=500), config=config))
    assert jnp.abs(actions).max() < 0.2
