"""Samples agree with a plain loop over the dataset, and each valid start is drawn equally often."""

import time
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from assertions import assert_uniform, assert_unrelated, each, seeds
from hypothesis import given
from hypothesis import strategies as st

from shortcutrl import data
from shortcutrl.data import _index, _sample

KEY = jax.random.key(0)


def episodes(lengths, *, seed=0, after=False, masks=(0, 1, 1, 1, 0.5), library=jnp.asarray):
    """A random dataset whose observations count its rows, with terminal states inside of episodes too."""
    rng, rows = np.random.default_rng(seed), sum(lengths)
    image = rng.integers(0, 255, (rows, 2, 2, 3)).astype(np.uint8)
    row = np.arange(rows, dtype=np.int32)[:, None]
    dataset = data.Dataset(
        obs={"row": row, "image": image},
        action=rng.normal(size=(rows, 2)).astype(np.float32),
        reward=rng.normal(size=rows).astype(np.float32),
        mask=rng.choice(masks, rows).astype(np.float32),
        episode_end=np.isin(np.arange(rows), np.cumsum(lengths) - 1),
        next_obs={"row": row + 1000, "image": 255 - image} if after else None,
    )
    return jax.tree.map(library, dataset)


def steps_from(dataset, start, limit):
    """The rows of the steps from `start` on, by definition: their number, at most `limit`, ends with the episode."""
    rows, row = [], start
    while len(rows) < limit:
        stops = dataset.episode_end[row] or row == len(dataset.reward) - 1
        terminal = dataset.mask[row] == 0
        if stops and not terminal and dataset.next_obs is None:
            break  # its successor is unknown
        rows.append(row)
        if stops or terminal:
            break
        row += 1
    return rows


def stacked(dataset, row, frames, *after):
    """The last `frames` observations up to `row`, and then `after`, by definition."""
    first = max([i + 1 for i in range(row) if dataset.episode_end[i]], default=0)
    shown = [max(i, first) for i in range(row + 1 - frames + len(after), row + 1)]
    each = [jax.tree.map(lambda x, i=i: x[i], dataset.obs) for i in shown]
    return jax.tree.map(lambda *x: np.concatenate(x, axis=-1), *each, *after)


def looked_ahead(dataset, start, *, n_step, chunk, frame_stack, discount):
    """The sample that starts at a row, by definition, or `None` if no valid one does."""
    rows = steps_from(dataset, start, n_step * chunk)
    if not rows or (len(rows) < chunk and dataset.mask[rows[-1]] != 0):
        return None
    taken = [start]
    while len(taken) < chunk:  # also beyond a terminal state, where actions change nothing
        ends = dataset.episode_end[taken[-1]] or taken[-1] == len(dataset.reward) - 1
        taken.append(taken[-1] + (not ends))
    last, remains, reward = rows[-1], 1.0, 0.0
    for i, row in enumerate(rows):
        reward += discount**i * remains * float(dataset.reward[row])
        remains *= float(dataset.mask[row])
    ends = dataset.episode_end[last] or last == len(dataset.reward) - 1
    if dataset.next_obs is None:
        next_obs = stacked(dataset, last if ends else last + 1, frame_stack)
    else:
        next_obs = stacked(dataset, last, frame_stack, jax.tree.map(lambda x: x[last], dataset.next_obs))
    following, row = [], last
    for _ in range(chunk):
        row += not (dataset.episode_end[row] or row == len(dataset.reward) - 1 or dataset.mask[row] == 0)
        following.append(row)
    return {
        "obs": stacked(dataset, start, frame_stack),
        "action": np.concatenate([dataset.action[row] for row in taken]),
        "reward": np.float32(reward),
        "mask": np.float32(discount ** (len(rows) - 1) * remains),
        "next_obs": next_obs,
        "next_action": np.concatenate([dataset.action[row] for row in following]),
    }


def assert_by_definition(dataset, draw, **options):
    """Every sample that `draw(dataset, KEY)` draws is the one of its start, and every valid start is drawn."""
    known = jax.tree.map(np.asarray, dataset)
    expected = {row: looked_ahead(known, row, **options) for row in range(len(known.reward))}
    batch = jax.tree.map(np.asarray, draw(dataset, KEY))._asdict()
    starts = batch["obs"]["row"][:, -1].tolist()
    assert set(starts) == {row for row, sample in expected.items() if sample is not None}
    for i in np.unique(starts, return_index=True)[1]:
        for name, value in expected[starts[i]].items():
            drawn = jax.tree.map(lambda x, i=i: x[i], batch[name])
            jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6, err_msg=name), drawn, value)
            assert jax.tree.map(lambda x: x.dtype, drawn) == jax.tree.map(lambda x: x.dtype, value)


def longest(dataset):
    return max(len(steps_from(dataset, row, len(dataset.reward))) for row in range(len(dataset.reward)))


ROWS = 20  # always as many, so that one program serves all of them


@pytest.mark.parametrize(
    ("n_step", "chunk", "frame_stack"), [(1, 1, 1), (3, 1, 1), (1, 3, 1), (1, 1, 3), (2, 2, 2), (5, 1, 2), (ROWS, 1, 1)]
)
@pytest.mark.parametrize("after", [False, True], ids=["successors by index", "successors given"])
@given(cuts=st.sets(st.integers(1, ROWS - 1)), seed=seeds, discount=st.floats(0, 1))
def test_samples_are_their_definition(n_step, chunk, frame_stack, after, cuts, seed, discount):
    lengths = np.diff([0, *sorted(cuts), ROWS])
    dataset = episodes(lengths, seed=seed, after=after)
    options = {"n_step": n_step, "chunk": chunk, "frame_stack": frame_stack, "discount": discount}
    draw = partial(data.sample, batch_size=512, **options)
    if chunk <= longest(dataset) or 0 in dataset.mask:
        assert_by_definition(dataset, draw, **options)
        return
    with pytest.raises(ValueError, match=r"no transition with a known successor|`chunk` must be at most"):
        draw(dataset, KEY)
    drawn_from = traced(n_step, chunk, frame_stack)  # which does not know the episodes
    assert np.isnan(drawn_from(discount, dataset, KEY).reward).all()


@cache
def traced(n_step, chunk, frame_stack):
    powers = np.arange(n_step * chunk)
    program = jax.jit(partial(_sample._sample, batch_size=512, chunk=chunk, frame_stack=frame_stack))
    return lambda discount, dataset, key: program(dataset, key, discount**powers)


DATASET = episodes([7, 1, 9, 4, 8], seed=3)
OPTIONS = {"n_step": 2, "chunk": 2, "frame_stack": 2, "discount": 0.9}


def changed(draw, **changes):
    """`draw`, with fields of what it draws replaced by functions of it."""

    def mutant(dataset, key):
        batch = draw(dataset, key)
        return batch._replace(**{name: change(batch) for name, change in changes.items()})

    return mutant


def with_options(**options):
    return partial(data.sample, batch_size=512, **(OPTIONS | options))


right = with_options()
MUTANTS = {
    "crosses episodes": lambda d, key: right(d._replace(episode_end=jnp.zeros_like(d.episode_end)), key),
    "crosses terminal states": lambda d, key: right(d._replace(mask=jnp.ones_like(d.mask)), key),
    "starts where no successor is known": lambda d, key: right(
        d._replace(next_obs=jax.tree.map(lambda x: jnp.roll(x, -1, axis=0), d.obs)), key
    ),
    "a step too many": with_options(n_step=3),
    "a step too few": with_options(n_step=1),
    "another discount": with_options(discount=0.9**2),
    "discounts the mask once more": changed(right, mask=lambda b: 0.9 * b.mask),
    "does not discount the mask": changed(right, mask=lambda b: jnp.sign(b.mask)),
    "bootstraps from itself": changed(right, next_obs=lambda b: b.obs),
    "the same action next": changed(right, next_action=lambda b: b.action),
    "actions backwards": changed(right, action=lambda b: b.action[:, jnp.array([2, 3, 0, 1])]),
    "frames backwards": changed(right, next_obs=lambda b: b.next_obs | {"row": b.next_obs["row"][:, ::-1]}),
    "frames mixed": changed(right, obs=lambda b: b.obs | {"image": jnp.roll(b.obs["image"], 1, axis=-1)}),
    "another row's reward": changed(right, reward=lambda b: jnp.roll(b.reward, 1)),
}


def test_the_sample_that_the_mutants_change_is_right():
    assert_by_definition(DATASET, right, **OPTIONS)


@each(MUTANTS)
def test_a_mutant_is_caught(mutant):
    with pytest.raises(AssertionError):
        assert_by_definition(DATASET, mutant, **OPTIONS)


def starts(dataset, keys, **options):
    draw = jax.jit(jax.vmap(lambda key: data.sample(dataset, key, discount=0.9, **options).obs["row"][:, 0]))
    return np.asarray(draw(keys))


@pytest.mark.parametrize(
    ("batch_size", "chunk", "after"), [(1, 1, False), (3, 3, False), (4000, 1, True), (4000, 3, True)]
)
def test_every_valid_start_is_drawn_equally_often(batch_size, chunk, after):
    dataset = episodes([7, 1, 9, 4, 8], seed=3, after=after)
    known, options = jax.tree.map(np.asarray, dataset), {"n_step": 1, "frame_stack": 1, "discount": 1.0}
    valid = [row for row in range(29) if looked_ahead(known, row, chunk=chunk, **options) is not None]
    keys = jax.random.split(KEY, 12_000 // batch_size)
    drawn = starts(dataset, keys, batch_size=batch_size, chunk=chunk)
    assert_uniform(drawn.ravel(), valid)
    for place in {0, batch_size - 1} if batch_size <= 3 else ():
        assert_uniform(drawn[:, place], valid)


def test_the_samples_of_a_batch_are_independent():
    drawn = starts(episodes([2] * 500, masks=(1,)), KEY[None], batch_size=4000)[0]
    assert_unrelated(drawn[:-1], drawn[1:])
    assert len(np.unique(drawn)) > 490  # of 500: not the same ones again


def test_a_valid_start_among_thousands_of_others_is_found():
    dataset = episodes([1] * 3000 + [2], masks=(1,))
    for batch_size in (5, 200):  # more than are found: they are repeated
        assert (starts(dataset, jax.random.split(KEY, 3), batch_size=batch_size) == 3000).all()


def test_one_valid_start_that_is_found_once_is_enough(monkeypatch):
    """Of two rows the first is valid. Each round draws two, so that often one of them is."""
    monkeypatch.setattr(_sample, "MIN_DRAWS", 1)
    dataset = episodes([2], masks=(1,))
    draw = jax.jit(jax.vmap(lambda key: data.sample(dataset, key, batch_size=1).reward))
    assert (draw(jax.random.split(KEY, 64)) == dataset.reward[0]).all()


@pytest.mark.parametrize("lengths", [[5], [5, 3], [3, 5]])
def test_an_episode_may_be_looked_through_to_its_end_and_no_further(lengths):
    dataset = episodes(lengths, masks=(1,), after=True)
    draw = partial(data.sample, dataset, KEY, batch_size=64, discount=1)
    assert draw(chunk=5).action.shape == (64, 10)
    if sum(lengths) > 5:
        jax.tree.map(np.testing.assert_array_equal, draw(n_step=6), draw(n_step=5))
        message = r"`chunk` must be at most 5, the transition\(s\) of the longest episode, got 6"
        with pytest.raises(ValueError, match=message):
            draw(chunk=6)


@pytest.mark.parametrize("goes_on", [False, True], ids=["the episode ends", "rows follow, as in OGBench"])
def test_a_chunk_may_reach_a_terminal_state(goes_on):
    """The states next to the goal are trained too. An action after the terminal state changes nothing."""
    rows = 8 if goes_on else 5
    dataset = data.Dataset(
        obs=jnp.arange(rows, dtype=jnp.float32)[:, None],
        action=jnp.arange(rows, dtype=jnp.float32)[:, None],
        reward=jnp.ones(rows),
        mask=jnp.ones(rows).at[4].set(0),
        episode_end=jnp.arange(rows) == rows - 1,
    )
    batch = data.sample(dataset, KEY, batch_size=512, chunk=3, discount=0.5)
    sampled = {int(obs[0]): each for obs, *each in zip(*batch[:4], strict=True)}
    assert sampled.keys() == set(range(5))
    for row, (action, reward, mask) in sampled.items():
        assert action.tolist() == [min(row + i, rows - 1) for i in range(3)]
        assert reward == sum(0.5**i for i in range(min(3, 5 - row)))
        assert mask == (0.25 if row < 2 else 0)


def test_sampling_makes_no_nan_on_the_way():
    with jax.debug_nans(True), jax.disable_jit():
        assert np.isfinite(data.sample(PLAIN, KEY, batch_size=3).reward).all()


def test_without_a_valid_start_the_reward_is_nan_under_jit_and_an_error_outside():
    dataset = episodes([1] * 5, masks=(1,))
    draw = partial(data.sample, key=KEY, batch_size=2)
    assert np.isnan(jax.jit(lambda d: draw(d).reward)(dataset)).all()
    with pytest.raises(ValueError, match="`dataset` has no transition with a known successor"):
        draw(dataset)


def test_a_timeout_bootstraps_from_the_observation_that_is_given():
    obs = np.arange(6.0)[:, None]
    arrays = {"observations": obs, "actions": np.zeros((6, 1)), "rewards": np.ones(6), "terminals": np.arange(6) == 5}
    dataset = data.from_arrays(**arrays, timeouts=np.arange(6) == 2)
    batch = data.sample(dataset, KEY, batch_size=256, n_step=2, discount=0.5)
    assert set(batch.obs[:, 0].tolist()) == {0, 1, 3, 4, 5}
    assert {(s, t) for s, t in zip(batch.obs[:, 0].tolist(), batch.next_obs[:, 0].tolist(), strict=True) if s < 3} == {
        (0, 2),
        (1, 2),
    }
    dataset = data.from_arrays(**arrays, timeouts=np.arange(6) == 2, next_observations=obs + 0.5)
    batch = data.sample(dataset, KEY, batch_size=256, n_step=2, discount=0.5)
    assert set(batch.obs[:, 0].tolist()) == {0, 1, 2, 3, 4, 5}
    at = batch.obs[:, 0] == 2
    assert (batch.next_obs[at] == 2.5).all()
    assert (batch.mask[at] == 1).all()


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (np.uint8, 200),
        (np.int8, 100),
        (np.int16, 30_000),
        (np.int32, 2_000_000_000),
        (bool, True),
        (np.float16, 60_000),
        (jnp.bfloat16, 256),
        (np.float32, 200),
        (np.float64, 1e300),
    ],
    ids=str,
)
def test_returns_do_not_overflow_the_dtype_of_rewards(dtype, value):
    obs = jnp.arange(4.0)[:, None]
    dataset = data.Dataset(obs, obs, jnp.full(4, value, dtype), (jnp.arange(4) < 3).astype(dtype), jnp.arange(4) == 3)
    batch = data.sample(dataset, KEY, batch_size=64, n_step=3, discount=1)
    assert batch.reward.dtype == jnp.promote_types(dtype, jnp.float32)
    np.testing.assert_allclose(batch.reward, value * np.array([3.0, 3, 2, 1])[batch.obs[:, 0].astype(int)], rtol=1e-6)
    np.testing.assert_array_equal(batch.mask, (batch.obs[:, 0] == 0).astype(np.float32))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64], ids=str)
def test_actions_and_observations_keep_their_dtype(dtype):
    dataset = episodes([5], masks=(1,))
    dataset = dataset._replace(obs=dataset.action.astype(dtype), action=dataset.action.astype(dtype))
    draw = partial(data.sample, batch_size=4, n_step=2, chunk=2, frame_stack=3, discount=0.9)
    batch = jax.eval_shape(draw, dataset, KEY)
    assert {x.dtype for x in (batch.obs, batch.action, batch.next_obs, batch.next_action)} == {jnp.dtype(dtype)}


def test_numpy_arrays_are_taken_also_where_jit_closes_over_them():
    dataset = episodes([5, 6], library=np.asarray)
    draw = partial(data.sample, batch_size=4, n_step=2, chunk=2, discount=0.9)
    for batch in (draw(dataset, KEY), jax.jit(lambda key: draw(dataset, key))(KEY)):
        jax.tree.map(np.testing.assert_array_equal, batch, draw(jax.tree.map(jnp.asarray, dataset), KEY))


@pytest.mark.parametrize("jit", [jax.jit, lambda function: function], ids=["jit", "eager"])
def test_values_of_numpy_arrays_are_checked(jit, without_x64):
    bad = PLAIN._replace(obs={"wide": np.full((4, 2), 2**40)})
    draw = jit(lambda key: data.sample(bad, key, batch_size=2))
    with pytest.raises(ValueError, match=r"`dataset.obs\['wide'\]\[0, 0\]` = 1099511627776 does not fit into int32"):
        draw(KEY)
    bad = PLAIN._replace(reward=np.full(4, 1e300))
    draw = jit(lambda key: data.sample(bad, key, batch_size=2))
    with pytest.raises(ValueError, match=r"`dataset.reward\[0\]` = 1e\+300 is not finite in float32"):
        draw(KEY)


def test_part_of_a_dataset_is_a_dataset():
    part = jax.tree.map(lambda x: x[2:20], DATASET)
    assert not part.episode_end[-1]
    part = part._replace(obs=part.obs | {"row": part.obs["row"] - 2})
    options = {"n_step": 3, "chunk": 1, "frame_stack": 3, "discount": 0.9}
    assert_by_definition(part, partial(data.sample, batch_size=512, **options), **options)


def test_numpy_integers_are_taken():
    sizes = {name: np.int64(2) for name in ("batch_size", "n_step", "chunk", "frame_stack")}
    assert data.sample(episodes([9], masks=(1,)), KEY, **sizes, discount=np.float32(0.9)).action.shape == (2, 4)


@pytest.mark.parametrize("setting", [jax.disable_jit, partial(jax.numpy_dtype_promotion, "strict")])
def test_samples_without_jit_or_implicit_promotion_are_the_same(setting, without_x64):
    plain = jax.tree.map(lambda x: x.astype(np.float32) if x.dtype == float else x, DATASET)
    for dataset in (plain, plain._replace(next_obs=plain.obs)):
        draw = partial(data.sample, dataset, KEY, batch_size=3, **OPTIONS)
        expected = draw()
        with setting():
            jax.tree.map(np.testing.assert_array_equal, draw(), expected)


def test_samples_inside_scan_and_vmap_are_those_outside():
    draw = partial(data.sample, DATASET, batch_size=3, **OPTIONS)
    keys = jax.random.split(KEY, 4)
    outside = jax.tree.map(lambda *x: jnp.stack(x), *map(draw, keys))
    scanned = jax.jit(lambda keys: jax.lax.scan(lambda _, key: (0, draw(key)), 0, keys)[1])(keys)
    jax.tree.map(np.testing.assert_array_equal, scanned, outside)
    jax.tree.map(np.testing.assert_array_equal, jax.vmap(draw)(keys), outside)
    datasets = jax.tree.map(lambda x: jnp.stack([x, x]), DATASET)
    both = jax.vmap(lambda dataset: data.sample(dataset, keys[0], batch_size=3, **OPTIONS))(datasets)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[1], y[0]), both, outside)


def test_a_long_look_ahead_is_no_longer_program():
    dataset = episodes([2000], masks=(1,))

    def equations(n_step):
        draw = partial(data.sample, batch_size=4, n_step=n_step, discount=0.9)
        return str(jax.make_jaxpr(draw)(dataset, KEY)).count("=")

    assert equations(10) == equations(1000)


def test_windows_that_do_not_fit_into_memory_are_visited_one_by_one(monkeypatch):
    args = DATASET, jnp.arange(29), 0.9 ** jnp.arange(20)
    expected = _index.look_ahead(*args)
    monkeypatch.setattr(_index, "MAX_ELEMENTS", 100)
    jax.tree.map(np.testing.assert_array_equal, _index.look_ahead(*args), expected)


SAMPLE = {"dataset": DATASET, "key": KEY, "batch_size": 2, "discount": 0.9}
PLAIN = data.Dataset(*(jnp.ones((4, 3)), jnp.ones((4, 2)), jnp.ones(4), jnp.ones(4), jnp.arange(4) == 3))
BAD = {
    "a batch of nothing": ({"batch_size": 0}, ValueError, "`batch_size` must be an integer of at least 1, got 0"),
    "a batch of too much": ({"batch_size": 10**12}, ValueError, "`batch_size` must be an integer of at most 1048576"),
    "half a batch": ({"batch_size": 1.5}, TypeError, "`batch_size` must be an integer, got 1.5"),
    "no step": ({"n_step": 0}, ValueError, "`n_step` must be an integer of at least 1, got 0"),
    "a true step": ({"n_step": True}, TypeError, "`n_step` must be an integer, got True"),
    "a long look": (
        {"n_step": 10**9},
        ValueError,
        r"`n_step \* chunk` must be at most 29, the row\(s\) of the dataset",
    ),
    "a long chunk": ({"chunk": 10**9}, ValueError, r"`n_step \* chunk` must be at most 29, .*got 1000000000"),
    "a chunk too long": (
        {"dataset": PLAIN, "chunk": 4},
        ValueError,
        r"`chunk` must be at most 3, the transition\(s\) of the longest episode, got 4",
    ),
    "many chunks": ({"chunk": 3, "n_step": 10}, ValueError, r"`n_step \* chunk` must be at most 29, .*got 30"),
    "many frames": (
        {"frame_stack": 10**9},
        ValueError,
        r"`frame_stack` must be at most 29, the row\(s\) of the dataset",
    ),
    "a missing discount": ({"n_step": 2, "discount": None}, ValueError, "`discount` is required for n_step = 2"),
    "no discount for chunks": ({"chunk": 2, "discount": None}, ValueError, "`discount` is required for n_step = 1"),
    "a discount above 1": ({"discount": 1.1}, ValueError, r"`discount` must be in \[0, 1\], got 1.1"),
    "a discount of NaN": ({"discount": np.nan}, ValueError, r"`discount` must be in \[0, 1\], got nan"),
    "a seed for a key": ({"key": 0}, TypeError, "`key` must be a JAX random key, got 0"),
    "a dictionary": ({"dataset": PLAIN._asdict()}, TypeError, "`dataset` must be a `Dataset`"),
    "a list of rewards": (
        {"dataset": PLAIN._replace(reward=[1.0] * 4)},
        TypeError,
        r"`dataset.reward` must be an array, got",
    ),
    "no mask": ({"dataset": PLAIN._replace(mask=None)}, TypeError, "`dataset.mask` must be an array, got None"),
    "no observations": ({"dataset": PLAIN._replace(obs=())}, TypeError, r"`dataset.obs` holds no array, got \(\)"),
    "actions of text": (
        {"dataset": PLAIN._replace(action=np.full((4, 2), "1"))},
        TypeError,
        "`dataset.action` must",
    ),
    "a masked mask": ({"dataset": PLAIN._replace(mask=np.ma.ones(4))}, TypeError, "`dataset.mask` is a masked array"),
    "a tuple of masks": (
        {"dataset": PLAIN._replace(mask=(1, 2))},
        TypeError,
        r"`dataset.mask` must be an array, got \(1",
    ),
    "a mask of two": (
        {"dataset": PLAIN._replace(mask=jnp.full(4, 2))},
        ValueError,
        r"`dataset.mask\[0\]` = 2 is not in \[0, 1\] \(4 such values of 4\)",
    ),
    "a mask of NaN": (
        {"dataset": PLAIN._replace(mask=jnp.full(4, jnp.nan))},
        ValueError,
        r"`dataset.mask\[0\]` = nan is not in \[0, 1\]",
    ),
    "an end of two": (
        {"dataset": PLAIN._replace(episode_end=jnp.arange(4))},
        ValueError,
        r"`dataset.episode_end\[2\]` = 2 is neither 0 nor 1",
    ),
    "a column of masks": (
        {"dataset": PLAIN._replace(mask=jnp.ones((4, 1)))},
        ValueError,
        r"`dataset.mask` must have shape \(rows,\), got \(4, 1\)",
    ),
    "rewards of five tasks": (
        {"dataset": PLAIN._replace(reward=jnp.ones((4, 5)))},
        ValueError,
        r"`dataset.reward` must have shape \(rows,\), got \(4, 5\)",
    ),
    "actions without an axis": (
        {"dataset": PLAIN._replace(action=jnp.ones(4))},
        ValueError,
        r"`dataset.action` must have shape \(rows, action\), got \(4,\)",
    ),
    "a scalar observation": (
        {"dataset": PLAIN._replace(obs={"a": jnp.ones(())})},
        ValueError,
        r"`dataset.obs\['a'\]` must have one row for each step",
    ),
    "few observations": (
        {"dataset": PLAIN._replace(obs={"a": jnp.ones((3, 2))})},
        ValueError,
        r"`dataset.obs\['a'\]` has 3 rows but `dataset.reward` has 4",
    ),
    "few ends": (
        {"dataset": PLAIN._replace(episode_end=jnp.ones(3))},
        ValueError,
        "`dataset.episode_end` has 3 rows but `dataset.reward` has 4",
    ),
    "other successors": (
        {"dataset": PLAIN._replace(next_obs={"a": jnp.ones((4, 3))})},
        ValueError,
        "`dataset.next_obs` must have the structure of `dataset.obs`",
    ),
    "larger successors": (
        {"dataset": PLAIN._replace(next_obs=jnp.ones((4, 4)))},
        ValueError,
        r"`dataset.next_obs` must be like `dataset.obs`, float.*\[4, 3\], got float.*\[4, 4\]",
    ),
    "no rows": (
        {"dataset": jax.tree.map(lambda x: x[:0], PLAIN)},
        ValueError,
        "`dataset.reward` is empty. A dataset needs at least one transition",
    ),
    "frames without an axis": (
        {"dataset": PLAIN._replace(obs=jnp.ones(4)), "frame_stack": 2},
        ValueError,
        "`frame_stack` needs an axis to concatenate on",
    ),
}


@pytest.mark.parametrize(("change", "kind", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused_at_once(change, kind, message):
    begin = time.perf_counter()
    with pytest.raises(kind, match=f"^[^\n]*{message}"):
        data.sample(**(SAMPLE | change))
    assert time.perf_counter() - begin < 2


def test_the_largest_batch_is_accepted():
    draw = partial(data.sample, DATASET, batch_size=2**20)
    assert jax.eval_shape(draw, KEY).reward.shape == (2**20,)
    with pytest.raises(ValueError, match="must be an integer of at most 1048576, got 1048577"):
        data.sample(DATASET, KEY, batch_size=2**20 + 1)


@pytest.mark.parametrize("name", ["n_step", "chunk", "frame_stack"])
def test_under_jit_the_size_of_the_data_is_the_bound(name):
    draw = partial(data.sample, key=KEY, batch_size=2, discount=0.9, **{name: 30})
    with pytest.raises(ValueError, match=r"must be at most 29, the row\(s\) of the dataset, got 30"):
        jax.jit(draw)(DATASET)
