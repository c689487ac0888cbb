"""One decision in two dimensions: the dataset's actions lie on a ring of five modes; the reward is how far right."""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from algorithms import networks as small_networks

from shortcutrl import Transition

ANGLES = jnp.arange(5) * 0.4 * jnp.pi
MODES = 0.8 * jnp.stack([jnp.cos(ANGLES), jnp.sin(ANGLES)], axis=1).astype(jnp.float32)
"""The first is the best."""


def sample(key, size):
    mode_key, noise_key = jax.random.split(key)
    mode = MODES[jax.random.randint(mode_key, (size,), 0, 5)]
    action = mode + 0.06 * jax.random.normal(noise_key, mode.shape, jnp.float32)
    obs, zeros = jnp.ones((size, 1), jnp.float32), jnp.zeros(size, jnp.float32)
    return Transition(obs, action, action[:, 0], zeros, obs, action)


def train(module, config, *, updates=800, learning_rate=3e-3, seed=0):
    """The state of a small agent of an algorithm's module after some seconds of training."""
    example = sample(jax.random.key(0), 1)
    networks = small_networks(module, jax.random.key(seed), example=example, width=32, depth=2)
    networks = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), networks)
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, updates))
    options = {"config": config, "optimizers": [optimizer] * len(networks)}

    def step(state, key):
        batch_key, update_key = jax.random.split(key)
        return module.update(state, sample(batch_key, 64), key=update_key, **options)[0], None

    scan = jax.jit(lambda state, keys: jax.lax.scan(step, state, keys)[0])
    return scan(module.init(networks, **options), jax.random.split(jax.random.key(seed + 1), updates))


def act(actor, *, shape=(2,), size=500, seed=2):
    """Actions of `size` draws of noise of `shape`."""
    noise = jax.random.normal(jax.random.key(seed), (size, *shape), jnp.float32)
    return jax.jit(jax.vmap(partial(actor, jnp.ones(1, jnp.float32))))(noise)


def distances(actions):
    return jnp.linalg.norm(actions[:, None] - MODES[None], axis=2)


def shares(actions):
    """Which share of the actions is nearest to each mode."""
    return jnp.bincount(distances(actions).argmin(axis=1), length=5) / len(actions)


def strays(actions):
    """Which share of the actions is far from every mode."""
    return (distances(actions).min(axis=1) > 0.3).mean()
