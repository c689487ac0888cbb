"""A control problem that is solved in closed form: linear dynamics, quadratic costs, linear policies with noise."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from oracles import Gaussian

from shortcutrl import Transition

DISCOUNT = 0.9


class Policy(eqx.Module):
    """a ~ N(gain s, std²), as the exact mean velocity from the standard normal; with `std` 0 always a = gain s."""

    gain: jax.Array
    std: jax.Array

    def __call__(self, obs, x, t, h):
        return Gaussian(self.gain @ obs, self.std)(obs, x, t, h)


class Critic(eqx.Module):
    """An ensemble that agrees but for its `offsets`: Q_i(s, a) = offset_i - (s, a)ᵀ H (s, a) - constant."""

    hessian: jax.Array
    constant: jax.Array
    offsets: jax.Array

    def __call__(self, obs, action):
        both = jnp.concatenate([obs, action])
        return self.offsets - (both @ self.hessian @ both + self.constant)


class LQR(eqx.Module):
    """s' = A s + B a with reward -(sᵀ Q s + aᵀ R a)."""

    a: np.ndarray
    b: np.ndarray
    q: np.ndarray
    r: np.ndarray

    @staticmethod
    def random(rng, states=3, actions=2):
        def positive(n):
            root = rng.normal(size=(n, n))
            return root @ root.T / n + 0.1 * np.eye(n)

        a, b = rng.normal(size=(states, states)), rng.normal(size=(states, actions)) / 2
        return LQR(0.8 * a / np.linalg.norm(a, 2), b, positive(states), positive(actions))

    def policy(self, rng, std=0.0):
        """Some policy whose gain is small enough that its cost is finite."""
        actions, states = self.b.shape[::-1]
        return Policy(0.05 * rng.normal(size=(actions, states)), np.full(actions, std))

    def transition(self, obs, action):
        reward = -(obs @ self.q @ obs + action @ self.r @ action)
        return Transition(obs, action, reward, jnp.ones_like(reward), self.a @ obs + self.b @ action)

    def critic(self, policy, offsets):
        """The Q of `policy`, exactly: V(s) = -(sᵀ P s + c) with P and c from the Bellman equation, which is linear."""
        closed, covariance = self.a + self.b @ policy.gain, np.diag(policy.std**2)
        cost = self.q + policy.gain.T @ self.r @ policy.gain
        identity = np.eye(closed.size)
        p = np.linalg.solve(identity - DISCOUNT * np.kron(closed.T, closed.T), cost.ravel()).reshape(closed.shape)
        c = np.trace((self.r + DISCOUNT * self.b.T @ p @ self.b) @ covariance) / (1 - DISCOUNT)
        return self._critic(p, c, offsets)

    def optimum(self, offsets):
        """The best policy, by 500 steps of the Riccati recursion, and its Q."""
        p = self.q
        for _ in range(500):
            cross = DISCOUNT * self.b.T @ p @ self.a
            gain = -np.linalg.solve(self.r + DISCOUNT * self.b.T @ p @ self.b, cross)
            p = self.q + DISCOUNT * self.a.T @ p @ self.a + cross.T @ gain
        return Policy(gain, np.zeros(len(gain))), self._critic(p, 0.0, offsets)

    def _critic(self, p, c, offsets):
        both = np.concatenate([self.a, self.b], axis=1)
        hessian = DISCOUNT * both.T @ p @ both
        states = len(self.a)
        hessian[:states, :states] += self.q
        hessian[states:, states:] += self.r
        return Critic(hessian, np.asarray(DISCOUNT * c), np.asarray(offsets))
