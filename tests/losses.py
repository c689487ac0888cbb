"""Networks so plain that the losses of the algorithms and their gradients are known, and the law that says so."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from assertions import assert_to_rounding

from shortcutrl import Transition

BATCH, OBS, ACTION, ENSEMBLE = 6, 3, 2, 2


class LinearValue(eqx.Module):
    """V(s) = w s."""

    w: jax.Array

    @staticmethod
    def random(rng):
        return LinearValue(rng.normal(size=OBS))

    def __call__(self, obs):
        return self.w @ obs


class QuadraticCritic(eqx.Module):
    """Q_i(s, a) = w_i s - |a - g_i|² / 2."""

    w: jax.Array
    goal: jax.Array

    @staticmethod
    def random(rng):
        return QuadraticCritic(rng.normal(size=(ENSEMBLE, OBS)), rng.normal(size=(ENSEMBLE, ACTION)))

    def __call__(self, obs, action):
        return self.w @ obs - jnp.square(action[None] - self.goal).sum(axis=1) / 2


class LinearPolicy(eqx.Module):
    """mu(s) = W s; with `noisy` a Gaussian around it."""

    w: jax.Array
    noisy: bool = eqx.field(static=True, default=True)

    @staticmethod
    def random(rng, noisy=True):
        return LinearPolicy(0.5 * rng.normal(size=(ACTION, OBS)), noisy)

    def __call__(self, obs, noise):
        return self.w @ obs + (noise if self.noisy else 0)


class LinearVelocity(eqx.Module):
    """dx/dt = rate x + b: Euler steps of 1 / k make (1 + rate / k)^k x and a multiple of b."""

    rate: jax.Array
    b: jax.Array

    @staticmethod
    def random(rng):
        return LinearVelocity(rng.uniform(-1, 1), 0.2 * rng.normal(size=ACTION))

    def __call__(self, obs, x, t, h):
        return self.rate * x + self.b

    def euler(self, noise, k):
        """The action after `k` steps, and its derivatives: along `noise` by the rate, by b the same for each part."""
        x, by_rate, by_b = noise, np.zeros_like(noise), 0.0
        for _ in range(k):
            by_rate = by_rate + (x + self.rate * by_rate) / k
            by_b = by_b + (1 + self.rate * by_b) / k
            x = x + (self.rate * x + self.b) / k
        return x, by_rate, by_b

    def matching(self, action, noise, t):
        """The flow matching loss of one action, and its gradient."""
        x = (1 - t) * noise + t * action
        residual = self.rate * x + self.b - (action - noise)
        return np.mean(residual**2), LinearVelocity(2 * np.mean(residual * x), 2 * residual / ACTION)


def random_batch(rng) -> Transition:
    """NumPy arrays in float64."""
    obs, next_obs = rng.normal(size=(2, BATCH, OBS))
    action, next_action = rng.uniform(-1, 1, (2, BATCH, ACTION))
    return Transition(obs, action, rng.normal(size=BATCH), rng.integers(0, 2, BATCH) * 1.0, next_obs, next_action)


def aggregated(q, aggregate):
    """The ensemble's estimate by the name of a reduction, or by a function."""
    return {"min": jnp.min, "mean": jnp.mean}.get(aggregate, aggregate)(q)


def rows(tree: Any):
    """A batch or its draws, one after the other."""
    return [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(len(jax.tree.leaves(tree)[0]))]


def mean(terms):
    """The mean of pairs (loss, gradient)."""
    return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *terms)


@eqx.filter_jit
def measure(loss, args, config):
    def of_networks(networks, batch, draws):
        return loss(*networks, batch, draws, config=config)[0]

    value, (grad, state_grad) = eqx.filter_value_and_grad(of_networks)(args[:2], *args[2:])
    return value, grad, state_grad


def assert_loss(loss, oracle, network, state, batch, draws, config, *, slack=1.0):
    """The loss and its gradient are the oracle's, in plain NumPy, and no gradient flows into the state."""
    args = jax.tree.map(
        lambda leaf: jnp.asarray(leaf) if isinstance(leaf, np.ndarray | float) else leaf, (network, state, batch, draws)
    )
    value, grad, state_grad = measure(loss, args, config)
    expected, expected_grad = oracle(network, state, batch, draws, config)
    leaves = [expected, *jax.tree.leaves(expected_grad)]
    rounding = 100 * (1 + max(float(np.abs(leaf).max()) for leaf in leaves))
    assert_to_rounding(value - expected, rounding, slack=slack)
    assert jax.tree.structure(grad) == jax.tree.structure(expected_grad)
    for leaf, known in zip(jax.tree.leaves(grad), jax.tree.leaves(expected_grad), strict=True):
        assert leaf.shape == np.shape(known)
        assert_to_rounding(leaf - known, rounding, slack=slack)
    for leaf in jax.tree.leaves(state_grad):
        assert_to_rounding(leaf, rounding, slack=slack)


# ------------------------------------------------------------------- the losses that IQL and its kin share


def value_oracle(value, state, batch, draws, config):
    """Of `value_loss` of IQL."""

    def term(row):
        q, v = min(state.target_critic(row.obs, row.action)), value(row.obs)
        weight = config.expectile if q > v else 1 - config.expectile
        return weight * (q - v) ** 2, LinearValue(-2 * weight * (q - v) * row.obs)

    return mean([term(row) for row in rows(batch)])


def critic_oracle(critic, state, batch, draws, config):
    """Of `critic_loss` of IQL: a sum over the ensemble."""

    def term(row):
        error = critic(row.obs, row.action) - (row.reward + config.discount * row.mask * state.value(row.next_obs))
        grad = QuadraticCritic(2 * np.outer(error, row.obs), 2 * error[:, None] * (row.action - critic.goal))
        return np.sum(error**2), grad

    return mean([term(row) for row in rows(batch)])


def another_value_loss(
    side=1, critic=lambda state: state.target_critic, obs="obs", least=jnp.min, stop=jax.lax.stop_gradient
):
    """The loss with its parts free; as they stand here it is right."""

    def loss(value, state, batch, draws, *, config):
        def one(row):
            q, v = stop(least(critic(state)(row.obs, row.action))), value(getattr(row, obs))
            return jnp.where(side * (q - v) > 0, config.expectile, 1 - config.expectile) * (q - v) ** 2

        return jnp.mean(jax.vmap(one)(batch)), None

    return loss


def another_critic_loss(reduce=jnp.sum, power=1, mask=1, obs="next_obs", stop=jax.lax.stop_gradient):
    """The loss with its parts free; as they stand here it is right."""

    def loss(critic, state, batch, draws, *, config):
        def one(row):
            next_v = config.discount**power * row.mask**mask * state.value(getattr(row, obs))
            return reduce((critic(row.obs, row.action) - stop(row.reward + next_v)) ** 2)

        return jnp.mean(jax.vmap(one)(batch)), None

    return loss


same = lambda x: x

WRONG_VALUE_LOSSES = {
    "wrong side": another_value_loss(side=-1),
    "Q of the online critic": another_value_loss(critic=lambda state: state.critic),
    "V of the next observation": another_value_loss(obs="next_obs"),
    "the mean of the ensemble": another_value_loss(least=jnp.mean),
    "gradient into Q": another_value_loss(stop=same),
}

WRONG_CRITIC_LOSSES = {
    "the mean over the ensemble": another_critic_loss(reduce=jnp.mean),
    "forgot the discount": another_critic_loss(power=0),
    "forgot the mask": another_critic_loss(mask=0),
    "bootstraps from obs": another_critic_loss(obs="obs"),
    "gradient into V": another_critic_loss(stop=same),
}
