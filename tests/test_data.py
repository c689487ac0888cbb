"""Datasets: checked on the host, with the array, the first bad index and the remedy in the error's first line."""

import datetime
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shortcutrl import data
from shortcutrl.runs import Run, load_settings


def fields(rows=4, **changed):
    rng = np.random.default_rng(0)
    return {
        "observations": rng.normal(size=(rows, 3)),
        "actions": rng.uniform(-1, 1, (rows, 2)),
        "rewards": rng.normal(size=rows),
        "terminals": np.arange(rows) == rows - 1,
        **changed,
    }


def with_value(name, index, value):
    arrays = fields()
    arrays[name] = arrays[name].astype(float)
    arrays[name][index] = value
    return arrays


def camera(dtype=np.uint8, **changed):
    return {"camera": np.zeros((4, 2, 2, 3), dtype), "joints": [np.zeros((4, 3)), np.zeros(4, np.int16)], **changed}


def test_good_values_arrive_as_float32():
    arrays = fields()
    dataset = data.from_arrays(**arrays)
    for name, values in {"obs": "observations", "action": "actions", "reward": "rewards"}.items():
        assert getattr(dataset, name).dtype == jnp.float32
        np.testing.assert_array_equal(getattr(dataset, name), arrays[values].astype(np.float32))
    assert (dataset.mask.dtype, dataset.episode_end.dtype, dataset.next_obs) == (jnp.float32, jnp.bool_, None)
    np.testing.assert_array_equal(dataset.mask, [1, 1, 1, 0])
    np.testing.assert_array_equal(dataset.episode_end, [0, 0, 0, 1])
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(dataset))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, bool, np.float16, np.float32, jnp.bfloat16], ids=str)
def test_observations_keep_their_dtype(dtype):
    assert data.from_arrays(**fields(observations=np.ones((4, 2), dtype))).obs.dtype == dtype


@pytest.mark.parametrize("dtype", [np.float64, np.longdouble])
def test_wider_observations_become_float32(dtype):
    assert data.from_arrays(**fields(observations=np.ones((4, 2), dtype))).obs.dtype == np.float32


def test_wide_integers_are_narrowed_only_if_they_fit(without_x64):
    good, bad = (np.full((4, 2), value, np.int64) for value in (7, 2**40))
    assert data.from_arrays(**fields(observations=good)).obs.dtype == np.int32
    with pytest.raises(ValueError, match=r"`observations\[0, 0\]` = 1099511627776 does not fit into int32 \(8 such"):
        data.from_arrays(**fields(observations=bad))


def test_observations_may_be_any_pytree():
    obs = data.from_arrays(**fields(observations=camera())).obs
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), obs) == {
        "camera": ((4, 2, 2, 3), np.uint8),
        "joints": [((4, 3), np.float32), ((4,), np.int16)],
    }


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.float16, np.longdouble, bool])
def test_numbers_of_any_kind_are_taken(dtype):
    ones = np.ones(4, dtype)
    dataset = data.from_arrays(**fields(actions=ones[:, None], rewards=ones, terminals=ones))
    assert (dataset.action.dtype, dataset.reward.dtype) == (np.float32, np.float32)
    assert (dataset.action.min(), dataset.reward.min(), dataset.mask.max()) == (1, 1, 0)


def test_jax_arrays_are_taken():
    given_arrays = jax.tree.map(jnp.asarray, fields())
    assert data.from_arrays(**given_arrays).action.shape == (4, 2)


def aligned(shape, dtype, offset):
    """Zeros whose first byte lies `offset` bytes behind a multiple of 64, where JAX shares or copies memory."""
    memory = np.zeros(np.prod(shape) * np.dtype(dtype).itemsize + 128, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    return memory[start : start + memory.size - 128].view(dtype).reshape(shape)


@pytest.mark.parametrize("offset", [0, 16])
def test_the_dataset_is_a_copy(offset):
    """Complete when `from_arrays` returns: JAX copies large arrays later, and those that are aligned not at all."""
    rows = 4096
    arrays = fields(observations=aligned((rows, 64, 64, 3), np.uint8, offset))
    arrays["actions"] = aligned((rows, 2), np.float32, offset)
    arrays |= {"rewards": aligned(rows, np.float32, offset), "terminals": aligned(rows, bool, offset)}
    arrays["next_observations"] = aligned((rows, 64, 64, 3), np.uint8, offset)
    dataset = data.from_arrays(**arrays)
    for values in arrays.values():
        values += 1 if values.dtype != bool else True
    assert all(leaf.max() == 0 for leaf in (dataset.obs, dataset.action, dataset.reward, dataset.next_obs))
    assert dataset.mask.min() == 1


def test_numpy_arrays_are_taken_inside_of_jit_too():
    reward = jax.jit(lambda: data.from_arrays(**fields()).reward)()
    np.testing.assert_array_equal(reward, fields()["rewards"].astype(np.float32))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the largest memory is read as Linux gives it")
def test_the_dataset_takes_its_own_size_of_memory_and_no_more():
    """In a process of its own."""
    script = """
        import re
        import jax
        import numpy as np
        from pathlib import Path
        from shortcutrl import data

        rows = 20_000
        arrays = {"actions": np.zeros((rows, 2)), "rewards": np.zeros(rows), "terminals": np.ones(rows)}
        data.from_arrays(observations=np.ones((rows, 1), np.uint8), **arrays)
        images = np.ones((rows, 64, 64, 3), np.uint8)
        most = lambda: int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
        before = most()
        dataset = jax.block_until_ready(data.from_arrays(observations=images, **arrays))
        print((most() - before) * 1024 / images.nbytes)
    """
    env, command = os.environ | {"JAX_PLATFORMS": "cpu"}, [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    assert 0.7 < float(done.stdout) < 1.4  # 2 if JAX copies its own copy


NAN, OBJECT = np.nan, np.array([None, 1.0, 2.0, 3.0])
BAD_VALUES = {
    "a NaN observation": (
        with_value("observations", (2, 1), NAN),
        r"`observations\[2, 1\]` = nan is not finite .*1",
    ),
    "an infinite reward": (with_value("rewards", 3, np.inf), r"`rewards\[3\]` = inf is not finite in float32"),
    "a reward beyond float32": (with_value("rewards", 3, 1e300), r"`rewards\[3\]` = 1e\+300 is not finite in float32"),
    "a NaN action": (with_value("actions", (0, 1), NAN), r"`actions\[0, 1\]` = nan is not finite"),
    "an action out of range": (
        with_value("actions", (1, 0), 1.5),
        r"`actions\[1, 0\]` = 1.5 lies outside `action_range`, -1.0 to 1.0 \(1 such values of 8\). .*`rescale=True`",
    ),
    "a flag of a half": (with_value("terminals", 2, 0.5), r"`terminals\[2\]` = 0.5 is neither 0 nor 1"),
    "a timeout of two": (fields(timeouts=np.full(4, 2)), r"`timeouts\[0\]` = 2.0 is neither 0 nor 1 \(4 such"),
    "few rewards": (fields(rewards=np.ones(3)), "`actions` has 4 rows but `rewards` has 3"),
    "few actions": (fields(actions=np.ones((3, 2))), "`actions` has 3 rows but `rewards` has 4"),
    "few flags": (fields(terminals=np.ones(3)), "`terminals` has 3 rows but `rewards` has 4"),
    "no rows": (fields(rows=0), "`rewards` is empty. A dataset needs at least one transition"),
    "a column of rewards": (
        fields(rewards=np.ones((4, 1))),
        r"`rewards` must have shape \(rows,\), got \(4, 1\). Use `rewards.squeeze\(-1\)`",
    ),
    "a column of flags": (
        fields(terminals=np.ones((4, 1))),
        r"`terminals` must have shape \(rows,\), got \(4, 1\). Use `terminals.squeeze\(-1\)`",
    ),
    "actions without an axis": (fields(actions=np.ones(4)), r"`actions` must have shape \(rows, action\), got \(4,\)"),
    "actions with an axis too many": (
        fields(actions=np.ones((4, 2, 1))),
        r"`actions` must have shape \(rows, action\)",
    ),
    "observations without rows": (fields(observations=np.ones(())), "`observations` must have one row for each step"),
    "a NaN in a picture": (
        fields(observations=camera(camera=np.full((4, 2, 2, 3), NAN))),
        r"`observations\['camera'\]\[0, 0, 0, 0\]` = nan is not finite in float32.*\(48 such values of 48\)",
    ),
    "an inner array that is short": (
        fields(observations=camera(joints=[np.ones((3, 1))])),
        r"`observations\['joints'\]\[0\]` has 3 rows but `rewards` has 4",
    ),
    "a list of steps": (fields(observations=[np.ones(3)] * 4), r"`observations\[0\]` has 3 rows.*`np.stack\(...\)`"),
    "both names of a flag": (fields(terminations=np.ones(4)), "Pass one of `terminals` and `terminations`, got both"),
    "both names of a timeout": (
        fields(timeouts=np.ones(4), truncations=np.ones(4)),
        "Pass at most one of `timeouts` and `truncations`, got both",
    ),
    "no flag": (fields(terminals=None), "Pass one of `terminals` and `terminations`, got neither"),
    "no known successor": (
        fields(terminals=np.zeros(4), timeouts=np.ones(4)),
        "no successor is known, because each of the 4 rows.*Pass `next_observations`",
    ),
    "another structure": (
        fields(observations=camera(), next_observations=np.ones((4, 3))),
        "`next_observations` must have the structure of `observations`",
    ),
    "another size": (
        fields(next_observations=np.ones((4, 2))),
        r"`next_observations` must be like `observations`, float32\[4, 3\], got float32\[4, 2\]",
    ),
    "another dtype": (
        fields(observations=camera(), next_observations=camera(float)),
        r"`next_observations\['camera'\]` must be like `observations`, uint8.*got float32",
    ),
    "a range upside down": (fields(action_range=(1.0, -1.0)), "`action_range` must have low < high in every"),
    "a range that is empty": (fields(action_range=(1.0, 1.0)), "`action_range` must have low < high in every"),
    "a NaN range": (fields(action_range=(NAN, 1.0)), "`action_range` must have low < high in every dimension"),
    "a range of one number": (fields(action_range=[1.0]), r"`action_range` must be \(low, high\), got \[1.0\]"),
    "a huge range": (fields(action_range=(0, 10**400)), r"`action_range` must fit into float32.*Pass `np.inf`"),
    "a range of another size": (
        fields(action_range=(-np.ones(3), np.ones(3))),
        r"`action_range` has bounds of shape \(3,\) but `actions` has shape \(4, 2\)",
    ),
    "ends of two sizes": (
        fields(action_range=(-np.ones(2), np.ones(3))),
        r"`action_range` must be bounds of one shape, got \(2,\) and \(3,\)",
    ),
    "an infinite range to rescale": (fields(action_range=(-np.inf, np.inf), rescale=True), "must be finite"),
}
BAD_KINDS = {
    "objects": (fields(rewards=OBJECT), r"`rewards` must hold real numbers, got object\[4\]"),
    "text": (fields(observations=np.full((4, 3), "a")), "`observations` must hold real numbers, got <U1"),
    "digits": (
        fields(rewards=np.array(["1", "2", "3", "4"])),
        r"`rewards` must hold real numbers.*astype\(np",
    ),
    "dates": (fields(rewards=np.zeros(4, "datetime64[s]")), "`rewards` must hold real numbers, got datetime64"),
    "durations": (fields(rewards=np.zeros(4, "timedelta64[s]")), "`rewards` must hold real numbers, got timedelta64"),
    "complex numbers": (fields(actions=np.ones((4, 2), complex)), "`actions` must hold real numbers, got complex128"),
    "records": (fields(rewards=np.zeros(4, [("a", float)])), "`rewards` must hold real numbers"),
    "random keys": (fields(rewards=jax.random.split(jax.random.key(0), 4)), "`rewards` must hold real numbers"),
    "a mask": (fields(rewards=np.ma.masked_equal([1, 2, 3, 4], 2)), r"`rewards` is a masked array. Drop.*filled"),
    "a masked picture": (
        fields(observations=camera(camera=np.ma.ones((4, 2)))),
        r"`observations\['camera'\]` is a masked array",
    ),
    "a list": (fields(rewards=[1.0, 2.0]), r"`rewards` must be an array, got \[1.0, 2.0\]. Convert it by `np.asarray"),
    "lists of lists": (
        fields(observations=[[0.0]] * 4),
        r"`observations` must be an array, got .*\[0.0\]\]. Convert it by `np.asarray",
    ),
    "a word": (fields(actions="actions"), "`actions` must be an array, got 'actions'"),
    "a date": (
        fields(rewards=datetime.date(2020, 1, 1)),
        r"`rewards` must be an array, got datetime.date\(2020",
    ),
    "nothing": (fields(rewards=None), "`rewards` must be an array, got None"),
    "no observations": (fields(observations=None), "`observations` holds no array, got None"),
    "an empty dictionary": (fields(observations={}), "`observations` holds no array, got {}"),
    "keys of two kinds": (
        fields(observations={1: np.ones(4), "a": np.ones(4)}),
        "`observations` must be an array or a",
    ),
    "an iterator": (fields(observations=iter([1.0])), "`observations` must be an array"),
    "an unknown name": (fields(timeout=np.ones(4)), "`timeout` is not an argument of .* `terminals` and `timeouts`"),
    "a range that is no pair": (fields(action_range=1.0), "`action_range` must be .*got 1.0"),
    "a range of text": (fields(action_range=("-1", "1")), "`action_range` must be"),
    "a range of text in a list": (fields(action_range=["-1", "1"]), "`action_range` must be two numbers or two arrays"),
    "a range of flags": (fields(action_range=(False, True)), "`action_range` must be two numbers or two arrays"),
    "a range of objects": (fields(action_range=(OBJECT, OBJECT)), "`action_range` must hold real numbers"),
    "a range with two axes": (fields(action_range=(-np.ones((1, 2)), np.ones((1, 2)))), "`action_range` must be two"),
    "a masked range": (fields(action_range=(np.ma.zeros(2), np.ma.ones(2))), "`action_range` is a masked array"),
    "rescaling by a word": (fields(rescale="yes"), "`rescale` must be"),
}


@pytest.mark.parametrize(("arrays", "message"), BAD_VALUES.values(), ids=BAD_VALUES.keys())
def test_bad_values_are_named(arrays, message):
    with pytest.raises(ValueError, match=f"^[^\n]*{message}"):
        data.from_arrays(**arrays)


@pytest.mark.parametrize(("arrays", "message"), BAD_KINDS.values(), ids=BAD_KINDS.keys())
def test_what_is_no_array_of_numbers_is_refused(arrays, message):
    with pytest.raises(TypeError, match=f"^[^\n]*{message}"):
        data.from_arrays(**arrays)


@pytest.mark.parametrize("name", ["observations", "actions", "rewards", "terminals"])
def test_traced_arrays_are_refused(name):
    with pytest.raises(TypeError, match=rf"`{name}` must be concrete, got a traced .* Call .* outside of `jit`"):
        jax.jit(lambda values: data.from_arrays(**fields(**{name: values})))(fields()[name])


def test_the_dictionary_of_d4rl_is_taken_as_it_is():
    d4rl = fields(timeouts=np.arange(4) == 1) | {"infos/qpos": np.ones(3), "metadata/algorithm": b"SAC"}
    assert data.from_arrays(**d4rl).episode_end.tolist() == [False, True, False, True]


@pytest.mark.parametrize(("terminal", "timeout"), [("terminals", "timeouts"), ("terminations", "truncations")])
def test_a_terminal_state_or_a_timeout_ends_an_episode(terminal, timeout):
    flags = {"terminals": None, terminal: np.array([0, 1, 0, 0, 0, 1]), timeout: np.array([0, 0, 1, 0, 0, 1])}
    dataset = data.from_arrays(**fields(rows=6, **flags))
    assert dataset.mask.tolist() == [1, 0, 1, 1, 1, 0]
    assert dataset.episode_end.tolist() == [False, True, True, False, False, True]


def test_the_last_row_ends_its_episode():
    dataset = data.from_arrays(**fields(terminals=np.zeros(4)))
    assert dataset.episode_end.tolist() == [False, False, False, True]
    assert dataset.mask.tolist() == [1, 1, 1, 1]


def test_without_timeouts_an_episode_ends_where_the_next_observation_is_not_the_next_row():
    obs = camera(joints=[np.arange(12.0).reshape(4, 3), np.zeros(4, np.int16)])
    after = jax.tree.map(lambda leaf: np.roll(leaf, -1, axis=0), obs)
    dataset = data.from_arrays(**fields(observations=obs, next_observations=after, terminals=np.zeros(4)))
    assert dataset.episode_end.tolist() == [False, False, False, True]
    after["joints"][0][1] += 1
    dataset = data.from_arrays(**fields(observations=obs, next_observations=after, terminals=np.zeros(4)))
    assert dataset.episode_end.tolist() == [False, True, False, True]
    told = fields(observations=obs, next_observations=after, terminals=np.zeros(4), timeouts=np.arange(4) == 2)
    assert data.from_arrays(**told).episode_end.tolist() == [False, False, True, True]


def test_one_row_is_enough_if_its_successor_is_known():
    assert data.from_arrays(**fields(rows=1)).mask.tolist() == [0]
    after = {"next_observations": np.ones((1, 3)), "terminals": np.zeros(1)}
    assert data.from_arrays(**fields(rows=1, **after)).next_obs.shape == (1, 3)
    with pytest.raises(ValueError, match="no successor is known, because each of the 1 rows"):
        data.from_arrays(**fields(rows=1, terminals=np.zeros(1)))


LOW, HIGH = np.float32([-1, -2]), np.float32([1, 2])


def test_the_bounds_of_a_box_are_bounds_of_each_dimension():
    for range_ in [(LOW, HIGH), [LOW.tolist(), HIGH.tolist()], (jnp.asarray(LOW), jnp.asarray(HIGH))]:
        with pytest.raises(ValueError, match=r"`actions\[0, 0\]` = 1.5 lies outside .*\[-1.0, -2.0\] to .* \(4"):
            data.from_arrays(**fields(actions=np.full((4, 2), (1.5, 2.0)), action_range=range_))


def test_actions_that_policies_do_not_reach_are_told():
    action = np.full((4, 2), (1.0, 2.0))
    with pytest.warns(UserWarning, match=r"`actions` reach 2, but .*`rescale=True`") as told:
        dataset = data.from_arrays(**fields(actions=action, action_range=(LOW, HIGH)))
    assert dataset.action[0].tolist() == [1, 2]
    assert told[0].filename == __file__
    data.from_arrays(**fields(actions=action / 2, action_range=(LOW, HIGH)))
    data.from_arrays(**fields(actions=action, action_range=(LOW, HIGH), rescale=False))


def test_actions_that_policies_learn_slowly_are_told():
    action = np.full((4, 2), (0.05, -0.1))
    with pytest.warns(UserWarning, match=r"`actions` reach only 0.1, but .*`rescale=True`"):
        data.from_arrays(**fields(actions=action))
    data.from_arrays(**fields(actions=action), rescale=False)
    data.from_arrays(**fields(actions=action, action_range=(-0.1, 0.1)), rescale=True)
    moved = action * [[1], [-1], [0], [1]]
    for other, share in (((-1, 1), "10.00%"), ((-0.5, 254.5), "0.08%")):
        with pytest.warns(UserWarning, match=f"`actions` use at most {share} of `action_range`, .* another unit"):
            data.from_arrays(**fields(actions=moved, action_range=other), rescale=True)
    data.from_arrays(**fields(actions=0 * action + 0.55, action_range=(0, 1)), rescale=True)  # no unit fits better
    with pytest.warns(UserWarning, match=r"`actions` reach only 0.19"):
        data.from_arrays(**fields(actions=1.9 * action))
    data.from_arrays(**fields(actions=2.1 * action))
    data.from_arrays(**fields(actions=0 * action))  # a placeholder


def test_images_with_channels_first_are_told():
    images = np.zeros((4, 3, 8, 6), np.uint8)
    message = r"`observations\['wrist'\]` looks like images with channels first, got uint8\[4, 3, 8, 6\].*moveaxis"
    with pytest.warns(UserWarning, match=message):
        data.from_arrays(**fields(observations={"wrist": images}))
    for channels in (1, 4):
        with pytest.warns(UserWarning, match="channels first"):
            data.from_arrays(**fields(observations=np.zeros((4, channels, 8, 8), np.uint8)))
    others = [np.zeros((4, *shape), np.uint8) for shape in ((3, 8, 3), (3, 4, 8), (8, 16, 16), (3, 8))]
    for other in (np.moveaxis(images, 1, -1), images.astype(np.float32), *others):
        data.from_arrays(**fields(observations={"wrist": other}))


def test_successors_that_are_never_the_next_observation_are_told():
    """Such as those that were not scaled: then each row would silently be an episode."""
    obs = np.arange(6.0)[:, None]
    arrays = {"observations": obs, "actions": obs / 6, "rewards": obs[:, 0], "terminals": np.arange(6) == 5}
    data.from_arrays(**arrays, next_observations=obs + 1)
    half = np.where(np.arange(6) % 2, 2, 1)[:, None]
    data.from_arrays(**arrays, next_observations=obs + half)  # fewer than half
    data.from_arrays(**arrays | {"terminals": np.arange(6) > 0}, next_observations=obs + 2)  # one that is not terminal
    with pytest.warns(UserWarning, match=r"of the next row in 5 of 6 rows, .* Scale both alike"):
        dataset = data.from_arrays(**arrays, next_observations=obs + 2)
    assert dataset.episode_end.all()
    data.from_arrays(**arrays, next_observations=obs + 2, timeouts=np.ones(6))


def test_episodes_that_may_be_joined_are_told():
    """Two recordings of three rows, without an end: the successor of row 2 is not row 3."""
    obs = np.array([0, 1, 2, 10, 11, 12.0])[:, None]
    arrays = fields(rows=6, observations=obs, next_observations=obs + 1, terminals=np.zeros(6))
    assert data.from_arrays(**arrays).episode_end.tolist() == [0, 0, 1, 0, 0, 1]
    with pytest.warns(UserWarning, match=r"in 1 rows where no episode ends.*mark their ends in `timeouts`"):
        dataset = data.from_arrays(**arrays, timeouts=np.zeros(6))
    assert dataset.episode_end.tolist() == [0, 0, 0, 0, 0, 1]  # as the flags say
    data.from_arrays(**arrays, timeouts=np.arange(6) == 4)  # observations may differ for another reason


def test_actions_are_rescaled_on_request():
    action = np.array([[-1, -2], [0, 0], [1, 2], [0.5, -1]])
    dataset = data.from_arrays(**fields(actions=action, action_range=(LOW, HIGH), rescale=True))
    assert dataset.action.tolist() == [[-1, -1], [0, 0], [1, 1], [0.5, -0.5]]


@pytest.mark.parametrize("infinite", [np.inf, np.full(2, np.inf)], ids=["numbers", "arrays"])
def test_actions_without_bounds_are_taken(infinite):
    arrays = fields(actions=np.full((4, 2), 1e9), action_range=(-infinite, infinite))
    assert data.from_arrays(**arrays, rescale=False).action.min() > 9e8


def test_the_rounding_of_an_action_at_the_end_of_its_range_is_no_error():
    action = np.full((4, 2), np.float32(0.4))  # which is above 0.4
    dataset = data.from_arrays(**fields(actions=action, action_range=(-0.4, 0.4), rescale=True))
    assert (dataset.action == 1).all()


finite = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)  # which JAX takes as 0


@given(
    low=finite,
    size=st.floats(2**-10, 1e6, width=32),
    where=hnp.arrays(np.float32, (3, 2), elements=st.floats(0, 1, width=32)),
    dtype=st.sampled_from([np.float32, np.float64]),
    library=st.sampled_from([np.asarray, jnp.asarray]),
)
def test_scaling_goes_there_and_back_and_never_leaves_the_range(low, size, where, dtype, library):
    low, high = np.float32(low), np.float32(low + size * max(1, abs(low)))
    scale = data.ActionScale(low, high)
    action = np.clip(np.float64(low) + where.astype(np.float64) * np.float64(high - low), low, high).astype(dtype)
    unit = scale.to_unit(library(action))
    back = scale.from_unit(unit)
    assert isinstance(unit, type(library(action)))
    assert unit.dtype == back.dtype == dtype
    assert np.abs(unit).max() <= 1
    slack = 4 * np.finfo(np.float32).eps * max(abs(low), abs(high)) if library is jnp.asarray else 0
    assert low - slack <= back.min() <= back.max() <= high + slack
    np.testing.assert_allclose(back, action, rtol=1e-6, atol=4 * np.finfo(np.float32).eps * max(abs(low), abs(high)))
    for scaled, end in ((-1, low), (1, high)):
        assert scale.from_unit(library(np.full((1,), scaled, dtype))).item() == end
        assert scale.to_unit(library(np.full((1,), end, dtype))).item() == scaled


def test_rounding_does_not_take_an_action_out_of_the_action_space():
    low, high, unit = np.float32(-3.7722752), np.float32(-3.5016456), np.float32([0.9999998])
    assert (1 - unit) / 2 * low + (1 + unit) / 2 * high > high  # in float32
    assert data.ActionScale(low, high).from_unit(unit) <= high


@pytest.mark.parametrize("dtype", [np.int32, np.float16, jnp.bfloat16, np.uint8], ids=str)
@pytest.mark.parametrize("library", [np.asarray, jnp.asarray])
def test_narrow_actions_are_scaled_in_float32(dtype, library):
    action = library(np.ones((2, 1)).astype(dtype))
    assert data.ActionScale(0, 3).to_unit(action).dtype == np.float32
    np.testing.assert_allclose(data.ActionScale(0, 3).to_unit(action), -1 / 3, rtol=1e-6)


def test_scaling_works_inside_transformations_and_in_other_processes():
    scale = pickle.loads(pickle.dumps(data.ActionScale(LOW, HIGH)))
    unit = jnp.float32([[0.5, 0.5], [1, 1]])
    assert jax.jit(jax.vmap(scale.from_unit))(unit).tolist() == [[0.5, 1], [1, 2]]
    assert jax.jacobian(scale.from_unit)(unit[0]).tolist() == [[1, 0], [0, 2]]


def test_the_ends_map_to_the_ends_under_jit():
    """Where XLA would multiply by the rounded reciprocal of a constant width."""
    low, high = np.sort(np.random.default_rng(0).normal(size=(2, 50)).astype(np.float32), axis=0)
    scale = data.ActionScale(low, high)
    ends, unit = jnp.stack([low, high]), jnp.float32([[-1] * 50, [1] * 50])
    for transform in (jax.jit, lambda function: jax.jit(jax.vmap(function))):
        np.testing.assert_array_equal(transform(scale.to_unit)(ends), unit)
        np.testing.assert_array_equal(transform(scale.from_unit)(unit), ends)


def test_bounds_may_be_lists_as_in_the_settings_of_a_run(tmp_path):
    with Run(tmp_path, {"scale": data.ActionScale(LOW, HIGH)}):
        pass
    scale = data.ActionScale(**load_settings(tmp_path)["scale"])
    assert (scale.low.tolist(), scale.high.tolist()) == (LOW.tolist(), HIGH.tolist())
    for kind in (list, tuple):
        assert data.ActionScale(kind(LOW), kind(HIGH)).low.tolist() == LOW.tolist()
        data.from_arrays(**fields(action_range=(kind(LOW), kind(HIGH))))


def test_the_bounds_are_a_copy():
    low = LOW.copy()
    scale = data.ActionScale(low, HIGH)
    low[:] = 5
    assert scale.low.tolist() == [-1, -2]
    with pytest.raises(ValueError, match="read-only"):
        scale.low[0] = 5


BAD_ACTIONS = {
    "too long": (np.ones(3), ValueError, r"`action` must have shape \(..., 2\) like the bounds, got \(3,\)"),
    "not a chunk": (np.ones((2, 3)), ValueError, r"got \(2, 3\).$"),
    "a chunk": (np.ones(6), ValueError, r"got \(6,\). Split a chunk by `reshape\(-1, 2\)`"),
    "a scalar": (np.ones(()), ValueError, r"`action` must have shape \(..., 2\)"),
    "not finite": (np.array([1, np.nan]), ValueError, r"`action\[1\]` = nan is not finite"),
    "not finite, of JAX": (jnp.array([jnp.inf, 1]), ValueError, r"`action\[0\]` = inf is not finite"),
    "objects": (np.array([None, 1]), TypeError, "`action` must hold real numbers"),
    "complex": (np.ones(2, complex), TypeError, "`action` must hold real numbers"),
    "digits": (np.array(["1", "2"]), TypeError, "`action` must hold real numbers"),
    "masked": (np.ma.ones(2), TypeError, "`action` must be an array, got a masked array"),
    "a list": ([1.0, 2.0], TypeError, "`action` must be an array"),
    "nothing": (None, TypeError, "`action` must be an array"),
}


@pytest.mark.parametrize(("action", "kind", "message"), BAD_ACTIONS.values(), ids=BAD_ACTIONS.keys())
@pytest.mark.parametrize("way", ["to_unit", "from_unit"])
def test_an_action_that_cannot_be_scaled_is_refused(way, action, kind, message):
    with pytest.raises(kind, match=message):
        getattr(data.ActionScale(LOW, HIGH), way)(action)


@pytest.mark.parametrize(
    ("low", "high", "kind", "message"),
    [
        (1, -1, ValueError, "`low` and `high` must have low < high in every dimension, got 1.0 and -1.0"),
        (0, np.nan, ValueError, "must have low < high in every dimension"),
        ([0, 0.05, 1], [1, 0.05, 1], ValueError, "got 0.05 and 0.05 in dimension 1. Pass the limits of the actions"),
        (-np.inf, 1, ValueError, "must be finite, got -inf and 1.0. Pass the data's own range"),
        (-3e38, 3e38, ValueError, "must be finite"),
        ([0, -np.inf, 1], 2, ValueError, "must be finite, got -inf and 2.0 in dimension 1. Pass the data's own range"),
        (None, 1, TypeError, "`low` must be a number or an array or a tuple, got None"),
        ([0, [1]], 1, TypeError, r"`low` and `high` must be numbers or arrays of shape \(action,\), got \[0, \[1\]\]"),
        (-1, "1", TypeError, "`high` must be a number or an array or a tuple, got '1'"),
        (np.zeros(0), np.ones(0), TypeError, "must be two numbers or two arrays"),
        (False, True, TypeError, "`low` must be a number or an array or a tuple, got False"),
        (np.array([[0]]), 1, TypeError, "must be two numbers or two arrays"),
        (np.array(["0"]), 1, TypeError, "must hold real numbers"),
    ],
)
def test_bounds_that_are_none_are_refused(low, high, kind, message):
    with pytest.raises(kind, match=f"^[^\n]*{message}"):
        data.ActionScale(low, high)
