"""Agreement with arrays that the published SORL code computed, in float32, to 1e-4 relative.

Two things differ and are within the tolerance: the published path keeps `t_epsilon = 1e-5` of the noise at t = 1 and
ours none, and the order of floating-point sums. Measured: 1.4e-5 for flow matching, where the first matters, and
at most 5e-7 for all else, gradients included.
"""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from reference import CLIP, assert_agrees, read

from shortcutrl import bon_select, flow_matching_loss, q_loss, rollout_k, self_consistency_loss, sorl, td_loss

FILES = ["sorl_mean_normalized.npz", "sorl_min_raw.npz"]


@pytest.fixture(params=FILES, scope="module")
def published(request):
    return read(request.param)


def critic_of(published, folder):
    return published.critic(folder, condition_on_k=True)


def aggregate_of(published):
    return "min" if published["meta/q_agg_is_min"] else "mean"


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
        return critic_of(published, "params/critic")(obs, action, k=k)

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
    critic = partial(critic_of(published, "params/critic"), k=k)

    @jax.jit
    @jax.value_and_grad
    def value_and_grad(policy):
        loss = partial(q_loss, partial(rollout_k, policy, k=k, clip=CLIP), critic)
        losses, info = jax.vmap(loss)(published["batch/observations"], published[f"q_loss/k{k}/noise"])
        scale = jax.lax.stop_gradient(jnp.abs(info.q).mean()) if published["meta/normalize_q_loss"] else 1.0
        return losses.mean() / scale

    loss, grad = value_and_grad(published.policy("params/actor"))
    assert_agrees(loss, published[f"q_loss/k{k}/loss"])
    assert_agrees(grad, published.policy(f"q_loss/k{k}/grad"))


@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_td_loss_and_its_gradient(published, k):
    target_critic = partial(critic_of(published, "params/target_critic"), k=k)
    actor = partial(rollout_k, published.policy("params/actor"), k=k, clip=CLIP)
    options = {"discount": published["meta/discount"], "aggregate": aggregate_of(published)}

    @jax.jit
    @jax.value_and_grad
    def value_and_grad(critic):
        loss = partial(td_loss, partial(critic, k=k), target_critic, actor, **options)
        return batch_mean(loss, published.batch, published[f"td_loss/k{k}/noise"], aux=True)

    loss, grad = value_and_grad(critic_of(published, "params/critic"))
    assert_agrees(loss, published[f"td_loss/k{k}/loss"])
    assert_agrees(grad, critic_of(published, f"td_loss/k{k}/grad"))


@pytest.mark.parametrize(("k", "n"), [(1, 4), (4, 8), (8, 16)])
def test_best_of_n(published, k, n):
    critic = partial(critic_of(published, "params/critic"), k=k)
    actor = partial(rollout_k, published.policy("params/actor"), k=k, clip=CLIP)
    select = jax.jit(partial(bon_select, actor, critic, aggregate=aggregate_of(published)))
    folder = f"best_of_n/k{k}_n{n}"
    action, info = select(published["batch/observations"][0], published[f"{folder}/noise"])
    assert info.q.shape == (n,)
    assert_agrees(action, published[f"{folder}/action"])


# ------------------------------------------------------------------ the losses of the algorithm


def state_and_config(published):
    networks = (published.policy(f"params/{name}") for name in ("actor", "target_actor"))
    critics = (critic_of(published, f"params/{name}") for name in ("critic", "target_critic"))
    (policy, target_policy), (critic, target_critic) = networks, critics
    config = sorl.Config(
        num_steps=int(published["meta/denoise_steps"]),
        discount=float(published["meta/discount"]),
        aggregate=aggregate_of(published),
        normalize_q=bool(published["meta/normalize_q_loss"]),
        flow_matching_weight=2.0,
        self_consistency_weight=3.0,
        q_weight=5.0,
    )
    return sorl.State(policy, critic, target_policy, target_critic, None, None), config


def draws_of(published, k):
    named = lambda folder, *names: (published[f"{folder}/{name}"] for name in names)
    flow_noise, flow_t = named("flow_matching", "noise", "t")
    noise, t, log2_steps = named("self_consistency", "noise", "t", "log2_steps")
    td_noise, q_noise = published[f"td_loss/k{k}/noise"], published[f"q_loss/k{k}/noise"]
    return sorl.Draws(k, k, td_noise, q_noise, flow_noise, flow_t, noise, (t, 2.0**-log2_steps))


@pytest.mark.parametrize("k", [4])
def test_the_critics_loss_of_an_update(published, k):
    state, config = state_and_config(published)
    loss = jax.jit(jax.value_and_grad(partial(sorl.critic_loss, config=config), has_aux=True))
    (value, _), grad = loss(state.critic, state, published.batch, draws_of(published, k))
    assert_agrees(value, published[f"td_loss/k{k}/loss"])
    assert_agrees(grad, critic_of(published, f"td_loss/k{k}/grad"))


@pytest.mark.parametrize("k", [4])
def test_the_policys_loss_of_an_update(published, k):
    """The published losses and gradients in their weighted sum."""
    state, config = state_and_config(published)
    loss = jax.jit(jax.value_and_grad(partial(sorl.policy_loss, config=config), has_aux=True))
    (value, terms), grad = loss(state.policy, state, published.batch, draws_of(published, k))
    folders = "flow_matching", "self_consistency", f"q_loss/k{k}"
    weigh = lambda *parts: 2 * parts[0] + 3 * parts[1] + 5 * parts[2]
    assert_agrees(value, weigh(*(published[f"{folder}/loss"] for folder in folders)))
    assert_agrees(grad, jax.tree.map(weigh, *(published.policy(f"{folder}/grad") for folder in folders)))
    assert_agrees(terms[1:], tuple(published[f"{folder}/loss"] for folder in folders[:2]))


def test_the_comparison_notices_another_network(published):
    with pytest.raises(AssertionError, match="relative error"):
        assert_agrees(published.policy("params/target_actor"), published.policy("params/actor"))
