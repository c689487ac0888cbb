"""What the tests of diffusion policies share: a denoiser with known gradients, and small agents on the ring."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import ring
from losses import ACTION

BETA_MIN = 0.1


def signal(t, beta_max):
    """The variance-preserving schedule."""
    return np.exp(-(BETA_MIN + (beta_max - BETA_MIN) * t / 2) * t)


class LinearDenoiser(eqx.Module):
    """ε(x, t) = rate x + t b."""

    rate: jax.Array
    b: jax.Array

    @staticmethod
    def random(rng):
        return LinearDenoiser(rng.uniform(0.2, 1), rng.normal(size=ACTION))

    def __call__(self, obs, x, t):
        return self.rate * x + t * self.b

    def denoising(self, action, noise, t, beta_max):
        """The denoising loss of one action, and its gradient."""
        keep = signal(t, beta_max)
        x = np.sqrt(keep) * action + np.sqrt(1 - keep) * noise
        residual = self.rate * x + t * self.b - noise
        return np.mean(residual**2), LinearDenoiser(2 * np.mean(residual * x), 2 * residual * t / ACTION)


class Right(eqx.Module):
    """The exact Q and V of the ring, where the reward is how far right an action is."""

    nothing: jax.Array
    value: bool = eqx.field(static=True, default=False)

    def __call__(self, obs, action=None):
        return 0 * self.nothing if self.value else action[:1] + 0 * self.nothing


def train(module, networks, config, *, frozen=("critic", "value"), updates=600, rate=3e-3, seed=0):
    """The state after some seconds of training, in which the exact Q and V do not change."""
    exact = {"critic": Right(jnp.zeros(())), "value": Right(jnp.zeros(()), value=True)}
    networks = networks._replace(**{name: exact[name] for name in networks._fields if name in frozen})
    adam = optax.adam(optax.cosine_decay_schedule(rate, updates))
    optimizers = module.Networks(*(optax.set_to_zero() if name in frozen else adam for name in networks._fields))
    networks = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32) if eqx.is_array(leaf) else leaf, networks)

    def step(state, key):
        batch_key, update_key = jax.random.split(key)
        batch = ring.sample(batch_key, 64)
        return module.update(state, batch, config=config, optimizers=optimizers, key=update_key)[0], None

    state = module.init(networks, config=config, optimizers=optimizers)
    return jax.jit(lambda state, keys: jax.lax.scan(step, state, keys)[0])(
        state, jax.random.split(jax.random.key(seed + 1), updates)
    )
