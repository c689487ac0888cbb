"""The README: its code runs, and its test command is the one that CI runs."""

import re
from pathlib import Path

import matplotlib
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
FIRST, LOOP = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture(autouse=True)
def as_a_reader(tmp_path, monkeypatch, without_x64):
    """In an empty folder and without a display."""
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")


def run(code):
    namespace = {}
    exec(compile(code, "README.md", "exec"), namespace)
    return namespace


def test_the_first_program_is_short():
    assert len([line for line in FIRST.split("\n") if line.strip()]) <= 20


def test_the_first_program_runs(tmp_path):
    assert "2000" in FIRST
    run(FIRST.replace("2000", "2"))
    assert (tmp_path / "first.png").stat().st_size > 0


@pytest.mark.slow
def test_the_first_program_learns():
    names = run(FIRST)
    action, learned = names["action"], names["learned"]
    distance = abs(learned[:, None] - action[None]).max(axis=-1).min(axis=1)
    assert learned[:, 0].mean() > 0.5 > 0.3 > action[:, 0].mean()  # it has learned to go to the right
    assert (distance < 0.15).mean() > 0.7  # and to stay near the dataset


def test_the_loop_runs():
    assert run(LOOP)["action"].shape == (5,)


def test_code_fits_into_the_column_of_the_site():
    assert [line for line in (FIRST + LOOP).split("\n") if len(line) > 80] == []


def test_ci_runs_the_readme_command():
    command = (ROOT / ".ci" / "run").read_text().splitlines()[-1]
    assert "pytest" in command
    assert command in README
