"""The agents of the FQL repository beside FQL itself: their networks as ours, and a loss against theirs."""

import functools

import equinox as eqx
import reference

arrays = functools.cache(functools.partial(reference.read, "fql_repo_baselines.npz"))


def batch():
    return arrays().batch._replace(next_action=arrays()["batch/next_actions"])


def network(folder, make):
    return arrays().network(folder, make)


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
