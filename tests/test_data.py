"""Transitions: checked on the host, looked ahead in, drawn by key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortcutrl import Transition, data


def fields(size=4, **changed):
    rng = np.random.default_rng(0)
    return {
        "obs": rng.normal(size=(size, 3)),
        "action": rng.uniform(-1, 1, (size, 2)),
        "reward": rng.normal(size=size),
        "mask": np.ones(size),
        "next_obs": rng.normal(size=(size, 3)),
        **changed,
    }


def with_value(name, index, value):
    arrays = fields()
    arrays[name][index] = value
    return arrays


def test_good_values_arrive_as_float32():
    given_arrays = fields()
    dataset = data.transitions(**given_arrays)
    for name, values in given_arrays.items():
        assert getattr(dataset, name).dtype == jnp.float32
        np.testing.assert_allclose(getattr(dataset, name), values, rtol=1e-6)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (with_value("obs", (2, 1), np.nan), r"`obs\[2, 1\]` = nan is not finite"),
        (with_value("reward", 3, np.inf), r"`reward\[3\]` = inf is not finite"),
        (with_value("action", (1, 0), 1.5), r"`action\[1, 0\]` = 1.5 lies outside \[-1.0, 1.0\]"),
        (with_value("mask", 2, 0.5), r"`mask\[2\]` = 0.5 is neither 0 nor 1"),
        (fields(reward=np.ones(3)), "`reward` has 3 transitions but `obs` has 4"),
        (fields(size=0), "`obs` is empty"),
        (fields(next_obs=np.ones((4, 2))), "`next_obs` has shape"),
        (fields(reward=np.ones((4, 1))), r"`reward` must have 1 dimensions.*squeeze\(-1\)"),
        (with_value("reward", 3, 1e300), r"`reward\[3\]` = inf is not finite"),
        (fields(obs={"image": np.ones(4)}), "`obs` must be an array of numbers, got dict.*`Transition` yourself"),
        (fields(obs=[["a", "b", "c"]] * 4), "`obs` must be an array of numbers, got list"),
        (fields(action_range=(1.0, -1.0)), r"`action_range` must be \(low, high\)"),
    ],
)
def test_bad_values_are_named(arrays, message):
    with pytest.raises(ValueError, match=message):
        data.transitions(**arrays)


def test_the_action_range_is_the_users():
    data.transitions(**fields(action=np.full((4, 2), 3.0)), action_range=(-3.0, 3.0))


def test_the_rounding_of_an_action_at_the_end_of_its_range_is_no_error():
    dataset = data.transitions(**fields(action=np.full((4, 2), np.float32(0.4) / 0.4)))
    assert (dataset.action == 1).all()


@pytest.mark.parametrize(
    "change", [{"reward": np.ones(3)}, {"next_obs": np.ones((3, 3))}, {"mask": np.float32(1)}], ids=str
)
def test_arrays_of_different_lengths_are_refused_not_clamped(change):
    dataset = data.transitions(**fields())._replace(**change)
    with pytest.raises(ValueError, match=r"`dataset` must have one leading axis, as long in each.*not empty, got .obs"):
        data.sample(dataset, jax.random.key(0), batch_size=2)
    with pytest.raises(ValueError, match="`dataset` must have one leading axis"):
        data.n_step(dataset, np.zeros(4, bool), n=2, discount=0.9)


def test_rewards_of_several_tasks_are_told_to_be_mapped():
    dataset = data.transitions(**fields())._replace(reward=np.ones((4, 5)))
    with pytest.raises(ValueError, match=r"`dataset.reward` must have one dimension, got \(4, 5\).*jax.vmap"):
        data.n_step(dataset, np.zeros(4, bool), n=2, discount=0.9)


def looked_ahead(dataset, episode_end, n, discount):
    """The definition, by a loop: what `n_step` must agree with."""
    reward, bootstrap, final = [], [], []
    for start in range(len(dataset.reward)):
        total, weight = 0.0, 1.0
        for i in range(start, min(start + n, len(dataset.reward))):
            total += weight * float(dataset.reward[i])
            weight *= discount * float(dataset.mask[i])
            if episode_end[i]:
                break
        reward.append(total)
        bootstrap.append(weight)
        final.append(i)
    return np.array(reward), np.array(bootstrap), np.asarray(dataset.next_obs)[final]


@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    n=st.integers(1, 6),
    discount=st.floats(0.1, 1),
    seed=st.integers(0, 2**31 - 1),
)
def test_n_step_is_its_definition(lengths, n, discount, seed):
    rng, size = np.random.default_rng(seed), sum(lengths)
    episode_end = np.zeros(size, bool)
    episode_end[np.cumsum(lengths) - 1] = True
    arrays = fields(size, reward=rng.normal(size=size), mask=rng.integers(0, 2, size).astype(float))
    dataset = Transition(**{name: jnp.asarray(values) for name, values in arrays.items()})
    ahead = data.n_step(dataset, episode_end, n=n, discount=discount)

    reward, bootstrap, next_obs = looked_ahead(dataset, episode_end, n, discount)
    np.testing.assert_allclose(ahead.reward, reward, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(discount * ahead.mask, bootstrap, rtol=1e-9, atol=1e-9)
    alive = bootstrap > 0  # where the weight is 0 nothing is bootstrapped from
    np.testing.assert_array_equal(np.asarray(ahead.next_obs)[alive], next_obs[alive])


def test_n_step_refuses_less_than_one():
    dataset = data.transitions(**fields())
    with pytest.raises(ValueError, match="`n` must be at least 1, got 0"):
        data.n_step(dataset, np.array([False, False, False, True]), n=0, discount=0.9)


def test_chunk_refuses_less_than_one():
    dataset = data.transitions(**fields())
    with pytest.raises(ValueError, match="`length` must be at least 1, got 0"):
        data.chunk(dataset, np.array([False, False, False, True]), length=0, discount=0.9)


def test_samples_are_whole_transitions_drawn_evenly():
    size = 5
    count = np.arange(size, dtype=float)
    dataset = data.transitions(
        obs=count[:, None], action=count[:, None] / size, reward=count, mask=np.ones(size), next_obs=count[:, None] + 1
    )
    batch = jax.jit(data.sample, static_argnames="batch_size")(dataset, jax.random.key(0), batch_size=5000)
    np.testing.assert_array_equal(batch.obs[:, 0], batch.reward)
    np.testing.assert_array_equal(batch.next_obs[:, 0], batch.reward + 1)
    share = np.bincount(np.asarray(batch.reward, int), minlength=size) / 5000
    np.testing.assert_allclose(share, 1 / size, atol=0.03)  # 5 standard deviations


def test_a_batch_of_nothing_is_refused():
    with pytest.raises(ValueError, match="`batch_size` must be at least 1, got 0"):
        data.sample(data.transitions(**fields()), jax.random.key(0), batch_size=0)


@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    length=st.integers(1, 4),
    seed=st.integers(0, 2**31 - 1),
)
def test_chunks_are_their_definition(lengths, length, seed):
    rng, size = np.random.default_rng(seed), sum(lengths)
    ends = np.cumsum(lengths)
    episode_end = np.zeros(size, bool)
    episode_end[ends - 1] = True
    arrays = fields(size, reward=rng.normal(size=size), mask=rng.integers(0, 2, size).astype(float))
    dataset = Transition(**{name: jnp.asarray(values) for name, values in arrays.items()})
    starts = [i for i in range(size) if i + length <= ends[ends > i][0]]
    if not starts:
        with pytest.raises(ValueError, match=f"`length` must be at most .*, got {length}"):
            data.chunk(dataset, episode_end, length=length, discount=0.9)
        return
    chunks = data.chunk(dataset, episode_end, length=length, discount=0.9)
    expected = np.stack([arrays["action"][i : i + length].reshape(-1) for i in starts])
    np.testing.assert_array_equal(chunks.action, expected)
    np.testing.assert_array_equal(chunks.obs, arrays["obs"][starts])
    ahead = data.n_step(dataset, episode_end, n=length, discount=0.9)
    for name in ("reward", "mask", "next_obs"):
        np.testing.assert_array_equal(getattr(chunks, name), np.asarray(getattr(ahead, name))[starts])


@pytest.mark.parametrize(
    "look", [lambda *a, **k: data.n_step(*a, n=2, **k), lambda *a, **k: data.chunk(*a, length=2, **k)]
)
def test_ends_that_belong_to_another_dataset_are_refused(look):
    with pytest.raises(ValueError, match="`episode_end` has 3 entries but `dataset` has 4"):
        look(data.transitions(**fields()), np.array([False, False, True]), discount=1)
