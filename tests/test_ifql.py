"""IFQL: its losses and its choice of action are the published ones; what is subtly wrong is caught."""

from functools import partial

import equinox as eqx
import fql_repo
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import ring
from algorithms import assert_update
from assertions import assert_caught, assert_to_rounding, assert_unrelated, each, seeds
from hypothesis import given
from losses import (
    ACTION,
    BATCH,
    WRONG_CRITIC_LOSSES,
    WRONG_VALUE_LOSSES,
    LinearValue,
    LinearVelocity,
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

from shortcutrl import ifql, nn, rollout_k

CONFIG = ifql.Config()
SEED = 38

# ------------------------------------------------------------------- the published arrays

MAKE = {
    "policy": partial(nn.FlowPolicy, 7, 3),
    "critic": partial(nn.EnsembleCritic, 7, 3),
    "target_critic": partial(nn.EnsembleCritic, 7, 3),
    "value": partial(nn.Value, 7),
}


def published():
    names = {"policy": "actor_flow"}
    nets = {name: fql_repo.network(f"ifql/params/{names.get(name, name)}", make) for name, make in MAKE.items()}
    meta = {name: float(fql_repo.arrays()[f"ifql/meta/{name}"]) for name in ("expectile", "discount")}
    sizes = {
        "num_candidates": int(fql_repo.arrays()["ifql/meta/num_samples"]),
        "flow_steps": int(fql_repo.arrays()["ifql/meta/flow_steps"]),
    }
    state = ifql.State(**nets, policy_opt_state=None, critic_opt_state=None, value_opt_state=None)
    draws = ifql.Draws(fql_repo.arrays()["ifql/actor/flow_noise"], fql_repo.arrays()["ifql/actor/t"])
    return state, draws, ifql.Config(**meta, **sizes)


@pytest.mark.parametrize(
    ("loss", "name", "folder"),
    [
        (ifql.value_loss, "value", "value/value"),
        (ifql.critic_loss, "critic", "critic/critic"),
        (ifql.policy_loss, "policy", "actor/actor_flow"),
    ],
)
def test_the_losses_are_the_published_ones(loss, name, folder):
    state, draws, config = published()
    learning, folder = getattr(state, name), f"ifql/{folder}"
    fql_repo.assert_loss_agrees(loss, learning, state, draws, config, folder, MAKE[name], gradient=False)


def test_the_comparison_notices_that_a_gradient_is_not_there():
    state, draws, config = published()
    with pytest.raises(AssertionError, match="no arrays under ifql/value/grad/value"):
        fql_repo.assert_loss_agrees(
            ifql.value_loss, state.value, state, draws, config, "ifql/value/value", MAKE["value"]
        )


def choose(state, config, **options):
    act = ifql.actor(state, config=config, **options)
    return eqx.filter_jit(act)(fql_repo.batch().obs[0], fql_repo.arrays()["ifql/select/noise"])


def test_the_chosen_action_is_the_published_one():
    state, _, config = published()
    reference.assert_agrees(choose(state, config), fql_repo.arrays()["ifql/select/action"])


# ------------------------------------------------------------------- plain oracles, and mutants


def problem(seed):
    rng = np.random.default_rng(seed)
    networks = LinearVelocity.random(rng), QuadraticCritic.random(rng), LinearValue.random(rng)
    state = ifql.State(*networks, QuadraticCritic.random(rng), None, None, None)
    return state, random_batch(rng), ifql.Draws(rng.normal(size=(BATCH, ACTION)), rng.uniform(size=BATCH)), rng


def policy_oracle(policy, state, batch, draws, config):
    pairs = zip(rows(batch), rows(draws), strict=True)
    return mean([policy.matching(row.action, draw.flow_noise, draw.flow_t) for row, draw in pairs])


CHECKS = {
    "value": (ifql.value_loss, value_oracle),
    "critic": (ifql.critic_loss, critic_oracle),
    "policy": (ifql.policy_loss, policy_oracle),
}


def check(loss, name, seed, *, slack=1.0):
    state, batch, draws, _ = problem(seed)
    assert_loss(loss, CHECKS[name][1], getattr(state, name), state, batch, draws, CONFIG, slack=slack)


@pytest.mark.parametrize("name", CHECKS)
@given(seed=seeds)
def test_the_losses_are_the_oracles(name, seed):
    check(CHECKS[name][0], name, seed)


def another_policy_loss(path=lambda noise, action, t: (1 - t) * noise + t * action, sign=1, reduce=jnp.mean):
    """The loss with its parts free; as they stand here it is right."""

    def loss(policy, state, batch, draws, *, config):
        def one(row, draw):
            x = path(draw.flow_noise, row.action, draw.flow_t)
            return reduce((policy(row.obs, x, draw.flow_t, 0.0) - sign * (row.action - draw.flow_noise)) ** 2)

        return jnp.mean(jax.vmap(one)(batch, draws)), None

    return loss


WRONG_POLICY_LOSSES = {
    "time runs backwards": another_policy_loss(path=lambda noise, action, t: t * noise + (1 - t) * action),
    "wrong sign": another_policy_loss(sign=-1),
    "a sum over the dimensions": another_policy_loss(reduce=jnp.sum),
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


def assert_chooses(choose, seed, *, slack=1.0):
    """The clipped action of ten Euler steps whose lower Q is highest."""
    state, batch, _, rng = problem(seed)
    noise, obs = 2 * rng.normal(size=(8, ACTION)), batch.obs[0]
    candidates = [np.clip(state.policy.euler(z, 10)[0], -1, 1) for z in noise]
    best = max(candidates, key=lambda action: min(state.critic(obs, action)))
    args = jax.tree.map(jnp.asarray, (state, obs, noise))
    assert_to_rounding(jax.jit(choose)(*args) - best, 10.0, slack=slack)


@given(seed=seeds)
def test_the_agent_takes_the_best_candidate(seed):
    assert_chooses(lambda state, obs, noise: ifql.actor(state, config=CONFIG, n=8)(obs, noise), seed)


def another_choice(k=10, score=jnp.min, clip=lambda action: jnp.clip(action, -1, 1), critic="critic", best=jnp.argmax):
    def choose(state, obs, noise):
        act = lambda z: rollout_k(state.policy, obs, z, k=k)
        candidates = jax.vmap(act)(noise)
        q = jax.vmap(lambda action: score(getattr(state, critic)(obs, action)))(clip(candidates))
        return jnp.clip(candidates[best(q)], -1, 1)

    return choose


def test_the_other_choices_differ_from_a_right_one():
    assert_chooses(another_choice(), SEED)


WRONG_CHOICES = {
    "one step less": another_choice(k=9),
    "the mean of the ensemble": another_choice(score=jnp.mean),
    "Q of unclipped candidates": another_choice(clip=same),
    "the target critic": another_choice(critic="target_critic"),
    "the worst": another_choice(best=jnp.argmin),
    "the first": another_choice(best=lambda q: 0),
}


@each(WRONG_CHOICES)
def test_a_wrong_choice_is_caught(mutant):
    assert_caught(assert_chooses, mutant, SEED)


def test_one_candidate_needs_no_critic():
    state, batch, draws, _ = problem(SEED)
    act = ifql.actor(state._replace(critic=None), config=CONFIG, n=1)
    action = act(batch.obs[0], jnp.asarray(draws.flow_noise[0]))
    np.testing.assert_allclose(action, np.clip(state.policy.euler(draws.flow_noise[0], 10)[0], -1, 1), rtol=1e-12)


def test_an_update_steps_each_network_by_its_own_loss_and_then_the_average():
    assert_update(ifql, *problem(SEED)[:2], ifql.Config(tau=0.25))


def test_the_published_defaults():
    assert ifql.Config() == ifql.Config(0.9, 32, 10, 0.99, 0.005, (-1.0, 1.0))
    assert ifql.actor(problem(0)[0], config=ifql.Config(num_candidates=1)).func is rollout_k


def test_the_draws_are_standard_normal_and_uniform():
    batch = random_batch(np.random.default_rng(0))
    batch = jax.tree.map(lambda leaf: jnp.repeat(jnp.asarray(leaf), 1000, axis=0), batch)
    draws = ifql.draw(jax.random.key(0), batch, config=ifql.Config())
    assert kstest(np.ravel(draws.flow_noise), "norm").pvalue > 1e-3
    assert kstest(np.ravel(draws.flow_t), "uniform").pvalue > 1e-3
    assert_unrelated(draws.flow_t, *draws.flow_noise.T)


# ------------------------------------------------------------------- on the ring of five modes


@pytest.mark.slow
def test_one_candidate_keeps_all_modes_and_the_best_of_many_takes_one():
    state = ring.train(ifql, CONFIG)
    one = ring.act(ifql.actor(state, config=CONFIG, n=1))
    assert ring.shares(one).min() > 0.1
    best = ring.act(ifql.actor(state, config=CONFIG), shape=(32, 2))
    assert ring.shares(best)[0] > 0.75 > 0.35 > ring.shares(one)[0]
    assert ring.strays(best) < ring.strays(one)
