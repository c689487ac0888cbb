"""The composed update as a program: jitted, vmapped, scanned, donated; what it computes and what it keeps."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from shortcutrl import Transition, nn, q_loss, rollout_k, sorl

update = jax.jit(sorl.update, static_argnames="config")

NETWORKS = sorl.Config(num_steps=2, max_jumps=2, optimizer=optax.adam(1e-2), tau=0.1, q_weight=1.0)


def start(key, condition_on_k=True):
    policy_key, critic_key = jax.random.split(key)
    options = {"width": 8, "depth": 1}
    policy = nn.ShortcutPolicy(3, 2, **options, key=policy_key)
    critic = nn.EnsembleCritic(3, 2, **options, condition_on_k=condition_on_k, key=critic_key)
    return sorl.init(policy, critic, config=NETWORKS)


def random_batch(seed=0, n=4):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.uniform(-1, 1, shape))
    return Transition(draw(n, 3), draw(n, 2), draw(n), jnp.asarray(rng.integers(0, 2, n), float), draw(n, 3))


train = partial(update, config=NETWORKS)
close = lambda a, b: jax.tree.all(jax.tree.map(lambda x, y: jnp.allclose(x, y, rtol=1e-8, atol=1e-10), a, b))


def test_vmapped_over_seeds_is_the_loop():
    keys = jax.random.split(jax.random.key(0), 3)
    states = jax.jit(jax.vmap(start))(keys)
    together = jax.jit(jax.vmap(lambda state, key: train(state, random_batch(), key=key)))(states, keys)
    for i, key in enumerate(keys):
        alone = train(start(key), random_batch(), key=key)
        assert close(jax.tree.map(lambda leaf, i=i: leaf[i], together), alone)


def test_scanned_is_stepped():
    keys = jax.random.split(jax.random.key(0), 4)
    stepped = start(keys[0])
    scan = jax.jit(lambda state: jax.lax.scan(lambda state, key: train(state, random_batch(), key=key), state, keys))
    scanned, infos = scan(stepped)
    for i, key in enumerate(keys):
        stepped, info = train(stepped, random_batch(), key=key)
        assert close(jax.tree.map(lambda leaf, i=i: leaf[i], infos), info)
    assert close(scanned, stepped)


def test_the_state_can_be_donated():
    donating = jax.jit(partial(sorl.update, config=NETWORKS), donate_argnums=0)
    mine = start(jax.random.key(0))
    state = sorl.init(mine.policy, mine.critic, config=NETWORKS)
    for seed in range(2):
        state, info = donating(state, random_batch(), key=jax.random.key(seed))
    assert jnp.isfinite(info.td)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(mine))  # not deleted


def test_equal_configs_are_one_to_jit():
    traces = []

    @partial(jax.jit, static_argnames="config")
    def weight(config):
        traces.append(config)
        return jnp.asarray(config.q_weight)

    assert weight(NETWORKS) == weight(dataclasses.replace(NETWORKS)) == 1
    assert weight(dataclasses.replace(NETWORKS, q_weight=2.0)) == 2
    assert len(traces) == 2


# ------------------------------------------------------------------------------- many agents at once


def agents(count):
    keys = jax.random.split(jax.random.key(0), count)
    return keys, jax.jit(jax.vmap(start))(keys)


def test_agents_that_share_their_jumps_are_the_loop():
    keys, states = agents(3)
    jumps = sorl.draw_jumps(jax.random.key(1), config=NETWORKS)
    together = jax.jit(jax.vmap(lambda state, key: train(state, random_batch(), key=key, jumps=jumps)))(states, keys)
    for i, key in enumerate(keys):
        alone = train(start(key), random_batch(), key=key, jumps=jumps)
        assert close(jax.tree.map(lambda leaf, i=i: leaf[i], together), alone)


def test_the_jumps_that_are_given_are_those_that_are_taken():
    """As the critic sees them: it learns of `td`, and the policy's improvement depends on `improvement`."""
    of = lambda td, improvement: train(
        start(jax.random.key(0)),
        random_batch(),
        key=jax.random.key(1),
        jumps=sorl.Jumps(jnp.asarray(td), jnp.asarray(improvement)),
    )
    (one, info), (other, _), (_, info_other) = of(1, 1), of(1, 2), of(2, 1)
    assert close(one.critic, other.critic)
    assert not close(one.policy, other.policy)
    assert info.td != info_other.td


@pytest.mark.parametrize("k", [0, 3, 4])
def test_jumps_that_are_not_trained_are_refused(k):
    with pytest.raises(ValueError, match=rf"`jumps.improvement` must be one of 1, 2, got {k}"):
        sorl.update(
            start(jax.random.key(0)), random_batch(), config=NETWORKS, key=jax.random.key(1), jumps=sorl.Jumps(1, k)
        )


def computes_every_branch(share):
    """Whether the switch over the number of jumps has become a selection from the results of all branches."""
    keys, states = agents(2)

    def updates(states, key):
        jumps = sorl.draw_jumps(key, config=NETWORKS) if share else None
        return jax.vmap(lambda state, key: sorl.update(state, random_batch(), config=NETWORKS, key=key, jumps=jumps))(
            states, keys
        )

    return " cond[" not in str(jax.make_jaxpr(updates)(states, jax.random.key(1)))


def test_agents_that_share_their_jumps_compute_one_branch_only():
    assert not computes_every_branch(share=True)


def test_agents_with_jumps_of_their_own_compute_every_branch():
    assert computes_every_branch(share=False)


# ------------------------------------------------------------------------------------------- memory


@pytest.fixture
def _optimised():
    """Compiled as a user's program is."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.mark.usefixtures("_optimised")
def test_memory_grows_with_the_jumps_and_no_faster():
    """By what the backward pass keeps of each forward pass."""
    policy = nn.ShortcutPolicy(3, 2, width=64, depth=2, key=jax.random.key(0))
    critic = nn.EnsembleCritic(3, 2, width=8, depth=1, key=jax.random.key(1))

    def memory(k):
        loss = lambda policy: jax.vmap(partial(q_loss, policy, critic, k=k))(jnp.ones((64, 3)), jnp.ones((64, 2)))[0]
        return jax.jit(jax.grad(lambda policy: loss(policy).sum())).lower(policy).compile().memory_analysis()

    two, four, eight = (memory(k).temp_size_in_bytes for k in (2, 4, 8))
    assert 0 < eight - four <= 2.1 * (four - two)


def update_through_8_jumps(remat):
    """Its result, and the bytes that it holds for a while."""
    config = dataclasses.replace(NETWORKS, num_steps=8, max_jumps=8, remat=remat)
    policy_key, critic_key, key = jax.random.split(jax.random.key(0), 3)
    policy = nn.ShortcutPolicy(3, 2, width=64, depth=3, key=policy_key)
    critic = nn.EnsembleCritic(3, 2, width=8, depth=1, key=critic_key)
    jumps = sorl.Jumps(td=1, improvement=8)
    arguments = sorl.init(policy, critic, config=config), random_batch(n=64)
    compiled = jax.jit(partial(sorl.update, config=config, jumps=jumps, key=key)).lower(*arguments).compile()
    return compiled(*arguments), compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.usefixtures("_optimised")
def test_jumps_computed_anew_are_the_same_from_less_memory():
    (kept, much), (anew, little) = update_through_8_jumps(remat=False), update_through_8_jumps(remat=True)
    assert close(kept, anew)
    assert little < 0.6 * much


# ------------------------------------------------------------------------------------ compilations


def test_a_loop_compiles_once():
    """The state that comes out of an update is like the one that went in, down to weak types."""
    updates = jax.jit(partial(sorl.update, config=NETWORKS))
    state = sorl.init(*start(jax.random.key(0))[:2], config=NETWORKS)
    for seed in range(3):
        state, _ = updates(state, random_batch(seed), key=jax.random.key(seed))
    assert updates._cache_size() == 1


def test_a_rollout_outside_of_jit_compiles_nothing_anew():
    policy = nn.ShortcutPolicy(3, 2, width=8, depth=1, key=jax.random.key(0))
    compilations = []
    listen = lambda event, *_, **__: "backend_compile" in event and compilations.append(event)
    jax.monitoring.register_event_duration_secs_listener(listen)
    jax.jit(lambda x: x + 1.2345)(1.0)
    heard = len(compilations)
    assert heard > 0
    rollout_k(policy, jnp.ones(3), jnp.ones(2), k=8)
    before = len(compilations)
    rollout_k(policy, jnp.ones(3), jnp.zeros(2), k=8)
    assert len(compilations) == before


def test_a_loop_whose_key_changes_its_kind_compiles_twice():
    """The counter counts."""
    updates = jax.jit(partial(sorl.update, config=NETWORKS))
    for key in (jax.random.key(0), jax.random.PRNGKey(0)):
        updates(start(jax.random.key(0)), random_batch(), key=key)
    assert updates._cache_size() == 2
