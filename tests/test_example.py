"""The examples, small: they run from end to end, and say clearly what is wrong when they cannot."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from running import ENV, finish, start

EXAMPLE = Path(__file__).parents[1] / "examples" / "sorl.py"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache folder of our own, shared by the tests of this file."""
    return tmp_path_factory.mktemp("cache")


def run(cache, *args, timeout=300):
    env = os.environ | {"XDG_CACHE_HOME": str(cache), "HOME": str(cache)}
    return subprocess.run(
        [sys.executable, EXAMPLE, "--preset", "smoke", *args], env=env, capture_output=True, text=True, timeout=timeout
    )


def test_the_smoke_run_does_everything(cache, tmp_path):
    done = run(cache, "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "k = 2, n = 8" in done.stdout
    assert "update/s" in done.stderr
    table, metrics = (
        [json.loads(line) for line in (tmp_path / "out" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("table", "metrics")
    )
    assert [(cell["k"], cell["n"]) for cell in table] == [(1, 1), (2, 1), (1, 8), (2, 8)]
    assert [row["step"] for row in metrics] == [10, 20]
    assert (tmp_path / "out" / "sorl.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out" / "checkpoints" / "20").is_dir()
    assert list((cache / "shortcutrl").glob("*.npz"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--env", "scene-pley-singletask-task1-v0"], "did you mean 'scene-play-singletask-task1-v0'"),
        (["--out", "/dev/null/out"], "/dev/null"),
        (["--k", "3"], "`k` must be a power of two"),
        (
            ["--preset", "paper", "--env", "cube-triple-play-singletask-v0"],
            "no published `q_weight` for cube-triple-play",
        ),
    ],
)
def test_bad_input_gets_one_clear_line_before_any_work(args, message, cache, tmp_path):
    done = run(cache, "--out", str(tmp_path), *args)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert "training" not in done.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"num_steps": 3}, "`num_steps` must be a power of two"),
        ({"n": 0}, "`n` must be at least 1"),
        ({"episodes": 0}, "`episodes` must be at least 1"),
        ({"updates": 0}, "`updates` must be at least 1"),
        ({"updates_per_checkpoint": 1500, "updates_per_dispatch": 200}, "`updates_per_checkpoint` must be a multiple"),
    ],
)
def test_settings_are_checked(args, message, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    example = importlib.import_module("sorl")
    with pytest.raises(ValueError, match=message):
        example.Args(**args).check()


def test_help_shows_the_defaults_of_the_preset(cache):
    done = run(cache, "--preset", "paper", "--help")
    assert done.returncode == 0
    said = " ".join(done.stdout.replace("│", "").split())
    assert "M_BTT, the largest number of jumps that Q is maximised through" in said
    assert "(default: 1000000)" in said


def test_two_dimensions(home, tmp_path):
    said = finish(start(home, "two_dimensions.py", "--out", tmp_path / "2d.png", "--samples", "8", "--updates", "3"))
    assert "more jumps" in said
    assert (tmp_path / "2d.png").read_bytes().startswith(b"\x89PNG")


def test_test_time_scaling(home, trained_run, tmp_path):
    args = [trained_run, "--out", tmp_path, "--jumps", "1", "4", "--candidates", "1", "2", "--episodes", "1"]
    finish(start(home, "test_time_scaling.py", *args))
    table = tmp_path / "test_time_scaling.csv"
    header, *rows = table.read_text().splitlines()
    assert header == "run,seed,max_jumps,k,n,episodes,successes,milliseconds"
    assert [row.split(",")[2:6] for row in rows] == [["2", k, n, "1"] for k in "14" for n in "12"]
    assert (tmp_path / "test_time_scaling.png").read_bytes().startswith(b"\x89PNG")

    table.write_text("\n".join([header, *rows[:3], rows[3][:9]]))  # as if it had been interrupted
    finish(start(home, "test_time_scaling.py", *args))
    assert table.read_text().splitlines()[:4] == [header, *rows[:3]]
    assert len(table.read_text().splitlines()) == 6


def test_jumps(home, trained_run):
    header, *rows = finish(start(home, "jumps.py", trained_run, "--states", "64")).splitlines()
    assert header.split() == ["k", "gap", "from", "data", "gain", "doubt"]
    k, gap, far, _, doubt = rows[0].split()
    assert (k, float(gap) > 0, float(far) > 0, float(doubt) > 0) == ("1", True, True, True)
    assert rows[-1].split()[1] == "-"


def test_online(home, trained_run, tmp_path):
    args = ["--episodes", "2", "--updates-per-episode", "2", "--evaluation-episodes", "1"]
    said = finish(start(home, "sorl_online.py", trained_run, "--out", tmp_path, *args))
    assert "before: success" in said
    assert "after: success" in said
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_folder_without_a_run_is_named(home, tmp_path):
    process = start(home, "sorl_online.py", tmp_path / "none", "--out", tmp_path)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 1
    assert "none holds no run: train there first" in said
    assert "Traceback" not in said


def test_many_seeds(home, tmp_path):
    args = ["--preset", "smoke", "--env", ENV, "--tasks", "1", "3", "--seeds", "2", "--k", "1"]
    args += ["--data-episodes", "10"]  # enough to reach the goals of both tasks
    args += ["--out", tmp_path / "many"]
    said = finish(start(home, "many_seeds.py", *args))
    assert "task 3: " in said
    agents = [f"task{task}-seed{seed}" for task in (1, 3) for seed in (0, 1)]
    rows = [json.loads(line) for line in (tmp_path / "many" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [10, 20]
    assert len({rows[1][f"td/{agent}"] for agent in agents}) == 4  # tasks differ in their rewards, seeds in all

    shutil.rmtree(tmp_path / "many" / "checkpoints" / "20")  # as if it had been killed before that
    shutil.rmtree(tmp_path / "many" / "task3-seed1")
    assert finish(start(home, "many_seeds.py", *args)) == said
    assert [json.loads(line) for line in (tmp_path / "many" / "metrics.jsonl").read_text().splitlines()] == rows
    own = [json.loads(line) for line in (tmp_path / "many" / "task3-seed1" / "metrics.jsonl").read_text().splitlines()]
    assert [row["td"] for row in own] == [row["td/task3-seed1"] for row in rows]
    args = ["--out", tmp_path, "--jumps", "1", "--candidates", "1", "--episodes", "1"]
    finish(start(home, "test_time_scaling.py", tmp_path / "many" / "task3-seed1", *args))
    table = (tmp_path / "test_time_scaling.csv").read_text()
    assert "task3-seed1,1,2,1,1,1," in table
