"""Measure how far a shortcut policy's actions are from the dataset for each number of jumps, and the parts of a bound.

The actions of the dataset lie on a ring of five modes, so the velocity that flow matching learns is known exactly. From
the same noise, four ways lead to an action: many steps of the exact velocity, which give the dataset's distribution; M
steps of it; M jumps of the policy; and k jumps of it. The root mean squares of the three differences add up to a bound
of the Wasserstein distance between the policy with k jumps and the data.
"""

import csv
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import tyro
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from shortcutrl import nn, rollout_k, shortcut_loss

matplotlib.use("Agg")
from matplotlib import pyplot as plt

OBS = jnp.zeros(1)  # there is nothing to observe
ANGLES = jnp.arange(5) * 0.4 * jnp.pi
MODES = 0.8 * jnp.stack([jnp.cos(ANGLES), jnp.sin(ANGLES)], axis=-1)
STD = 0.06
PARTS = ("discretisation", "flow matching", "self-consistency")


def exact_velocity(obs, x, t, h):
    """The mean of `action - noise` at `x`: the velocity of the flow, whatever the size of the step."""
    variance = (1 - t) ** 2 + (t * STD) ** 2
    weight = jax.nn.softmax(-jnp.sum((x[None] - t * MODES) ** 2, axis=-1) / (2 * variance))
    action = weight @ (MODES + t * STD**2 / variance * (x[None] - t * MODES))
    return (action - x) / (1 - t)


@partial(jax.jit, static_argnames=("num_steps", "updates", "batch_size"))
def train(key, *, num_steps: int, updates: int, batch_size: int = 256) -> Any:
    init_key, key = jax.random.split(key)
    policy: Any = nn.ShortcutPolicy(1, 2, width=64, depth=3, key=init_key)
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, updates))

    def mean_loss(policy, teacher, key):
        mode_key, noise_key, loss_key = jax.random.split(key, 3)
        modes = MODES[jax.random.randint(mode_key, (batch_size,), 0, len(MODES))]
        actions = modes + STD * jax.random.normal(noise_key, modes.shape)
        loss = partial(shortcut_loss, policy, teacher, OBS, num_steps=num_steps)
        each, _ = jax.vmap(lambda action, key: loss(action, key=key))(actions, jax.random.split(loss_key, batch_size))
        return each.mean()

    def update(carry, key):
        policy, teacher, opt_state = carry
        step, opt_state = optimizer.update(jax.grad(mean_loss)(policy, teacher, key), opt_state)
        policy = optax.apply_updates(policy, step)
        return (policy, optax.incremental_update(policy, teacher, 0.01), opt_state), None

    start = policy, policy, optimizer.init(policy)
    return jax.lax.scan(update, start, jax.random.split(key, updates))[0][0]


def rms(difference: Any) -> float:
    """The root of the mean squared length."""
    return float(np.sqrt(np.mean(np.sum(np.square(difference), axis=-1))))


def measure(policy: nn.ShortcutPolicy, num_steps: int, noise: jax.Array) -> list[dict[str, float]]:
    """The distance and the three parts of its bound, for each number of jumps."""

    def act(velocity, k):
        return np.asarray(jax.jit(jax.vmap(partial(rollout_k, velocity, OBS, k=k)))(noise), np.float64)

    data, steps, smallest = act(exact_velocity, 1024), act(exact_velocity, num_steps), act(policy, num_steps)
    rows = []
    for k in [2**i for i in range(num_steps.bit_length())]:
        actions = act(policy, k)
        parts = [rms(data - steps), rms(steps - smallest), rms(smallest - actions)]
        pairs = linear_sum_assignment(cdist(actions, data, "sqeuclidean"))
        distance = rms(actions[pairs[0]] - data[pairs[1]])
        assert distance <= sum(parts), "the bound must hold"
        rows.append({"M": num_steps, "k": k, "distance": distance, **dict(zip(PARTS, parts, strict=True))})
    return rows


def draw(rows: list[dict[str, Any]], num_steps: tuple[int, ...], out: Path) -> None:
    """Means over the seeds."""

    def mean(name, steps, k):
        return np.mean([row[name] for row in rows if (row["M"], row["k"]) == (steps, k)])

    figure, (left, right) = plt.subplots(1, 2, figsize=(6, 2.8), layout="constrained")
    for steps in num_steps:
        ks = [2**i for i in range(steps.bit_length())]
        left.plot(ks, [mean("distance", steps, k) for k in ks], marker="o", label=f"M = {steps}")
    largest = [2**i for i in range(max(num_steps).bit_length())]
    places, bottom = np.arange(len(largest)), np.zeros(len(largest))
    for part in PARTS:
        heights = np.array([mean(part, max(num_steps), k) for k in largest])
        right.bar(places, heights, bottom=bottom, label=part)
        bottom += heights
    right.plot(places, [mean("distance", max(num_steps), k) for k in largest], "ko", label="distance")
    left.set(xlabel="jumps k", ylabel="Wasserstein distance", xscale="log", ylim=(0, None))
    left.set_xticks(largest, largest)
    left.minorticks_off()
    right.set(xlabel="jumps k", ylim=(0, 1.8 * bottom.max()), title=f"parts of the bound, M = {max(num_steps)}")
    right.set_xticks(places, largest)
    left.legend()
    right.legend()
    figure.savefig(out)


def main(
    out: Path = Path("wasserstein.png"),  # the picture; the table is in the same folder
    num_steps: tuple[int, ...] = (2, 4, 8, 16),  # M of each policy: powers of two
    samples: int = 1000,  # actions of each policy
    updates: int = 3000,  # gradient steps for each policy
    seeds: int = 2,  # policies trained for each M
) -> None:
    rows: list[dict[str, Any]] = []
    for seed in range(seeds):
        train_key, noise_key = jax.random.split(jax.random.key(seed))
        noise = jax.random.normal(noise_key, (samples, 2))
        for steps in num_steps:
            policy = train(train_key, num_steps=steps, updates=updates)
            rows += [{"seed": seed, **row} for row in measure(policy, steps, noise)]
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: round(value, 4) for name, value in row.items()} for row in rows)
    draw(rows, num_steps, out)
    print(f"picture: {out}, table: {out.with_suffix('.csv')}")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
