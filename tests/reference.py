"""Arrays that published code computed: their networks as ours, and how closely to agree.

Every array is float32. `FOLDER` has a README that describes the files.
"""

import dataclasses
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

    def network(self, folder, make):
        """The network that `make` makes, with the arrays under `folder` (weights or gradients) in its MLP."""
        layers = sorted({key.rpartition("/")[0] for key in self.arrays if key.startswith(f"{folder}/")})
        assert layers, f"no arrays under {folder}"
        dense = [layer for layer in layers if "LayerNorm" not in layer]  # `mean_net` stands last, as it should
        norms = [layer for layer in layers if "LayerNorm" in layer]
        parts = (
            tuple(self[f"{layer}/kernel"] for layer in dense),
            tuple(self[f"{layer}/bias"] for layer in dense),
            tuple(layer_norm(self[f"{layer}/scale"], self[f"{layer}/bias"]) for layer in norms),
        )
        like = make(width=1, depth=len(dense) - 1, key=jax.random.key(0))
        mlp = lambda network: network.mlp if hasattr(network, "mlp") else network.members
        assert mlp(like).weights[0].shape[-2] == parts[0][0].shape[-2], "another number of inputs"
        return eqx.tree_at(lambda network: (mlp(network).weights, mlp(network).biases, mlp(network).norms), like, parts)

    def policy(self, folder, make=nn.ShortcutPolicy):
        return self.network(f"{folder}/mlp", partial(make, *self.sizes))

    def critic(self, folder, **options):
        return self.network(f"{folder}/value_net", partial(nn.EnsembleCritic, *self.sizes, **options))

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
