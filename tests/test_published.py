"""The published settings and results of the benchmark are those of the papers, as far as a reader can check."""

import importlib
import inspect
from pathlib import Path

import pytest

from shortcutrl import algorithms

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
METHODS = {name for name, value in vars(algorithms).items() if inspect.ismodule(value)}


@pytest.fixture
def published(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks" / "ogbench")
    return importlib.import_module("published")


def test_every_method_has_settings_and_results(published):
    assert set(published.SETTINGS) == set(published.RESULTS) == METHODS
    assert len(published.ENVIRONMENTS) == len(set(published.ENVIRONMENTS)) == 10
    for rows in (published.SETTINGS, published.RESULTS):
        assert all(set(row) <= set(published.ENVIRONMENTS) for row in rows.values())
    assert all(0 <= success <= 100 for row in published.RESULTS.values() for success in row.values())


def test_settings_are_configs_of_their_method(published):
    for method, row in published.SETTINGS.items():
        assert row
        for config in row.values():
            assert isinstance(config, getattr(algorithms, method).Config)


PINNED = {
    ("iql", "cube-double-play"): {"policy": "awr", "alpha": 0.3, "expectile": 0.9, "discount": 0.99},
    ("iql", "antsoccer-arena-navigate"): {"alpha": 1, "discount": 0.995},
    ("rebrac", "cube-single-play"): {"policy_penalty": 1, "critic_penalty": 0},
    ("rebrac", "humanoidmaze-large-navigate"): {"policy_penalty": 0.01, "critic_penalty": 0.01, "discount": 0.995},
    ("rebrac", "puzzle-4x4-play"): {"policy_penalty": 0.3, "critic_penalty": 0.01},
    ("idql", "scene-play"): {"num_candidates": 32, "expectile": 0.9},
    ("idql", "antmaze-large-navigate"): {"expectile": 0.7, "discount": 0.99},
    ("srpo", "cube-single-play"): {"beta": 0.03, "expectile": 0.9},
    ("srpo", "humanoidmaze-large-navigate"): {"beta": 0.3, "expectile": 0.7, "discount": 0.995},
    ("cac", "humanoidmaze-medium-navigate"): {"eta": 0.03},
    ("cac", "puzzle-3x3-play"): {"eta": 0.01},
    ("fawac", "cube-single-play"): {"alpha": 1, "aggregate": "mean"},
    ("fawac", "antmaze-large-navigate"): {"alpha": 3, "aggregate": "min"},
    ("fbrac", "antmaze-giant-navigate"): {"alpha": 10, "aggregate": "min", "discount": 0.995},
    ("fbrac", "puzzle-4x4-play"): {"alpha": 300, "aggregate": "mean"},
    ("ifql", "antsoccer-arena-navigate"): {"num_candidates": 64},
    ("ifql", "scene-play"): {"num_candidates": 32, "flow_steps": 10},
    ("fql", "humanoidmaze-medium-navigate"): {"alpha": 30, "discount": 0.995, "aggregate": "mean"},
    ("fql", "puzzle-3x3-play"): {"alpha": 1000, "discount": 0.99},
    ("sorl", "antmaze-giant-navigate"): {"q_weight": 500, "aggregate": "min", "discount": 0.995},
    ("sorl", "cube-single-play"): {"q_weight": 10, "aggregate": "mean", "discount": 0.99},
}


@pytest.mark.parametrize(("key", "fields"), PINNED.items(), ids="-".join)
def test_settings(published, key, fields):
    method, environment = key
    config = published.SETTINGS[method][environment]
    assert {name: getattr(config, name) for name in fields} == fields


MAIN = {
    "IQL": ("alpha",),
    "ReBRAC": ("policy_penalty", "critic_penalty"),
    "IDQL": ("num_candidates", "expectile"),
    "SRPO": ("beta",),
    "CAC": ("eta",),
    "FAWAC": ("alpha",),
    "FBRAC": ("alpha",),
    "IFQL": ("num_candidates",),
    "FQL": ("alpha",),
    "SORL": ("q_weight",),
}


def table(heading):
    """Of the page of methods, as rows of cells by the first cell."""
    text = PAGE.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|") and "---" not in line]
    header, *rows = [[cell.strip() for cell in line] for line in lines]
    return header[1:], {name: dict(zip(header[1:], cells, strict=True)) for name, *cells in rows}


def test_the_page_shows_these_settings(published):
    header, rows = table("Published settings")
    assert header == list(MAIN)
    assert list(rows) == list(published.ENVIRONMENTS)
    for environment, row in rows.items():
        for method, shown in row.items():
            config = published.SETTINGS[method.lower()].get(environment)
            expected = "" if config is None else ", ".join(f"{getattr(config, name):g}" for name in MAIN[method])
            assert shown == expected, (environment, method)


def test_the_page_shows_these_results(published):
    header, rows = table("Published results")
    assert {name.lower() for name in header} == METHODS
    assert list(rows) == list(published.ENVIRONMENTS)
    for environment, row in rows.items():
        for method, shown in row.items():
            success = published.RESULTS[method.lower()].get(environment)
            assert shown == ("" if success is None else f"{success:g}"), (environment, method)


def test_what_is_not_published_is_missing(published):
    for rows in (published.SETTINGS, published.RESULTS):
        assert not {"puzzle-3x3-play", "puzzle-4x4-play"} & set(rows["sorl"])
    assert "antsoccer-arena-navigate" not in published.SETTINGS["fawac"]
