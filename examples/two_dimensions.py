"""What a shortcut policy is, in two dimensions: four ways to make actions, each with 1, 2, 4 and 8 jumps. No simulator.

The data's actions lie on a ring of five modes. Q prefers those to the right.
"""

from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib
import optax
import tyro

from shortcutrl import bon_select, nn, q_loss, rollout_k, shortcut_loss

matplotlib.use("Agg")
from matplotlib import pyplot as plt

OBS = jnp.zeros(1)  # there is nothing to observe
JUMPS = (1, 2, 4, 8)


def behaviour(key, n: int):
    mode_key, noise_key = jax.random.split(key)
    angle = jax.random.randint(mode_key, (n,), 0, 5) * 0.4 * jnp.pi
    return 0.8 * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1) + 0.06 * jax.random.normal(noise_key, (n, 2))


def critic(obs, action):
    return action[:1]


@partial(jax.jit, static_argnames=("updates", "batch_size"))
def train(key, self_consistency_weight, q_weight, *, updates: int, batch_size: int = 256):
    init_key, key = jax.random.split(key)
    policy = nn.ShortcutPolicy(1, 2, width=64, depth=3, key=init_key)
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, updates))

    def loss(policy: Any, teacher, key):
        data_key, noise_key, shortcut_key = jax.random.split(key, 3)
        imitate = partial(
            shortcut_loss, policy, teacher, OBS, num_steps=8, self_consistency_weight=self_consistency_weight
        )
        keys = jax.random.split(shortcut_key, batch_size)
        imitation, _ = jax.vmap(lambda action, key: imitate(action, key=key))(behaviour(data_key, batch_size), keys)
        noise = jax.random.normal(noise_key, (batch_size, 2))
        minus_q, _ = jax.vmap(partial(q_loss, policy, critic, OBS, k=2))(noise)
        return jnp.mean(imitation + q_weight * minus_q)

    def update(carry: Any, key):
        policy, teacher, opt_state = carry
        updates, opt_state = optimizer.update(jax.grad(loss)(policy, teacher, key), opt_state, policy)
        policy = eqx.apply_updates(policy, updates)
        return (policy, optax.incremental_update(policy, teacher, 0.01), opt_state), None

    start = policy, policy, optimizer.init(eqx.filter(policy, eqx.is_inexact_array))
    return jax.lax.scan(update, start, jax.random.split(key, updates))[0][0]


def main(
    out: Path = Path("two_dimensions.png"),  # the picture
    samples: int = 1000,  # in each panel
    updates: int = 3000,  # gradient steps for each policy
    seed: int = 0,
) -> None:
    key = jax.random.key(seed)
    learn = partial(train, key, updates=updates)
    flow, shortcut, guided = learn(0.0, 0.0), learn(1.0, 0.0), learn(1.0, 0.05)
    noise = jax.random.normal(jax.random.key(seed + 1), (samples, 8, 2))

    def one(policy):
        return lambda k, noise: jax.vmap(partial(rollout_k, policy, OBS, k=k))(noise[:, 0])

    def best_of_8(k, noise):
        return jax.vmap(partial(bon_select, shortcut, critic, OBS, k=k))(noise)[0]

    rows = {
        "flow matching\nalone": one(flow),
        "shortcut": one(shortcut),
        "shortcut, Q maximised\nthrough 2 jumps": one(guided),
        "shortcut,\nbest of 8 by Q": best_of_8,
    }
    data = behaviour(jax.random.key(seed + 2), samples)
    figure, axes = plt.subplots(len(rows), len(JUMPS), figsize=(8, 8), layout="constrained", sharex=True, sharey=True)
    for (name, act), row in zip(rows.items(), axes, strict=True):
        row[0].set_ylabel(name)
        for k, axis in zip(JUMPS, row, strict=True):
            actions = jax.jit(act, static_argnums=0)(k, noise)
            axis.scatter(*data.T, s=1, color="0.85")
            axis.scatter(*actions.T, s=1, color="tab:blue")
            axis.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), aspect="equal", xticks=[], yticks=[])
            axis.set_xlabel(f"Q = {critic(OBS, actions.T)[0].mean():.2f}")
    for k, axis in zip(JUMPS, axes[0], strict=True):
        axis.set_title(f"{k} jump{'s' if k > 1 else ''}")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    print(f"{out}: from left to right more jumps, from top to bottom other policies; grey, the data")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
