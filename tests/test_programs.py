"""The composed update as a program: jitted, vmapped, scanned, donated; what it computes and what it keeps."""

import dataclasses
import re
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from algorithms import transitions as random_batch

from shortcutrl import bon_select, ddpm_sample, nn, q_loss, rebrac, rollout_k, sorl, vp_schedule

CONFIG = sorl.Config(num_steps=2, max_jumps=2, tau=0.1, q_weight=1.0)
OPTIONS = {"config": CONFIG, "optimizers": sorl.Networks(optax.adam(1e-2), optax.adam(1e-2))}

train = jax.jit(partial(sorl.update, **OPTIONS))


def start(key):
    return sorl.init(sorl.networks(random_batch(), width=8, depth=1, key=key), **OPTIONS)


close = lambda a, b: jax.tree.all(jax.tree.map(lambda x, y: jnp.allclose(x, y, rtol=1e-8, atol=1e-10), a, b))


def test_scanned_is_stepped():
    keys = jax.random.split(jax.random.key(0), 4)
    stepped = start(keys[0])
    scan = jax.jit(lambda state: jax.lax.scan(lambda state, key: train(state, random_batch(), key=key), state, keys))
    scanned, infos = scan(stepped)
    for i, key in enumerate(keys):
        stepped, info = train(stepped, random_batch(), key=key)
        assert close(jax.tree.map(lambda leaf, i=i: leaf[i], infos), info)
    assert close(scanned, stepped)


# ------------------------------------------------------------------------------- many agents at once


def test_a_shared_key_is_the_key_of_the_jumps_alone():
    """Over shared keys the update takes one of four results, one for each pair of numbers of jumps."""
    state, key = start(jax.random.key(0)), jax.random.key(1)
    results = {}
    for seed in range(12):
        jumps = sorl.draw(key, random_batch(), config=CONFIG, jumps_key=jax.random.key(seed))[:2]
        _, info = train(state, random_batch(), key=key, jumps_key=jax.random.key(seed))
        results.setdefault(tuple(map(int, jumps)), []).append((float(info.td), float(info.q_loss)))
    assert len(results) == 4
    for same in results.values():
        np.testing.assert_allclose(same, [same[0]] * len(same), rtol=1e-12)
    assert len({td for (td, _), *_ in results.values()}) == 2  # the critic sees its own number of jumps alone


# ------------------------------------------------------------------------------------------- memory


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_memory_grows_with_the_jumps_and_no_faster():
    """By what the backward pass keeps of each forward pass."""
    policy = nn.ShortcutPolicy(3, 2, width=64, depth=2, key=jax.random.key(0))
    critic = nn.EnsembleCritic(3, 2, width=8, depth=1, key=jax.random.key(1))
    inputs = jnp.ones((64, 3)), jnp.ones((64, 2))

    def memory(k):
        def loss(policy):
            losses, _ = jax.vmap(partial(q_loss, partial(rollout_k, policy, k=k), critic))(*inputs)
            return losses.sum()

        return jax.jit(jax.grad(loss)).lower(policy).compile().memory_analysis()

    two, four, eight = (memory(k).temp_size_in_bytes for k in (2, 4, 8))
    assert 0 < eight - four <= 2.1 * (four - two)


def gradient_through_8_jumps(remat):
    """The gradient of the policy's loss, and the bytes that it holds for a while."""
    config = dataclasses.replace(CONFIG, num_steps=8, max_jumps=8, remat=remat)
    networks = sorl.networks(random_batch(), width=64, depth=3, key=jax.random.key(0))
    state, batch = sorl.init(networks, **OPTIONS), random_batch(n=64)
    draws = sorl.draw(jax.random.key(1), batch, config=config)

    @jax.jit
    @jax.grad
    def gradient(policy, state, batch, draws):
        return sorl.policy_loss(policy, state, batch, draws._replace(q_k=8), config=config)[0]

    arguments = state.policy, state, batch, draws
    compiled = gradient.lower(*arguments).compile()
    return compiled(*arguments), compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_jumps_computed_again_give_the_same_from_less_memory():
    (stored, much), (again, little) = gradient_through_8_jumps(remat=False), gradient_through_8_jumps(remat=True)
    assert close(stored, again)
    assert little < 0.6 * much


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("transposed", [False, True])
def test_acting_copies_no_weights(transposed):
    """The mutant has weights of (outputs, inputs), which XLA transposes at each call."""
    of_weights = partial(eqx.tree_at, lambda policy: policy.mlp.weights)
    policy = nn.ShortcutPolicy(3, 2, width=64, depth=3, key=jax.random.key(0))
    transpose = lambda policy: of_weights(policy, replace_fn=lambda weights: tuple(weight.T for weight in weights))
    change = transpose if transposed else lambda policy: policy

    def act(policy):
        return rollout_k(change(policy), jnp.ones(3), jnp.ones(2), k=2)

    program = jax.jit(act).lower(change(policy)).compile().as_text()
    assert bool(re.search(r"\[64,64\]\S* (?:copy|transpose)\(", program)) == transposed


# ------------------------------------------------------------------------------------ compilations


def rollout(noise):
    return rollout_k(start(jax.random.key(0)).policy, jnp.ones(3), noise, k=16)


def best_of_two(noise):
    return bon_select(lambda _, noise: rollout(noise), lambda _, action: action[:1], None, jnp.stack([noise, noise]))


def denoise(noise):
    return ddpm_sample(lambda obs, x, t: x, None, jnp.stack([noise] * 10), steps=10, schedule=vp_schedule)


def update_rebrac(noise):
    batch = random_batch()._replace(action=jnp.tile(noise, (4, 1)))
    options = {"config": rebrac.Config(), "optimizers": rebrac.OPTIMIZERS}
    state = rebrac.init(rebrac.networks(batch, width=8, depth=1, key=jax.random.key(0)), **options)
    for _ in range(2):  # the second one is of the policy, too
        state, info = rebrac.update(state, batch, **options, key=jax.random.key(0))
    assert info.policy_moved


EAGER = {
    "jumps": rollout,
    "jumps of a batch": lambda noise: jax.vmap(rollout)(jnp.stack([noise, noise])),
    "the gradient of jumps": lambda noise: jax.grad(lambda noise: rollout(noise).sum())(noise),
    "the best of two": best_of_two,
    "denoising": denoise,
    "an update of rebrac": update_rebrac,
}


@pytest.mark.parametrize("call", EAGER.values(), ids=EAGER.keys())
def test_outside_of_jit_a_call_compiles_once(call):
    compilations = []
    listen = lambda event, *_, **__: "backend_compile" in event and compilations.append(event)
    jax.monitoring.register_event_duration_secs_listener(listen)
    jax.jit(lambda x: x + 1.2345)(1.0)
    heard = len(compilations)
    assert heard > 0
    call(jnp.ones(2))
    before = len(compilations)
    call(jnp.zeros(2))
    assert len(compilations) == before


@pytest.mark.parametrize("call", [rollout, denoise])
def test_in_a_program_many_steps_are_a_scan(call):
    assert " scan[" in str(jax.make_jaxpr(call)(jnp.ones(2)))


def test_a_loop_whose_key_changes_its_kind_compiles_twice():
    """The counter counts."""
    updates = jax.jit(partial(sorl.update, **OPTIONS))
    for key in (jax.random.key(0), jax.random.PRNGKey(0)):
        updates(start(jax.random.key(0)), random_batch(), key=key)
    assert updates._cache_size() == 2
