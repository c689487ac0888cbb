"""The table and the chart of the benchmarks, and the floors of the methods."""

import importlib
import json
import threading
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from algorithms import every_algorithm, name_of

from shortcutrl import Transition

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
    assert chart.medians(tables[0].read_text())["updates in a scan: 4x512"] == 190
    chart.main(tables, tmp_path / "speed.png")
    assert (tmp_path / "speed.png").stat().st_size > 5000


def test_the_floor_of_an_accelerator_is_that_of_one_result(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    speed = importlib.import_module("speed")
    flops = 2 * 32 * 256 * 256**2  # 32 products
    cpu = speed.floor(256, 256, flops)
    monkeypatch.setattr(speed.jax, "default_backend", lambda: "gpu")
    assert cpu / 5 < speed.floor(256, 256, flops) < 5 * cpu


def test_the_idle_share_counts_what_no_kernel_covers(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    accelerator = importlib.import_module("accelerator")
    spans = [(0.0, 2.0), (1.0, 3.0), (1.5, 2.5), (5.0, 6.0), (9.0, 10.0)]
    assert accelerator.idle_share(spans) == pytest.approx(0.5)
    assert accelerator.idle_share([(3.0, 7.0)]) == 0


def test_the_table_of_an_accelerator(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    accelerator = importlib.import_module("accelerator")
    rows = [
        {"name": "update", "compile_s": 1.25, "memory_mb": 70.0, "milliseconds": 0.5, "floor": 0.25}
        | {"kernels": 200.0, "idle": 0.3},
        {"name": "act", "milliseconds": 2.0},
    ]
    said = accelerator.table(rows, "a card.", ["more"])
    assert "| update | 0.5 | 2,000 | 0.25 | 1.2 | 70 | 200 | 30% |" in said
    assert "| act | 2 | 500 |  |  |  |  |  |" in said
    assert said.startswith("a card.\n")
    assert said.endswith("Left out: more.\n")


@pytest.mark.slow
def test_every_program_for_an_accelerator_is_compiled_and_timed(monkeypatch):
    """A few small ones; the others differ in their sizes."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    accelerator = importlib.import_module("accelerator")
    monkeypatch.setattr(accelerator, "floor", lambda rows, width, flops, agents: flops / 1e9)
    args = accelerator.Args(width=8, depth=1, updates=16, agents=(2,), observations=(3,))
    made = {name: (precision, make) for name, precision, make in accelerator.cases(args)}
    assert {f"update of {name}" for name in accelerator.PASSES} - made.keys() == {"update of sorl"}
    agents = "update of one of 2 agents, bfloat16"
    for name in (agents, "update, M_BTT = 1", "best of 32, k = 8, 3 observations", "update of bc"):
        precision, make = made[name]
        case, call, said = accelerator.prepare(make, precision)
        row = accelerator.measure(case, call, said, precision, repeats=1, width=8)
        assert row["milliseconds"] > 0
        assert row["floor"] > 0
        assert row["compile_s"] > 0
        assert "kernels" not in row  # without a GPU
        assert name != agents or case.per == 2 * 16


def test_programs_that_are_not_compiled_in_time_are_left_out(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    accelerator = importlib.import_module("accelerator")
    wait = threading.Event()
    names = ["ready", "broken", "slow", "waiting"]
    makes = [lambda: 1, lambda: 1 // 0, wait.wait, wait.wait]
    monkeypatch.setattr(accelerator, "cases", lambda args: zip(names, [None] * 4, makes, strict=True))
    monkeypatch.setattr(accelerator, "prepare", lambda make, precision: make())
    jobs = accelerator.prepare_all(accelerator.Args(threads=1), seconds=1.0)
    ready, broken, slow, waiting = (job for _, job in jobs.values())
    assert ready.result() == 1
    assert isinstance(broken.exception(), ZeroDivisionError)
    assert not slow.done()
    assert waiting.cancelled()
    wait.set()


def test_a_program_that_fails_does_not_lose_the_others(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARKS)
    accelerator = importlib.import_module("accelerator")

    def fail(*_):
        raise AssertionError  # without a message

    runs = {"good": lambda: 1.0, "bad": fail}
    cases = [(name, None, lambda run=run: (accelerator.Case(run, (), 1), run, {})) for name, run in runs.items()]
    cases.append(("broken", None, lambda: 1 // 0))
    monkeypatch.setattr(accelerator, "cases", lambda args: cases)
    monkeypatch.setattr(accelerator, "prepare", lambda make, precision: make())
    monkeypatch.setattr("sys.argv", ["accelerator.py", "--out", str(tmp_path / "out")])
    accelerator.main()
    results = json.loads((tmp_path / "out.json").read_text())
    assert [row["name"] for row in results["rows"]] == ["good"]
    assert [text.partition(":")[0] for text in results["failed"]] == [
        "bad (AssertionError",
        "broken (ZeroDivisionError",
    ]
    assert "Left out: bad" in (tmp_path / "out.md").read_text()


ONE_BRANCH = {"rebrac": {"policy": 1 + 3, "critic": 1 + 3 + 2}, "sorl": {"policy": 1 + 3 + 5 + 3, "critic": 1 + 3 + 2}}
"""The passes where the compiler counts one branch: of ReBRAC with its policy, and of SORL with one jump."""


@pytest.mark.slow
@every_algorithm
def test_the_passes_of_an_update_are_those_that_the_compiler_counts(module, monkeypatch, without_x64):
    """It counts 0.8 to 2% more, which is all but the matrix products; a pass is more, except of CAC's small policy."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    methods = importlib.import_module("methods")
    one_jump = {"max_jumps": 1} if name_of(module) == "sorl" else {}
    options = {"config": module.Config(**one_jump), "optimizers": module.OPTIMIZERS}
    size, obs, action = methods.BATCH, jnp.ones((methods.BATCH, methods.OBS)), jnp.ones((methods.BATCH, methods.ACTION))
    batch = Transition(obs, action, jnp.ones(size), jnp.ones(size), obs, action)
    networks = module.networks(batch, width=1024, depth=2, key=jax.random.key(0))
    state = module.init(networks, **options)
    update = jax.jit(partial(module.update, **options)).lower(state, batch, key=jax.random.key(0)).compile()
    passes = ONE_BRANCH.get(name_of(module), methods.PASSES[name_of(module)])
    flops = size * sum(count * methods.pass_flops(getattr(networks, name)) for name, count in passes.items())
    assert 1 < update.cost_analysis()["flops"] / flops < 1.025
