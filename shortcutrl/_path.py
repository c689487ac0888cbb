"""The straight path from noise to action, and where along it the losses look."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from shortcutrl._types import Action, Scalar


def interpolate(noise: Action, action: Action, t: Scalar) -> Action:
    """The point at `t` of the straight path, whose velocity is `action - noise` everywhere."""
    return (1 - t) * noise + t * action


def draw_start(key: PRNGKeyArray, h: Array) -> Array:
    """A start for a jump of size `h`: uniform on `{0, h, 2h, ..., 1 - h}`, where rollouts by that size pass."""
    return h * jnp.floor(jax.random.uniform(key, jnp.shape(h), h.dtype) / h)


def draw_step(key: PRNGKeyArray, num_steps: int, dtype) -> Array:
    """A step that self-consistency can halve: uniform on `{1, 1/2, 1/4, ..., 2/num_steps}`."""
    steps = jnp.array([0.5**i for i in range(num_steps.bit_length() - 1)], dtype)  # exp2 would round
    return steps[jax.random.randint(key, (), 0, len(steps))]
