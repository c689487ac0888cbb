"""Measure what an encoder costs: once for each observation, at each jump, in a loop of XLA, trained and frozen.

taskset -c 0 python benchmarks/images.py
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from shortcutrl import Transition, bon_select, nn, q_loss, rollout_k, sorl


def hidden(velocity: Any) -> Callable[..., jax.Array]:
    """The same velocity without its method `encode`: it encodes at each call."""
    return lambda obs, x, t, h: velocity(obs, x, t, h)


def convolutions(function: Callable[..., Any], *args: Any) -> int:
    """How many convolutions the program holds, before the compiler merges equal ones."""
    return str(jax.make_jaxpr(function)(*args)).count("conv_general_dilated[")


def measure(function: Callable[..., Any], *args: Any, repeats: int) -> tuple[float, float]:
    """Seconds to compile, and milliseconds of CPU time for a call: the least of `repeats`."""
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*args).compile()
    seconds, taken = time.perf_counter() - start, []
    for _ in range(repeats):
        start = time.process_time()
        jax.block_until_ready(compiled(*args))
        taken.append((time.process_time() - start) * 1e3)
    return seconds, min(taken)


def updates(encoder: Any, obs: jax.Array, adam: optax.GradientTransformation) -> dict[str, tuple[Any, ...]]:
    """An update of SORL and its arguments, with the encoder trained, frozen in the optimizer, and as a function."""
    count, key, config = len(obs), jax.random.key(0), sorl.Config()
    batch = Transition(obs, jnp.zeros((count, 5)), jnp.zeros(count), jnp.ones(count), obs)

    def labels(params):
        trained = jax.tree.map(lambda _: "train", params)
        return eqx.tree_at(lambda net: net.encoder, trained, jax.tree.map(lambda _: "freeze", params.encoder))

    frozen = optax.multi_transform({"train": adam, "freeze": optax.set_to_zero()}, labels)
    forms = {
        "trained": (encoder, adam),
        "frozen in the optimizer": (encoder, frozen),
        "as a function": (lambda obs: encoder(obs), adam),
    }

    def make(encoder, optimizer):
        options: dict[str, Any] = {"config": config, "optimizers": sorl.Networks(optimizer, optimizer)}
        state = sorl.init(sorl.networks(batch, encoder=encoder, key=key), **options)
        return partial(sorl.update, **options), state, batch

    return {name: make(*form) for name, form in forms.items()}


def main(k: int = 8, n: int = 8, batch: int = 16, size: int = 64, repeats: int = 5) -> None:
    key, shape = jax.random.key(0), (size, size, 9)
    encoder = nn.Impala(shape, key=key)
    policy = nn.ShortcutPolicy(512, 5, encoder=encoder, key=key)
    critic = nn.EnsembleCritic(512, 5, encoder=encoder, key=key)
    obs = jnp.asarray(np.random.default_rng(0).integers(0, 256, (batch, *shape)), jnp.uint8)
    noise = jax.random.normal(key, (batch, n, 5))

    def act(form, policy, critic, obs, noise):
        return jax.vmap(partial(bon_select, partial(rollout_k, form(policy), k=k), critic))(obs, noise)[0]

    def each_candidate(form, policy, critic, obs, noise):
        """Every candidate with an observation of its own, as where a batch is repeated n times."""
        many = jax.tree.map(lambda x: jnp.repeat(x, n, axis=0), obs)
        actions = jax.vmap(partial(rollout_k, form(policy), k=k))(many, noise.reshape(-1, 5))
        q = jax.vmap(critic)(many, actions).mean(-1).reshape(batch, n)
        return jnp.take_along_axis(actions.reshape(batch, n, 5), q.argmax(1)[:, None, None], axis=1)[:, 0]

    def improve(form, policy, critic, obs, noise):
        def loss(policy):
            actor = partial(rollout_k, form(policy), k=k)
            return jax.vmap(partial(q_loss, actor, critic))(obs, noise[:, 0])[0].mean()

        return eqx.filter_grad(loss)(policy)

    def descend(steps, encoder, obs):
        def loss(encoder):
            return jax.vmap(encoder)(obs).mean()

        def step(encoder, _):
            return eqx.apply_updates(encoder, eqx.filter_grad(loss)(encoder)), None

        return jax.lax.scan(step, encoder, None, length=steps)[0] if steps > 1 else step(encoder, None)[0]

    for name, steps in {"alone": 1, "in a scan of 2": 2}.items():
        _, milliseconds = measure(partial(descend, steps), encoder, obs, repeats=repeats)
        print(f"a gradient step of the encoder, {name}: {milliseconds / steps:.1f} ms of CPU time; lower is better")
    for name, (update, *args) in updates(encoder, obs, optax.adam(3e-4)).items():
        _, milliseconds = measure(lambda *args, update=update: update(*args, key=key), *args, repeats=repeats)
        print(f"an update of SORL on {batch} transitions, encoder {name}: {milliseconds:.0f} ms of CPU time")
    print(f"k = {k} jumps, n = {n} candidates, {batch} observations of {size} x {size} x 9; lower is better")
    print(f"{'':44}{'convolutions':>14}{'to compile, s':>15}{'CPU, ms':>10}")
    for name, function in {
        "best of n: once for each observation": partial(act, lambda policy: policy),
        "best of n: at each jump": partial(act, hidden),
        "best of n: at each candidate and jump": partial(each_candidate, hidden),
        "gradient of q_loss: once for each observation": partial(improve, lambda policy: policy),
        "gradient of q_loss: at each jump": partial(improve, hidden),
    }.items():
        args = policy, critic, obs, noise
        seconds, milliseconds = measure(function, *args, repeats=repeats)
        print(f"{name:46}{convolutions(function, *args):12}{seconds:15.1f}{milliseconds:10.1f}")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
