"""CAC: its losses and updates are those of a plain oracle; what is subtly wrong is caught."""

from functools import partial

import diffusing
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import ring
from algorithms import assert_update
from assertions import assert_caught, assert_to_rounding, assert_unrelated, each, seeds
from hypothesis import given
from losses import ACTION, BATCH, QuadraticCritic, assert_loss, mean, random_batch, rows, same
from scipy.stats import kstest

from shortcutrl import cac, consistency_function, consistency_loss, consistency_sample, noise_level

BOUND = 0.3  # so near that most actions are clipped
CONFIG = cac.Config(eta=0.7, backup_candidates=3, schedule_updates=100, clip=(-BOUND, BOUND))
LEVELS, SEED = (80.0, 2.0), 2
LOW, HIGH = 0.002 ** (1 / 7), 80 ** (1 / 7)


class LinearNetwork(eqx.Module):
    """F(x, u) = weight x + u tilt, of which a consistency model is made."""

    weight: jax.Array
    tilt: jax.Array

    @staticmethod
    def random(rng):
        return LinearNetwork(rng.normal(size=ACTION), rng.normal(size=ACTION))

    def __call__(self, obs, x, u):
        return self.weight * x + u * self.tilt

    def model(self, x, level):
        """f(x, σ), and its derivatives by x, by the weight and by the tilt, each dimension on its own."""
        spread, above = np.sqrt(level**2 + 0.25), level - 0.002
        skip, out = 0.25 / (above**2 + 0.25), 0.5 * above / spread
        u = (level ** (1 / 7) - LOW) / (HIGH - LOW)
        value = skip * x + out * (self.weight * x / spread + u * self.tilt)
        return value, skip + out * self.weight / spread, out * x / spread, out * u * np.ones(ACTION)

    def sample(self, noise):
        """Two steps, clipped, and its derivatives by the weight and by the tilt."""
        first, _, by_weight, by_tilt = self.model(80.0 * noise[0], 80.0)
        x = first + np.sqrt(2.0**2 - 0.002**2) * noise[1]
        action, by_x, own_weight, own_tilt = self.model(x, 2.0)
        inside = np.abs(action) < BOUND
        return (
            np.clip(action, -BOUND, BOUND),
            inside * (own_weight + by_x * by_weight),
            inside * (own_tilt + by_x * by_tilt),
        )


def problem(seed):
    rng = np.random.default_rng(seed)
    networks = LinearNetwork.random(rng), QuadraticCritic.random(rng)
    # Estimates so close that the lowest member is not the same one for each candidate.
    targets = LinearNetwork.random(rng), QuadraticCritic.random(rng)
    targets = targets[0], QuadraticCritic(0.02 * targets[1].w, 0.2 * targets[1].goal)
    state = cac.State(*networks, *targets, None, None, np.asarray(rng.integers(0, 120), np.int32))
    draws = cac.Draws(
        rng.normal(size=(BATCH, 3, 2, ACTION)),
        rng.normal(size=(BATCH, 2, ACTION)),
        rng.normal(size=(BATCH, ACTION)),
        np.append(rng.uniform(size=BATCH - 1), 1 - 1e-9),  # one between the last two noise levels
    )
    return state, random_batch(rng), draws


# ------------------------------------------------------------------- plain oracles, and mutants


def critic_oracle(critic, state, batch, draws, config):
    def term(row, draw):
        actions = [state.target_policy.sample(noise)[0] for noise in draw.td_noise]
        next_q = np.stack([state.target_critic(row.next_obs, action) for action in actions])
        target = row.reward + config.discount * row.mask * next_q.max(axis=0).min()
        error = critic(row.obs, row.action) - target
        return np.mean(error**2), QuadraticCritic(np.outer(error, row.obs), error[:, None] * (row.action - critic.goal))

    return mean([term(row, draw) for row, draw in zip(rows(batch), rows(draws), strict=True)])


def number_of_levels(updates, config, first=2):
    """As the code of consistency training has it, s0 = 2 and s1 = `num_levels`."""
    done = min(updates / config.schedule_updates, 1.0)
    return int(np.ceil(np.sqrt(done * (config.num_levels**2 - first**2) + first**2) - 1) + 1)


def policy_oracle(policy, state, batch, draws, config):
    levels = number_of_levels(state.updates, config)
    sigma = (LOW + np.arange(levels) / (levels - 1) * (HIGH - LOW)) ** 7

    def imitation(row, draw):
        n = int(draw.level * (levels - 1))
        low, high = sigma[n], sigma[n + 1]
        target = state.target_policy.model(row.action + low * draw.consistency_noise, low)[0]
        value, _, by_weight, by_tilt = policy.model(row.action + high * draw.consistency_noise, high)
        residual, weight = value - target, 100 / (high - low)
        grad = LinearNetwork(weight * 2 * residual * by_weight / ACTION, weight * 2 * residual * by_tilt / ACTION)
        return weight * np.mean(residual**2), grad

    def minus_q(row, draw):
        action, by_weight, by_tilt = policy.sample(draw.q_noise)
        slope = action - state.critic.goal.mean(axis=0)
        return -state.critic(row.obs, action).mean(), LinearNetwork(slope * by_weight, slope * by_tilt)

    pairs = list(zip(rows(batch), rows(draws), strict=True))
    size = np.mean([np.abs(minus_q(*pair)[0]) for pair in pairs])
    consistency, q = mean([imitation(*pair) for pair in pairs]), mean([minus_q(*pair) for pair in pairs])
    return jax.tree.map(lambda a, b: a + config.eta * b / size, consistency, q)


CHECKS = {"critic": (cac.critic_loss, critic_oracle), "policy": (cac.policy_loss, policy_oracle)}


def check(loss, name, seed, *, slack=1.0):
    state, batch, draws = problem(seed)
    assert_loss(loss, CHECKS[name][1], getattr(state, name), state, batch, draws, CONFIG, slack=slack)


@pytest.mark.parametrize("name", CHECKS)
@given(seed=seeds)
def test_the_losses_are_the_oracles(name, seed):
    check(CHECKS[name][0], name, seed)


def another_actor(policy, levels=LEVELS, clip=(-BOUND, BOUND)):
    return partial(consistency_sample, partial(consistency_function, policy), levels=levels, clip=clip)


def another_critic_loss(
    policy="target_policy",
    critic_of="target_critic",
    best=lambda q: q.max(axis=0).min(),
    actor=another_actor,
    obs="next_obs",
    mask=1,
    stop=jax.lax.stop_gradient,
    reduce=jnp.mean,
):
    """The loss with its parts free; as they stand here it is right."""

    def loss(critic, state, batch, draws, *, config):
        def one(row, draw):
            act = partial(actor(getattr(state, policy)), getattr(row, obs))
            q = jax.vmap(lambda noise: getattr(state, critic_of)(getattr(row, obs), act(noise)))(draw.td_noise)
            target = stop(row.reward + config.discount * row.mask**mask * best(q))
            return reduce(jnp.square(critic(row.obs, row.action) - target))

        return jnp.mean(jax.vmap(one)(batch, draws)), None

    return loss


WRONG_CRITIC_LOSSES = {
    "the online policy": another_critic_loss(policy="policy"),
    "the online critic": another_critic_loss(critic_of="critic"),
    "no best of the candidates": another_critic_loss(best=lambda q: q.mean(axis=0).min()),
    "the worst candidate": another_critic_loss(best=lambda q: q.min(axis=0).min()),
    "the best of the minimum": another_critic_loss(best=lambda q: q.min(axis=1).max()),
    "actions are not clipped": another_critic_loss(actor=partial(another_actor, clip=None)),
    "the mean of the ensemble": another_critic_loss(best=lambda q: q.max(axis=0).mean()),
    "bootstraps from obs": another_critic_loss(obs="obs"),
    "forgot the mask": another_critic_loss(mask=0),
    "a gradient into the target": another_critic_loss(stop=same),
    "a sum over the ensemble": another_critic_loss(reduce=jnp.sum),
}


def another_policy_loss(
    teacher="target_policy",
    critic="critic",
    weight=lambda low, high: 100 / (high - low),
    eta=lambda config: config.eta,
    normalize=jnp.abs,
    stop=jax.lax.stop_gradient,
    actor=another_actor,
    gaps=lambda levels: levels - 1,
    step=1,
    sign=-1,
    imitate=consistency_loss,
    late=0,
):
    """The loss with its parts free; as they stand here it is right."""

    def loss(policy, state, batch, draws, *, config):
        done = jnp.minimum((state.updates - late) / config.schedule_updates, 1)
        levels = jnp.ceil(jnp.sqrt(done * (config.num_levels**2 - 4) + 4) - 1) + 1

        def one(row, draw):
            n = jnp.floor(draw.level * gaps(levels))
            low, high = noise_level(n / gaps(levels)), noise_level((n + step) / gaps(levels))
            model, target = (partial(consistency_function, each) for each in (policy, getattr(state, teacher)))
            at = row.action, draw.consistency_noise, low, high
            consistency = weight(low, high) * imitate(model, target, row.obs, *at)
            q = stop(getattr(state, critic))(row.obs, actor(policy)(row.obs, draw.q_noise)).mean()
            return consistency, q

        consistency, q = jax.vmap(one)(batch, draws)
        return consistency.mean() + sign * eta(config) * q.mean() / jax.lax.stop_gradient(normalize(q).mean()), None

    return loss


def through_the_teacher(model, teacher, obs, action, noise, low, high):
    return jnp.mean(jnp.square(model(obs, action + high * noise, high) - teacher(obs, action + low * noise, low)))


WRONG_POLICY_LOSSES = {
    "the online policy as teacher": another_policy_loss(teacher="policy"),
    "the target critic": another_policy_loss(critic="target_critic"),
    "no weight": another_policy_loss(weight=lambda low, high: 1.0),
    "eta on imitation": another_policy_loss(eta=lambda config: 1 / config.eta),
    "Q is not normalised": another_policy_loss(normalize=jnp.ones_like),
    "a gradient into the critic": another_policy_loss(stop=same),
    "one step": another_policy_loss(
        actor=lambda policy: lambda obs, noise: another_actor(policy, (80.0,))(obs, noise[:1])
    ),
    "levels in ascending order": another_policy_loss(actor=partial(another_actor, levels=(2.0, 80.0))),
    "actions are not clipped": another_policy_loss(actor=partial(another_actor, clip=None)),
    "one level too many": another_policy_loss(gaps=same),
    "minimises Q": another_policy_loss(sign=1),
    "a gradient into the teacher": another_policy_loss(imitate=through_the_teacher),
    "the schedule is late": another_policy_loss(late=20),
}
WRONG = {
    f"{name}: {wrong}": (name, loss)
    for name, losses in {"critic": WRONG_CRITIC_LOSSES, "policy": WRONG_POLICY_LOSSES}.items()
    for wrong, loss in losses.items()
}


def test_the_mutants_differ_from_a_right_loss():
    check(another_critic_loss(), "critic", SEED)
    check(another_policy_loss(), "policy", SEED)


@each(WRONG)
def test_a_wrong_loss_is_caught(mutant):
    name, loss = mutant
    assert_caught(check, loss, name, SEED)


@pytest.mark.parametrize(("updates", "levels"), [(0, 2), (1, 16), (50, 107), (100, 150), (1000, 150)])
def test_the_number_of_noise_levels_grows(updates, levels):
    state, batch, draws = jax.tree.map(jnp.asarray, problem(SEED))
    state = state._replace(updates=jnp.asarray(updates))
    _, (_, _, seen) = cac.policy_loss(state.policy, state, batch, draws, config=CONFIG)
    assert seen == levels == number_of_levels(updates, CONFIG)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_last_pair_of_levels_is_reached_and_not_passed(dtype):
    """In few digits a uniform draw may round to 1: the last pair is that of the draws just below 1."""
    state, batch, draws = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), problem(SEED))
    config, state = cac.Config(num_levels=4, backup_candidates=3), state._replace(updates=jnp.asarray(50_000))

    def loss(level):
        drawn = draws._replace(level=jnp.full(BATCH, level, dtype))
        return cac.policy_loss(state.policy, state, batch, drawn, config=config)[0]

    assert loss(1.0) == loss(1 - float(jnp.finfo(dtype).epsneg)) != loss(0.5)


# ------------------------------------------------------------------- actions, updates, draws and defaults


@given(seed=seeds)
def test_the_agent_acts_in_two_steps(seed):
    state, batch, draws = problem(seed)
    act = cac.actor(jax.tree.map(jnp.asarray, state), config=CONFIG)
    expected = state.policy.sample(draws.q_noise[0])[0]
    assert_to_rounding(act(batch.obs[0], jnp.asarray(draws.q_noise[0])) - expected, 1000.0)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_levels_out_of_range_are_refused(dtype):
    """The smallest and the largest are accepted as each dtype rounds them."""
    sample = partial(consistency_sample, lambda obs, x, level: x, None)
    for level in (0.00197, 80.9):
        with pytest.raises(ValueError, match=r"`levels` must be in \[0.002, 80\]"):
            sample(jnp.zeros((1, 2)), levels=(level,))
    for level in (0.002, 80.0):
        assert sample(jnp.ones((1, 2)), levels=(jnp.asarray(level, dtype).item(),)) is not None


@pytest.mark.parametrize(("steps", "levels"), [(1, (80.0,)), (2, (80.0, 2.0)), (3, (80.0, 41.0, 2.0))])
def test_the_levels_of_a_sample(steps, levels):
    act = cac.actor(problem(SEED)[0], config=cac.Config(sample_steps=steps))
    assert act.keywords["levels"] == levels


def test_an_update_steps_the_critic_then_the_policy_against_it_and_then_the_averages():
    config = cac.Config(tau=0.25, eta=0.7, backup_candidates=3)
    new, info = assert_update(cac, *problem(SEED)[:2], config, in_turn=True)
    assert (new.updates, info.levels) == (1, 2)


def test_the_published_optimizers_clip_the_gradient_at_5():
    """Of two gradients that are both clipped, the second moves Adam as the first did."""
    for optimizer in cac.OPTIMIZERS:
        state = optimizer.init(jnp.zeros(2))
        _, clipped = optimizer.update(jnp.array([30.0, 40.0]), state)
        _, same = optimizer.update(jnp.array([3.0, 4.0]), state)
        _, smaller = optimizer.update(jnp.array([1.5, 2.0]), state)
        assert jax.tree.all(jax.tree.map(jnp.allclose, clipped, same))
        assert not jax.tree.all(jax.tree.map(jnp.allclose, clipped, smaller))


def test_the_published_defaults():
    assert cac.Config() == cac.Config(1.0, 2, 150, 50_000, 10, 0.99, 0.005, (-1.0, 1.0))


def test_the_draws_are_standard_normal_and_uniform():
    batch = random_batch(np.random.default_rng(0))
    batch = jax.tree.map(lambda leaf: jnp.repeat(jnp.asarray(leaf), 1000, axis=0), batch)
    draws = cac.draw(jax.random.key(0), batch, config=CONFIG)
    assert draws.td_noise.shape == (len(batch.reward), 3, 2, ACTION)
    assert draws.q_noise.shape == (len(batch.reward), 2, ACTION)
    for noise in draws[:3]:
        assert kstest(np.ravel(noise), "norm").pvalue > 1e-3
    assert kstest(draws.level, "uniform").pvalue > 1e-3
    noise = draws.td_noise[:, 0, 0], draws.q_noise[:, 0], draws.consistency_noise
    assert_unrelated(draws.level, *(column for each in noise for column in each.T))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_neighbouring_noise_levels_differ_for_actions_of_16_bits(dtype):
    """Of 149 pairs, five are equal in bfloat16."""
    batch = random_batch(np.random.default_rng(0))
    batch = jax.tree.map(lambda leaf: jnp.repeat(jnp.asarray(leaf, dtype), 100, axis=0), batch)
    config = cac.Config()
    networks = cac.networks(batch, width=8, depth=1, policy_width=8, key=jax.random.key(0))
    state = cac.init(networks, config=config, optimizers=cac.OPTIMIZERS)
    state = state._replace(updates=jnp.array(config.schedule_updates, jnp.int32))  # the most levels
    loss, (*terms, levels) = cac.policy_loss(
        state.policy, state, batch, cac.draw(jax.random.key(1), batch, config=config), config=config
    )
    assert levels == config.num_levels
    assert np.isfinite([loss, *terms]).all()


# ------------------------------------------------------------------- on the ring of five modes


@pytest.fixture(scope="module", params=[0.0, 0.3], ids=["imitation", "improvement"])
def trained(request):
    config = cac.Config(eta=request.param, tau=0.02, num_levels=40, schedule_updates=2000, backup_candidates=1)
    sizes = {"width": 8, "depth": 1, "policy_width": 64, "policy_depth": 3}
    networks = cac.networks(ring.sample(jax.random.key(0), 1), **sizes, key=jax.random.key(0))
    state = diffusing.train(cac, networks, config, updates=4000)
    return request.param, ring.act(cac.actor(state, config=config), shape=(2, 2))


@pytest.mark.slow
def test_the_policy_keeps_to_the_data_and_improves_q(trained):
    """A Gaussian of the data's moments has 72% of its samples far from every mode, and a Q of 0."""
    eta, actions = trained
    assert ring.strays(actions) < 0.45
    assert ring.shares(actions).min() > 0.08
    if eta:
        assert actions[:, 0].mean() > 0.1
    else:
        assert abs(actions[:, 0].mean()) < 0.08
