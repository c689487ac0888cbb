"""Train every method on one small problem and draw the policies side by side. Takes a few minutes, without a simulator.

The actions of the dataset lie on a ring of five modes, and those to the right are rewarded.
"""

import inspect
import time
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import tyro

from shortcutrl import bc, cac, data, fawac, fbrac, fql, idql, ifql, iql, rebrac, sorl, srpo

matplotlib.use("Agg")
from matplotlib import pyplot as plt


class Method(NamedTuple):
    module: ModuleType
    config: Any

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """The shape of the noise of one action: the action's, where the module does not say."""
        shape = getattr(self.module, "noise_shape", None)
        return shape(2, config=self.config) if shape else (2,)


METHODS = {
    "BC": Method(bc, bc.Config()),
    "IQL": Method(iql, iql.Config(alpha=10.0)),
    "ReBRAC": Method(rebrac, rebrac.Config(policy_penalty=1.0)),
    "SRPO": Method(srpo, srpo.Config(beta=0.15)),
    "IDQL": Method(idql, idql.Config(denoising_steps=20)),
    "IFQL": Method(ifql, ifql.Config()),
    "FAWAC": Method(fawac, fawac.Config(alpha=3.0)),
    "FBRAC": Method(fbrac, fbrac.Config(alpha=3.0)),
    "CAC": Method(cac, cac.Config(eta=1.0, num_levels=40, schedule_updates=1500)),
    "FQL": Method(fql, fql.Config(alpha=10.0)),
    "SORL": Method(sorl, sorl.Config(q_weight=5.0)),
}


def make_dataset(size: int = 10_000) -> data.Dataset:
    """Episodes of one step. There is nothing to observe."""
    rng = np.random.default_rng(0)
    angle = 0.4 * np.pi * rng.integers(5, size=size)
    action = 0.8 * np.stack([np.cos(angle), np.sin(angle)], axis=-1) + 0.06 * rng.normal(size=(size, 2))
    obs = np.zeros((size, 1))
    return data.from_arrays(observations=obs, actions=action.clip(-1, 1), rewards=action[:, 0], terminals=np.ones(size))


def train(dataset: data.Dataset, method: Method, updates: int, seed: int) -> Any:
    """The state of the method's agent after training."""
    module, config = method
    init_key, train_key = jax.random.split(jax.random.key(seed))
    # Some methods have a second width, of a network of another kind.
    widths = [name for name in inspect.signature(module.networks).parameters if name.endswith("width")]
    sizes = {"depth": 3} | dict.fromkeys(widths, 64)
    networks = module.networks(data.sample(dataset, init_key, batch_size=1), **sizes, key=init_key)
    adam = optax.adam(optax.cosine_decay_schedule(2e-3, updates))
    options = {"config": config, "optimizers": module.Networks(*[adam] * len(networks))}

    def update(state, key):
        batch_key, update_key = jax.random.split(key)
        batch = data.sample(dataset, batch_key, batch_size=256)
        return module.update(state, batch, **options, key=update_key)[0], None

    scan = jax.jit(lambda state, keys: jax.lax.scan(update, state, keys)[0])
    return scan(module.init(networks, **options), jax.random.split(train_key, updates))


def main(
    out: Path = Path("methods.png"),  # the picture
    methods: tuple[str, ...] = tuple(METHODS),  # the methods to train
    samples: int = 1000,  # samples in each panel
    updates: int = 2000,  # updates of each method
    seed: int = 0,
) -> None:
    dataset = make_dataset()
    behaviour = dataset.action[:samples]
    actions = {"dataset": behaviour}
    for name in methods:
        started, method = time.perf_counter(), METHODS[name]
        state = train(dataset, method, updates, seed)
        actor = method.module.actor(state, config=method.config)
        noise = jax.random.normal(jax.random.key(seed + 1), (samples, *method.noise_shape))
        actions[name] = jax.jit(jax.vmap(actor))(jnp.zeros((samples, 1)), noise)
        print(f"{name}: mean reward {actions[name][:, 0].mean():.2f}, {time.perf_counter() - started:.0f} s")
    columns = min(4, len(actions))
    rows = -(-len(actions) // columns)
    size = 1.5 * columns, 1.7 * rows
    figure, axes = plt.subplots(
        rows, columns, figsize=size, layout="constrained", sharex=True, sharey=True, squeeze=False
    )
    for axis in axes.flat[len(actions) :]:
        axis.remove()
    for (name, action), axis in zip(actions.items(), axes.flat, strict=False):
        one = np.ptp(action, axis=0).max() < 1e-3  # always the same action
        axis.scatter(*behaviour.T, s=1, color="0.65")
        axis.scatter(*action.T, s=40 if one else 1, marker="x" if one else "o", color="tab:blue")
        axis.set(title=name, xlabel=f"mean reward {action[:, 0].mean():.2f}", xticks=[], yticks=[])
        axis.set(aspect="equal", xlim=(-1.15, 1.15), ylim=(-1.15, 1.15))
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
    print(f"picture: {out}")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
