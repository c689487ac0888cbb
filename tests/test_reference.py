"""Agreement with arrays that the published SORL code computed, in float32, to 1e-4 relative.

Two things differ and are within the tolerance: the published path keeps `t_epsilon = 1e-5` of the noise at t = 1 and
ours none, and the order of floating-point sums. Measured: 1.4e-5 for flow matching, where the first matters, and
at most 5e-7 for all else, gradients included.
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

from shortcutrl import (
    Transition,
    bon_select,
    flow_matching_loss,
    nn,
    q_loss,
    rollout_k,
    self_consistency_loss,
    td_loss,
)

FOLDER = Path(os.environ.get("SHORTCUTRL_REFERENCE", Path(__file__).parents[2] / "shared" / "reference"))
FILES = ["sorl_mean_normalized.npz", "sorl_min_raw.npz"]
CLIP = (-1.0, 1.0)
TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Published:
    """One file: its arrays by key, and its networks as ours."""

    arrays: dict[str, jax.Array]

    def __getitem__(self, key):
        return self.arrays[key]

    def network(self, folder, make, *sizes):
        """The arrays under `folder`, weights or gradients, in the structure of the network that `make` makes."""
        dense, norm = self.kinds(folder, "Dense", "kernel", "bias"), self.kinds(folder, "LayerNorm", "scale", "bias")
        width, depth = dense[0][0].shape[-1], len(dense) - 1
        like = eqx.filter_eval_shape(make, *sizes, width=width, depth=depth, key=jax.random.key(0))
        weights, biases = zip(*dense, strict=True)
        leaves = [*weights, *biases, *itertools.chain(*norm)]
        assert [leaf.shape for leaf in leaves] == [leaf.shape for leaf in jax.tree.leaves(like)]
        return jax.tree.unflatten(jax.tree.structure(like), leaves)

    def kinds(self, folder, kind, *names):
        """The arrays `folder/kind_i/name`, for i = 0, 1, ..., a tuple with one for each of `names`."""
        count = sum(key.startswith(f"{folder}/{kind}_") for key in self.arrays) // len(names)
        return [tuple(self[f"{folder}/{kind}_{i}/{name}"] for name in names) for i in range(count)]

    def policy(self, folder):
        return self.network(f"{folder}/mlp", nn.ShortcutPolicy, *self.sizes)

    def critic(self, folder):
        return self.network(f"{folder}/value_net", partial(nn.EnsembleCritic, condition_on_k=True), *self.sizes)

    @property
    def sizes(self):
        return self["batch/observations"].shape[-1], self["batch/actions"].shape[-1]

    @property
    def aggregate(self):
        return "min" if self["meta/q_agg_is_min"] else "mean"

    @property
    def batch(self):
        names = ["observations", "actions", "rewards", "masks", "next_observations"]
        return Transition(*(self[f"batch/{name}"] for name in names))


@pytest.fixture(params=FILES, scope="module")
def published(request):
    path = FOLDER / request.param
    if not path.exists():
        pytest.skip(f"no reference arrays: {path} does not exist; set SHORTCUTRL_REFERENCE to their folder")
    with np.load(path) as file:
        return Published({key: jnp.asarray(file[key]) for key in file.files})


def assert_agrees(ours, theirs):
    """Leaf by leaf, the norm of the difference within 1e-4 of the norm of the published leaf."""
    for (path, leaf), expected in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        assert leaf.shape == expected.shape
        assert leaf.dtype == expected.dtype == np.float32
        error = np.linalg.norm(leaf - expected) / np.linalg.norm(expected)
        assert error < TOLERANCE, f"{jax.tree_util.keystr(path)}: relative error {error:.1e}"


def batch_mean(loss, *arrays, aux=False):
    """The mean of an unbatched loss over the leading axis."""
    losses = jax.vmap(loss)(*arrays)
    return jnp.mean(losses[0] if aux else losses)


@pytest.mark.parametrize(("network", "output"), [("actor", "velocity"), ("target_actor", "target_velocity")])
def test_the_policy_network(published, network, output):
    policy = published.policy(f"params/{network}")
    h = 2.0 ** -published["actor/log2_steps"]
    velocity = jax.jit(jax.vmap(policy))(published["batch/observations"], published["actor/x"], published["actor/t"], h)
    assert_agrees(velocity, published[f"actor/{output}"])


def test_the_critic_network(published):
    def critic(obs, action, k):
        return published.critic("params/critic")(obs, action, k=k)

    inputs = published["batch/observations"], published["batch/actions"], published["critic/num_steps"]
    assert_agrees(jax.jit(jax.vmap(critic))(*inputs).T, published["critic/q"])


@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_rollouts(published, k):
    roll = partial(rollout_k, published.policy("params/actor"), k=k, clip=CLIP)
    actions = jax.jit(jax.vmap(roll))(published["batch/observations"], published["rollout/noise"])
    assert_agrees(actions, published[f"rollout/action_k{k}"])


def test_flow_matching_loss_and_its_gradient(published):
    h = 1 / float(published["meta/denoise_steps"])
    batch = published.batch

    @jax.jit
    @jax.value_and_grad
    def value_and_grad(policy):
        loss = partial(flow_matching_loss, policy, h=h)
        return batch_mean(loss, batch.obs, batch.action, published["flow_matching/noise"], published["flow_matching/t"])

    loss, grad = value_and_grad(published.policy("params/actor"))
    assert_agrees(loss, published["flow_matching/loss"])
    assert_agrees(grad, published.policy("flow_matching/grad"))


def test_self_consistency_loss_and_its_gradient(published):
    target = published.policy("params/target_actor")
    batch = published.batch
    draws = [published[f"self_consistency/{name}"] for name in ("noise", "t", "log2_steps")]
    draws[-1] = 2.0 ** -draws[-1]

    @jax.jit
    @jax.value_and_grad
    def value_and_grad(policy):
        return batch_mean(partial(self_consistency_loss, policy, target), batch.obs, batch.action, *draws)

    loss, grad = value_and_grad(published.policy("params/actor"))
    assert_agrees(loss, published["self_consistency/loss"])
    assert_agrees(grad, published.policy("self_consistency/grad"))


@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_q_loss_and_its_gradient(published, k):
    critic = partial(published.critic("params/critic"), k=k)

    @jax.jit
    @jax.value_and_grad
    def value_and_grad(policy):
        loss = partial(q_loss, policy, critic, k=k, clip=CLIP)
        losses, info = jax.vmap(loss)(published["batch/observations"], published[f"q_loss/k{k}/noise"])
        scale = jax.lax.stop_gradient(jnp.abs(info.q).mean()) if published["meta/normalize_q_loss"] else 1.0
        return losses.mean() / scale

    loss, grad = value_and_grad(published.policy("params/actor"))
    assert_agrees(loss, published[f"q_loss/k{k}/loss"])
    assert_agrees(grad, published.policy(f"q_loss/k{k}/grad"))


@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_td_loss_and_its_gradient(published, k):
    target_critic = partial(published.critic("params/target_critic"), k=k)
    policy = published.policy("params/actor")
    options = {"k": k, "discount": published["meta/discount"], "aggregate": published.aggregate, "clip": CLIP}

    @jax.jit
    @jax.value_and_grad
    def value_and_grad(critic):
        loss = partial(td_loss, partial(critic, k=k), target_critic, policy, **options)
        return batch_mean(loss, published.batch, published[f"td_loss/k{k}/noise"], aux=True)

    loss, grad = value_and_grad(published.critic("params/critic"))
    assert_agrees(loss, published[f"td_loss/k{k}/loss"])
    assert_agrees(grad, published.critic(f"td_loss/k{k}/grad"))


@pytest.mark.parametrize(("k", "n"), [(1, 4), (4, 8), (8, 16)])
def test_best_of_n(published, k, n):
    critic = partial(published.critic("params/critic"), k=k)
    options = {"k": k, "aggregate": published.aggregate, "clip": CLIP}
    select = jax.jit(partial(bon_select, published.policy("params/actor"), critic, **options))
    folder = f"best_of_n/k{k}_n{n}"
    action, info = select(published["batch/observations"][0], published[f"{folder}/noise"])
    assert info.q.shape == (n,)
    assert_agrees(action, published[f"{folder}/action"])


def test_the_comparison_notices_another_network(published):
    with pytest.raises(AssertionError, match="relative error"):
        assert_agrees(published.policy("params/target_actor"), published.policy("params/actor"))
