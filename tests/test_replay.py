"""A replay buffer holds the last environment steps, each with its own successor."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from assertions import seeds
from hypothesis import given

from shortcutrl import data

DISCOUNT = 0.5


def example(obs=None, rows=3):
    obs = np.zeros((rows, 1), np.float32) if obs is None else obs
    zeros = np.zeros(rows, np.float32)
    return data.from_arrays(observations=obs, actions=np.zeros((rows, 2)), rewards=zeros, terminals=zeros)


@partial(jax.jit, static_argnames="n_step")
def draw(dataset, n_step=1):
    return data.sample(dataset, jax.random.key(0), batch_size=512, n_step=n_step, discount=DISCOUNT)


def steps(rng, n):
    """Environment steps with the time as the observation, which jumps by 100 between episodes."""
    time = 0.0
    for _ in range(n):
        terminated, truncated = rng.random(2) < 0.15
        yield time, rng.uniform(-1, 1, 2), rng.normal(), time + 1, bool(terminated), bool(truncated)
        time += 101 if terminated or truncated else 1


def add(replay, step):
    time, action, reward, after, terminated, truncated = step
    ends = {"terminated": terminated, "truncated": truncated}
    return data.add_step(replay, time[None], action, reward, after[None], **ends), None


@partial(jax.jit, static_argnames="capacity")
def filled(columns, capacity):
    replay, _ = jax.lax.scan(add, data.empty_replay(example(), capacity=capacity), columns)
    return replay


def fill(taken, capacity):
    return filled(tuple(map(np.array, zip(*taken, strict=True))), capacity)


def stored(taken, capacity):
    """The steps that the buffer still holds and samples: its rows, kept in a list."""
    rows, row = [None] * capacity, 0
    for step in taken:
        rows[row], rows[(row + 1) % capacity] = step, None
        row = (row + 1 + (step[4] or step[5])) % capacity
    return rows[:-1] + [step for step in rows[-1:] if step and step[4]]  # the successor of the last row is unknown


@pytest.mark.parametrize("n", [1, 5, 40])
@given(seed=seeds)
def test_the_samples_are_the_stored_steps(n, seed):
    taken = list(steps(np.random.default_rng(seed), n))
    batch = draw(fill(taken, 8).dataset)
    known = {step[0]: step for step in stored(taken, 8) if step}
    assert set(batch.obs[:, 0].tolist()) == known.keys()
    _, action, reward, after, terminated, _ = map(np.array, zip(*map(known.get, batch.obs[:, 0].tolist()), strict=True))
    np.testing.assert_allclose(batch.action, action, rtol=1e-6)
    np.testing.assert_allclose(batch.reward, reward, rtol=1e-6)
    np.testing.assert_array_equal(batch.mask, ~terminated)
    np.testing.assert_array_equal(np.where(terminated, after, batch.next_obs[:, 0]), after)
    follows = {a[0]: b[1] for a, b in itertools.pairwise(taken) if a[3] == b[0]}
    expected = [follows.get(step[0], step[1]) for step in map(known.get, batch.obs[:, 0].tolist())]
    np.testing.assert_allclose(batch.next_action, np.where(terminated[:, None], action, expected), rtol=1e-6)


def test_the_last_action_of_an_episode_is_repeated():
    """Although the successor's row held another step before."""
    taken = [(time, np.full(2, 0.01 * time), 0.0, time + 1, False, time in (5, 9)) for time in np.arange(1.0, 10.0)]
    batch = draw(fill(taken, 6).dataset)
    assert set(map(float, batch.obs[:, 0])) == {6, 7, 8, 9}
    np.testing.assert_allclose(batch.next_action[:, 0], 0.01 * np.minimum(batch.obs[:, 0] + 1, 9), rtol=1e-6)


def test_chunks_end_with_the_newest_step():
    taken = [(float(time), np.full(2, 0.01 * time), 0.0, time + 1.0, False, False) for time in range(1, 12)]
    options = {"batch_size": 256, "chunk": 2, "discount": DISCOUNT}
    batch = jax.jit(partial(data.sample, **options))(fill(taken, 8).dataset, jax.random.key(0))
    assert batch.obs.max() == 10
    np.testing.assert_allclose(batch.action[:, 2], batch.action[:, 0] + 0.01, rtol=1e-5)
    newest = batch.obs[:, 0] == 10
    np.testing.assert_allclose(batch.next_action[newest], 0.11, rtol=1e-6)


def test_an_empty_buffer_has_no_samples():
    assert jnp.isnan(draw(data.empty_replay(example(), capacity=8).dataset).reward).all()


@given(seed=seeds)
def test_several_steps_stay_in_their_episode(seed):
    batch = draw(fill(list(steps(np.random.default_rng(seed), 30)), 12).dataset, n_step=3)
    ahead = (batch.next_obs - batch.obs)[:, 0]
    assert jnp.isin(ahead[batch.mask > 0], jnp.arange(1, 4)).all()


def test_adding_is_the_same_without_jit():
    taken = list(steps(np.random.default_rng(1), 20))
    replay = data.empty_replay(example(), capacity=12)
    for time, *step in taken:
        replay, _ = add(replay, (np.array(time), *step[:2], np.array(step[2]), *step[3:]))
    assert jax.tree.all(jax.tree.map(jnp.array_equal, fill(taken, 12), replay))


def test_observations_keep_their_structure_and_dtype():
    images = {"camera": np.zeros((3, 4, 4, 3), np.uint8), "state": np.zeros((3, 2), np.float32)}
    obs = {"camera": np.full((4, 4, 3), 255, np.uint8), "state": np.ones(2)}
    replay = data.empty_replay(example(images), capacity=5)
    replay = jax.jit(data.add_step)(replay, obs, np.ones(2), 1, obs, terminated=np.False_, truncated=False)
    assert replay.dataset.obs["camera"].dtype == jnp.uint8
    assert replay.dataset.obs["camera"][1].min() == 255
    assert replay.dataset.obs["state"].dtype == jnp.float32
    bad = obs | {"camera": np.ones((4, 4, 3), np.float32)}
    replay = data.add_step(jax.device_get(replay), obs, np.ones(2), 1, obs, terminated=1.0, truncated=False)
    assert replay.dataset.mask[1] == 0
    wide = obs | {"camera": np.full((4, 4, 3), 300, np.uint16)}
    with pytest.raises(ValueError, match=r"`obs\['camera'\]` must be uint8, as in the buffer, got uint16"):
        data.add_step(replay, wide, np.ones(2), 1.0, obs, terminated=False, truncated=False)
    with pytest.raises(ValueError, match=r"`obs\['camera'\]` must be uint8, as in the buffer, got float32"):
        data.add_step(replay, bad, np.ones(2), 1.0, obs, terminated=False, truncated=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"obs": np.zeros(2)}, r"`obs` must have shape \(1,\), as in the buffer, got \(2,\)"),
        ({"next_obs": np.zeros((1, 1))}, r"`next_obs` must have shape \(1,\), as in the buffer, got \(1, 1\)"),
        ({"action": np.zeros(3)}, r"`action` must have shape \(2,\), as in the buffer, got \(3,\)"),
        ({"terminated": "no"}, "`terminated` must be True or False or a number"),
        ({"obs": [np.zeros(1)]}, r"`obs` must have shape \(1,\), as in the buffer, got \[\(1,\)\]"),
        ({"reward": "1"}, "`reward` must be a number"),
    ],
)
def test_a_step_that_does_not_fit_is_refused(changes, message):
    step = {"obs": np.zeros(1), "action": np.zeros(2), "reward": 0.0, "next_obs": np.zeros(1)}
    step |= {"terminated": False, "truncated": False} | changes
    with pytest.raises((TypeError, ValueError), match=message):
        data.add_step(data.empty_replay(example(), capacity=3), **step)


def test_a_capacity_below_three_is_refused():
    with pytest.raises(ValueError, match="`capacity` must be an integer of at least 3, got 2"):
        data.empty_replay(example(), capacity=2)


@pytest.mark.parametrize(
    ("obs", "message"),
    [(np.int64(2**32 + 7), "does not fit into int32"), (np.float32(np.nan), "is not finite")],
)
def test_values_that_the_buffer_cannot_hold_are_refused_outside_of_jit(obs, message, without_x64):
    column = np.zeros((3, 1), obs.dtype)
    offline = data.from_arrays(
        observations=column, actions=np.zeros((3, 1)), rewards=np.zeros(3), terminals=np.zeros(3)
    )
    replay = data.empty_replay(offline, capacity=3)
    with pytest.raises(ValueError, match=message):
        data.add_step(replay, obs[None], np.zeros(1), 0.0, column[0], terminated=False, truncated=False)


@pytest.mark.parametrize(
    "bad",
    [
        {"action": np.full(2, np.nan)},
        {"reward": np.float32("nan")},
        {"reward": float("inf")},
        {"reward": jnp.float32("nan")},
    ],
)
def test_an_action_and_a_reward_must_be_finite(bad):
    replay = data.empty_replay(example(), capacity=3)
    obs = np.zeros(1, np.float32)
    step = {"obs": obs, "action": np.zeros(2), "reward": 0.0, "next_obs": obs, "terminated": False, "truncated": False}
    with pytest.raises(ValueError, match=r"^`(action\[0\]|reward)` = .* is not finite"):
        data.add_step(replay, **step | bad)
    jax.jit(data.add_step)(replay, **step | bad)


@pytest.mark.parametrize("value", [np.float32(1e6), np.int32(70_000)])
@pytest.mark.parametrize("name", ["obs", "next_obs"])
def test_what_a_narrow_buffer_cannot_hold_is_refused(name, value):
    column = np.zeros((3, 1))
    offline = data.from_arrays(
        observations=column.astype(np.float16), actions=column, rewards=column[:, 0], terminals=column[:, 0]
    )
    step = {"obs": column[0], "next_obs": column[0], name: value[None]}
    with pytest.raises(ValueError, match=rf"`{name}\[0\]` = .* is not finite in float16"):
        data.add_step(
            data.empty_replay(offline, capacity=3),
            action=column[0],
            reward=0.0,
            terminated=False,
            truncated=False,
            **step,
        )
