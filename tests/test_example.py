"""The main job, small: it runs from end to end, and says clearly what is wrong when it cannot."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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
    table = json.loads((tmp_path / "out" / "table.json").read_text())
    assert [(cell["k"], cell["n"]) for cell in table] == [(1, 1), (2, 1), (1, 8), (2, 8)]
    metrics = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["updates"] == 20
    assert (tmp_path / "out" / "sorl.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out" / "checkpoint").is_dir()
    assert list((cache / "shortcutrl").glob("*.npz"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--env", "scene-pley-singletask-task1-v0"], "did you mean 'scene-play-singletask-task1-v0'"),
        (["--out", "/dev/null/out"], "/dev/null"),
        (["--num-steps", "3"], "`num_steps` must be a power of two"),
        (["--k", "3"], "`k` must be a power of two"),
        (["--n", "0"], "`n` must be at least 1"),
        (["--episodes", "0"], "`episodes` must be at least 1"),
        (["--updates", "0"], "`updates` must be at least 1"),
    ],
)
def test_bad_input_gets_one_clear_line_before_any_work(args, message, cache, tmp_path):
    done = run(cache, "--out", str(tmp_path), *args)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert "training" not in done.stderr


def test_help_explains_every_option(cache):
    done = run(cache, "--help")
    assert done.returncode == 0
    assert "M_BTT, the largest number of jumps that Q is maximised through" in " ".join(
        done.stdout.replace("│", "").split()
    )
