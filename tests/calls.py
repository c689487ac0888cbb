"""Small valid inputs, and the functions bound to the simplest callables: for the tests of good and bad input."""

from functools import partial

import jax
import jax.numpy as jnp

from shortcutrl import (
    Transition,
    bon_select,
    flow_matching_loss,
    q_loss,
    rollout_k,
    self_consistency_loss,
    shortcut_loss,
    shortcut_step,
    td_loss,
    td_target,
)

X = jnp.ones(2, jnp.float32)
KEY = jax.random.key(0)
STEP = Transition(X, X, jnp.float32(1), jnp.float32(1), X)


def stay(obs, x, t, h):
    """A velocity of zero."""
    return jnp.zeros_like(x)


def act(obs, noise):
    """The actor whose action is its noise."""
    return noise


def critic(obs, action):
    """Two members, each with one dimension of the action."""
    return action


jump = partial(shortcut_step, stay, None)
roll = partial(rollout_k, stay, None)
match = partial(flow_matching_loss, stay, None)
agree = partial(self_consistency_loss, stay, stay, None)
both = partial(shortcut_loss, stay, stay, None)
fit = partial(td_loss, critic, critic, act)
target = partial(td_target, critic, act)
improve = partial(q_loss, act, critic, None)
select = partial(bon_select, act, critic, None)
