"""Small valid and invalid inputs, and the functions bound to the simplest callables."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from shortcutrl import (
    Transition,
    bon_select,
    flow_matching_loss,
    nn,
    q_loss,
    rollout_k,
    self_consistency_loss,
    shortcut_loss,
    shortcut_step,
    sorl,
    td_loss,
    td_target,
)

X = jnp.ones(2, jnp.float32)
KEY = jax.random.key(0)
STEP = Transition(X, X, jnp.float32(1), jnp.float32(1), X)

COMPLEX = jnp.ones(2) * 1j
MASKED = np.ma.masked_array(np.ones(2), [True, False])
DATES = np.array(["2020-01-01", "2020-01-02"], "datetime64[D]")
OBJECTS = np.array([None, "1"], object)


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

policy = nn.ShortcutPolicy(3, 2, width=4, depth=1, key=KEY)
seeing, blind = (nn.EnsembleCritic(3, 2, width=4, depth=1, condition_on_k=on, key=KEY) for on in (True, False))

BATCH = Transition(jnp.ones((4, 3)), jnp.zeros((4, 2)), jnp.ones(4), jnp.ones(4), jnp.ones((4, 3)))
OPTIONS = {
    "config": sorl.Config(num_steps=2, max_jumps=2, condition_critic_on_k=False),
    "optimizers": sorl.OPTIMIZERS,
}


def traced(networks, options, batch=None, **changes):
    """`sorl.update`, which is only traced: it takes less time, and says the same."""
    state = sorl.init(networks, **options)._replace(**changes)
    return jax.eval_shape(lambda: sorl.update(state, BATCH if batch is None else batch, **options, key=KEY))


def update(batch):
    return traced((policy, blind), OPTIONS, batch)
