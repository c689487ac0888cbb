"""The examples, small: they run from end to end, and name what is wrong when they cannot."""

import ast
import csv
import dataclasses
import importlib
import inspect
import json
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from running import ENV, EXAMPLES, SMOKE, finish, start

from shortcutrl import rollout_k, sorl
from shortcutrl.runs import Run, load_settings, read_rows

FILES = sorted(EXAMPLES.glob("*.py"))


def fail(process):
    """Wait for a process, which must fail with a message of one line. Returns the message."""
    said = process.communicate(timeout=900)[1]
    assert process.returncode == 1
    assert "Traceback" not in said
    return said.splitlines()[-1]


def is_picture(path):
    return path.read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def example(monkeypatch):
    """The module of `sorl.py`."""
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("sorl")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_an_example_imports_only_the_library(path):
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    names += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    assert names
    for name in names:
        assert name.split(".")[0] not in {each.stem for each in FILES}, f"imports the example {name}"
        assert "._" not in name, f"imports the private {name}"


# ------------------------------------------------------------------- without a simulator


@pytest.mark.slow
def test_first(home, tmp_path):
    assert len((EXAMPLES / "first.py").read_text().splitlines()) < 90
    said = finish(start(home, "first.py", "--out", tmp_path / "first.png", "--updates", "3"))
    assert "best of 8: mean reward" in said
    assert is_picture(tmp_path / "first.png")


@pytest.mark.slow
def test_first_learns(home, tmp_path):
    *lines, _ = finish(start(home, "first.py", "--out", tmp_path / "first.png")).splitlines()
    reward = {name: float(value) for name, value in (line.split(": mean reward ") for line in lines)}
    assert abs(reward["dataset"]) < 0.05
    assert reward["policy, 1 jump"] > 0.3
    assert reward["best of 8"] > 0.5


@pytest.mark.slow
def test_two_dimensions(home, tmp_path):
    args = ["--out", tmp_path / "2d.png", "--samples", "8", "--updates", "3"]
    assert "more jumps" in finish(start(home, "two_dimensions.py", *args))
    assert is_picture(tmp_path / "2d.png")


@pytest.mark.slow
def test_wasserstein(home, tmp_path):
    args = ["--out", tmp_path / "w.png", "--num-steps", "2", "--samples", "20", "--updates", "2", "--seeds", "1"]
    finish(start(home, "wasserstein.py", *args))
    assert is_picture(tmp_path / "w.png")
    rows = list(csv.DictReader((tmp_path / "w.csv").read_text().splitlines()))
    assert [(row["M"], row["k"]) for row in rows] == [("2", "1"), ("2", "2")]


# ------------------------------------------------------------------- sorl.py


def test_the_smoke_run_does_everything(home, smoke_run):
    assert "k = 2, n = 8" in smoke_run.with_suffix(".txt").read_text()
    table, metrics = (read_rows(smoke_run, name) for name in ("table", "metrics"))
    assert sorted((cell["n"], cell["k"]) for cell in table) == [(1, 1), (1, 2), (8, 1), (8, 2)]
    assert [row["step"] for row in metrics] == [10, 20]
    assert is_picture(smoke_run / "sorl.png")
    assert (smoke_run / "checkpoints" / "20").is_dir()
    assert list((home / "shortcutrl").glob("*.npz"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--env", "scene-pley-singletask-task1-v0"], "scene-play-singletask-task1-v0"),
        (["--out", "/dev/null/out"], "/dev/null"),
        (["--num-steps", "3"], "`num_steps` must be a power of two"),
        (
            ["--preset", "paper", "--env", "cube-triple-play-singletask-v0"],
            "no published `q_weight` for cube-triple-play",
        ),
    ],
)
def test_bad_input_gets_one_clear_line_before_any_work(args, message, home, tmp_path):
    assert message in fail(start(home, *SMOKE, "--out", tmp_path, *args))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"num_steps": 3}, "`num_steps` must be a power of two"),
        ({"max_jumps": 16}, "`max_jumps` must be at most `num_steps` = 8"),
        ({"n": 0}, "`n` must be at least 1"),
        ({"k": 0}, "`k` must be at least 1"),
        ({"episodes": 0}, "`episodes` must be at least 1"),
        ({"updates": 0}, "`updates` must be at least 1"),
        ({"updates_per_checkpoint": 1500, "updates_per_dispatch": 200}, "`updates_per_checkpoint` must be a multiple"),
    ],
)
def test_settings_are_checked(args, message, example):
    with pytest.raises(ValueError, match=message):
        example.Args(**args).check()


def test_the_defaults_are_the_published_ones(example):
    assert example.Args().check() == sorl.Config()
    assert example.PRESETS["paper"] == {}
    assert {"width", "depth"} <= example.PRESETS["laptop"].keys()
    networks = inspect.signature(sorl.networks).parameters
    assert (example.Args.width, example.Args.depth) == (networks["width"].default, networks["depth"].default)


def test_every_option_of_the_method_can_be_set(example):
    options = {field.name for field in dataclasses.fields(example.Args)}
    config = {field.name for field in dataclasses.fields(sorl.Config)}
    assert config - options == {"normalize_q", "clip"}  # those of the published code, for every environment


def test_help_shows_the_defaults_of_the_preset(home):
    said = finish(start(home, *SMOKE, "--preset", "paper", "--help"))
    said = " ".join(said.replace("│", "").split())
    assert "M_BTT, the largest number of jumps that Q is maximised through" in said
    assert "(default: 1000000)" in said
    said = finish(start(home, "sorl.py", "--help"))
    assert "(default: 40000)" in " ".join(said.replace("│", "").split())


# ------------------------------------------------------------------- what takes a run of sorl.py


@pytest.mark.slow
def test_evaluate(home, smoke_run, tmp_path):
    run = shutil.copytree(smoke_run, tmp_path / "run")  # to which rows are added
    args = ["evaluate.py", run, "--k", "1", "3", "--n", "1", "2", "--episodes", "1"]
    before = read_rows(run, "table")
    said = finish(start(home, *args))
    assert f"{run}: k = 3, n = 2: " in said
    rows = read_rows(run, "table")[len(before) :]
    assert [(row["k"], row["n"]) for row in rows] == [(1, 1), (3, 1), (1, 2), (3, 2)]
    (same,) = [row for row in before if (row["k"], row["n"]) == (1, 1)]
    assert {name: rows[0][name] for name in same} == same  # the checkpoint acts like the run did
    assert all(row["milliseconds"] > 0 for row in rows)

    assert finish(start(home, *args)) == said  # from the table
    assert read_rows(run, "table") == before + rows


def test_test_time_scaling(home, tmp_path):
    table = {(k, n): {"k": k, "n": n, "episodes": 2, "milliseconds": k * n} for k in (1, 4) for n in (1, 2)}
    for seed in (0, 1):
        folder = tmp_path / f"M2-s{seed}"
        folder.mkdir()
        (folder / "settings.json").write_text(json.dumps({"env": ENV, "seed": seed, "config": {"max_jumps": 2}}))
        rows = [row | {"success": [True, bool(seed)]} for row in table.values()]
        rows += [{"k": 1, "n": 1, "episodes": 1, "success": [False], "milliseconds": 9}]  # less than the other
        rows += [{"k": 8, "n": 1, "episodes": 1, "success": [False]}]  # of sorl.py, without a time
        (folder / "table.jsonl").write_text("\n".join(map(json.dumps, rows)))
    said = finish(start(home, "test_time_scaling.py", *sorted(tmp_path.glob("M2*")), "--out", tmp_path / "out"))
    assert "max_jumps = 2, best of 2, k = 4: 0.75 (0.00 to 1.00), 8.00 ms" in said
    assert is_picture(tmp_path / "out" / "test_time_scaling.png")
    with (tmp_path / "out" / "test_time_scaling.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["run", "seed", "max_jumps", "k", "n", "episodes", "successes", "milliseconds"]
    told = {(row["seed"], row["k"], row["n"]): (row["episodes"], row["successes"]) for row in rows}
    assert told == {(seed, k, n): ("2", "12"[int(seed)]) for seed in "01" for k in "14" for n in "12"}


def test_other_settings_are_refused(home, smoke_run):
    process = start(home, *SMOKE, "--out", smoke_run, "--q-weight", "7")
    said = process.communicate(timeout=900)[1]
    assert process.returncode == 1
    assert "holds a run with {'config.q_weight': 10.0}, not {'config.q_weight': 7.0}. Choose another folder" in said
    assert "Traceback" not in said


def test_jumps(home, smoke_run):
    said = finish(start(home, "jumps.py", smoke_run, "--states", "64", "--visited", "1", "--k", "2")).splitlines()
    places, headers = said[0::4], said[1::4]
    assert places == ["64 states of the dataset", "64 states of 1 episodes with k = 2"]
    assert [header.split() for header in headers] == 2 * [["k", "gap", "distance", "gain", "spread"]]
    for rows in (said[2:4], said[6:8]):
        assert [row.split()[0] for row in rows] == ["1", "2"]
        gap, distance, _, spread = map(float, rows[0].split()[1:])
        assert min(gap, distance, spread) > 0
        assert rows[-1].split()[1] == "-"
    assert said[2:4] != said[6:8]


def test_the_nearest_state(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    rng = np.random.default_rng(0)
    known, obs = rng.normal(size=(50, 3)) * [1, 10, 0.1], rng.normal(size=(20, 3)) * [1, 10, 0.1]
    scale = known.std(axis=0) + 1e-3
    expected = np.argmin((((obs[:, None] - known) / scale) ** 2).sum(axis=2), axis=1)
    got = importlib.import_module("jumps").nearest(jnp.asarray(obs, jnp.float32), jnp.asarray(known, jnp.float32))
    np.testing.assert_array_equal(got, expected)


def test_the_bound_of_the_wasserstein_distance(monkeypatch):
    """The exact flow ends in the modes; the parts that must vanish do, and `measure` asserts the bound."""
    monkeypatch.syspath_prepend(EXAMPLES)
    example = importlib.import_module("wasserstein")
    noise = jax.random.normal(jax.random.key(0), (400, 2))
    data = jax.jit(jax.vmap(partial(rollout_k, example.exact_velocity, None, k=256)))(noise)
    to_mode = np.linalg.norm(np.asarray(data)[:, None] - np.asarray(example.MODES), axis=2).min(axis=1)
    assert np.sqrt(np.mean(to_mode**2)) == pytest.approx(example.STD * np.sqrt(2), rel=0.1)
    rows = example.measure(example.exact_velocity, 4, noise[:50])
    assert [row["k"] for row in rows] == [1, 2, 4]
    assert all(row["flow matching"] == 0 for row in rows)
    assert rows[-1]["self-consistency"] == 0 < rows[0]["self-consistency"]
    assert rows[0]["distance"] > rows[-1]["distance"] > 0


@pytest.mark.slow
def test_online(home, smoke_run, tmp_path):
    args = ["--episodes", "2", "--updates-per-episode", "2", "--evaluation-episodes", "1", "--processes", "1"]
    said = finish(start(home, "sorl_online.py", smoke_run, "--out", tmp_path / "out", *args))
    assert "before: success" in said
    assert "after: success" in said
    rows = read_rows(tmp_path / "out", "metrics")
    assert [row["step"] for row in rows] == [1, 2]
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    finish(start(home, "jumps.py", tmp_path / "out", "--states", "64"))  # it is a run of sorl.py too


OTHER_SCRIPTS = [
    pytest.param(name, marks=pytest.mark.slow) for name in ("jumps.py", "sorl_online.py", "test_time_scaling.py")
]


@pytest.mark.parametrize("script", ["evaluate.py", *OTHER_SCRIPTS])
def test_a_folder_without_a_run_is_named(script, home, tmp_path):
    assert "none holds no run" in fail(start(home, script, tmp_path / "none"))
    with Run(tmp_path / "other", {"config": {}}):  # of another program
        pass
    assert str(tmp_path / "other") in fail(start(home, script, tmp_path / "other"))


# ------------------------------------------------------------------- many agents


def test_intervals_are_over_seeds(monkeypatch):
    """For 0.5, 0.7 and 0.6, the t distribution of two degrees of freedom gives 4.303 * 0.1 / sqrt(3)."""
    monkeypatch.syspath_prepend(EXAMPLES)
    many_seeds, scaling = map(importlib.import_module, ("many_seeds", "test_time_scaling"))
    assert many_seeds.mean_of_seeds(np.array([0.5, 0.7, 0.6])) == "0.60 (0.35 to 0.85)"
    assert many_seeds.mean_of_seeds(np.array([1.0, 0.9])) == "0.95 (0.31 to 1.00)"
    assert many_seeds.mean_of_seeds(np.array([0.5])) == "0.50"
    cell = {"n": 1, "max_jumps": 2, "k": 4, "episodes": 10}
    rows = [cell | {"successes": count, "milliseconds": count} for count in (5, 7, 6)]
    half = 4.302653 * 0.1 / np.sqrt(3)
    np.testing.assert_allclose(scaling.over_seeds(rows)[1, 2, 4], (0.6, 0.6 - half, 0.6 + half, 6), rtol=1e-6)
    assert np.isnan(scaling.over_seeds(rows[:1])[1, 2, 4][1:3]).all()


@pytest.mark.slow
def test_many_seeds(home, tmp_path):
    many = tmp_path / "many"
    args = ["--env", ENV, "--tasks", "1", "3", "--seeds", "2", "--k", "1", "--episodes", "1", "--processes", "1"]
    args += ["--data-episodes", "10"]  # enough to reach the goals of both tasks
    args += ["--updates", "20", "--updates-per-checkpoint", "10", "--width", "32", "--depth", "1", "--out", many]
    args += ["--num-steps", "2", "--max-jumps", "2"]
    said = finish(start(home, "many_seeds.py", *args))
    assert "task 3: " in said
    agents = [f"task{task}-seed{seed}" for task in (1, 3) for seed in (0, 1)]
    rows = read_rows(many, "metrics")
    assert [row["step"] for row in rows] == [10, 20]
    assert len({rows[1][f"td/{agent}"] for agent in agents}) == 4  # tasks differ in their rewards, seeds in all
    assert (many / "results.csv").read_text().splitlines()[0] == "task,seed,k,n,episodes,successes"
    assert len((many / "results.csv").read_text().splitlines()) == 5

    shutil.rmtree(many / "checkpoints" / "20")  # as if it had been killed before that
    shutil.rmtree(many / "task3-seed1")
    assert finish(start(home, "many_seeds.py", *args)) == said
    assert read_rows(many, "metrics") == rows
    own = read_rows(many / "task3-seed1", "metrics")
    assert [row["td"] for row in own] == [row["td/task3-seed1"] for row in rows]
    assert load_settings(many / "task3-seed1")["seed"] == 1
    finish(start(home, "evaluate.py", many / "task3-seed1", "--k", "1", "--episodes", "1", "--processes", "1"))
    first, again = read_rows(many / "task3-seed1", "table")
    assert first["success"] == again["success"]


@pytest.mark.slow
def test_the_student_of_fql_keeps_the_modes_that_a_gaussian_loses(monkeypatch):
    """At the published ratio of imitation to Q, the student keeps all five modes; the mean action is in none."""
    monkeypatch.syspath_prepend(EXAMPLES)
    example = importlib.import_module("methods")
    modes = 0.8 * np.stack([np.cos(0.4 * np.pi * np.arange(5)), np.sin(0.4 * np.pi * np.arange(5))], axis=1)
    dataset = example.make_dataset()
    state = example.train(dataset, example.METHODS["FQL"], updates=2000, seed=0)
    act = example.METHODS["FQL"].module.actor(state, config=example.METHODS["FQL"].config)
    noise = jax.random.normal(jax.random.key(1), (1000, 2))
    actions = np.asarray(jax.vmap(partial(act, jnp.zeros(1)))(noise))
    gaussian = np.random.default_rng(0).multivariate_normal(dataset.action.mean(axis=0), np.cov(dataset.action.T), 1000)
    distance, of_gaussian = (np.linalg.norm(x[:, None] - modes, axis=2) for x in (actions, gaussian))
    assert (distance < 0.2).mean(axis=0).min() > 0.05
    assert (distance.min(axis=1) > 0.3).mean() < 0.35 < 0.6 < (of_gaussian.min(axis=1) > 0.3).mean()
