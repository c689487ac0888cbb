"""Images: crops, frame stacks and the encoder against plain loops, and how often an encoder runs."""

import itertools
from functools import partial

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from algorithms import transitions
from assertions import seeds
from hypothesis import given
from hypothesis import strategies as st
from test_nn import gelu, jostled

import shortcutrl
from shortcutrl import Transition, cac, data, fbrac, fql, iql, nn, rollout_k, sorl
from shortcutrl.evaluate import EnvPool, StackedFrames, evaluate

KEY = jax.random.key(0)

# ---------------------------------------------------------------------------------------- crops


def images(seed, size=5, shape=(6, 7, 3)):
    rng = np.random.default_rng(seed)
    draw = lambda: {
        "image": rng.integers(0, 256, (size, *shape)).astype(np.uint8),
        "joints": rng.normal(size=(size, 4)),
    }
    batch = Transition(draw(), rng.normal(size=(size, 2)), rng.normal(size=size), np.ones(size), draw())
    return jax.tree.map(jnp.asarray, batch)


def positions(image, result, padding):
    """Where `result` may have been cut, by the published crop in NumPy: pad by the edge, and cut at (row, column)."""
    padded, (height, width, _) = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), "edge"), image.shape
    return {
        (row, column)
        for row, column in itertools.product(range(2 * padding + 1), repeat=2)
        if np.array_equal(padded[row : row + height, column : column + width], result)
    }


@given(seed=seeds, padding=st.integers(1, 3))
def test_a_crop_is_that_of_a_plain_loop_and_shared_by_the_images_of_a_transition(seed, padding):
    batch = images(seed)
    result = jax.jit(partial(data.random_crop, padding=padding, probability=1.0))(batch, jax.random.key(seed))
    for i in range(len(batch.reward)):
        first, second = (
            positions(np.asarray(before["image"][i]), np.asarray(after["image"][i]), padding)
            for before, after in ((batch.obs, result.obs), (batch.next_obs, result.next_obs))
        )
        assert first & second
    assert result.obs["image"].dtype == np.uint8
    rest = lambda batch: (batch.obs["joints"], batch.next_obs["joints"], batch[1:4])
    assert all(map(np.array_equal, jax.tree.leaves(rest(result)), jax.tree.leaves(rest(batch))))


def test_every_position_is_drawn_equally_often_and_each_transition_draws_its_own():
    image = jnp.arange(5 * 5, dtype=jnp.uint8).reshape(1, 5, 5, 1)
    batch = images(0, 9_000, (5, 5, 1))
    obs = jnp.broadcast_to(image, (9_000, 5, 5, 1))
    batch = batch._replace(obs=obs, next_obs=jnp.zeros_like(obs))
    centre = np.asarray(data.random_crop(batch, KEY, padding=1, probability=1.0).obs)[:, 2, 2, 0]
    values, counts = np.unique(centre, return_counts=True)
    assert values.tolist() == [6, 7, 8, 11, 12, 13, 16, 17, 18]
    assert np.abs(counts / 1_000 - 1).max() < 0.15  # 4.7 standard deviations


def test_a_batch_is_cropped_as_a_whole_or_not_at_all():
    batch = images(1)
    crop = jax.jit(partial(data.random_crop, padding=3, probability=0.5))
    same = [
        np.array([np.array_equal(a, b) for a, b in zip(batch.obs["image"], result.obs["image"], strict=True)])
        for result in (crop(batch, key) for key in jax.random.split(KEY, 100))
    ]
    whole = np.array([each.all() for each in same])
    assert 30 <= whole.sum() <= 70
    assert np.mean([each.mean() for each in same if not each.all()]) < 0.1  # 1 / 49 by chance
    for batch_again in (data.random_crop(batch, KEY, probability=0.0), data.random_crop(batch, KEY, probability=0)):
        assert np.array_equal(batch_again.obs["image"], batch.obs["image"])


def test_a_crop_of_another_edge_is_caught():
    image = np.asarray(images(0).obs["image"][0])
    wrapped = np.roll(image, (2, 1), axis=(0, 1))
    assert positions(image, wrapped, 3) == set()


def test_bad_crops_are_refused():
    vectors = images(0)._replace(obs=jnp.ones((5, 3)), next_obs=jnp.ones((5, 3)))
    with pytest.raises(ValueError, match=r"`batch` has no images: .* got \(5, 3\)"):
        data.random_crop(vectors, KEY)
    with pytest.raises(ValueError, match="`padding` must be an integer of at least 1"):
        data.random_crop(images(0), KEY, padding=0)
    with pytest.raises(ValueError, match=r"`probability` must be in \[0, 1\], got 1.5"):
        data.random_crop(images(0), KEY, probability=1.5)


@pytest.mark.parametrize("shape", [(5, 6, 7), (5, 2, 6, 7, 3)])
def test_a_crop_refuses_bytes_that_would_stay_beside_the_images_that_move(shape):
    batch = images(0)
    other = lambda dtype: {
        name: {**getattr(batch, name), "depth": jnp.ones(shape, dtype)} for name in ("obs", "next_obs")
    }
    with pytest.raises(ValueError, match=rf"`batch.obs\['depth'\]` looks like images but has {len(shape)} axes"):
        data.random_crop(batch._replace(**other(jnp.uint8)), KEY)
    cropped = data.random_crop(batch._replace(**other(jnp.float32)), KEY, probability=1.0)
    assert (cropped.obs["depth"] == 1).all()


# ----------------------------------------------------------------------------------- frame stacks


class Film(gymnasium.Env):
    """Shows the frames of one episode after the other."""

    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def __init__(self, episodes):
        self.episodes = iter(episodes)
        box = lambda leaf: gymnasium.spaces.Box(0, 255, leaf.shape[1:], leaf.dtype.type)
        self.observation_space = gymnasium.spaces.Dict({name: box(leaf) for name, leaf in episodes[0].items()})

    def show(self):
        return {name: leaf[self.at] for name, leaf in self.frames.items()}

    def reset(self, *, seed=None, options=None):
        self.frames, self.at = next(self.episodes), 0
        return self.show(), {}

    def step(self, action):
        self.at += 1
        return self.show(), 0.0, False, self.at == len(self.frames["row"]) - 1, {}


@given(lengths=st.lists(st.integers(2, 6), min_size=1, max_size=4), frames=st.integers(1, 4), seed=seeds)
def test_frames_are_stacked_as_in_samples(lengths, frames, seed):
    rng, rows = np.random.default_rng(seed), sum(lengths)
    frames = min(frames, rows)
    obs = {"image": rng.integers(0, 256, (rows, 2, 2, 3)).astype(np.uint8), "row": np.float32(np.arange(rows))[:, None]}
    ends = np.cumsum(lengths)
    parts = [{name: leaf[i:j] for name, leaf in obs.items()} for i, j in itertools.pairwise([0, *ends])]
    env, seen = StackedFrames(Film(parts), frames), []
    for _ in lengths:
        seen.append(env.reset()[0])
        ended = False
        while not ended:
            stack, _, _, ended, _ = env.step(np.zeros(1))
            seen.append(stack)
    assert all(env.observation_space.contains(stack) for stack in seen)
    dataset = data.from_arrays(
        observations=obs,
        actions=np.zeros((rows, 1)),
        rewards=np.zeros(rows),
        terminals=np.isin(np.arange(rows), ends - 1),
    )
    batch = data.sample(dataset, KEY, batch_size=200, frame_stack=frames)
    for at in range(200):
        drawn = jax.tree.map(lambda leaf, at=at: np.asarray(leaf[at]), batch.obs)
        expected = seen[int(drawn["row"][-1])]
        for name in obs:
            assert drawn[name].dtype == expected[name].dtype
            np.testing.assert_array_equal(drawn[name], expected[name])


def test_a_stack_keeps_the_frames_of_an_environment_that_draws_into_one_buffer():
    class Buffer(Film):
        def show(self):
            for name, leaf in self.frames.items():
                self.buffer[name][...] = leaf[self.at]
            return self.buffer

    frames = {"row": np.arange(3, dtype=np.uint8)[:, None]}
    env = Buffer([frames])
    env.buffer = {"row": np.zeros(1, np.uint8)}
    stacked = StackedFrames(env, 2)
    stacked.reset()
    assert stacked.step(None)[0]["row"].tolist() == [0, 1]
    assert stacked.step(None)[0]["row"].tolist() == [1, 2]


def test_stacked_images_are_evaluated_in_uint8():
    dtypes = []

    def act(obs, key):
        dtypes.append((obs["image"].dtype, obs["image"].shape))
        return jnp.zeros(1)

    frames = {"image": np.zeros((4, 2, 2, 3), np.uint8), "row": np.zeros((4, 1), np.float32)}
    with EnvPool(lambda: StackedFrames(Film([frames] * 2), 3), processes=0, envs_per_process=1) as pool:
        result = evaluate(act, pool, episodes=2, success_key=None)
    assert result.episode_length.tolist() == [3, 3]
    assert set(dtypes) == {(np.dtype(np.uint8), (2, 2, 9))}


def test_images_without_channels_are_not_stacked_on_their_width():
    """In uint8, where they can be told apart from other matrices."""
    frames = {"grey": np.zeros((4, 6, 7), np.uint8), "row": np.zeros((4, 1), np.float32)}
    rest = {"actions": np.zeros((4, 1)), "rewards": np.zeros(4), "terminals": np.ones(4)}
    sample = lambda frames, count: data.sample(
        data.from_arrays(observations=frames, **rest), KEY, batch_size=2, frame_stack=count
    )
    with pytest.raises(ValueError, match=r"`dataset.obs\['grey'\]` looks like images without channels"):
        sample(frames, 2)
    with pytest.raises(ValueError, match=r"`env` has observations that look like images without channels, Box"):
        StackedFrames(Film([frames]), 2)
    assert sample(frames, 1).obs["grey"].shape == (2, 6, 7)
    assert StackedFrames(Film([frames]), 1).reset()[0]["grey"].shape == (6, 7)
    for good in (frames["grey"][..., None], frames["grey"].astype(np.float32)):
        changed = {**frames, "grey": good}
        stacked = StackedFrames(Film([changed]), 2).reset()[0]["grey"].shape
        assert stacked == sample(changed, 2).obs["grey"].shape[1:] == (*good.shape[1:-1], 2 * good.shape[-1])


def test_a_step_before_the_first_reset_is_refused():
    env = StackedFrames(Film([{"row": np.zeros((4, 1), np.float32)}]), 3)
    env.env.reset()
    with pytest.raises(gymnasium.error.ResetNeeded, match="Call `reset` before `step`"):
        env.step(np.zeros(1))


def test_bad_stacks_are_refused():
    with pytest.raises(ValueError, match="`frames` must be an integer of at least 1"):
        StackedFrames(gymnasium.make("Pendulum-v1"), 0)
    with pytest.raises(ValueError, match="`env` must have observations with an axis"):
        StackedFrames(gymnasium.make("FrozenLake-v1"), 2)


# ------------------------------------------------------------------------------------ the encoder


def plain_convolution(layer, x):
    """By definition: the sum over 3 x 3 pixels and all channels, zeros outside."""
    height, width, _ = x.shape
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    result = np.zeros((height, width, layer.weight.shape[-1]))
    for i, j in itertools.product(range(3), repeat=2):
        result += padded[i : i + height, j : j + width] @ np.asarray(layer.weight[i, j])
    return result + layer.bias


def plain_maximum(x):
    """The largest of 3 x 3 pixels at every second one; where the size is even, they start at the pixel itself."""
    sizes = [-(-size // 2) for size in x.shape[:2]]
    starts = [np.arange(size) * 2 - (old % 2) for size, old in zip(sizes, x.shape[:2], strict=True)]
    window = lambda start, size: slice(max(start, 0), min(start + 3, size))
    rows = [[x[window(i, x.shape[0]), window(j, x.shape[1])].max((0, 1)) for j in starts[1]] for i in starts[0]]
    return np.array(rows)


def plain_impala(encoder, image):
    encoder, x = jax.tree.map(np.asarray, encoder), image / 255
    for stack in encoder.stacks:
        x = plain_maximum(plain_convolution(stack.first, x))
        for one, two in stack.blocks:
            x = x + plain_convolution(two, np.maximum(plain_convolution(one, np.maximum(x, 0)), 0))
    return gelu(np.maximum(x, 0).reshape(-1) @ encoder.last.weight + encoder.last.bias)


SHAPES = [(8, 8, 3), (7, 10, 2), (5, 4, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@given(seed=seeds, blocks=st.integers(1, 2))
def test_the_encoder_computes_what_it_should(shape, seed, blocks):
    encoder = nn.Impala(shape, channels=(3, 4), blocks=blocks, width=6, key=jax.random.key(seed))
    encoder = jostled(encoder, seed)
    image = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    np.testing.assert_allclose(eqx.filter_jit(encoder)(image), plain_impala(encoder, image), rtol=1e-9, atol=1e-9)


def test_a_mutant_of_the_encoder_is_caught():
    encoder = jostled(nn.Impala((8, 8, 3), channels=(3, 4), width=6, key=KEY), 0)
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    right = plain_impala(encoder, image)
    transposed = eqx.tree_at(
        lambda e: [layer.first.weight for layer in e.stacks], encoder, replace_fn=lambda weight: weight.swapaxes(0, 1)
    )
    for wrong in (transposed(image), encoder(image[::-1].copy()), encoder(image.swapaxes(0, 1).copy())):
        assert not np.allclose(wrong, right, rtol=1e-3)


def test_the_encoder_has_the_published_size():
    """Of `impala_small` for three stacked frames: 64 x 64 pixels become 8 x 8 x 32, then 512 numbers."""
    encoder = nn.Impala((64, 64, 9), key=KEY)
    convolutions = [9 * 9 * 16, 2 * 9 * 16 * 16, 9 * 16 * 32, 2 * 9 * 32 * 32, 3 * 9 * 32 * 32]
    biases = 3 * 16 + 6 * 32
    assert sum(leaf.size for leaf in jax.tree.leaves(encoder)) == sum(convolutions) + biases + 8 * 8 * 32 * 512 + 512
    first = encoder.stacks[0].first.weight
    assert np.abs(first).max() <= np.sqrt(6 / (9 * 9 + 9 * 16))  # Glorot's bound
    assert np.abs(first).max() > 0.95 * np.sqrt(6 / (9 * 9 + 9 * 16))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_the_encoder_keeps_the_dtype_of_its_parameters(dtype):
    encoder = nn.Impala((8, 8, 3), channels=(3, 4), width=6, key=KEY)
    narrow = jax.tree.map(lambda leaf: leaf.astype(dtype), encoder)
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    assert narrow(image).dtype == dtype
    error = 50 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(narrow(image).astype(float), encoder(image), atol=error, rtol=error)


def test_bad_images_are_refused():
    encoder = nn.Impala((8, 8, 3), channels=(3,), width=6, key=KEY)
    with pytest.raises(TypeError, match="`image` must be uint8, from 0 to 255, got float"):
        encoder(jnp.zeros((8, 8, 3)))
    with pytest.raises(ValueError, match=r"`image` must have shape \(8, 8, 3\).* got \(8, 8, 9\)"):
        encoder(jnp.zeros((8, 8, 9), jnp.uint8))
    with pytest.raises(ValueError, match=r"`shape` must be \(height, width, channels\)"):
        nn.Impala([8, 8], key=KEY)
    with pytest.raises(ValueError, match="`channels` must be an integer of at least 1"):
        nn.Impala((8, 8, 3), channels=(0,), key=KEY)


# ------------------------------------------------------------------ how often an encoder runs


class Calls(list):
    """A list that `jit` takes as a static field."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__


class Counted(eqx.Module):
    """An encoder that counts its calls."""

    weight: jax.Array
    calls: list = eqx.field(static=True)

    def __call__(self, obs):
        self.calls.append(None)
        return self.weight * obs


def counted(make, *sizes, **options):
    calls = Calls()
    encoder = Counted(jnp.arange(1.0, 4.0), calls)
    return make(*sizes, width=8, encoder=encoder, key=KEY, **options), calls


OBS, X = jnp.array([0.5, -1.0, 2.0]), jnp.array([0.3, -0.2])
VELOCITIES = {"shortcut": nn.ShortcutPolicy, "flow": nn.FlowPolicy}


@pytest.mark.parametrize("name", VELOCITIES)
@pytest.mark.parametrize("options", [{"k": 8}, {"k": 20}, {"k": 3, "remat": True}], ids=str)
@pytest.mark.parametrize("jit", [False, True])
def test_a_rollout_encodes_once(name, options, jit):
    policy, calls = counted(VELOCITIES[name], 3, 2, depth=1)
    roll = partial(rollout_k, policy, **options)
    action = (jax.jit(roll) if jit else roll)(OBS, X)
    assert len(calls) == 1
    at_each_jump = lambda obs, x, t, h: policy(obs, x, t, h)
    np.testing.assert_allclose(action, rollout_k(at_each_jump, OBS, X, **options), rtol=1e-9)
    assert len(calls) > 1


@pytest.mark.parametrize("bind", [lambda f: f, lambda f: partial(f), lambda f: eqx.Partial(f)])
def test_a_bound_velocity_encodes_once_too(bind):
    policy, calls = counted(nn.FlowPolicy, 3, 2, depth=1)
    rollout_k(bind(policy), OBS, X, k=4)
    assert len(calls) == 1


def convolutions_of(function, *args):
    """The batch sizes of all convolutions that a call computes."""
    found = []

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "conv_general_dilated":
                found.append(equation.outvars[0].aval.shape[0])
            for value in equation.params.values():
                for inner in value if isinstance(value, tuple | list) else [value]:
                    if hasattr(inner, "jaxpr"):
                        visit(inner.jaxpr)
                    elif hasattr(inner, "eqns"):
                        visit(inner)

    visit(jax.make_jaxpr(function)(*args).jaxpr)
    return found


def test_the_best_of_n_encodes_once_for_each_network_and_observation():
    """Not for each jump and not for each candidate: the convolutions have the batch's size."""
    encoder = nn.Impala((8, 8, 3), channels=(3, 4), width=6, key=KEY)
    policy = nn.ShortcutPolicy(6, 2, width=8, depth=1, encoder=encoder, key=KEY)
    critic = nn.EnsembleCritic(6, 2, width=8, depth=1, encoder=encoder, key=KEY)
    batch, n, each = 5, 8, 2 * 3
    obs, noise = jnp.zeros((batch, 8, 8, 3), jnp.uint8), jnp.zeros((batch, n, 2))

    def act(policy, critic, obs, noise):
        actor = partial(rollout_k, policy, k=8)
        return jax.vmap(partial(shortcutrl.bon_select, actor, critic))(obs, noise)[0]

    assert convolutions_of(act, policy, critic, obs, noise) == [batch] * (2 * each)
    hidden = lambda policy: lambda obs, x, t, h: policy(obs, x, t, h)
    at_each_jump = lambda policy, *args: act(hidden(policy), *args)
    assert len(convolutions_of(at_each_jump, policy, critic, obs, noise)) == 8 * each + each


def test_networks_that_share_an_encoder_share_its_features():
    policy, calls = counted(nn.ShortcutPolicy, 3, 2, depth=1)
    critic = nn.EnsembleCritic(3, 2, width=8, depth=1, encoder=policy.encoder, key=KEY)
    noise = jax.random.normal(KEY, (8, 2))
    expected, _ = shortcutrl.bon_select(partial(rollout_k, policy, k=8), critic, OBS, noise)
    assert len(calls) == 2
    action, _ = shortcutrl.bon_select(partial(rollout_k, policy, k=8), critic, policy.encode(OBS), noise)
    assert len(calls) == 3
    np.testing.assert_array_equal(action, expected)


def test_the_gradient_of_a_rollout_is_that_of_encoding_at_each_jump():
    policy, _ = counted(nn.ShortcutPolicy, 3, 2, depth=1)
    loss = lambda policy, hide: jnp.sum(rollout_k((lambda *args: policy(*args)) if hide else policy, OBS, X, k=4) ** 2)
    once, often = (eqx.filter_grad(loss)(policy, hide) for hide in (False, True))
    assert jnp.any(once.encoder.weight != 0)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9), once, often)


LOSSES = {
    "consistency_gap": lambda policy: shortcutrl.consistency_gap(policy, OBS, X, 0.0, 0.5),
    "self_consistency_loss": lambda policy: shortcutrl.self_consistency_loss(
        lambda obs, x, t, h: x, policy, OBS, X, X, 0.0, 0.5
    ),
    "shortcut_loss": lambda policy: shortcutrl.shortcut_loss(
        policy, lambda obs, x, t, h: x, OBS, X, num_steps=8, key=KEY
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_what_calls_a_velocity_several_times_encodes_once(name):
    policy, calls = counted(nn.ShortcutPolicy, 3, 2, depth=1)
    LOSSES[name](policy)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("module", "options", "expected"), [(sorl, {"k": 4}, 1), (sorl, {"k": 4, "n": 3}, 2), (cac, {}, 1)]
)
def test_an_actor_encodes_once_for_each_network(module, options, expected):
    (batch, config), calls = (transitions(), module.Config()), Calls()
    encoder = Counted(jnp.ones(batch.obs.shape[-1]), calls)
    networks = module.networks(batch, width=8, depth=1, encoder=encoder, key=KEY)
    state = module.init(networks, config=config, optimizers=module.OPTIMIZERS)
    calls.clear()
    shape = module.noise_shape(batch.action.shape[-1], config=config, **options)
    module.actor(state, config=config, **options)(batch.obs[0], jnp.ones(shape))
    assert len(calls) == expected


@pytest.mark.parametrize(
    ("module", "options", "expected"),
    [(sorl, {"num_steps": 4, "max_jumps": 4}, 3 + 3), (fbrac, {}, 3 + 2), (cac, {}, 3 + 3), (fql, {}, 3 + 3)],
    ids=["sorl", "fbrac", "cac", "fql"],
)
def test_an_update_encodes_once_for_each_network_and_batch_of_observations(module, options, expected):
    """The critic's loss: critic, target critic, policy. The policy's: policy, critic, and a teacher if there is one."""
    (batch, config), calls = (transitions(), module.Config(**options)), Calls()
    encoder = Counted(jnp.ones(batch.obs.shape[-1]), calls)
    networks = module.networks(batch, width=8, depth=1, encoder=encoder, key=KEY)
    optimizers = module.Networks(*[optax.sgd(1e-2)] * len(networks))
    state = module.init(networks, config=config, optimizers=optimizers)
    calls.clear()
    update = partial(module.update, config=config, optimizers=optimizers)
    new, _ = jax.jit(update)(state, batch, key=KEY)
    assert len(calls) == expected
    for network in networks._fields:
        assert jnp.any(getattr(new, network).encoder.weight != getattr(state, network).encoder.weight)


def test_ancestral_sampling_encodes_once():
    denoiser, calls = counted(nn.ResidualDenoiser, 3, 2, blocks=1)
    shortcutrl.ddpm_sample(denoiser, OBS, jnp.ones((5, 2)), steps=5, schedule=shortcutrl.vp_schedule)
    assert len(calls) == 1


def test_a_class_of_the_user_encodes_once_by_its_own_method():
    class Policy(eqx.Module):
        weight: jax.Array
        calls: list = eqx.field(static=True)

        def encode(self, obs):
            if isinstance(obs, nn.Features):
                return obs
            self.calls.append(None)
            return nn.Features((self.weight * obs["camera"], obs["speed"]))

        def __call__(self, obs, x, t, h):
            camera, speed = self.encode(obs).vector
            return camera * speed - x

    policy = Policy(jnp.ones(2), Calls())
    obs = {"camera": jnp.ones(2), "speed": jnp.array(2.0)}
    np.testing.assert_allclose(rollout_k(policy, obs, jnp.zeros(2), k=1), 2.0)
    rollout_k(policy, obs, jnp.zeros(2), k=8)
    assert len(policy.calls) == 2


@pytest.mark.parametrize("module", [sorl, fbrac, cac, iql])
def test_an_encode_for_the_network_itself_is_not_applied_twice(module):
    class Critic(eqx.Module):
        weight: jax.Array

        def encode(self, obs):
            return jnp.tanh(self.weight * obs)

        def __call__(self, obs, action, **_):
            return self.encode(obs).sum()[None] + action.sum()

    batch, config = transitions(), module.Config()
    plain = module.networks(batch, width=8, depth=1, key=KEY)
    networks = plain._replace(critic=Critic(jnp.ones(batch.obs.shape[-1])))
    state = module.init(networks, config=config, optimizers=module.Networks(*[optax.sgd(1e-2)] * len(plain)))
    _, q = module.critic_loss(state.critic, state, batch, module.draw(KEY, batch, config=config), config=config)
    np.testing.assert_allclose(q, jnp.mean(jax.vmap(networks.critic)(batch.obs, batch.action)))


def test_an_encode_of_another_kind_is_left_alone():
    class OfTwo(eqx.Module):
        def encode(self, obs, x):
            return obs + x

        def __call__(self, obs, x, t, h):
            return self.encode(obs, x)

    class Field(eqx.Module):
        encode: eqx.nn.Linear

        def __call__(self, obs, x, t, h):
            return self.encode(obs)

    class OfActions(eqx.Module):
        def encode(self, action):
            return action @ jnp.ones((2, 4))

        def __call__(self, obs, x, t, h):
            return self.encode(x)[:2] + obs.sum()

    for policy, size in ((OfTwo(), 2), (Field(eqx.nn.Linear(2, 2, key=KEY)), 2), (OfActions(), 3)):
        obs, x = jnp.ones(size), jnp.zeros(2)
        np.testing.assert_allclose(rollout_k(policy, obs, x, k=1), policy(obs, x, 0.0, 1.0))


def test_features_of_another_size_are_refused():
    policy, _ = counted(nn.ShortcutPolicy, 3, 2, depth=1)
    with pytest.raises(ValueError, match=r"`obs` must have shape \(3,\), which the network was made for, got \(4,\)"):
        policy(nn.Features(jnp.ones(4)), X, 0.5, 0.25)


# ---------------------------------------------------------------------------------------- memory


def test_a_million_frames_take_at_most_12_5_gigabytes():
    """From the bytes of one frame: observations are stored once, in uint8, and everything else is small."""
    rows = 1_000
    dataset = data.from_arrays(
        observations=np.zeros((rows, 64, 64, 3), np.uint8),
        actions=np.zeros((rows, 5)),
        rewards=np.zeros(rows),
        terminals=np.zeros(rows),
        timeouts=np.arange(rows) % 100 == 99,
    )
    assert dataset.next_obs is None
    each = sum(leaf.nbytes for leaf in jax.tree.leaves(dataset)) / rows
    assert each > 64 * 64 * 3
    assert each * 1_000_000 <= 12.5e9


@pytest.mark.parametrize("shape", [(16, 16), [16, 16], (16, 16, 3, 1)])
def test_the_shape_of_an_image_has_three_sizes(shape):
    with pytest.raises(ValueError, match=r"`shape` must be \(height, width, channels\), got"):
        nn.Impala(shape, key=KEY)
