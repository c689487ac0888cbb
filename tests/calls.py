"""Small valid inputs, and the functions bound to the plainest networks: for the tests of what is taken and refused."""

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
    return jnp.zeros_like(x)


def critic(obs, action):
    return action


jump = partial(shortcut_step, stay, None)
roll = partial(rollout_k, stay, None)
match = partial(flow_matching_loss, stay, None)
agree = partial(self_consistency_loss, stay, stay, None)
both = partial(shortcut_loss, stay, stay, None)
fit = partial(td_loss, critic, critic, stay)
target = partial(td_target, critic, stay)
improve = partial(q_loss, stay, critic, None)
select = partial(bon_select, stay, critic, None)
