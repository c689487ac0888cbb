"""The agents of a checkout of the FQL repository, as a file that run.py trains: for the same data and evaluation.

    FQL_REPOSITORY=PATH python benchmarks/ogbench/run.py --methods benchmarks/ogbench/fql_repository.py --label=-iql \
        --set fql_repository.agent=iql fql_repository.alpha=10 --tasks scene-play-singletask-task1-v0

`published.py` does not apply here: set the environment's `alpha`, `num_samples` and `discount`. The requirements of the
repository must be installed: flax, distrax and ml_collections. ReBRAC is not offered, because every second of its
updates is another program.
"""

import dataclasses
import importlib
import os
import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

AGENTS = {"fql": "FQLAgent", "iql": "IQLAgent", "ifql": "IFQLAgent"}
OPTIMIZERS = optax.adam(3e-4)
_FIRST: dict[Any, Any] = {}  # the first network of each kind: agents train together only if they share its functions


@dataclasses.dataclass(frozen=True)
class Config:
    agent: Literal["fql", "iql", "ifql"] = "fql"
    alpha: float | None = None  # of FQL and IQL; by default the repository's
    num_samples: int | None = None  # of IFQL
    discount: float = 0.99
    tau: float = 0.005


class Info(NamedTuple):
    q: jax.Array


def _module(config: Config) -> Any:
    path = Path(os.environ.get("FQL_REPOSITORY", ""))
    if not (path / "agents" / f"{config.agent}.py").exists():
        raise ValueError(f"`FQL_REPOSITORY` must be the path of a checkout, got {str(path)!r}.")
    if str(path) not in sys.path:
        sys.path.insert(0, str(path))
    return importlib.import_module(f"agents.{config.agent}")


def networks(example: Any, *, width: int, depth: int, key: jax.Array) -> Any:
    """What `init` needs: the agents make their own networks."""
    return example, (width,) * depth, key


def init(networks: Any, *, config: Config, optimizers: optax.GradientTransformation) -> Any:
    module, (example, sizes, key) = _module(config), networks
    options = module.get_config()
    options.actor_hidden_dims = options.value_hidden_dims = sizes
    for field in dataclasses.fields(config):
        if field.name in options and getattr(config, field.name) is not None:
            options[field.name] = getattr(config, field.name)
    seed = int(jax.random.key_data(key)[-1])
    agent = getattr(module, AGENTS[config.agent]).create(seed, example.obs, example.action, options)
    # One optimizer per network, as ours: each clips its own gradient.
    labels = {name: name for name in agent.network.params}
    network = agent.network.replace(tx=optax.partition(dict.fromkeys(labels, optimizers), labels))
    first = _FIRST.setdefault((config, sizes, optimizers), network)
    opt_state = first.tx.init(network.params)
    agent = agent.replace(network=network.replace(tx=first.tx, apply_fn=first.apply_fn, opt_state=opt_state))
    return jax.tree.map(jnp.array, agent)  # copies: run.py donates the state, in which targets share their buffers


def update(state: Any, batch: Any, *, config: Config, optimizers: Any, key: jax.Array) -> tuple[Any, Info]:
    """One update by the optimizers of `init` and the agent's own random key."""
    names = ("observations", "actions", "rewards", "masks", "next_observations", "next_actions")
    state, info = state.update(dict(zip(names, batch, strict=True)))
    return state, Info(q=next(value for name, value in info.items() if name.endswith("q_mean")))


def actor(state: Any, *, config: Config) -> Any:
    """The agent's own action, whose key is made of the noise. IQL acts by the mean, as it is evaluated there."""
    temperature = 0.0 if config.agent == "iql" else 1.0

    def act(obs, noise):
        key = jax.random.key(jax.lax.bitcast_convert_type(jnp.float32(noise), jnp.uint32))
        return state.sample_actions(obs, seed=key, temperature=temperature)

    return act


def noise_shape(action_size: int, *, config: Config) -> tuple[int, ...]:
    return ()
