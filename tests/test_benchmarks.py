"""The table and the chart of the benchmarks."""

import importlib
import json
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_the_table(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)
    results = [
        {"name": "test_updates_in_a_scan[4x512]", "stats": {"median": 8.0}}
        | {"extra_info": {"per": 40, "floor": 0.15, "memory": 25_000_000}},
        {"name": "test_best_of_n[k=1, n=1-one observation]", "stats": {"median": 0.0012}, "extra_info": {"per": 20}},
        {"name": "test_first_call", "stats": {"median": 12.5}, "extra_info": {"per": 1}},
    ]
    machine = {"cpu": {"brand_raw": "A processor", "count": 2}, "python_version": "3.11.0"}
    (tmp_path / "speed.json").write_text(json.dumps({"benchmarks": results, "machine_info": machine}))
    importlib.import_module("table").main(tmp_path / "speed.json")
    said = capsys.readouterr().out
    assert said.startswith("A processor, 2 cores; Python 3.11.0, jax ")
    assert "| updates in a scan: 4x512 | 200 ms | 150 ms | 75% | 25 MB |" in said
    assert "| best of n: k=1, n=1, one observation | 0.06 ms |" in said
    assert "| first call | 12,500 ms |  |  |  |" in said


def test_the_chart_shows_the_tables_of_the_page(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    chart = importlib.import_module("chart")
    tables = tuple(sorted((BENCHMARKS.parent / "docs").glob("benchmarks-speed-*.md")))
    assert chart.medians(tables[0].read_text())["updates in a scan: 4x512"] == 87.9
    chart.main(tables, tmp_path / "speed.png")
    assert (tmp_path / "speed.png").stat().st_size > 5000
