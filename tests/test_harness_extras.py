"""Bad inputs, drawn over what reads data, plays episodes or writes files; the rest is in `test_harness.py`."""

import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from calls import KEY, act
from environments import Countdown, Echo
from harness import COUNTS, FUNCTIONS_OF_ANYTHING, POSITIVE, Call, assert_draws_end_well, for_each, ignore_warnings

from shortcutrl import Transition, data
from shortcutrl.evaluate import (
    ChunkedActions,
    EnvPool,
    Evaluation,
    ScaledActions,
    StackedFrames,
    evaluate,
    keyed,
    record,
)
from shortcutrl.runs import Run, append_row, load_checkpoint, load_settings, read_rows
from shortcutrl.suites import minari, ogbench

FOLDER = Path(tempfile.mkdtemp())
ROWS = 6
FIELDS = {
    **{"observations": np.zeros((ROWS, 3)), "actions": np.zeros((ROWS, 2)), "rewards": np.ones(ROWS)},
    **{"terminals": np.arange(ROWS) == ROWS - 1, "timeouts": np.zeros(ROWS), "next_observations": None},
    **{"action_range": (-1.0, 1.0), "rescale": False},
}
DATASET = data.from_arrays(**FIELDS)
PIXELS = np.zeros((2, 4, 4, 3), np.uint8)
IMAGES = Transition(PIXELS, np.ones((2, 1)), np.ones(2), np.ones(2), PIXELS)


def still(obs, *, key):
    return np.zeros(2, np.float32)


def make_pool(make_env, processes, envs_per_process):
    EnvPool(make_env, processes=processes, envs_per_process=envs_per_process).close()


def evaluate_here(act, pool, **options):
    """A pool is closed by an evaluation that is cut short: each gets its own."""
    return evaluate(act, EnvPool(Countdown, processes=0) if pool is None else pool, **options)


def make_run(folder, settings, logger):
    with Run(folder, settings, logger=logger):
        pass


def log(step, values):
    with Run(FOLDER / "log", {}) as run:
        run.log(step, values)


def finished_run():
    with Run(FOLDER / "finished", {"a": 1}) as run:
        run.save(1, {"weight": jnp.ones(2)})
    append_row(FOLDER / "finished", "table", {"a": 1})
    return FOLDER / "finished"


RUN = finished_run()
RESULT = Evaluation(np.array([True, False]), np.ones(2), np.ones(2, int))
TASK = "cube-single-play-singletask-task1-v0"
NUMBERS = {"episodes": 1, "seed": 0, "processes": 1, "progress": False}

CALLS = {
    "from_arrays": Call(data.from_arrays, FIELDS),
    "from_arrays of Gymnasium": Call(
        data.from_arrays,
        {
            "terminations" if name == "terminals" else "truncations" if name == "timeouts" else name: value
            for name, value in FIELDS.items()
        },
    ),
    "sample": Call(
        data.sample,
        {"dataset": DATASET, "key": KEY, "batch_size": 2, "n_step": 1, "chunk": 1, "frame_stack": 1, "discount": 0.9},
    ),
    "random_crop": Call(data.random_crop, {"batch": IMAGES, "key": KEY, "padding": 1, "probability": 0.5}),
    "ActionScale": Call(data.ActionScale, {"low": np.zeros(2), "high": np.ones(2)}),
    "to_unit": Call(data.ActionScale(0.0, 4.0).to_unit, {"action": np.ones(2)}),
    "from_unit": Call(data.ActionScale(0.0, 4.0).from_unit, {"action": np.ones(2)}),
    "keyed": Call(keyed, {"actor": act, "shape": (2,)}),
    "keyed()": Call(keyed(act, (2,)), {"obs": jnp.ones(3), "key": KEY}),
    "evaluate": Call(
        evaluate_here,
        {"act": still, "pool": None, "episodes": 2, "seed": 0, "success_key": "success", "progress": False},
    ),
    "EnvPool": Call(make_pool, {"make_env": Countdown, "processes": 0, "envs_per_process": 2}, costly=True),
    "record": Call(record, {"act": still, "env": Echo(), "seed": 0, "every": 1, "success_key": "success"}),
    "success_interval": Call(RESULT.success_interval, {"confidence": 0.9}),
    "return_interval": Call(RESULT.return_interval, {"confidence": 0.9}),
    "ChunkedActions": Call(ChunkedActions, {"env": Echo(), "length": 2}),
    "ScaledActions": Call(ScaledActions, {"env": Echo(), "scale": data.ActionScale(0.0, 1.0)}),
    "StackedFrames": Call(StackedFrames, {"env": Echo(), "frames": 2}),
    "Run": Call(make_run, {"folder": FOLDER / "new", "settings": {"a": 1}, "logger": None}),
    "Run.log": Call(log, {"step": 1, "values": {"a": 1.0}}),
    "append_row": Call(append_row, {"folder": RUN, "name": "table", "row": {"a": 1}}),
    "read_rows": Call(read_rows, {"folder": RUN, "name": "table"}),
    "load_settings": Call(load_settings, {"folder": RUN}),
    "load_checkpoint": Call(load_checkpoint, {"folder": RUN, "state": {"weight": jnp.zeros(2)}}),
    "ogbench.load": Call(ogbench.load, {"name": TASK, "folder": FOLDER, **NUMBERS}, costly=True),
    "ogbench.generate": Call(
        ogbench.generate,
        {"dataset": "cube-single-play-v0", "path": FOLDER / "data.npz", "episode_steps": 10, **NUMBERS},
        costly=True,
    ),
    "ogbench.make_env": Call(ogbench.make_env, {"name": TASK}, costly=True),
    "minari.load": Call(minari.load, {"name": "none/none-v0", "rescale": True}, costly=True),
}

LARGE = {"a large integer", "a huge integer"}
TEXTS = {"text", "digits", "an empty text"}
PARTS = {"integers", "NumPy integers", "flags", "half precision", "double precision", "an old key"}  # of actions
FUNCTIONS = FUNCTIONS_OF_ANYTHING | {"a type", "a velocity", "an actor", "a value"}  # not called yet

GOOD = {
    **for_each(["timeouts", "truncations", "next_observations", "next_obs"], {"None"}),
    "key": {"a key", "an old key"},
    **for_each(["batch_size", "episodes", "envs_per_process", "length", "frames", "padding"], COUNTS),
    "probability": {"zero", "a 0-d array"},
    **for_each(["reward", "mask"], PARTS | {"a column", "a matrix", "NaNs"}),
    **for_each(["next_action"], PARTS | {"a column", "a matrix", "NaNs", "None"}),
    **for_each(["n_step", "chunk", "frame_stack"], {"two", "three"}),
    "discount": {"None", "zero"},
    "low": {"zero", "minus one", "minus half", "a 0-d array"},
    "high": POSITIVE | PARTS - {"flags", "an old key"} | {"a 0-d integer"},
    "action": PARTS | {"a matrix", "a row", "a column", "a longer array", "an empty array"},
    "actor": FUNCTIONS,
    "logger": FUNCTIONS | {"None"},
    "act": {"a function of anything to integers"},
    "shape": {"an empty tuple"},
    "pool": {"None"},
    "seed": COUNTS | {"zero", "a large integer"},
    "success_key": TEXTS | {"None"},
    "processes": COUNTS | LARGE | {"zero", "None"},
    "every": COUNTS | LARGE,
    "step": COUNTS | {"a large integer"},
    **for_each(["settings", "values", "row"], {"a dictionary"}),
    **for_each(["folder", "path"], TEXTS | {"None"}),
    "state": {"None"},
    "name": {"text"},
    "episode_steps": COUNTS | {"None"},
}


def is_good(name, argument, field, kind):
    call = CALLS[name]
    if isinstance(call.arguments[argument], bool):
        return kind in ("True", "False")
    if name == "keyed()" and argument == "obs":  # which the actor does not look at
        return True
    if argument == "action":
        return kind in GOOD[argument] | {"a 0-d array", "a 0-d integer"}
    if argument == "episodes" and call.costly:
        return kind in COUNTS | {"None"}
    if argument == "name" and call.costly:
        return False
    return kind in GOOD.get(field or argument, ())


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Files that a draw writes are not left here."""
    monkeypatch.chdir(tmp_path)


@ignore_warnings
@pytest.mark.parametrize("name", CALLS)
def test_the_calls_are_valid(name):
    if not CALLS[name].costly:
        CALLS[name].outcome()


@ignore_warnings
def test_bad_inputs_are_named():
    assert_draws_end_well(CALLS, is_good, seed=0, count=300)


@pytest.mark.slow
@ignore_warnings
def test_thousands_of_bad_inputs_are_named():
    assert_draws_end_well(CALLS, is_good, seed=1, count=3_000)
