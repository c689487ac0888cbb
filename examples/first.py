"""A first program: learn a policy from a fixed dataset in two dimensions, and draw it. Takes less than a minute.

The actions of the dataset lie on a ring of five modes, and those to the right are rewarded. With one jump, the policy
goes furthest to the right but leaves the dataset; with eight jumps, it goes less far. The best of eight candidates goes
to the right and stays near the dataset.
"""

from pathlib import Path

import jax
import matplotlib
import numpy as np
import optax
import tyro

from shortcutrl import data, sorl

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def make_dataset(size: int = 10_000) -> data.Dataset:
    """Episodes of one step. There is nothing to observe."""
    rng = np.random.default_rng(0)
    angle = 0.4 * np.pi * rng.integers(5, size=size)
    action = 0.8 * np.stack([np.cos(angle), np.sin(angle)], axis=-1) + 0.06 * rng.normal(size=(size, 2))
    obs = np.zeros((size, 1))
    return data.from_arrays(observations=obs, actions=action.clip(-1, 1), rewards=action[:, 0], terminals=np.ones(size))


def train(dataset: data.Dataset, config: sorl.Config, updates: int) -> sorl.State:
    adam = optax.adam(optax.cosine_decay_schedule(2e-3, updates))
    options = {"config": config, "optimizers": sorl.Networks(policy=adam, critic=adam)}
    init_key, train_key = jax.random.split(jax.random.key(0))
    networks = sorl.networks(data.sample(dataset, init_key, batch_size=1), width=64, depth=3, key=init_key)

    def update(state, key):
        batch_key, update_key = jax.random.split(key)
        batch = data.sample(dataset, batch_key, batch_size=256)
        return sorl.update(state, batch, **options, key=update_key)

    return jax.lax.scan(update, sorl.init(networks, **options), jax.random.split(train_key, updates))[0]


def main(
    out: Path = Path("first.png"),  # the picture
    updates: int = 2000,  # gradient steps of each network
) -> None:
    dataset, config = make_dataset(), sorl.Config(q_weight=5.0, tau=0.02)
    state = train(dataset, config, updates)
    obs, noise = dataset.obs[:1000], jax.random.normal(jax.random.key(1), (1000, 8, 2))
    actions = {
        "dataset": dataset.action[:1000],
        "policy, 1 jump": jax.vmap(sorl.actor(state, config=config, k=1))(obs, noise[:, 0]),
        "policy, 8 jumps": jax.vmap(sorl.actor(state, config=config, k=8))(obs, noise[:, 0]),
        "best of 8": jax.vmap(sorl.actor(state, config=config, k=8, n=8))(obs, noise),
    }
    figure, axes = plt.subplots(1, len(actions), figsize=(9, 2.6), layout="constrained", sharex=True, sharey=True)
    for (name, action), axis in zip(actions.items(), axes, strict=True):
        reward = f"mean reward {action[:, 0].mean():.2f}"
        print(f"{name}: {reward}")
        axis.scatter(*dataset.action[:1000].T, s=1, color="0.8")
        axis.scatter(*action.T, s=1, color="tab:blue")
        axis.set(title=name, xlabel=reward, aspect="equal", xlim=(-1.1, 1.1), ylim=(-1.1, 1.1))
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    print(f"picture: {out}")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
