"""Draw four ways to make actions in two dimensions, each with 1, 2, 4 and 8 jumps. Uses only the losses, no simulator.

The actions of the dataset lie on a ring of five modes. Q prefers those to the right.
"""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import optax
import tyro

from shortcutrl import best_of_n, nn, q_loss, rollout_k, shortcut_loss

matplotlib.use("Agg")
from matplotlib import pyplot as plt

OBS = jnp.zeros(1)  # there is nothing to observe
JUMPS = (1, 2, 4, 8)


def behaviour(key, size: int):
    mode_key, noise_key = jax.random.split(key)
    angle = jax.random.randint(mode_key, (size,), 0, 5) * 0.4 * jnp.pi
    return 0.8 * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1) + 0.06 * jax.random.normal(noise_key, (size, 2))


def critic(obs, action):
    return action[:1]


@partial(jax.jit, static_argnames=("updates", "batch_size"))
def train(key, self_consistency_weight, q_weight, *, updates: int, batch_size: int = 256):
    init_key, key = jax.random.split(key)
    policy: Any = nn.ShortcutPolicy(1, 2, width=64, depth=3, key=init_key)
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, updates))

    def loss(policy, teacher, action, key):
        noise_key, shortcut_key = jax.random.split(key)
        weights = {"num_steps": 8, "self_consistency_weight": self_consistency_weight}
        imitation, _ = shortcut_loss(policy, teacher, OBS, action, **weights, key=shortcut_key)
        minus_q, _ = q_loss(partial(rollout_k, policy, k=2), critic, OBS, jax.random.normal(noise_key, (2,)))
        return imitation + q_weight * minus_q

    def mean_loss(policy, teacher, key):
        data_key, loss_key = jax.random.split(key)
        each = jax.vmap(partial(loss, policy, teacher))
        return each(behaviour(data_key, batch_size), jax.random.split(loss_key, batch_size)).mean()

    def update(carry, key):
        policy, teacher, opt_state = carry
        step, opt_state = optimizer.update(jax.grad(mean_loss)(policy, teacher, key), opt_state)
        policy = optax.apply_updates(policy, step)
        return (policy, optax.incremental_update(policy, teacher, 0.01), opt_state), None

    start = policy, policy, optimizer.init(policy)
    return jax.lax.scan(update, start, jax.random.split(key, updates))[0][0]


def main(
    out: Path = Path("two_dimensions.png"),  # the picture
    samples: int = 1000,  # samples in each panel
    updates: int = 3000,  # gradient steps for each policy
    seed: int = 0,
) -> None:
    train_key, noise_key, data_key = jax.random.split(jax.random.key(seed), 3)
    learn = partial(train, train_key, updates=updates)
    flow, shortcut, guided = learn(0.0, 0.0), learn(1.0, 0.0), learn(1.0, 0.05)
    noise = jax.random.normal(noise_key, (samples, 8, 2))
    rows = {
        "flow matching\nalone": lambda k: (partial(rollout_k, flow, k=k), noise[:, 0]),
        "shortcut": lambda k: (partial(rollout_k, shortcut, k=k), noise[:, 0]),
        "Q maximised\nthrough 2 jumps": lambda k: (partial(rollout_k, guided, k=k), noise[:, 0]),
        "best of 8\nby Q": lambda k: (partial(best_of_n, partial(rollout_k, shortcut, k=k), critic), noise),
    }
    data = behaviour(data_key, samples)
    figure, axes = plt.subplots(len(rows), len(JUMPS), figsize=(6, 6.4), layout="constrained", sharex=True, sharey=True)
    for (name, make_actor), row in zip(rows.items(), axes, strict=True):
        row[0].set_ylabel(name)
        for k, axis in zip(JUMPS, row, strict=True):
            actor, draws = make_actor(k)
            actions = jax.jit(jax.vmap(partial(actor, OBS)))(draws)
            axis.scatter(*data.T, s=2, lw=0, color="0.65")
            axis.scatter(*actions.T, s=2, lw=0, color="tab:blue")
            axis.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), aspect="equal", xticks=[], yticks=[])
            axis.set_xlabel(f"Q = {critic(OBS, actions.T)[0].mean():.2f}")
    for k, axis in zip(JUMPS, axes[0], strict=True):
        axis.set_title(f"{k} jump{'s' * (k > 1)}")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
    print(f"{out}: grey is the dataset, blue are the actions of the policies; more jumps to the right")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
