"""The networks: what they compute, what they see, and how they start."""

import inspect
import itertools
import re
from collections.abc import Callable
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from assertions import each, seeds
from hypothesis import given
from hypothesis import strategies as st

from shortcutrl import Critic, Velocity, clipped, expectile_loss, nn, rollout_k

# --------------------------------------------------------- what they compute, in plain NumPy


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def layer_norm(x, weight, bias):
    return (x - x.mean()) / np.sqrt(x.var() + 1e-6) * weight + bias


def plain_mlp(mlp, x, activation=gelu, norm=layer_norm, norm_first=False):
    """The published layer order, by hand: linear, GELU, LayerNorm; the last layer only linear."""
    *hidden, last = zip(mlp.weights, mlp.biases, strict=True)
    for i, (weight, bias) in enumerate(hidden):
        x = x @ weight + bias
        normalise = (lambda x, i=i: norm(x, mlp.norms[i].weight, mlp.norms[i].bias)) if mlp.norms else lambda x: x
        x = activation(normalise(x)) if norm_first else normalise(activation(x))
    return x @ last[0] + last[1]


def plain_policy(policy, obs, x, t, h, step=lambda h: np.log2(1 / h), mlp=plain_mlp):
    return mlp(policy.mlp, np.concatenate([obs, x, [t], [step(max(h, policy.smallest_step))]]))


def plain_critic(critic, obs, action, k=None, mlp=plain_mlp):
    inputs = np.concatenate([obs, action, [] if k is None else [k]])
    members = [jax.tree.map(lambda leaf, i=i: leaf[i], critic.members) for i in range(len(critic.members.biases[-1]))]
    return np.concatenate([mlp(member, inputs) for member in members])


def plain_flow(policy, obs, x, t, h, mlp=plain_mlp):
    return mlp(policy.mlp, np.concatenate([obs, x, [t]]))


def plain_student(policy, obs, noise, mlp=plain_mlp):
    return mlp(policy.mlp, np.concatenate([obs, noise]))


def jostled(network, seed):
    """Weights, biases and norms all away from where they start, so that each of them counts."""
    leaves, structure = jax.tree.flatten(network)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(structure, [leaf + 0.3 * rng.normal(size=leaf.shape) for leaf in leaves])


@eqx.filter_jit
def apply(network, *args, **options):
    return network(*args, **options)


def assert_policy_is(plain, seed, depth=2, layer_norm=False, h=0.125):
    rng = np.random.default_rng(seed)
    policy = nn.ShortcutPolicy(3, 2, width=8, depth=depth, layer_norm=layer_norm, key=jax.random.key(seed))
    policy = jostled(policy, seed)
    obs, x, t = jnp.asarray(rng.normal(size=3)), jnp.asarray(rng.normal(size=2)), rng.uniform()
    velocity = apply(policy, obs, x, jnp.asarray(t), jnp.asarray(h))
    assert velocity.shape == (2,)
    np.testing.assert_allclose(velocity, plain(policy, obs, x, t, h), rtol=1e-9, atol=1e-9)


def assert_critic_is(plain, seed, depth=2, layer_norm=True, ensemble=3, k=None):
    rng = np.random.default_rng(seed)
    options = {"width": 8, "depth": depth, "ensemble": ensemble, "layer_norm": layer_norm}
    critic = nn.EnsembleCritic(3, 2, **options, condition_on_k=k is not None, key=jax.random.key(seed))
    critic = jostled(critic, seed)
    obs, action = jnp.asarray(rng.normal(size=3)), jnp.asarray(rng.normal(size=2))
    q = apply(critic, obs, action, **({} if k is None else {"k": jnp.asarray(float(k))}))
    assert q.shape == (ensemble,)
    np.testing.assert_allclose(q, plain(critic, obs, action, k), rtol=1e-9, atol=1e-9)
    if k is not None:  # as SORL draws it
        np.testing.assert_array_equal(apply(critic, obs, action, k=jnp.int32(k)), q)


def assert_flow_is(plain, seed, depth=2, layer_norm=False, h=0.125):
    rng = np.random.default_rng(seed)
    policy = nn.FlowPolicy(3, 2, width=8, depth=depth, layer_norm=layer_norm, key=jax.random.key(seed))
    policy = jostled(policy, seed)
    obs, x, t = jnp.asarray(rng.normal(size=3)), jnp.asarray(rng.normal(size=2)), rng.uniform()
    velocity = apply(policy, obs, x, jnp.asarray(t), jnp.asarray(h))
    np.testing.assert_allclose(velocity, plain(policy, obs, x, t, h), rtol=1e-9, atol=1e-9)


def assert_student_is(plain, seed, depth=2, layer_norm=False):
    rng = np.random.default_rng(seed)
    policy = nn.OneStepPolicy(3, 2, width=8, depth=depth, layer_norm=layer_norm, key=jax.random.key(seed))
    policy = jostled(policy, seed)
    obs, noise = jnp.asarray(rng.normal(size=3)), jnp.asarray(rng.normal(size=2))
    np.testing.assert_allclose(apply(policy, obs, noise), plain(policy, obs, noise), rtol=1e-9, atol=1e-9)


depths, norms = st.integers(1, 2), st.booleans()


@given(seed=seeds, depth=depths, layer_norm=norms, h=st.sampled_from([0.0, 1 / 512, 1 / 8, 0.3, 1.0]))
def test_the_policy_computes_what_it_should(seed, depth, layer_norm, h):
    assert_policy_is(plain_policy, seed, depth, layer_norm, h)


@given(seed=seeds, depth=depths, layer_norm=norms, ensemble=st.sampled_from([1, 3]), k=st.sampled_from([None, 1, 8]))
def test_the_critic_computes_what_it_should(seed, depth, layer_norm, ensemble, k):
    assert_critic_is(plain_critic, seed, depth, layer_norm, ensemble, k)


@given(seed=seeds, depth=depths, layer_norm=norms, h=st.sampled_from([0.0, 1 / 8, 1.0]))
def test_the_flow_computes_what_it_should(seed, depth, layer_norm, h):
    assert_flow_is(plain_flow, seed, depth, layer_norm, h)


@given(seed=seeds, depth=depths, layer_norm=norms)
def test_the_student_computes_what_it_should(seed, depth, layer_norm):
    assert_student_is(plain_student, seed, depth, layer_norm)


@each(
    {
        "time backwards": lambda policy, obs, x, t, h: plain_flow(policy, obs, x, 1 - t, h),
        "the end of the step": lambda policy, obs, x, t, h: plain_flow(policy, obs, x, t + h, h),
        "action before obs": lambda policy, obs, x, t, h: plain_flow(policy, x, obs, t, h),
        "ReLU": partial(plain_flow, mlp=partial(plain_mlp, activation=lambda x: np.maximum(x, 0))),
    }
)
def test_a_wrong_flow_is_caught(mutant):
    with pytest.raises(AssertionError, match="Not equal"):
        assert_flow_is(mutant, 0)


@each(
    {
        "noise before obs": lambda policy, obs, noise: plain_student(policy, noise, obs),
        "the noise on top": lambda policy, obs, noise: noise + plain_student(policy, obs, noise),
        "clipped": lambda policy, obs, noise: np.clip(plain_student(policy, obs, noise), -0.1, 0.1),
        "squashed": lambda policy, obs, noise: np.tanh(plain_student(policy, obs, noise)),
    }
)
def test_a_wrong_student_is_caught(mutant):
    with pytest.raises(AssertionError, match="Not equal"):
        assert_student_is(mutant, 0)


@each(
    {
        "sees h, not log2(1 / h)": partial(plain_policy, step=lambda h: h),
        "sees log2(h)": partial(plain_policy, step=np.log2),
        "ReLU": partial(plain_policy, mlp=partial(plain_mlp, activation=lambda x: np.maximum(x, 0))),
        "GELU at the end": partial(plain_policy, mlp=lambda mlp, x: gelu(plain_mlp(mlp, x))),
        "time and step swapped": lambda policy, obs, x, t, h: plain_policy(policy, obs, x, -np.log2(h), 2.0**-t),
    }
)
def test_a_wrong_policy_is_caught(mutant):
    with pytest.raises(AssertionError, match="Not equal"):
        assert_policy_is(mutant, 0)


@each(
    {
        "LayerNorm before GELU": partial(plain_critic, mlp=partial(plain_mlp, norm_first=True)),
        "no LayerNorm": partial(plain_critic, mlp=partial(plain_mlp, norm=lambda x, weight, bias: x)),
        "action before obs": lambda critic, obs, action, k: plain_critic(critic, action, obs, k),
        "sees log2(k)": lambda critic, obs, action, k: plain_critic(critic, obs, action, np.log2(k)),
        "one member for all": lambda *args: plain_critic(*args)[[0, 0, 0]],
    }
)
def test_a_wrong_critic_is_caught(mutant):
    with pytest.raises(AssertionError, match="Not equal"):
        assert_critic_is(mutant, 0, k=4)


# ----------------------------------------------------------------------------- the step they see

POLICY = nn.ShortcutPolicy(3, 2, width=8, depth=2, smallest_step=1 / 16, key=jax.random.key(0))
CRITIC = nn.EnsembleCritic(3, 2, width=8, depth=2, condition_on_k=True, key=jax.random.key(1))
OBS, X = jnp.array([0.1, 0.2, 0.3]), jnp.array([-0.5, 0.5])


def test_steps_are_told_apart_down_to_the_smallest():
    velocities = [apply(POLICY, OBS, X, 0.5, h) for h in (0.5, 0.25, 1 / 8, 1 / 16)]
    assert all(not jnp.allclose(a, b) for a, b in itertools.pairwise(velocities))
    for h in (0.0, 1e-9, 1 / 32):
        assert jnp.array_equal(apply(POLICY, OBS, X, 0.5, h), velocities[-1])


@pytest.mark.parametrize("h", [0.0, 1 / 64, 1 / 16, 0.5])
def test_gradients_are_finite_at_every_step(h):
    square = lambda policy, x, t, h: jnp.sum(policy(OBS, x, t, h) ** 2)
    gradients = jax.grad(square, argnums=(0, 1, 2, 3))(POLICY, X, jnp.array(0.5), jnp.array(h))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_the_critic_sees_k():
    qs = [partial(CRITIC, k=k)(OBS, X) for k in (1, 2, 4, 8)]
    assert all(not jnp.allclose(a, b) for a, b in itertools.pairwise(qs))


# -------------------------------------------------------------------------------- how they start


def test_weights_start_glorot_uniform_and_biases_zero():
    critic = nn.EnsembleCritic(30, 20, width=100, depth=2, ensemble=2, key=jax.random.key(0))
    for weight, bias in zip(critic.members.weights, critic.members.biases, strict=True):
        bound = np.sqrt(6 / sum(weight.shape[1:]))
        assert bound * 0.9 < np.abs(weight).max() <= bound
        assert jnp.isclose(weight.std(), bound / np.sqrt(3), rtol=0.2)
        assert jnp.all(bias == 0)
        assert not jnp.any(weight[0] == weight[1])  # members are drawn apart


def test_the_key_decides():
    make = partial(nn.ShortcutPolicy, 3, 2, width=8, depth=2)
    assert eqx.tree_equal(make(key=jax.random.key(0)), make(key=jax.random.key(0)))
    assert not eqx.tree_equal(make(key=jax.random.key(0)), make(key=jax.random.key(1)))


def test_sizes():
    policy = nn.ShortcutPolicy(3, 2, width=8, depth=2, key=jax.random.key(0))
    assert [weight.shape for weight in policy.mlp.weights] == [(3 + 2 + 1 + 1, 8), (8, 8), (8, 2)]
    assert len(policy.mlp.norms) == 0
    assert [weight.shape for weight in CRITIC.members.weights] == [(2, 3 + 2 + 1, 8), (2, 8, 8), (2, 8, 1)]
    assert len(CRITIC.members.norms) == 2


# ------------------------------------------------------------------------------ how they are used


def test_they_are_velocities_critics_and_actors():
    shape = {"width": 8, "depth": 1, "key": jax.random.key(0)}
    assert isinstance(POLICY, Velocity)
    assert isinstance(CRITIC, Critic)
    assert rollout_k(POLICY, OBS, X, k=4).shape == (2,)
    assert rollout_k(nn.FlowPolicy(3, 2, **shape), OBS, X, k=10).shape == (2,)
    assert clipped(nn.OneStepPolicy(3, 2, **shape), OBS, X, clip=(-1, 1)).shape == (2,)
    assert expectile_loss(nn.Value(3, **shape), OBS, 1.0, expectile=0.9).shape == ()


def test_numpy_integers_are_sizes():
    shape = {"width": np.int64(8), "depth": np.uint8(1), "key": jax.random.key(0)}
    for make in (nn.ShortcutPolicy, nn.FlowPolicy, nn.OneStepPolicy, nn.EnsembleCritic):
        ours = make(np.int32(3), np.int64(2), **shape)
        assert eqx.tree_equal(ours, make(3, 2, width=8, depth=1, key=jax.random.key(0)))


# ------------------------------------------------------------------------------------- encoders


class Pixels(eqx.Module):
    """From a small image of integers and a speed to a vector, with parameters of its own and a function."""

    convolution: eqx.nn.Conv2d
    activation: Callable

    def __init__(self, key):
        self.convolution = eqx.nn.Conv2d(1, 2, 3, key=key)
        self.activation = jnp.tanh

    def __call__(self, obs):
        image = obs["image"].astype(float)[None] / 255
        return jnp.append(self.activation(self.convolution(image)).ravel(), obs["speed"])


IMAGES = {"image": jnp.arange(16, dtype=jnp.uint8).reshape(4, 4), "speed": jnp.array(0.5)}
ENCODED = {
    "ShortcutPolicy": (X, 0.5, 0.25),
    "FlowPolicy": (X, 0.5, 0.25),
    "OneStepPolicy": (X,),
    "GaussianPolicy": (X,),
    "DeterministicPolicy": (X,),
    "EnsembleCritic": (X,),
    "Value": (),
    "ResidualDenoiser": (X, 0.5),
}
"""The arguments that follow the observation."""


def with_encoder(name, encoder):
    sizes = (9,) if name == "Value" else (9, 2)
    layers = {"blocks": 1} if name == "ResidualDenoiser" else {"depth": 1}
    return getattr(nn, name)(*sizes, width=8, **layers, encoder=encoder, key=jax.random.key(0))


def test_every_network_with_an_encoder_is_tested():
    networks = {name: getattr(nn, name) for name in vars(nn) if name[0].isupper()}
    takes = {name for name, network in networks.items() if "encoder" in inspect.signature(network).parameters}
    assert takes == ENCODED.keys()


@pytest.mark.parametrize("name", ENCODED)
def test_an_encoder_turns_any_observation_into_a_vector_and_learns(name):
    encoder, args = Pixels(jax.random.key(1)), ENCODED[name]
    network, plain = with_encoder(name, encoder), with_encoder(name, None)
    np.testing.assert_allclose(network(IMAGES, *args), plain(encoder(IMAGES), *args), rtol=1e-9)
    np.testing.assert_allclose(with_encoder(name, lambda obs: encoder(obs))(IMAGES, *args), network(IMAGES, *args))
    grads = eqx.filter_grad(lambda network: jnp.sum(network(IMAGES, *args) ** 2))(network)
    assert jnp.any(grads.encoder.convolution.weight != 0)


@pytest.mark.parametrize("name", ENCODED)
def test_an_encoder_of_another_size_is_named(name):
    for bad, part in [
        (lambda obs: jnp.ones(4), "(9,)"),
        (lambda obs: jnp.ones((9, 1)), "[9, 1]"),
        (lambda obs: jnp.ones(9, int), "int64[9]"),
        (lambda obs: None, "None"),
    ]:
        with pytest.raises((TypeError, ValueError), match="`encoder` must") as error:
            with_encoder(name, bad)(IMAGES, *ENCODED[name])
        assert part in str(error.value)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_every_dtype(dtype):
    policy, critic = jax.tree.map(lambda leaf: leaf.astype(dtype), (POLICY, CRITIC))
    obs, x = OBS.astype(dtype), X.astype(dtype)
    assert apply(policy, obs, x, 0.5, 0.25).dtype == dtype
    assert apply(critic, obs, x, k=4).dtype == dtype
    wide = apply(POLICY, OBS, X, 0.5, 0.25)
    np.testing.assert_allclose(apply(policy, obs, x, 0.5, 0.25).astype(float), wide, atol=4 * jnp.finfo(dtype).eps)


def test_numpy_observations_are_ordinary():
    obs, x = np.asarray(OBS), np.asarray(X)
    np.testing.assert_allclose(POLICY(obs, x, 0.5, 0.25), POLICY(OBS, X, 0.5, 0.25))
    np.testing.assert_allclose(CRITIC(obs, x, k=4), CRITIC(OBS, X, k=4))


# ------------------------------------------------------------------------------- mixed precision


def both_precisions(depth=3, **options):
    make = lambda **more: nn.ShortcutPolicy(3, 2, width=64, depth=depth, key=jax.random.key(0), **options, **more)
    single = lambda network: jax.tree.map(lambda leaf: leaf.astype(jnp.float32), network)
    return single(make()), single(make(matmul_dtype=jnp.bfloat16))


def test_products_between_hidden_layers_take_their_dtype_and_nothing_else_does():
    full, mixed = both_precisions()
    obs, x = OBS.astype(jnp.float32), X.astype(jnp.float32)
    loss = lambda policy: jnp.sum(policy(obs, x, 0.5, 0.25) ** 2)
    program = str(jax.make_jaxpr(jax.grad(loss))(mixed))
    dtypes = re.findall(r":(\w+)\[[\d,]*\] = dot_general", program)
    assert dtypes[:4] == ["f32", "bf16", "bf16", "f32"]  # forwards
    assert dtypes.count("bf16") == 2 + 4  # backwards, for inputs and weights
    assert mixed(obs, x, 0.5, 0.25).dtype == jnp.float32
    gradient = jax.grad(loss)(mixed)
    assert {leaf.dtype.name for leaf in jax.tree.leaves((mixed, gradient))} == {"float32"}
    error = jnp.abs(full(obs, x, 0.5, 0.25) - mixed(obs, x, 0.5, 0.25)).max()
    assert 1e-5 < error < 1e-2


def test_small_digits_of_an_observation_are_not_lost():
    """A change by 1e-4, which bfloat16 cannot tell, moves the velocity as it does in full precision."""
    full, mixed = both_precisions(depth=1)
    obs, x = OBS.astype(jnp.float32), X.astype(jnp.float32)
    change = [policy(obs + 1e-4, x, 0.5, 0.25) - policy(obs, x, 0.5, 0.25) for policy in (full, mixed)]
    np.testing.assert_allclose(*change, rtol=0.1)


def test_a_dtype_for_products_must_be_of_floats():
    with pytest.raises(ValueError, match="`matmul_dtype` must be a floating-point dtype"):
        nn.EnsembleCritic(3, 2, width=4, depth=1, matmul_dtype=int, key=jax.random.key(0))
