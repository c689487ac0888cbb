"""The agents of the FQL repository beside FQL itself: their networks as ours, and a loss against theirs."""

import functools

import equinox as eqx
import jax
import reference

arrays = functools.cache(functools.partial(reference.read, "fql_repo_baselines.npz"))


def batch():
    return arrays().batch._replace(next_action=arrays()["batch/next_actions"])


def network(folder, make):
    """The arrays under `folder`, weights or gradients, in the structure of the network that `make` makes."""
    layers = sorted({key.rpartition("/")[0] for key in arrays().arrays if key.startswith(f"{folder}/")})
    assert layers, f"no arrays under {folder}"
    dense = [layer for layer in layers if "LayerNorm" not in layer]  # `mean_net` stands last, as it should
    norms = [layer for layer in layers if "LayerNorm" in layer]
    parts = (
        tuple(arrays()[f"{layer}/kernel"] for layer in dense),
        tuple(arrays()[f"{layer}/bias"] for layer in dense),
        tuple(reference.layer_norm(arrays()[f"{layer}/scale"], arrays()[f"{layer}/bias"]) for layer in norms),
    )
    like = make(width=1, depth=len(dense) - 1, key=jax.random.key(0))
    mlp = lambda network: network.mlp if hasattr(network, "mlp") else network.members
    assert mlp(like).weights[0].shape[-2] == parts[0][0].shape[-2], "another number of inputs"
    return eqx.tree_at(lambda like: (mlp(like).weights, mlp(like).biases, mlp(like).norms), like, parts)


def assert_loss_agrees(loss, learning, state, draws, config, folder, make, *, gradient=True):
    """The loss of the network `learning`, and its gradient if `gradient`, are those in `folder`.

    The last part of `folder` is what the network is called there. IFQL has no gradients there.
    """
    of_network = eqx.filter_value_and_grad(functools.partial(loss, config=config), has_aux=True)
    (value, _), grad = eqx.filter_jit(of_network)(learning, state, batch(), draws)
    part, _, name = folder.rpartition("/")
    reference.assert_agrees(value, arrays()[f"{part}/loss"])
    if gradient:
        reference.assert_agrees(grad, network(f"{part}/grad/{name}", make))
