"""Runs: what is saved is what is loaded, whatever happened to the files in between."""

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortcutrl import nn, sorl
from shortcutrl.runs import Run, _checkpoint, append_row, load_checkpoint, load_settings, read_rows

STATE = {"a": jnp.arange(3.0), "b": jnp.ones((2, 2), jnp.float32)}
LATER = jax.tree.map(lambda x: x + 1, STATE)


@pytest.fixture
def folder(tmp_path):
    """A run with two checkpoints and four rows of metrics, two of them after each."""
    with Run(tmp_path / "run", {"seed": 0}) as run:
        for step, state in ((10, STATE), (20, LATER)):
            run.log(step - 5, {"td": step - 5})
            run.log(step, {"td": step})
            run.save(step, state)
    return tmp_path / "run"


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert type(x) is type(y)
        np.testing.assert_array_equal(x, y)


def steps(folder):
    return [row["step"] for row in read_rows(folder, "metrics")]


# ------------------------------------------------------------------- what is saved is loaded


def test_the_last_checkpoint_is_loaded(folder):
    assert_same(load_checkpoint(folder, STATE), LATER)
    with Run(folder, {"seed": 0}) as run:
        assert run.step == 20
        assert_same(run.restore(STATE), LATER)
    assert steps(folder) == [5, 10, 15, 20]


def test_a_new_run_starts_from_the_given_state(tmp_path):
    with Run(tmp_path, {}) as run:
        assert run.step == 0
        assert run.restore(STATE) is STATE


def test_every_kind_of_leaf(tmp_path):
    state = {
        "bfloat16": jnp.array([1.5, -2], jnp.bfloat16),
        "bfloat16 of NumPy": np.array([1.5, -2], jnp.bfloat16),
        "float8": jnp.array(0.5, jnp.float8_e4m3fn),
        "float64": jnp.array(1 / 3, jnp.float64),
        "uint8": jnp.array([255], jnp.uint8),
        "bool": jnp.array([True, False]),
        "empty": jnp.zeros((0, 3)),
        "numpy": np.arange(3),
        "scalar": np.float32(0.5),
        "numbers": (True, 3, 1 / 3, 1j),
        "key": jax.random.key(3),
        "a name with / and ' and .": jnp.ones(1),
        "network": eqx.nn.MLP(2, 2, 4, 1, key=jax.random.key(0)),
        "none": None,
    }
    zeros = lambda x: jnp.zeros_like(x) if isinstance(x, jax.Array) else np.zeros_like(x)
    like = jax.tree.map(lambda x: zeros(x) if isinstance(x, jax.Array | np.ndarray) else x, state | {"key": None})
    like |= {"key": jax.random.key(0), "scalar": np.float32(0), "numbers": (False, 0, 0.0, 0j)}
    with Run(tmp_path, {}) as run:
        run.save(1, state)
    loaded = load_checkpoint(tmp_path, like)
    keys = [jax.random.key_data(each.pop("key")) for each in (state, loaded)]
    np.testing.assert_array_equal(*keys)
    arrays, static = eqx.partition(loaded, lambda x: not callable(x))
    expected, activation = eqx.partition(state, lambda x: not callable(x))
    assert_same(arrays, expected)
    assert jax.tree.leaves(static) == jax.tree.leaves(activation)
    for name in ("bfloat16", "bfloat16 of NumPy", "float8"):
        assert loaded[name].dtype == state[name].dtype


@pytest.mark.parametrize("other", [jnp.float16, jnp.int16])
def test_dtypes_of_one_size_are_not_confused(other, tmp_path):
    with Run(tmp_path, {}) as run:
        run.save(1, {"a": jnp.ones(3, jnp.bfloat16)})
    with pytest.raises(ValueError, match=rf"is {jnp.dtype(other)}\[3\], but .* holds bfloat16\[3\]"):
        load_checkpoint(tmp_path, {"a": jnp.ones(3, other)})


def test_a_description_of_a_random_key_is_enough(tmp_path):
    with Run(tmp_path, {}) as run:
        run.save(1, {"key": jax.random.key(3)})
    loaded = load_checkpoint(tmp_path, jax.eval_shape(lambda: {"key": jax.random.key(0)}))
    assert jnp.array_equal(jax.random.key_data(loaded["key"]), jax.random.key_data(jax.random.key(3)))


def test_a_part_of_the_state_is_enough(folder):
    assert_same(load_checkpoint(folder, STATE | {"a": None}), LATER | {"a": None})


class Layers(eqx.Module):
    """A policy with a leaf that is no array: the activation function."""

    first: eqx.nn.Linear
    second: eqx.nn.Linear
    activation: Callable = jax.nn.gelu

    def __call__(self, obs, x, t, h):
        return self.second(self.activation(self.first(x)))


class Moved(eqx.Module):
    """The same with its fields in another order."""

    second: eqx.nn.Linear
    first: eqx.nn.Linear
    activation: Callable = jax.nn.gelu
    __call__ = Layers.__call__


class Shorter(eqx.Module):
    first: eqx.nn.Linear
    activation: Callable = jax.nn.gelu

    def __call__(self, obs, x, t, h):
        return self.activation(self.first(x))


def with_policy(kind, count, seed):
    names = ("first", "second")[:count]
    keys = dict(zip(names, jax.random.split(jax.random.key(seed)), strict=False))
    layers = {name: eqx.nn.Linear(2, 2, use_bias=False, key=key) for name, key in keys.items()}
    critic = nn.EnsembleCritic(2, 2, width=4, depth=1, condition_on_k=True, key=jax.random.key(0))
    return sorl.init((kind(**layers), critic), config=sorl.Config(), optimizers=sorl.OPTIMIZERS)


def test_arrays_of_own_networks_are_loaded_by_their_names(tmp_path):
    saved, other = with_policy(Layers, 2, seed=0), with_policy(Moved, 2, seed=7)
    with Run(tmp_path, {}) as run:
        run.save(1, saved)
    loaded = load_checkpoint(tmp_path, other)
    args = jnp.ones(2), jnp.ones(2), 0.0, 1.0
    assert jnp.array_equal(loaded.policy(*args), saved.policy(*args))
    assert not jnp.array_equal(other.policy(*args), saved.policy(*args))
    acting = with_policy(Shorter, 1, seed=0)._replace(policy_opt_state=None, critic_opt_state=None)
    with pytest.raises(ValueError, match=r"`state` has no `state\.policy\.second\.weight`"):
        load_checkpoint(tmp_path, acting)


def test_a_part_has_no_name_that_only_begins_alike(tmp_path):
    with Run(tmp_path, {}) as run:
        run.save(1, {"a": jnp.ones(1), "ab": jnp.ones(1)})
    with pytest.raises(ValueError, match=r"`state` has no `state\['ab'\]`"):
        load_checkpoint(tmp_path, {"a": None})


def test_a_description_of_the_state_is_enough(folder):
    assert_same(load_checkpoint(folder, jax.eval_shape(lambda: STATE)), LATER)


def test_what_is_loaded_may_be_donated(folder):
    state = load_checkpoint(folder, STATE)
    jax.jit(lambda x: jax.tree.map(lambda y: y * 2, x), donate_argnums=0)(state)
    assert_same(load_checkpoint(folder, STATE), LATER)


def test_arrays_are_committed_to_devices_as_those_of_the_state(folder):
    free, bound = STATE["a"], jax.device_put(STATE["b"], jax.devices()[0])
    loaded = load_checkpoint(folder, {"a": free, "b": bound})
    assert not loaded["a"].committed
    assert loaded["b"].committed
    assert loaded["b"].sharding == bound.sharding


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": STATE["a"]}, r"`state` has no `state\['b'\]`, but .*20 holds it"),
        (STATE | {"c": jnp.ones(1)}, r"`state\['c'\]` is .*, but .*20 holds no such array"),
        ((STATE, 0), r"`state\[0\]\['a'\]` is .*, but .*20 holds no such array; the nearest is `state\['a'\]`"),
        (STATE | {"a": jnp.ones(4)}, r"`state\['a'\]` is float64\[4\], but .*20 holds float64\[3\]"),
        (STATE | {"a": jnp.ones(3, jnp.float32)}, r"`state\['a'\]` is float32\[3\], but .*20 holds float64\[3\]"),
        (None, "holds it"),
    ],
)
def test_a_state_of_another_structure_is_refused(state, message, folder):
    with pytest.raises(ValueError, match=message):
        load_checkpoint(folder, state) if state else load_checkpoint(folder, {})


def test_the_last_two_checkpoints_are_kept(folder):
    with Run(folder, {"seed": 0}) as run:
        run.save(30, STATE)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["20", "30"]


# ------------------------------------------------------------------- damage


def flip(position):
    """Change one byte in the middle of the data."""

    def damage(step):
        data = bytearray((step / "state.npz").read_bytes())
        data[int(position * len(data))] ^= 255
        (step / "state.npz").write_bytes(data)

    return damage


def cut(step):
    data = (step / "state.npz").read_bytes()
    (step / "state.npz").write_bytes(data[: len(data) // 2])


def empty_folder(step):
    shutil.rmtree(step)
    step.mkdir()


DAMAGES = {
    "missing file": lambda step: (step / "state.npz").unlink(),
    "empty file": lambda step: (step / "state.npz").write_bytes(b""),
    "cut file": cut,
    "flipped byte": flip(0.2),
    "text": lambda step: (step / "state.npz").write_text("a proxy's error page"),
    "a single array": lambda step: np.save((step / "state.npz").open("wb"), np.ones(3)),
    "a pickle": lambda step: np.savez((step / "state.npz").open("wb"), **{"state['a']": np.array([{}])}),
    "empty folder": empty_folder,
    "a file in place of the folder": lambda step: (shutil.rmtree(step), step.write_text("")),
}
damages = pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)


@damages
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(damage, folder):
    damage(folder / "checkpoints" / "20")
    message = r"checkpoints/20 is damaged \(.*\)\. Using the checkpoint of step 10 instead"
    with pytest.warns(UserWarning, match=message) as first:
        assert_same(load_checkpoint(folder, LATER), STATE)
    with pytest.warns(UserWarning, match=message) as second:
        run = Run(folder, {"seed": 0})
    assert [warning.filename for told in (first, second) for warning in told] == [__file__] * 2
    with run:
        assert run.step == 10
        assert_same(run.restore(LATER), STATE)
        run.log(20, {"td": 1})
        assert steps(folder) == [5, 10, 20]  # those after the checkpoint are logged again
        run.save(20, LATER)
    assert_same(load_checkpoint(folder, STATE), LATER)


@damages
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_no_training_starts_over_because_all_checkpoints_are_damaged(damage, folder):
    damage(folder / "checkpoints" / "10")
    damage(folder / "checkpoints" / "20")
    for load in (lambda: load_checkpoint(folder, STATE), lambda: Run(folder, {"seed": 0})):
        with pytest.raises(ValueError, match=r"20 is damaged .*10 is damaged .*No other checkpoint is left"):
            load()
    assert steps(folder) == [5, 10, 15, 20]


def test_damage_is_called_so_at_each_byte(tmp_path):
    """Also in the directory of the archive, where an entry may hide another."""
    with Run(tmp_path, {}) as run:
        run.save(1, STATE)
    path = tmp_path / "checkpoints" / "1" / "state.npz"
    whole = path.read_bytes()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        try:
            loaded = load_checkpoint(tmp_path, LATER)
        except ValueError as error:
            loaded = STATE if "1 is damaged" in str(error) else error
        assert_same(loaded, STATE)


@given(position=st.floats(0, 1, exclude_max=True), value=st.integers(1, 255), length=st.floats(0, 1))
def test_no_damage_yields_wrong_values(position, value, length, tmp_path_factory):
    """Any byte changed, or the rest cut off: the values are right, or the damage is found."""
    folder = tmp_path_factory.mktemp("run")
    with Run(folder, {}) as run:
        run.save(1, STATE)
    path = folder / "checkpoints" / "1" / "state.npz"
    data = bytearray(path.read_bytes())
    data[int(position * len(data))] ^= value
    path.write_bytes(data if length > 0.5 else data[: int(2 * length * len(data))])
    try:
        loaded = load_checkpoint(folder, LATER)
    except ValueError as error:
        loaded = None if "1 is damaged" in str(error) else error
    if loaded is not None:
        assert_same(loaded, STATE)


def test_a_checkpoint_that_was_being_written_is_no_checkpoint(folder):
    shutil.copytree(folder / "checkpoints" / "20", folder / "checkpoints" / "30.partial")
    with Run(folder, {"seed": 0}) as run:
        assert run.step == 20
        run.save(30, STATE)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["20", "30"]


def test_what_a_killed_process_has_left_is_removed_before_anything_is_written(folder):
    partial = folder / "checkpoints" / "25.partial"
    shutil.copytree(folder / "checkpoints" / "20", partial)
    with Run(folder, {"seed": 0}) as run:
        run.log(25, {"td": 25})
        assert not partial.exists()
        partial.mkdir()  # which could not be removed
        run.save(25, LATER)


def test_a_checkpoint_that_fails_leaves_nothing(folder, monkeypatch):
    def full(file, **arrays):
        file.write(b"part")
        raise OSError(28, "No space left on device")

    with Run(folder, {"seed": 0}) as run:
        monkeypatch.setattr(np, "savez", full)
        with pytest.raises(OSError, match="No space left"):
            run.save(30, STATE)
        assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["10", "20"]
        monkeypatch.undo()
        run.save(30, STATE)
    assert_same(load_checkpoint(folder, LATER), STATE)


def test_metrics_after_the_last_checkpoint_are_logged_again(folder):
    with Run(folder, {"seed": 0}) as run:
        run.log(25, {"td": 25})
    with Run(folder, {"seed": 0}) as run:
        run.log(30, {"td": 30})
    assert steps(folder) == [5, 10, 15, 20, 30]


def test_a_run_that_is_only_opened_keeps_its_files(folder):
    shutil.rmtree(folder / "checkpoints")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with Run(folder, {"seed": 0}) as run:
        assert run.step == 0
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_run_is_open_only_once(folder):
    with Run(folder, {"seed": 0}), pytest.raises(ValueError, match=r"`folder`: the run in .*run is open already"):
        Run(folder, {"seed": 0})
    with pytest.raises(ValueError, match="`settings`") as kept:
        Run(folder, {"seed": 1})
    run = Run(folder, {"seed": 0})  # neither an error nor an end keeps it locked
    assert kept.value  # until here: the end of the error would free the lock
    thread = threading.Thread(target=run.close)
    thread.start()
    thread.join()
    Run(folder, {"seed": 0}).close()


def test_a_closed_run_writes_nothing(folder):
    with Run(folder, {"seed": 0}) as run:
        run.log(25, {"td": 1})
        run.close()  # a second time at the end of the block
    before = steps(folder)
    for write in (lambda: run.log(30, {"td": 1}), lambda: run.save(30, STATE)):
        with pytest.raises(ValueError, match="is closed"):
            write()
    assert steps(folder) == before
    assert not (folder / "checkpoints" / "30").exists()


def test_a_checkpoint_without_metrics_keeps_no_later_ones(folder):
    with Run(folder, {"seed": 0}) as run:
        run.log(25, {"td": 25})
    with Run(folder, {"seed": 0}) as run:
        run.save(30, STATE)
    assert steps(folder) == [5, 10, 15, 20]


def test_a_file_system_without_locks_is_said(folder, monkeypatch):
    def fail(*args, **options):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("filelock.FileLock.acquire", fail)
    with pytest.warns(UserWarning, match=r"run cannot be locked \(.*No locks available\)") as told:
        run = Run(folder, {"seed": 0})
    run.close()
    assert told[0].filename == __file__


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints", "tensorboard"])
def test_the_files_of_something_else_are_not_replaced(name, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=f"has {name} but no settings.json"):
        Run(tmp_path, {})
    assert (tmp_path / name).read_text() == "mine"
    assert not (tmp_path / "settings.json").exists()


@pytest.mark.parametrize("damage", [b'{"step": 20, "td', b"\xff\xfe\n", b"\n[1, 2]\n3\nnull\n", b'{"td": 1}\n'])
def test_lines_that_are_no_metrics_are_left_out(damage, folder):
    path = folder / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + damage)
    with Run(folder, {"seed": 0}) as run:
        run.log(25, {"td": 25})
    assert steps(folder) == [5, 10, 15, 20, 25]


def test_a_row_after_a_cut_line_is_whole(tmp_path):
    (tmp_path / "table.jsonl").write_text('{"k": 1}\n{"k": 2, "succ')
    append_row(tmp_path, "table", {"k": 3})
    assert read_rows(tmp_path, "table") == [{"k": 1}, {"k": 3}]


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"3", b"null", b"\xff\xfe", b'{"seed": 0'])
def test_damaged_settings_are_named(text, folder):
    (folder / "settings.json").write_bytes(text)
    for load in (lambda: load_settings(folder), lambda: Run(folder, {"seed": 0})):
        with pytest.raises(ValueError, match=r"settings\.json is damaged"):
            load()
    assert (folder / "settings.json").read_bytes() == text
    assert steps(folder) == [5, 10, 15, 20]


# ------------------------------------------------------------------- settings, metrics, tables


def test_settings(folder):
    assert load_settings(folder) == {"seed": 0}
    with Run(folder, {"seed": np.int64(0)}):
        pass


def test_a_config_and_arrays_are_settings(tmp_path):
    config = sorl.Config(q_weight=3.0)
    with Run(tmp_path, {"config": config, "mean": np.ones(2)}):
        settings = load_settings(tmp_path)
    assert sorl.Config(**settings["config"]) == config
    assert settings["mean"] == [1, 1]
    with pytest.raises(TypeError, match=r"`settings` must hold what JSON can keep: .* is a type"):
        Run(tmp_path / "other", {"config": sorl.Config})
    with pytest.raises(TypeError, match="`settings` must hold what JSON can keep"):
        Run(tmp_path / "other", {"policy": nn.Value(3, width=8, depth=1, key=jax.random.key(0))})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": 1}, r"holds a run with \{'seed': 0\}, not \{'seed': 1\}"),
        ({}, r"holds a run with \{'seed': 0\}, not \{\}"),
        ({"seed": 0, "config": {"tau": 1}}, r"holds a run with \{\}, not \{'config.tau': 1\}"),
        ({"seed": 0, "config": {}}, r"holds a run with \{\}, not \{'config': \{\}\}"),
    ],
)
def test_other_settings_are_refused(settings, message, folder):
    with pytest.raises(ValueError, match=message):
        Run(folder, settings)
    assert steps(folder) == [5, 10, 15, 20]


def test_names_with_dots_are_not_nested(tmp_path):
    Run(tmp_path, {"a": {"b": 1}}).close()
    with pytest.raises(ValueError, match=r"holds a run with \{'a.b': 1\}, not \{\"'a.b'\": 1\}"):
        Run(tmp_path, {"a.b": 1})


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(ValueError, match="has no checkpoint"):
        load_checkpoint(tmp_path, STATE)
    with pytest.raises(ValueError, match="holds no run"):
        load_settings(tmp_path / "none")
    assert read_rows(tmp_path, "table") == []
    assert list(tmp_path.iterdir()) == []


def test_the_logger_gets_what_is_logged(tmp_path):
    logged = []
    with Run(tmp_path, {}, logger=lambda step, values: logged.append((step, values))) as run:
        run.log(np.int64(5), {"td": jnp.float32(0.5), "q": np.float64(2), "n": 3})
    assert logged == [(5, {"td": 0.5, "q": 2.0, "n": 3.0})]
    assert read_rows(tmp_path, "metrics") == [{"step": 5, "td": 0.5, "q": 2.0, "n": 3.0}]


def test_diverged_metrics_are_kept(tmp_path):
    with Run(tmp_path, {}) as run:
        run.log(5, {"td": jnp.nan, "q": -jnp.inf})
        run.save(5, STATE)
    with Run(tmp_path, {}):
        (row,) = read_rows(tmp_path, "metrics")
    assert np.isnan(row["td"])
    assert row["q"] == -np.inf


def test_rows_keep_arrays_as_lists(tmp_path):
    append_row(tmp_path, "table", {"success": np.array([True, False]), "q": jnp.ones(2), "k": np.int64(1), "to": None})
    assert read_rows(tmp_path, "table") == [{"success": [True, False], "q": [1.0, 1.0], "k": 1, "to": None}]


@pytest.mark.parametrize(
    ("call", "error", "argument"),
    [
        (lambda run: Run(None, {}), TypeError, "folder"),
        (lambda run: Run("", {}), ValueError, "folder"),
        (lambda run: Run("a\0b", {}), ValueError, "folder"),
        (lambda run: Run(run.folder, None), TypeError, "settings"),
        (lambda run: Run(run.folder, {"path": run.folder}), TypeError, "settings"),
        (lambda run: Run(run.folder, {3: 4}), TypeError, "settings"),
        (lambda run: Run(run.folder, {"tau": float("nan")}), TypeError, "settings"),
        (lambda run: Run(run.folder, {}, logger=3), TypeError, "logger"),
        (lambda run: run.log(0, {"td": 1}), ValueError, "step"),
        (lambda run: run.log(True, {"td": 1}), TypeError, "step"),
        (lambda run: run.log(1.0, {"td": 1}), TypeError, "step"),
        (lambda run: run.log(1, 3), TypeError, "values"),
        (lambda run: run.log(1, {"td": "1"}), TypeError, "values"),
        (lambda run: run.log(1, {"td": None}), TypeError, "values"),
        (lambda run: run.log(1, {"td": np.ones(1)}), TypeError, "values"),
        (lambda run: run.log(1, {"td": np.array("1")}), TypeError, "values"),
        (lambda run: run.log(1, {"td": np.array(None)}), TypeError, "values"),
        (lambda run: run.log(1, {"td": jnp.array(1j)}), TypeError, "values"),
        (lambda run: run.log(1, {"td": 10**400}), TypeError, "values"),
        (lambda run: run.log(1, {"step": 1}), ValueError, "values"),
        (lambda run: run.log(1, {3: 1}), ValueError, "values"),
        (lambda run: run.save(0, STATE), ValueError, "step"),
        (lambda run: run.save(3, {}), ValueError, "state"),
        (lambda run: run.save(3, print), ValueError, "state"),
        (lambda run: run.save(3, {"a": np.array([None])}), TypeError, "state"),
        (lambda run: run.save(3, {"a": np.array(["a"])}), TypeError, "state"),
        (lambda run: append_row(run.folder, "../table", {}), ValueError, "name"),
        (lambda run: append_row(run.folder, "metrics", {}), ValueError, "name"),
        (lambda run: append_row(run.folder, "table", {"a": {1, 2}}), TypeError, "row"),
        (lambda run: append_row(run.folder, "table", [1]), TypeError, "row"),
        (lambda run: read_rows(run.folder, 3), TypeError, "name"),
        (lambda run: load_checkpoint(3, STATE), TypeError, "folder"),
    ],
)
def test_bad_input_names_the_argument_and_changes_nothing(call, error, argument, tmp_path):
    with Run(tmp_path / "run", {}) as run:
        with pytest.raises(error) as info:
            call(run)
        assert f"`{argument}" in str(info.value).splitlines()[0]
        assert run.step == 0
        assert steps(run.folder) == []
        assert load_settings(run.folder) == {}
        assert not (run.folder / "checkpoints").exists()


def test_a_step_before_the_last_row_or_checkpoint_is_refused(folder):
    with Run(folder, {"seed": 0}) as run:
        for step, last in ((19, 20), (30, None), (30, None), (29, 30)):
            if last is None:  # several rows of one step are allowed
                run.log(step, {"td": 1})
                continue
            with pytest.raises(
                ValueError, match=f"`step` must be at least {last}, which the run has reached, got {step}"
            ):
                run.log(step, {"td": 1})
    assert steps(folder) == [5, 10, 15, 20, 30, 30]


def test_a_step_that_has_a_checkpoint_is_refused(folder):
    with Run(folder, {"seed": 0}) as run, pytest.raises(ValueError, match="`step` must be higher than 20"):
        run.save(20, STATE)


@pytest.mark.parametrize("missing", ["tensorboardX"])
def test_without_the_extra_the_error_says_what_to_install(missing):
    code = f"import sys; sys.modules[{missing!r}] = None; import shortcutrl.runs"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"shortcutrl.runs needs {missing}: pip install 'shortcutrl[runs]'" in done.stderr.splitlines()[-1]


# ------------------------------------------------------------------- on other devices

ON_EIGHT = """
import sys, jax, jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from shortcutrl.runs import Run

def split(x):
    return jax.device_put(x, NamedSharding(Mesh(jax.devices(), ("batch",)), PartitionSpec("batch")))

with Run(sys.argv[1], {}) as run:
    run.save(1, split(jnp.arange(16.0)))
    restored = run.restore(split(jnp.zeros(16)))
assert (restored == jnp.arange(16)).all() and len(restored.sharding.device_set) == 8
"""


def test_a_checkpoint_of_eight_devices_is_loaded_on_one(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    subprocess.run([sys.executable, "-c", ON_EIGHT, tmp_path], check=True)
    loaded = load_checkpoint(tmp_path, jnp.zeros(16, jnp.float32))
    np.testing.assert_array_equal(loaded, np.arange(16))
    assert len(jax.devices()) == 1


def test_an_integer_that_numpy_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    """The state of a generator of NumPy has such integers."""
    state = np.random.default_rng(0).bit_generator.state["state"]
    with Run(tmp_path, {}) as run:
        for bad in (state, {"inc": 2**63}, {"inc": -(2**63) - 1}):
            with pytest.raises(TypeError, match=r"`state\['inc'\]` must fit into int64"):
                run.save(1, bad)
    assert not list(tmp_path.glob("checkpoints/*"))


def test_a_metric_may_have_any_name_but_step(tmp_path):
    with Run(tmp_path, {}) as run:
        run.log(1, {"board": 1.0, "values": 2.0})
        run.save(1, {"x": np.ones(1)})
    with Run(tmp_path, {}) as run:
        run.log(2, {"board": 3.0})
    assert [row["board"] for row in read_rows(tmp_path, "metrics")] == [1.0, 3.0]


def test_a_checkpoint_that_a_training_replaces_meanwhile_is_not_damaged(tmp_path, monkeypatch):
    with Run(tmp_path, {}) as run:
        run.save(1, {"x": np.ones(1)})
        load = _checkpoint._load

        def late(path):
            if run.step == 1:
                for step in (2, 3):
                    run.save(step, {"x": np.full(1, float(step))})
            return load(path)

        monkeypatch.setattr(_checkpoint, "_load", late)
        assert load_checkpoint(tmp_path, {"x": np.zeros(1)})["x"] == 3


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"`folder`: .*file is a file. Choose another path"):
        Run(tmp_path / "file", {})


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with Run("~/runs/first", {"seed": 0}) as run:
        assert run.folder == tmp_path / "runs" / "first"
    assert load_settings("~/runs/first") == {"seed": 0}
