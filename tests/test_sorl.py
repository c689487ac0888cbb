"""The composed update: what it draws, what it learns from what, and what it leaves alone."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from assertions import assert_uniform, assert_unrelated

from shortcutrl import Transition, nn, sorl

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
    condition_on_k = True

    def __call__(self, obs, action, *, k):
        return self.weight * k + 0 * action


ZERO, ONE = jnp.zeros(()), jnp.ones(())


def config(**options):
    """Few jumps, nothing normalised or clipped, and an optimiser that stands still, unless `options` say otherwise."""
    plain = {"num_steps": 2, "max_jumps": 1, "q_weight": 1.0, "normalize_q": False, "clip": None, "optimizer": STILL}
    return sorl.Config(**plain | options)


update = jax.jit(sorl.update, static_argnames="config")


def batch(n=1, reward=0.0, action=0.0):
    return Transition(jnp.zeros((n, 1)), jnp.full((n, 1), action), jnp.full(n, reward), jnp.ones(n), jnp.zeros((n, 1)))


def infos_by_key(policy, critic, config, update=sorl.update):
    """What one update from the same start saw, for each of `KEYS`."""
    state = sorl.init(policy, critic, config=config)
    return jax.jit(jax.vmap(lambda key: update(state, batch(), config=config, key=key)[1]))(KEYS)


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


def test_the_published_reuse_of_a_key_is_caught(monkeypatch):
    """The critic's noise drawn with the key of the policy's."""
    right = sorl._update_critic

    def reuse(state, data, *, config, key):
        policy_key = jax.random.split(key, 3)[2]
        wrong = lambda *args: right(*args[:-1], jax.random.split(policy_key)[0])
        monkeypatch.setattr(sorl, "_update_critic", wrong)
        return sorl.update(state, data, config=config, key=key)

    with pytest.raises(AssertionError, match="related"):
        assert_every_noise_is_its_own(reuse)


def test_a_key_decides_everything():
    one, again, other = (step(Scales(ONE), Reads(ONE), seed=seed)[1:] for seed in (0, 0, 1))
    assert eqx.tree_equal(one, again)
    for name in ("td", "q_loss", "flow_matching", "self_consistency"):
        assert getattr(one[1], name) != getattr(other[1], name)


@pytest.mark.parametrize("max_jumps", [2, 8])
def test_k_is_uniform_and_drawn_apart_for_critic_and_policy(max_jumps):
    info = infos_by_key(Scales(ZERO), Counts(ONE), config(num_steps=8, max_jumps=max_jumps))
    ks = [2**i for i in range(max_jumps.bit_length())]
    assert_uniform(info.q, ks)
    assert_uniform(-info.q_loss, ks)
    assert_unrelated(info.q, info.q_loss)


# ------------------------------------------------------------------- what learns from what


def step(policy, critic, data=None, target_policy=None, target_critic=None, seed=0, **options):
    """One update at a fixed key, from networks and targets as given: the start, the end and the info."""
    settings = config(**options)
    state = sorl.init(policy, critic, config=settings)
    if target_policy:
        state = state._replace(target_policy=target_policy)
    if target_critic:
        state = state._replace(target_critic=target_critic)
    data = batch(8) if data is None else data
    return state, *update(state, data, config=settings, key=jax.random.key(seed))


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


def test_no_optimiser_state_is_kept_for_targets():
    """Adam keeps two numbers for each weight, and a count: for the two networks, and nothing more."""
    policy_key, critic_key = jax.random.split(jax.random.key(0))
    policy = nn.ShortcutPolicy(3, 2, width=8, depth=2, key=policy_key)
    critic = nn.EnsembleCritic(3, 2, width=8, depth=2, key=critic_key)
    state = sorl.init(policy, critic, config=config(optimizer=optax.adam(0.1)))
    size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    assert size((state.policy_opt_state, state.critic_opt_state)) == 2 * size((policy, critic)) + 2
    assert size(state) == 4 * size((policy, critic)) + 2


# ----------------------------------------------------------------------- the weight of Q


def policy_after(critic, **options):
    return step(Scales(ONE), critic, optimizer=optax.adam(0.1), **options)[1].policy.scale


def test_without_q_the_critic_does_not_touch_the_policy():
    assert policy_after(Reads(ONE), q_weight=0.0) == policy_after(Reads(-7 * ONE), q_weight=0.0)
    assert policy_after(Reads(ONE), q_weight=100.0) != policy_after(Reads(-7 * ONE), q_weight=100.0)


@pytest.mark.parametrize("q_weight", [0.0, 1.0])
def test_a_critic_that_is_zero_does_no_harm(q_weight):
    """As one is whose last layer starts at zero: |Q|, by which the loss is divided, is zero."""
    assert jnp.isfinite(policy_after(Reads(ZERO), q_weight=q_weight, normalize_q=True))


ONLY_Q = {"flow_matching_weight": 0.0, "self_consistency_weight": 0.0, "data": batch(8)}


def q_gradient(scale, **options):
    return step(Scales(ONE), Reads(scale * ONE), **ONLY_Q, **options)[2]


def test_the_normalised_loss_does_not_depend_on_the_scale_of_q():
    one, thousand = (q_gradient(scale, normalize_q=True).policy_grad_norm for scale in (1, 1000))
    assert jnp.allclose(one, thousand)
    one, thousand = (q_gradient(scale, normalize_q=False).policy_grad_norm for scale in (1, 1000))
    assert jnp.allclose(1000 * one, thousand)


def test_the_normalised_loss_is_divided_by_the_mean_magnitude_of_q():
    """With one transition, that is the magnitude of the loss."""
    options = {**ONLY_Q, "data": batch(1)}
    raw, normal = (step(Scales(ONE), Reads(3 * ONE), normalize_q=on, **options)[2] for on in (False, True))
    assert raw.q_loss == normal.q_loss
    assert jnp.allclose(normal.policy_grad_norm, raw.policy_grad_norm / jnp.abs(raw.q_loss))


def test_the_default_optimiser_clips_and_then_steps_by_its_learning_rate():
    start, end, info = step(Scales(ONE), Reads(1e6 * ONE), optimizer=sorl.Config().optimizer)
    assert info.policy_grad_norm > 1
    assert jnp.allclose(jnp.abs(end.policy.scale - start.policy.scale), 1e-4, rtol=1e-3)


# ------------------------------------------------------------------------- any networks, any observations


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


def test_a_network_that_cannot_be_carried_is_refused():
    policy = eqx.Partial(eqx.nn.MLP(2, 2, 4, 1, key=jax.random.key(0)))  # its activation functions are leaves
    with pytest.raises(ValueError, match=r"`policy` has a leaf that is not an array, .* Mark it `eqx\.field"):
        sorl.init(policy, Reads(ONE), config=config())
    with pytest.raises(ValueError, match="`critic` has no parameters to train"):
        sorl.init(Scales(ONE), eqx.Partial(Reads(None)), config=config())
