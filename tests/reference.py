"""Arrays that published code computed: their networks as ours, and how closely to agree.

Every array is float32. `FOLDER` has a README that describes the files.
"""

import dataclasses
import itertools
import os
from functools import partial
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shortcutrl import Transition, nn

FOLDER = Path(os.environ.get("SHORTCUTRL_REFERENCE", Path(__file__).parents[2] / "shared" / "reference"))
CLIP = (-1.0, 1.0)
TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Published:
    """One file: its arrays by key, and its networks as ours."""

    arrays: dict[str, jax.Array]

    def __getitem__(self, key):
        return self.arrays[key]

    def network(self, folder, make, at):
        """The network that `make` makes, with the arrays under `folder` (weights or gradients) in its MLP, `at`."""
        dense, norms = self.kinds(folder, "Dense", "kernel", "bias"), self.kinds(folder, "LayerNorm", "scale", "bias")
        weights, biases = zip(*dense, strict=True)
        like = make(*self.sizes, width=1, depth=len(dense) - 1, key=jax.random.key(0))
        inputs = at(like).weights[0].shape[-2]
        assert weights[0].shape[-2] == inputs, f"{folder} has {weights[0].shape[-2]} inputs, not {inputs}"
        parts = weights, biases, tuple(itertools.starmap(layer_norm, norms))
        return eqx.tree_at(lambda network: (at(network).weights, at(network).biases, at(network).norms), like, parts)

    def kinds(self, folder, kind, *names):
        """The arrays `folder/kind_i/name`, for i = 0, 1, ..., a tuple with one for each of `names`."""
        count = sum(key.startswith(f"{folder}/{kind}_") for key in self.arrays) // len(names)
        return [tuple(self[f"{folder}/{kind}_{i}/{name}"] for name in names) for i in range(count)]

    def policy(self, folder, make=nn.ShortcutPolicy):
        return self.network(f"{folder}/mlp", make, lambda policy: policy.mlp)

    def critic(self, folder, **options):
        return self.network(f"{folder}/value_net", partial(nn.EnsembleCritic, **options), lambda critic: critic.members)

    @property
    def sizes(self):
        return self["batch/observations"].shape[-1], self["batch/actions"].shape[-1]

    @property
    def batch(self):
        names = ["observations", "actions", "rewards", "masks", "next_observations"]
        return Transition(*(self[f"batch/{name}"] for name in names))


def layer_norm(scale, bias):
    norm = eqx.nn.LayerNorm(scale.shape[-1], eps=1e-6)
    return eqx.tree_at(lambda norm: (norm.weight, norm.bias), norm, (scale, bias))


def read(name):
    """The arrays of a file, or skip the test that asks for them."""
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"no reference arrays: {path} does not exist; set SHORTCUTRL_REFERENCE to their folder")
    with np.load(path) as file:
        return Published({key: jnp.asarray(file[key]) for key in file.files})


def assert_agrees(ours, theirs, tolerance=TOLERANCE):
    """Leaf by leaf, the norm of the difference within 1e-4 of the norm of the published leaf."""
    for (path, leaf), expected in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        assert leaf.shape == expected.shape
        assert leaf.dtype == expected.dtype == np.float32
        error = np.linalg.norm(leaf - expected) / np.linalg.norm(expected)
        assert error < tolerance, f"{jax.tree_util.keystr(path)}: relative error {error:.1e}"
