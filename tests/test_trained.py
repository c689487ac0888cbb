"""Networks that are trained: the law holds for them too, and each algorithm improves on the data.

Behaviour: Gaussians on a ring in two dimensions. Their mean action is far from every action of the data.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import ring
from algorithms import every_algorithm_in_time, name_of, noise_shape

from shortcutrl import consistency_gap, nn, rollout_k, shortcut_loss

pytestmark = pytest.mark.usefixtures("optimised")  # running takes longer here than compiling

M = 8
OBS = jnp.zeros(1, jnp.float32)


def eight_modes(key, n):
    mode_key, spread_key = jax.random.split(key)
    angle = jax.random.randint(mode_key, (n,), 0, 8) * (2 * jnp.pi / 8)
    modes = 0.8 * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
    return (modes + 0.06 * jax.random.normal(spread_key, (n, 2))).astype(jnp.float32)


def single(network):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), network)


# ------------------------------------------------------------------- the law, after training


@jax.jit
@partial(jax.vmap, in_axes=(0, None))
def train(self_consistency_weight, key, updates=2000, batch_size=256):
    policy_key, key = jax.random.split(key)
    policy = single(nn.ShortcutPolicy(1, 2, width=64, depth=3, key=policy_key))
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, updates))

    def loss(policy, teacher, key):
        data_key, key = jax.random.split(key)
        options = {"num_steps": M, "self_consistency_weight": self_consistency_weight}
        each = lambda action, key: shortcut_loss(policy, teacher, OBS, action, **options, key=key)[0]
        return jax.vmap(each)(eight_modes(data_key, batch_size), jax.random.split(key, batch_size)).mean()

    def update(carry, key):
        policy, teacher, state = carry
        step, state = optimizer.update(jax.grad(loss)(policy, teacher, key), state)
        policy = optax.apply_updates(policy, step)
        return (policy, optax.incremental_update(policy, teacher, 0.01), state), None

    start = policy, policy, optimizer.init(policy)
    return jax.lax.scan(update, start, jax.random.split(key, updates))[0][0]


class Report(NamedTuple):
    gap: jax.Array
    few_to_many: jax.Array
    few_to_data: jax.Array


def sliced_wasserstein(x, y, directions=128):
    """The root mean square, over directions, of the distance between the sorted projections of two samples."""
    direction = jax.random.normal(jax.random.key(9), (2, directions))
    direction /= jnp.linalg.norm(direction, axis=0, keepdims=True)
    return jnp.sqrt(jnp.mean(jnp.square(jnp.sort(x @ direction, axis=0) - jnp.sort(y @ direction, axis=0))))


@jax.jit
def report(policy, n=2000):
    """The root mean square gap over all jumps that halve; 1-jump samples against those of M jumps, and against data."""
    noise = jax.random.normal(jax.random.key(5), (n, 2), jnp.float32)
    action = eight_modes(jax.random.key(6), n)
    gaps = [
        jax.vmap(lambda x, t=t, h=h: consistency_gap(policy, OBS, x, t, h))((1 - t) * noise + t * action)
        for h in (1, 1 / 2, 1 / 4)
        for t in np.arange(0, 1, h)
    ]
    one, many = (jax.vmap(partial(rollout_k, policy, OBS, k=k))(noise) for k in (1, M))
    return Report(
        jnp.sqrt(jnp.mean(jnp.square(jnp.stack(gaps)))),
        sliced_wasserstein(one, many),
        sliced_wasserstein(one, eight_modes(jax.random.key(7), n)),
    )


def test_training_with_self_consistency_makes_few_jumps_as_good_as_many():
    """Measured over four seeds, 2,000 updates each:

    |                                      | with self-consistency | flow matching alone |
    |--------------------------------------|-----------------------|---------------------|
    | consistency gap, root mean square    | 0.022 to 0.025        | 0.13 to 0.17        |
    | 1-jump against 8-jump samples        | 0.021 to 0.025        | 0.37 to 0.46        |
    | 1-jump samples against the data      | 0.064 to 0.072        | 0.39 to 0.48        |

    Distances are sliced Wasserstein; between two samples of the data it is 0.037.
    """
    policies = train(jnp.array([1.0, 0.0], jnp.float32), jax.random.key(0))
    shortcut, alone = (report(jax.tree.map(lambda leaf, i=i: leaf[i], policies)) for i in range(2))
    assert shortcut.gap < 0.04
    assert shortcut.gap < alone.gap / 3
    assert shortcut.few_to_many < 0.05
    assert shortcut.few_to_many < alone.few_to_many / 6
    assert shortcut.few_to_data < 0.12
    assert alone.few_to_data > 0.25


# ------------------------------------------------------------------------------ every algorithm

SETTINGS = {
    "sorl": {
        "num_steps": 4,
        "max_jumps": 4,
        "flow_matching_weight": 1.0,
        "self_consistency_weight": 1.0,
        "q_weight": 3.0,
    },
    "fql": {"alpha": 1.0},
    "rebrac": {"policy_penalty": 0.1},
    "fbrac": {"alpha": 1.0},
    "cac": {"eta": 10.0},
}
"""Where the published weights suit other scales of reward than this one. Not listed: the defaults."""

CLONES = {"bc"}
"""These do not see the reward."""


@every_algorithm_in_time
def test_an_algorithm_beats_behaviour_cloning(module):
    """The mean reward of the data is 0 and that of its best mode 0.8."""
    name = name_of(module)
    config = module.Config(**SETTINGS.get(name, {}))
    actor = module.actor(ring.train(module, config, updates=500, learning_rate=2e-3), config=config)
    reward = ring.act(actor, shape=noise_shape(module, 2, config=config))[:, 0].mean()
    if name in CLONES:
        assert abs(reward) < 0.15
    else:
        assert 0.4 < reward <= 1.0
