"""The table of many agents: its statistics against hand-computed values, and what it says of cells that are missing."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from running import ENV, finish, start

FOLDER = Path(__file__).parents[1] / "benchmarks" / "ogbench"


@pytest.fixture(scope="module")
def table():
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("ogbench_table", FOLDER / "table.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(FOLDER))


def line(method, task, seed, success):
    return json.dumps({"method": method, "task": task, "seed": seed, "success": success})


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "agents.jsonl"
    rows = [line("good", task, seed, [1, 1, 1, seed % 2]) for task in ("a", "b") for seed in range(4)]
    rows += [line("poor", "a", seed, [0, 0, 0, seed % 2]) for seed in range(4)]
    path.write_text("\n".join(rows) + "\n")
    return path


def test_scores_are_percent_by_method_task_and_seed(table, file):
    scores = table.read((file,))
    np.testing.assert_array_equal(scores["good"]["a"], [75, 100, 75, 100])
    np.testing.assert_array_equal(scores["poor"]["a"], [0, 25, 0, 25])
    assert "b" not in scores["poor"]


def test_an_agent_that_was_evaluated_again_counts_once(table, file):
    again = file.with_name("again.jsonl")
    again.write_text(line("good", "a", 0, [0, 0]) + "\n")
    assert table.read((file, again))["good"]["a"].tolist() == [0, 100, 75, 100]


def test_the_interquartile_mean_leaves_out_a_quarter_at_each_end(table):
    assert table.iqm(np.array([0.0, 10, 20, 30, 40, 50, 60, 1000])) == 35
    assert table.iqm(np.array([5.0, 5, 5, 5])) == 5


def test_the_interval_resamples_seeds_within_each_task(table):
    """Two tasks of no variance: resampling within them can only ever give their mean."""
    assert table.interval([np.zeros(4), np.full(4, 100.0)], np.mean, 200) == (50, 50)
    low, high = table.interval([np.array([0.0, 100] * 50)], np.mean, 2000)
    assert low == pytest.approx(50 - 9.8, abs=1.5)  # the normal approximation: 1.96 * 50 / sqrt(100)
    assert high == pytest.approx(50 + 9.8, abs=1.5)


def test_the_probability_of_improvement_counts_ties_half(table):
    x, y = {"a": np.array([1.0, 2.0])}, {"a": np.array([1.0, 0.0])}
    assert table.probability_of_improvement(x, y) == (0.5 + 1 + 1 + 1) / 4
    assert table.probability_of_improvement(y, x) == 1 - 3.5 / 4
    assert np.isnan(table.probability_of_improvement(x, {"b": np.ones(2)}))


def test_missing_cells_are_shown_as_missing(table, file):
    scores = table.read((file,))
    text = table.markdown(scores, table.rows(scores, 100))
    assert "| poor | 12 (" in text
    assert text.count("missing") == 1  # `poor` on task b; "all" is over the task that both have
    assert {(row["method"], row["task"]) for row in table.rows(scores, 10)} == {
        *(("good", task) for task in ("a", "b", "all")),
        *(("poor", task) for task in ("a", "all")),
    }


def test_a_line_that_is_none_is_named(table, file):
    file.write_text(file.read_text() + "{}\n")
    with pytest.raises(ValueError, match=r"agents\.jsonl:13 is not a line of run\.py"):
        table.read((file,))


def test_the_figure_is_drawn(table, file, tmp_path):
    scores = table.read((file,))
    table.draw(scores, table.rows(scores, 10), tmp_path / "table.png")
    assert (tmp_path / "table.png").stat().st_size > 5000


# ------------------------------------------------------------------------- the agents that it is made of


@pytest.mark.slow
def test_agents_are_trained_and_evaluated_once(home, tmp_path):
    options = ["--methods", "bc", "ifql", "--tasks", ENV, "--seeds", "2", "--set", "ifql.num_candidates=2"]
    sizes = ["--updates", "2", "--updates-per-checkpoint", "1", "--width", "8", "--depth", "1"]
    small = ["--data-episodes", "1", "--episodes", "1", "--processes", "1"]
    for said in ("bc on", ""):
        printed = finish(start(home, FOLDER / "run.py", *options, *sizes, *small, "--out", tmp_path))
        assert said in printed
        rows = [json.loads(row) for row in (tmp_path / "agents.jsonl").read_text().splitlines()]
        assert [(row["method"], row["seed"]) for row in rows] == [("bc", 0), ("bc", 1), ("ifql", 0), ("ifql", 1)]
    assert rows[2]["config"]["num_candidates"] == 2
    assert {"sha256", "commit", "jax", "device", "seconds", "success"} <= rows[0].keys()
