"""SORL's update: what it draws, which network learns from which, and what stays as it is."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from algorithms import transitions
from assertions import assert_uniform, assert_unrelated

from shortcutrl import Transition, flow_matching_loss, nn, q_loss, rollout_k, self_consistency_loss, sorl, td_loss
from shortcutrl._training import normalized

N = 2048
KEYS = jax.random.split(jax.random.key(0), N)
STILL = optax.sgd(0.0)


class Scales(eqx.Module):
    """A policy whose velocity is `scale` x. At 0 it stays where it is: the action is the noise."""

    scale: jax.Array

    def __call__(self, obs, x, t, h):
        return self.scale * x


class Reads(eqx.Module):
    """A critic whose Q is `weight` times the action."""

    weight: jax.Array

    def __call__(self, obs, action):
        return self.weight * action


class Counts(eqx.Module):
    """A critic whose Q is the number of jumps."""

    weight: jax.Array

    def __call__(self, obs, action, *, k):
        return self.weight * k + 0 * action


ZERO, ONE = jnp.zeros(()), jnp.ones(())


def config(**options):
    """Few jumps, nothing normalised or clipped, a critic that does not see k, unless `options` say otherwise."""
    plain = {"num_steps": 2, "max_jumps": 1, "q_weight": 1.0, "normalize_q": False, "clip": None}
    return sorl.Config(**{"condition_critic_on_k": False} | plain | options)


update = jax.jit(sorl.update, static_argnames=("config", "optimizers"))


def batch(n=1, reward=0.0, action=0.0):
    return Transition(jnp.zeros((n, 1)), jnp.full((n, 1), action), jnp.full(n, reward), jnp.ones(n), jnp.zeros((n, 1)))


def infos_by_key(policy, critic, config, update=sorl.update):
    """What one update from the same start saw, for each of `KEYS`."""
    options = {"config": config, "optimizers": (STILL, STILL)}
    state = sorl.init((policy, critic), **options)
    return jax.jit(jax.vmap(lambda key: update(state, batch(), **options, key=key)[1]))(KEYS)


# ------------------------------------------------------------------------------ what it draws


def assert_every_noise_is_its_own(update):
    """Of the TD target, of the Q loss and of flow matching, read off their losses: |a'|, a and |z|."""
    info = infos_by_key(Scales(ZERO), Reads(ONE), config(discount=1.0), update)
    next_action, action, noise = jnp.sqrt(info.td), -info.q_loss, jnp.sqrt(info.flow_matching)
    assert np.std(action) > 0.9
    assert len(set(np.abs(action).tolist())) == N
    assert_unrelated(next_action, jnp.abs(action), noise)


def test_every_noise_is_its_own():
    assert_every_noise_is_its_own(sorl.update)


def redrawn(**parts):
    """Patches `draw` so that some draws are made of others."""
    right = sorl.draw

    def draw(*args, **options):
        draws = right(*args, **options)
        return draws._replace(**{name: getattr(draws, source) for name, source in parts.items()})

    return draw


@pytest.mark.parametrize(
    "parts", [{"td_noise": "q_noise"}, {"flow_noise": "q_noise"}, {"flow_noise": "td_noise"}], ids=str
)
def test_a_reused_noise_is_caught(monkeypatch, parts):
    """The first is what the published code does: the critic's noise is drawn with the key of the policy's."""
    monkeypatch.setattr(sorl, "draw", redrawn(**parts))
    with pytest.raises(AssertionError, match="related"):
        assert_every_noise_is_its_own(sorl.update)


@jax.jit
def many_draws(keys):
    data = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, "float32"), batch())
    return jax.vmap(lambda key: sorl.draw(key, data, config=config(num_steps=8, max_jumps=8)))(keys)


def test_the_draws_are_independent_and_as_documented():
    draws = many_draws(KEYS)
    assert_uniform(draws.td_k, [1, 2, 4, 8])
    assert_uniform(draws.q_k, [1, 2, 4, 8])
    assert_uniform(draws.flow_t.ravel(), np.arange(8) / 8)
    t, h = draws.consistency_times
    assert_uniform(h.ravel(), [1, 0.5, 0.25])
    noises = draws.td_noise, draws.q_noise, draws.flow_noise, draws.consistency_noise
    assert_unrelated(*noises, draws.td_k, draws.q_k, draws.flow_t, t + h / 2, h)


@pytest.mark.parametrize("max_jumps", [1, 4])
def test_a_shared_key_decides_the_jumps_alone(max_jumps):
    draw = partial(sorl.draw, batch=batch(), config=config(num_steps=4, max_jumps=max_jumps))
    shared = [draw(key, jumps_key=jax.random.key(5)) for key in KEYS[:8]]
    assert len({(int(draws.td_k), int(draws.q_k)) for draws in shared}) == 1
    assert len({float(draws.q_noise[0, 0]) for draws in shared}) == 8
    one, other = draw(KEYS[0]), draw(KEYS[0], jumps_key=jax.random.key(5))
    assert eqx.tree_equal(one._replace(td_k=0, q_k=0), other._replace(td_k=0, q_k=0))


def test_a_key_decides_everything():
    one, again, other = (step(Scales(ONE), Reads(ONE), seed=seed)[1:] for seed in (0, 0, 1))
    assert eqx.tree_equal(one, again)
    for name in ("td", "q_loss", "flow_matching", "self_consistency"):
        assert getattr(one[1], name) != getattr(other[1], name)


@pytest.mark.parametrize("max_jumps", [2, 8])
def test_k_is_uniform_and_drawn_apart_for_critic_and_policy(max_jumps):
    options = config(num_steps=8, max_jumps=max_jumps, condition_critic_on_k=True)
    info = infos_by_key(Scales(ZERO), Counts(ONE), options)
    ks = [2**i for i in range(max_jumps.bit_length())]
    assert_uniform(info.q, ks)
    assert_uniform(-info.q_loss, ks)
    assert_unrelated(info.q, info.q_loss)


# ------------------------------------------------------------------- what learns from what


def step(policy, critic, data=None, target_policy=None, target_critic=None, seed=0, optimizer=STILL, **options):
    """One update at a fixed key, from networks and targets as given: the start, the end and the info."""
    options = {"config": config(**options), "optimizers": (optimizer, optimizer)}
    state = sorl.init((policy, critic), **options)
    if target_policy:
        state = state._replace(target_policy=target_policy)
    if target_critic:
        state = state._replace(target_critic=target_critic)
    data = batch(8) if data is None else data
    return state, *update(state, data, **options, key=jax.random.key(seed))


def test_the_target_q_is_the_target_critics():
    td = [step(Scales(ZERO), Reads(ZERO), target_critic=Reads(weight * ONE))[2].td for weight in (0, 1, 2)]
    assert td[0] == 0
    assert jnp.allclose(td[2], 4 * td[1])


def test_the_policy_improves_against_the_new_critic():
    data = batch(8, reward=1.0, action=1.0)
    _, still, before = step(Scales(ZERO), Reads(ONE), data)
    _, moved, after = step(Scales(ZERO), Reads(ONE), data, optimizer=optax.sgd(0.1))
    assert still.critic.weight == 1 != moved.critic.weight
    assert jnp.allclose(after.q_loss, before.q_loss * moved.critic.weight)


def test_self_consistency_is_with_the_target_policy():
    assert step(Scales(ZERO), Reads(ZERO))[2].self_consistency == 0
    assert step(Scales(ZERO), Reads(ZERO), target_policy=Scales(ONE))[2].self_consistency > 0.1


def test_the_next_action_is_the_online_policys():
    """One that scales by 1 + 3 in one jump lands 4 times as far; the target policy does not matter."""
    options = {"discount": 1.0}
    near, far, same = (
        step(Scales(scale * ONE), Reads(ONE), target_policy=Scales(target * ONE), **options)[2].td
        for scale, target in [(0, 0), (3, 0), (0, 3)]
    )
    assert jnp.allclose(far, 16 * near)
    assert same == near


def test_the_targets_move_only_by_averaging():
    start, end, _ = step(
        Scales(ONE),
        Reads(ONE),
        target_policy=Scales(3 * ONE),
        target_critic=Reads(5 * ONE),
        optimizer=optax.adamw(0.1, weight_decay=0.5),
        tau=0.25,
    )
    for online, target in [("policy", "target_policy"), ("critic", "target_critic")]:
        right = optax.incremental_update(getattr(end, online), getattr(start, target), 0.25)
        assert eqx.tree_equal(getattr(end, target), right)
        assert not eqx.tree_equal(getattr(start, online), getattr(end, online))


def test_with_tau_1_the_targets_are_the_networks():
    _, end, _ = step(Scales(ONE), Reads(ONE), optimizer=optax.adam(0.1), tau=1.0)
    assert eqx.tree_equal(end.target_policy, end.policy)
    assert eqx.tree_equal(end.target_critic, end.critic)


def test_each_network_has_its_own_optimizer():
    """So that learning rates can differ."""
    data = batch(8, reward=1.0, action=1.0)
    for rates in [(0.1, 0.0), (0.0, 0.1)]:
        optimizers = tuple(map(optax.sgd, rates))
        options = {"config": config(), "optimizers": optimizers}
        start = sorl.init((Scales(ONE), Reads(ONE)), **options)
        end, _ = update(start, data, **options, key=jax.random.key(0))
        moved = end.policy.scale != 1, end.critic.weight != 1
        assert moved == (rates[0] > 0, rates[1] > 0)


def test_no_optimizer_state_is_kept_for_targets():
    """Adam keeps two numbers for each weight, and a count: for the two networks, and nothing more."""
    policy_key, critic_key = jax.random.split(jax.random.key(0))
    policy = nn.ShortcutPolicy(3, 2, width=8, depth=2, key=policy_key)
    critic = nn.EnsembleCritic(3, 2, width=8, depth=2, key=critic_key)
    state = sorl.init((policy, critic), config=config(), optimizers=(optax.adam(0.1), optax.adam(0.1)))
    size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    assert size((state.policy_opt_state, state.critic_opt_state)) == 2 * size((policy, critic)) + 2
    assert size(state) == 4 * size((policy, critic)) + 2


def test_the_losses_are_weighted_sums_of_means_over_the_batch():
    weights = {"flow_matching_weight": 2.0, "self_consistency_weight": 3.0, "q_weight": 5.0}
    settings, data = config(num_steps=4, max_jumps=2, discount=0.9, aggregate="min", **weights), transitions()
    make = lambda seed: sorl.networks(data, width=8, depth=1, condition_critic_on_k=False, key=jax.random.key(seed))
    (policy, critic), targets = make(0), make(1)
    state = sorl.State(policy, critic, *targets, None, None)
    draws = sorl.draw(jax.random.key(2), data, config=settings)._replace(td_k=1, q_k=2)

    imitate = partial(flow_matching_loss, policy, h=1 / 4)
    flow_matching = jax.vmap(imitate)(data.obs, data.action, draws.flow_noise, draws.flow_t).mean()
    agree = partial(self_consistency_loss, policy, targets.policy)
    jumps = draws.consistency_noise, *draws.consistency_times
    self_consistency = jax.vmap(agree)(data.obs, data.action, *jumps).mean()
    improve = partial(q_loss, partial(rollout_k, policy, k=2), critic)
    minus_q = jax.vmap(improve)(data.obs, draws.q_noise)[0].mean()
    loss, terms = sorl.policy_loss(policy, state, data, draws, config=settings)
    np.testing.assert_allclose(terms, (minus_q, flow_matching, self_consistency), rtol=1e-9)
    np.testing.assert_allclose(loss, 2 * flow_matching + 3 * self_consistency + 5 * minus_q, rtol=1e-9)

    one = partial(td_loss, critic, targets.critic, partial(rollout_k, policy, k=1), discount=0.9, aggregate="min")
    td, info = jax.vmap(one)(data, draws.td_noise)
    loss, q = sorl.critic_loss(critic, state, data, draws, config=settings)
    np.testing.assert_allclose((loss, q), (td.mean(), info.q.mean()), rtol=1e-9)


# ----------------------------------------------------------------------- the weight of Q


def policy_after(critic, **options):
    return step(Scales(ONE), critic, optimizer=optax.adam(0.1), **options)[1].policy.scale


def test_without_q_the_critic_does_not_touch_the_policy():
    assert policy_after(Reads(ONE), q_weight=0.0) == policy_after(Reads(-7 * ONE), q_weight=0.0)
    assert policy_after(Reads(ONE), q_weight=100.0) != policy_after(Reads(-7 * ONE), q_weight=100.0)


@pytest.mark.parametrize("q_weight", [0.0, 1.0])
def test_a_critic_of_zeros_keeps_the_loss_finite(q_weight):
    """A critic whose last layer starts at zero: |Q|, by which the loss is divided, is zero."""
    assert jnp.isfinite(policy_after(Reads(ZERO), q_weight=q_weight, normalize_q=True))


ONLY_Q = {"flow_matching_weight": 0.0, "self_consistency_weight": 0.0, "data": batch(8)}


def q_gradient(scale, **options):
    """Of the policy's loss, which is the step of plain gradient descent; and minus the mean Q."""
    start, end, info = step(Scales(ONE), Reads(scale * ONE), optimizer=optax.sgd(1.0), **{**ONLY_Q, **options})
    return start.policy.scale - end.policy.scale, info.q_loss


def test_the_normalised_loss_does_not_depend_on_the_scale_of_q():
    one, thousand = (q_gradient(scale, normalize_q=True)[0] for scale in (1, 1000))
    assert jnp.allclose(one, thousand)
    assert one != 0
    one, thousand = (q_gradient(scale, normalize_q=False)[0] for scale in (1, 1000))
    assert jnp.allclose(1000 * one, thousand)


def test_the_normalised_loss_is_divided_by_the_mean_magnitude_of_q():
    """With one transition, that is the magnitude of the loss."""
    (raw, raw_q), (normal, q) = (q_gradient(3, normalize_q=on, data=batch(1)) for on in (False, True))
    assert raw_q == q
    assert jnp.allclose(normal, raw / jnp.abs(q))


def test_where_q_is_zero_the_loss_is_not_divided():
    assert normalized(jnp.array(3.0), jnp.zeros(4)) == 3
    assert normalized(jnp.array(3.0), jnp.array([1.0, -2.0])) == 2


def test_the_published_defaults():
    assert sorl.Config() == sorl.Config(8, 8, 0.99, "mean", 10.0, 10.0, 100.0, True, True, 0.005, (-1.0, 1.0), False)


def test_the_published_optimizer_clips_and_then_steps_by_its_learning_rate():
    start, end, _ = step(Scales(ONE), Reads(1e6 * ONE), optimizer=sorl.OPTIMIZERS.policy)
    assert jnp.allclose(jnp.abs(end.policy.scale - start.policy.scale), 1e-4, rtol=1e-3)


# ------------------------------------------------------------------------- any networks, any observations


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", ["critic", "policy"])
def test_gradients_flow_into_what_learns_alone(name, compiled):
    settings, data = sorl.Config(num_steps=2, max_jumps=2), transitions()
    networks = sorl.networks(data, width=8, depth=1, key=jax.random.key(0))
    state = sorl.init(networks, config=settings, optimizers=sorl.OPTIMIZERS)

    def loss(network, obs):
        changed = data._replace(obs=obs)
        draws = sorl.draw(jax.random.key(0), changed, config=settings)
        return getattr(sorl, f"{name}_loss")(network, state, changed, draws, config=settings)[0]

    gradient = eqx.filter_grad(lambda pair: loss(*pair))
    own, other = (eqx.filter_jit(gradient) if compiled else gradient)((getattr(state, name), data.obs))
    assert max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(own)) > 0
    assert jnp.abs(other).max() == 0


def test_observations_may_be_any_pytree():
    """Here a dictionary, read by a policy and a critic of the user's own."""

    class Own(eqx.Module):
        weight: jax.Array

        def __call__(self, obs, action, *time):
            v = self.weight * (action + obs["deep"]["position"])
            return v if time else v.sum()[None]

    data = batch(4)
    data = data._replace(obs={"deep": {"position": data.obs}}, next_obs={"deep": {"position": data.next_obs}})
    _, state, info = step(Own(ONE), Own(ONE), data, max_jumps=2, optimizer=optax.adam(0.1))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((state, info)))


# ------------------------------------------------------------------- the agent that was trained


class Offset(eqx.Module):
    """A velocity that does not depend on where it is: k jumps add it once."""

    offset: jax.Array

    def __call__(self, obs, x, t, h):
        return self.offset + 0 * x


def trained(**options):
    settings = config(num_steps=4, **options)
    state = sorl.init((Offset(ONE), Reads(ONE)), config=settings, optimizers=(STILL, STILL))
    return state._replace(target_policy=Offset(0.25 * ONE), target_critic=Reads(-ONE)), settings


def test_the_agent_acts_with_the_averaged_networks():
    state, settings = trained()
    assert sorl.actor(state, config=settings)(None, jnp.array([2.0])) == 2.25
    assert sorl.actor(state, config=settings, n=3)(None, jnp.array([[2.0], [1.0], [3.0]])) == 1.25  # the target's Q


def test_the_agent_clips_as_it_was_trained():
    state, settings = trained(clip=(-1, 1))
    assert sorl.actor(state, config=settings)(None, jnp.array([2.0])) == 1


def test_the_number_of_jumps_is_that_of_training_unless_told():
    state, settings = trained()
    state = state._replace(target_policy=Scales(ONE))  # k jumps multiply by (1 + 1 / k)^k
    act = partial(sorl.actor, state, config=settings)
    for k in (1, 2, 3, 4):
        assert jnp.allclose(act(k=k)(None, jnp.array([1.0])), (1 + 1 / k) ** k)
        assert jnp.array_equal(act(k=np.int64(k))(None, jnp.array([1.0])), act(k=k)(None, jnp.array([1.0])))
    assert jnp.array_equal(act()(None, jnp.array([1.0])), act(k=4)(None, jnp.array([1.0])))


def test_a_critic_that_sees_k_sees_that_of_the_agent():
    """Q is -(k - 2)² a: with 2 jumps all candidates are equal, so the first wins; otherwise the lowest."""

    class Sees(eqx.Module):
        weight: jax.Array

        def __call__(self, obs, action, *, k):
            return -self.weight * (k - 2) ** 2 * action

    state, settings = trained(condition_critic_on_k=True)
    state = state._replace(target_policy=Offset(ZERO), target_critic=Sees(ONE))
    noise = jnp.array([[3.0], [1.0], [2.0]])
    actions = [float(sorl.actor(state, config=settings, k=k, n=3)(None, noise)[0]) for k in (1, 2, 4)]
    assert actions == [1.0, 3.0, 1.0]


def test_candidates_are_ranked_by_the_aggregate_of_training():
    class Two(eqx.Module):
        weight: jax.Array

        def __call__(self, obs, action):
            return self.weight * jnp.array([10 - 9 * action[0], action[0]])

    for aggregate, best in [("min", 1.0), ("mean", 0.0)]:
        state, settings = trained(aggregate=aggregate)
        state = state._replace(target_policy=Offset(ZERO), target_critic=Two(ONE))
        assert sorl.actor(state, config=settings, n=3)(None, jnp.array([[0.0], [1.0], [2.0]])) == best


# ------------------------------------------------------------------- an update is made of its losses


def test_an_update_is_a_gradient_step_of_each_loss():
    """By hand: the critic first, the policy against the new critic, then the averages."""
    rng = np.random.default_rng(0)
    policy_key, critic_key, key = jax.random.split(jax.random.key(0), 3)
    draw = lambda *shape: jnp.asarray(rng.uniform(-1, 1, shape))
    data = Transition(draw(4, 3), draw(4, 2), draw(4), jnp.ones(4), draw(4, 3))
    policy = nn.ShortcutPolicy(3, 2, width=8, depth=1, key=policy_key)
    critic = nn.EnsembleCritic(3, 2, width=8, depth=1, condition_on_k=True, key=critic_key)
    settings = sorl.Config(num_steps=4, max_jumps=2, tau=0.25)
    optimizers = sorl.Networks(optax.adam(0.1), optax.sgd(0.2))
    start = sorl.init((policy, critic), config=settings, optimizers=optimizers)
    end, info = update(start, data, config=settings, optimizers=optimizers, key=key)

    draws = sorl.draw(key, data, config=settings)
    options = data, draws._replace(td_k=int(draws.td_k), q_k=int(draws.q_k))
    grads, q = jax.grad(partial(sorl.critic_loss, config=settings), has_aux=True)(critic, start, *options)
    critic = optax.apply_updates(critic, optax.sgd(0.2).update(grads, optax.sgd(0.2).init(critic))[0])
    state = start._replace(critic=critic)
    grads, terms = jax.grad(partial(sorl.policy_loss, config=settings), has_aux=True)(policy, state, *options)
    policy = optax.apply_updates(policy, optax.adam(0.1).update(grads, optax.adam(0.1).init(policy))[0])
    target = optax.incremental_update((policy, critic), start[2:4], 0.25)
    for ours, right in [(end[:2], (policy, critic)), (end[2:4], target), (info[1:5], (q, *terms))]:
        for leaf, exact in zip(jax.tree.leaves(ours), jax.tree.leaves(right), strict=True):
            np.testing.assert_allclose(leaf, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "k"), [("td_k", 3), ("q_k", 4), ("td_k", 0), ("q_k", 1.0)])
def test_jumps_that_are_not_trained_are_refused(name, k):
    state = sorl.init((Scales(ONE), Reads(ONE)), config=config(max_jumps=2), optimizers=(STILL, STILL))
    draws = sorl.draw(KEYS[0], batch(), config=config(max_jumps=2))._replace(**{name: k})
    loss, network = (sorl.critic_loss, state.critic) if name == "td_k" else (sorl.policy_loss, state.policy)
    with pytest.raises(ValueError, match=rf"`draws.{name}` must be one of 1, 2, got {k}"):
        loss(network, state, batch(), draws, config=config(max_jumps=2))


def test_a_given_number_of_jumps_is_the_one_that_is_taken():
    settings = config(num_steps=8, max_jumps=8, condition_critic_on_k=True)
    state = sorl.init((Scales(ZERO), Counts(ONE)), config=settings, optimizers=(STILL, STILL))
    draws = sorl.draw(KEYS[0], batch(), config=settings)
    for k in (1, 4, np.int64(8), jnp.asarray(2)):
        options = state, batch(), draws._replace(td_k=k, q_k=k)
        assert sorl.critic_loss(state.critic, *options, config=settings)[1] == k
        assert sorl.policy_loss(state.policy, *options, config=settings)[1][0] == -k


@pytest.mark.parametrize("loss", [sorl.critic_loss, sorl.policy_loss])
def test_the_gradient_for_traced_jumps_is_that_for_known_ones(loss):
    """Backwards and forwards, in each transformation. A second derivative fails instead of being zero."""
    settings, data = config(max_jumps=2, num_steps=2), transitions()
    networks = sorl.networks(data, width=4, depth=1, condition_critic_on_k=False, key=KEYS[0])
    state = sorl.init(networks, config=settings, optimizers=(STILL, STILL))
    network = state.critic if loss is sorl.critic_loss else state.policy
    known = sorl.draw(KEYS[0], data, config=settings)._replace(td_k=2, q_k=2)

    def alone(network, k):
        return loss(network, state, data, known._replace(td_k=k, q_k=k), config=settings)[0]

    right = jax.grad(alone)(network, 2)
    mapped = lambda network, k: jax.lax.map(lambda k: alone(network, k), k[None])[0]
    chosen = lambda network, k: jax.lax.cond(k > 0, alone, lambda *_: 0.0, network, k)
    for form in (jax.jit(alone), jax.checkpoint(alone), mapped, chosen):
        grads = jax.jit(jax.grad(form))(network, jnp.array(2))
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9), grads, right)
    along = jax.tree.map(jnp.ones_like, network)
    slope = sum(leaf.sum() for leaf in jax.tree.leaves(right))
    forwards = jax.jit(lambda k: jax.jvp(lambda network: alone(network, k), (network,), (along,))[1])
    np.testing.assert_allclose(forwards(2), slope, rtol=1e-9)
    twice = jax.jit(jax.grad(lambda network, k: optax.tree.norm(jax.grad(alone)(network, k))))
    with pytest.raises(NotImplementedError, match="no second derivatives"):
        twice(network, jnp.array(2))


def test_the_mean_q_has_no_gradient_whether_the_number_of_jumps_is_known_or_not():
    settings, data = config(max_jumps=2, num_steps=2), transitions()
    networks = sorl.networks(data, width=4, depth=1, condition_critic_on_k=False, key=KEYS[0])
    state = sorl.init(networks, config=settings, optimizers=(STILL, STILL))
    draws = sorl.draw(KEYS[0], data, config=settings)

    def gradients(k):
        options = state, data, draws._replace(td_k=k)
        return jax.jacrev(lambda critic: sorl.critic_loss(critic, *options, config=settings))(state.critic)

    for loss, q in (gradients(2), jax.jit(gradients)(2)):
        assert any(leaf.any() for leaf in jax.tree.leaves(loss))
        assert not any(leaf.any() for leaf in jax.tree.leaves(q))
