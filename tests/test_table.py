"""The table of many agents: its statistics against hand-computed values, and what it says of cells that are missing."""

import dataclasses
import importlib
import importlib.util
import itertools
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from running import ENV, finish, start

from shortcutrl import Transition, algorithms, data
from shortcutrl.runs import Run, read_rows
from shortcutrl.suites import Task, ogbench

FOLDER = Path(__file__).parents[1] / "benchmarks" / "ogbench"


def load(name):
    spec = importlib.util.spec_from_file_location(f"ogbench_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", autouse=True)
def in_folder():
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def table(in_folder):
    return load("table")


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
    scores = table.scores_of(table.read((file,)))
    np.testing.assert_array_equal(scores["good"]["a"], [75, 100, 75, 100])
    np.testing.assert_array_equal(scores["poor"]["a"], [0, 25, 0, 25])
    assert "b" not in scores["poor"]


def test_an_agent_that_was_evaluated_again_counts_once(table, file):
    again = file.with_name("again.jsonl")
    again.write_text(line("good", "a", 0, [0, 0, 0, 0]) + "\n")
    assert table.scores_of(table.read((file, again)))["good"]["a"].tolist() == [0, 100, 75, 100]


def test_the_interquartile_mean_leaves_out_a_quarter_at_each_end(table):
    assert table.iqm([np.array([0.0, 10, 20, 30]), np.array([40, 50, 60, 1000])]) == 35
    assert table.iqm([np.array([5.0, 5, 5, 5])]) == 5


def test_the_interval_resamples_seeds_within_each_task(table):
    """Two tasks of no variance: resampling within them can only ever give their mean."""
    assert table.interval([np.zeros(4), np.full(4, 100.0)], table.mean, 200) == (50, 50)
    low, high = table.interval([np.array([0.0, 100] * 50)], table.mean, 2000)
    assert low == pytest.approx(50 - 9.8, abs=1.5)  # the normal approximation: 1.96 * 50 / sqrt(100)
    assert high == pytest.approx(50 + 9.8, abs=1.5)


@pytest.mark.parametrize("rate", [(1, 4), (5, 5), (20, 5)])
def test_the_interval_of_four_seeds_contains_the_mean_in_about_four_of_five_cases(table, rate):
    rng, contained = np.random.default_rng(0), []
    for _ in range(400):
        scores = rng.binomial(50, rng.beta(*rate, 4)) / 50
        low, high = table.interval([scores], table.mean, 400)
        contained.append(low <= rate[0] / sum(rate) <= high)
    assert 0.75 < np.mean(contained) < 0.85


def test_one_seed_has_no_interval(table):
    assert np.isnan(table.interval([np.zeros(4), np.ones(1)], table.mean, 10)).all()
    assert "| single | 40, n=1 | 40, n=1 | 40 |" in shown(table, {"single": {"a": np.array([40.0])}})


def shown(table, scores):
    return table.markdown(scores, table.rows(scores, 10), 1000, [])


def test_halves_are_rounded_up(table):
    """Formats round halves to even: 97.5 and 98.5 would both be shown as 98."""
    text = shown(table, {"x": {"a": np.array([97.5])}, "y": {"a": np.array([98.5])}})
    assert "| x | 98, n=1 |" in text
    assert "| y | 99, n=1 |" in text


def test_the_probability_of_improvement_counts_ties_half_and_tasks_alike(table):
    x, y = np.array([1.0, 2.0]), np.array([1.0, 0.0])
    assert table.improvement([x, y]) == (0.5 + 1 + 1 + 1) / 4
    assert table.improvement([y, x]) == 1 - 3.5 / 4
    assert table.improvement([x, np.ones(8), y, np.zeros(8)]) == (3.5 / 4 + 1) / 2


def test_the_probability_of_improvement_has_an_interval_and_only_over_shared_tasks(table):
    """By chance, resampling takes the runs alone that are equal: then it is 0.5."""
    x, y = np.array([1.0, 2.0]), np.array([1.0, 0.0])
    text = shown(table, {"x": {"a": x, "b": x}, "y": {"a": y}, "z": {"b": x}})
    assert "| x |  | 0.88 (" in text
    assert "| y | 0.12 (0.00 to 0.50) |  | missing |" in text
    assert table.interval([x, y], table.improvement, 1000) == (0.5, 1)


def test_missing_cells_are_shown_as_missing(table, file):
    scores = table.scores_of(table.read((file,)))
    text = shown(table, scores)
    assert "| poor | 13 (" in text
    assert text.count("missing") == 1  # `poor` on task b; "all" is over the task that both have
    assert "`all` is over a, which all methods have, with the first 4 seeds of each." in text
    assert {(row["method"], row["task"]) for row in table.rows(scores, 10)} == {
        *(("good", task) for task in ("a", "b", "all")),
        *(("poor", task) for task in ("a", "all")),
    }


def test_methods_without_a_shared_task_are_not_compared(table, file, monkeypatch, capsys):
    assert "| x |  | missing |" in shown(table, {"x": {"a": np.ones(2)}, "y": {"b": np.ones(2)}})
    file.write_text(line("x", "a", 0, [1]) + "\n" + line("y", "b", 0, [1]) + "\n")
    (file.parent / "table.png").touch()
    monkeypatch.setattr(sys, "argv", ["table.py", str(file), "--out", str(file.parent)])
    table.main()
    assert "No task has all methods, so there is no figure." in capsys.readouterr().out
    assert not (file.parent / "table.png").exists()


def test_a_task_with_more_seeds_does_not_count_more(table):
    easy, hard = np.full(8, 100.0), np.zeros(8)
    scores = {"x": {"a": easy, "b": hard[:2]}, "y": {"a": easy[:2], "b": hard}}
    both = [row for row in table.rows(scores, 10) if row["task"] == "all"]
    assert [(row["mean"], row["iqm"], row["runs"]) for row in both] == [(50, 50, 4)] * 2


def test_the_figure_shows_the_numbers_of_the_table(table, monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr(table.plt, "close", figures.append)
    scores = {"x": {"a": np.array([10.0, 20])}, "y": {"a": np.array([30.0, 50]), "b": np.ones(2)}}
    rows = table.rows(scores, 100)
    table.draw(scores, rows, tmp_path / "table.png")
    left, right = figures[0].axes
    about = [row for row in rows if row["task"] == "all"]
    assert [line.get_xdata().tolist() for line in left.lines[::2]] == [
        [row["iqm_low"], row["iqm_high"]] for row in about
    ]
    assert [line.get_xdata().tolist() for line in left.lines[1::2]] == [[row["iqm"]] for row in about]
    assert [line.get_ydata()[[0, -1]].tolist() for line in right.lines] == [[1, 0], [1, 0]]
    assert (tmp_path / "table.png").stat().st_size > 5000


def test_settings_that_methods_do_not_share_are_named(table, file):
    shared = {"task": "a", "success": [1], "width": 8}
    agents = [{**shared, "method": "x", "seed": seed, "updates": 5, "sha256": "ab"} for seed in (0, 1)]
    agents += [{**shared, "method": "y", "seed": 0, "updates": 9, "sha256": "cd"}, {**agents[0], "method": "z"}]
    file.write_text("\n".join(map(json.dumps, agents)))
    notes = table.differences(table.read((file,)))
    assert notes == [
        "Methods differ in updates: 5 (x, z); 9 (y).",
        "Methods differ in sha256 on a: ab (x, z); cd (y).",
    ]
    assert table.differences(table.read((file,))[:2]) == []


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("config", ({"tau": 0}, {"tau": 1})),
        ("file", ("ab12", "cd34")),
        ("success", ([1], [1, 0])),
    ],
)
def test_agents_of_different_settings_are_not_averaged(table, file, name, values):
    shared = {"method": "x", "task": "a", "success": [1]}
    agents = [{**shared, "seed": seed, name: value} for seed, value in enumerate(values)]
    file.write_text("\n".join(json.dumps(agent) for agent in agents))
    with pytest.raises(
        ValueError,
        match=rf"agents\.jsonl:2 has another {name.replace('success', 'episodes')} than other lines of x on a",
    ):
        table.read((file,))


def test_the_table_compares_all_settings_that_a_training_records(table, run):
    """The number of episodes of a dataset is not one of them: it is known by its checksum."""
    assert {*run.TRAINING} - {"data_episodes"} <= {*table.SETTINGS}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{}", "KeyError: 'method'"),
        (line("x", "a", "one", [1]), "ValueError: invalid literal for int.*'one'"),
        (line("x", "a", 0, []), r"ValueError: `success` must have a 0 or 1 for each episode, got \[\]"),
        (line("x", "a", 0, [1, 7]), r"ValueError: `success` must have a 0 or 1 for each episode, got \[1, 7\]"),
    ],
)
def test_a_line_that_is_none_is_named(table, file, text, why):
    file.write_text(file.read_text() + text + "\n")
    with pytest.raises(ValueError, match=rf"agents\.jsonl:13 is not a line of run\.py \({why}"):
        table.read((file,))


# ------------------------------------------------------------------------- the agents that it is made of


def test_one_learning_rate_for_all_methods_replaces_the_published_optimizers(in_folder):
    settings = importlib.import_module("settings")
    args = settings.Args(methods=("sorl",), tasks=(ENV,), updates=20)
    assert settings.optimizers(args, algorithms.sorl) is algorithms.sorl.OPTIMIZERS
    chosen = settings.optimizers(dataclasses.replace(args, learning_rate=1e-2), algorithms.iql)
    assert isinstance(chosen, type(algorithms.iql.OPTIMIZERS))
    for optimizer in chosen:
        state, rates = optimizer.init(jnp.zeros(1)), []
        for _ in range(21):
            step, state = optimizer.update(jnp.ones(1), state)  # of a constant gradient, Adam's step is the rate
            rates.append(-float(step[0]))
        np.testing.assert_allclose(rates[:3] + rates[-1:], [0, 5e-3, 1e-2, 0], atol=1e-7)
        assert sorted(rates[2:], reverse=True) == rates[2:]


TASKS = tuple(f"cube-single-play-singletask-task{task}-v0" for task in (1, 2))
AGENTS = list(itertools.product(TASKS, (0, 1)))


@pytest.fixture
def run(in_folder, monkeypatch, tmp_path):
    """run.py with two small tasks of one environment, which must not be made."""
    module, rng, tasks = load("run"), np.random.default_rng(0), {}
    file = tmp_path / "dataset.npz"
    file.write_bytes(b"")
    arrays = {"observations": rng.normal(size=(40, 3)), "actions": rng.uniform(-1, 1, (40, 2))}
    for name in TASKS:
        dataset = data.from_arrays(
            **arrays, rewards=rng.normal(size=40), terminals=np.zeros(40), timeouts=np.arange(40) % 10 == 9
        )
        dataset = dataset._replace(mask=jnp.asarray(rng.random(40) < 0.8, jnp.float32))
        tasks[name] = Task(dataset, lambda: pytest.fail("made an environment"), file)
    monkeypatch.setattr("shortcutrl.suites.ogbench.load", lambda name, episodes: tasks[name])
    module.load_tasks.cache_clear()
    return module


def small(run, out):
    sizes = {"updates": 4, "updates_per_checkpoint": 2, "batch_size": 8, "width": 8, "depth": 1, "n_step": 2}
    return run.Args(methods=("iql",), tasks=TASKS, out=out, episodes=0, **sizes)


def test_agents_that_train_together_learn_what_they_learn_alone(run, tmp_path):
    args, module, tasks = small(run, tmp_path), run.load("sorl"), run.load_tasks(TASKS, None)
    assert tasks[TASKS[0]].dataset.obs is tasks[TASKS[1]].dataset.obs
    states = {}
    for place, size in (("together", 4), ("alone", 1)):
        with ExitStack() as stack:
            runs = [stack.enter_context(Run(tmp_path / place / task / str(seed), {})) for task, seed in AGENTS]
            group = [run.Agent(task, seed, each) for (task, seed), each in zip(AGENTS, runs, strict=True)]
            for first in range(0, 4, size):
                run.train(args, module, module.Config(), tasks, group[first : first + size], 4, float("inf"))
        assert [agent.run.step for agent in group] == [4] * 4
        restored = [run.restore(args, module, module.Config(), tasks[agent.task].dataset, agent) for agent in group]
        states[place] = [np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state)]) for state in restored]
    np.testing.assert_allclose(states["together"], states["alone"], rtol=1e-5, atol=1e-7)
    assert all(np.abs(x - y).max() > 1e-4 for x, y in itertools.combinations(states["alone"], 2))


def test_all_agents_of_an_environment_train_together_once_they_have_reached_the_same_update(run, tmp_path, monkeypatch):
    args = dataclasses.replace(small(run, tmp_path), updates=3)
    clock = SimpleNamespace(monotonic=itertools.count().__next__)
    for module in (run, sys.modules["training"]):
        monkeypatch.setattr(module, "time", clock)
    assert run.agents(args, "iql", TASKS[:1], AGENTS[:1], 3) == 1  # on a CPU, until the first checkpoint
    assert run.agents(args, "iql", TASKS, AGENTS, 3) == 4  # the time is up
    monkeypatch.setattr(run.jax, "default_backend", lambda: "gpu")
    assert run.agents(args, "iql", TASKS, AGENTS, float("inf")) == 0
    folders = {(task, seed): tmp_path / "iql" / task / f"seed-{seed}" for task, seed in AGENTS}
    trained = {key: read_rows(folder, "training") for key, folder in folders.items()}
    together = {key: [(row["step"], row["together"]) for row in rows] for key, rows in trained.items()}
    assert together == {key: [(2, 1 if key == AGENTS[0] else 3), (3, 4)] for key in AGENTS}
    assert run.trained(SimpleNamespace(folder=folders[AGENTS[0]]))["seconds"] == sum(
        row["seconds"] for row in trained[AGENTS[0]]
    )
    assert not list(tmp_path.glob("*.jsonl"))


@pytest.mark.parametrize("methods", [("iql", "own/iql.py"), ("own/bc.py",), ("a/mine.py", "b/mine.py"), ("bc", "bc")])
def test_methods_of_one_name_are_refused(run, methods):
    with pytest.raises(ValueError, match=f"`methods`: another method has the name of {methods[0]}. Rename"):
        run.check_names(methods)
    run.check_names(("iql", "bc", "own/mine.py", "own/mine.v2.py"))


def test_a_change_of_no_method_is_refused(run):
    methods = "iql", "own/mine.py", "own/mine.v2.py"
    run.check_changes(methods, "set", ("mine.tau=0.01", "mine.v2.tau=0.01"))
    with pytest.raises(ValueError, match=r"`set`: 'sorll.q_weight=3' changes none of iql, mine, mine.v2"):
        run.check_changes(methods, "set", ("mine.tau=0.01", "sorll.q_weight=3"))


def test_an_actor_that_cannot_act_is_refused_before_the_training(run, tmp_path):
    args = dataclasses.replace(small(run, tmp_path), act=("iql.kk=4",))
    with pytest.raises(ValueError, match=r"`act`: the actor of .*iql cannot act with {'kk': 4}: .*'kk'"):
        run.agents(args, "iql", TASKS, AGENTS[:1], float("inf"))
    assert not list(tmp_path.rglob("training.jsonl"))


OTHER = "state._replace(policy=jax.tree.map(lambda leaf: leaf.astype('float16'), state.policy)), state"


@pytest.mark.parametrize(
    ("result", "message"),
    [
        *((result, " and a NamedTuple") for result in ("state", "state, {}", "(state,), NamedTuple('Info', [])()")),
        (OTHER, r", but \.policy.* is float16\[3, 8\], not float64\[3, 8\]"),
    ],
)
def test_an_update_that_returns_something_else_is_refused_before_the_training(run, tmp_path, result, message):
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from typing import NamedTuple\n"
        "import jax\n"
        "from shortcutrl.algorithms.bc import OPTIMIZERS, Config, actor, init, networks\n"
        "def update(state, batch, *, config, optimizers, key):\n"
        f"    return {result}\n"
    )
    with pytest.raises(ValueError, match=f"`update` of mine must return a state like that of `init`{message}"):
        run.agents(small(run, tmp_path), str(mine), TASKS, AGENTS[:1], float("inf"))
    assert list(tmp_path.rglob("settings.json")) == []  # so that the same command runs the corrected file


def test_a_state_that_jit_cannot_carry_is_refused_before_the_training(run, tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from shortcutrl.algorithms.bc import OPTIMIZERS, Config, State, actor, networks, update\n"
        "def init(networks, *, config, optimizers):\n"
        "    return State(networks.policy, {'f': len})\n"
    )
    with pytest.raises(ValueError, match=r"`init` of mine made a state with .*'f'\] = <built-in func"):
        run.agents(small(run, tmp_path), str(mine), TASKS, AGENTS[:1], float("inf"))


def test_chunks_are_trained_and_evaluated(run, tmp_path, monkeypatch):
    taken = []

    class Environment(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
        action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

        def reset(self, *, seed=None, options=None):
            taken.clear()
            return np.zeros(3, np.float32), {}

        def step(self, action):
            taken.append(action)
            return np.zeros(3, np.float32), 0.0, len(taken) == 7, False, {"success": True}

    task = ogbench.load(TASKS[0], None)._replace(make_env=Environment)
    monkeypatch.setattr("shortcutrl.suites.ogbench.load", lambda name, episodes: task)
    args = dataclasses.replace(small(run, tmp_path), chunk=3, episodes=1, processes=0)
    assert run.agents(args, "fql", TASKS[:1], AGENTS[:1], float("inf")) == 0
    (row,) = read_rows(tmp_path, "agents")
    assert (row["chunk"], row["success"], len(taken)) == (3, [1], 7)
    assert len(np.unique(np.stack(taken[:3]), axis=0)) == 3  # the actions of one chunk


def test_a_list_on_the_command_line_is_a_tuple_in_any_config(run, tmp_path):
    """Which a file of a user's own may cache on."""
    args = dataclasses.replace(small(run, tmp_path), set=("iql.clip=[-0.5, 0.5]",))
    module = SimpleNamespace(Config=dataclasses.make_dataclass("Config", [("clip", tuple, (-1.0, 1.0))], frozen=True))
    assert hash(sys.modules["settings"].configure(args, module, "iql", "mine")) == hash(module.Config((-0.5, 0.5)))


def test_a_setting_may_shape_the_networks(run, tmp_path):
    """A critic that sees k would not act without it."""
    args = dataclasses.replace(small(run, tmp_path), set=("sorl.condition_critic_on_k=false",))
    module, dataset = run.load("sorl"), run.load_tasks(TASKS, args.data_episodes)[TASKS[0]].dataset
    run.check_actor(args, module, run.configure(args, module, "sorl", TASKS[0]), dataset, {"n": 2})


def test_a_setting_of_another_type_is_refused(run, tmp_path):
    args = dataclasses.replace(small(run, tmp_path), set=("iql.alpha=abc",))
    with pytest.raises(
        ValueError, match=r"`set`: the settings {'alpha': 'abc'} do not fit iql: `alpha` must be a number"
    ):
        run.configure(args, run.load("iql"), "iql", TASKS[0])


def test_agents_of_an_edited_file_are_not_those_of_the_file(run, tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(Path(algorithms.__path__[0], "bc.py").read_text())
    assert run.agents(small(run, tmp_path), str(mine), TASKS, AGENTS[:1], float("inf")) == 0
    mine.write_text(mine.read_text() + "# edited\n")
    run.checksum.cache_clear()
    with pytest.raises(ValueError, match=r"`settings`: .* holds a run with \{'file'"):
        run.agents(small(run, tmp_path), str(mine), TASKS, AGENTS[:1], float("inf"))


def test_agents_on_a_cpu_train_one_after_the_other(run, tmp_path, monkeypatch):
    trained = []

    def train(args, module, config, tasks, group, until, end):
        for agent in group:
            trained.append((agent.task, agent.seed, until))
            agent.run.step += 2  # as if interrupted after the first checkpoint

    monkeypatch.setattr(run, "train", train)
    assert run.agents(small(run, tmp_path), "iql", TASKS, AGENTS, float("inf")) == 0
    assert trained == [(task, seed, 4) for task, seed in AGENTS for _ in range(2)]


@pytest.mark.slow
def test_agents_are_trained_and_evaluated_once(home, tmp_path):
    options = ["--methods", "bc", "ifql", "--tasks", ENV, "--seeds", "2", "--set", "ifql.num_candidates=2"]
    sizes = ["--updates", "2", "--updates-per-checkpoint", "1", "--width", "8", "--depth", "1", "--chunk", "2"]
    small = ["--data-episodes", "1", "--processes", "1", "--out", tmp_path]
    only_train, only_evaluate = ["--episodes", "0"], ["--episodes", "1", "--minutes", "0"]
    for step, said in (
        (only_evaluate, "4 agents of this"),
        (only_train, "0 of 4"),
        (only_evaluate, "bc on"),
        ([], "4 of 4"),
    ):
        printed = finish(start(home, FOLDER / "run.py", *options, *sizes, *small, *step))
        assert said in printed
        assert (tmp_path / "agents.jsonl").exists() == (said in ("bc on", "4 of 4"))
    rows = [json.loads(row) for row in (tmp_path / "agents.jsonl").read_text().splitlines()]
    assert [(row["method"], row["seed"]) for row in rows] == [("bc", 0), ("bc", 1), ("ifql", 0), ("ifql", 1)]
    assert rows[2]["config"]["num_candidates"] == 2
    assert {"sha256", "commit", "jax", "device", "seconds", "success"} <= rows[0].keys()
    assert rows[0]["together"] == 1
    process = start(home, FOLDER / "run.py", *options, *sizes, *small, "--updates", "3")
    assert "`label`" in process.communicate(timeout=300)[1]
    assert process.returncode == 1


@pytest.mark.slow
def test_each_process_trains_its_share_and_the_table_has_all(table, home, tmp_path):
    options = ["--methods", "bc", "--tasks", ENV, "--seeds", "3", "--updates", "1", "--width", "8", "--depth", "1"]
    small = ["--data-episodes", "1", "--episodes", "1", "--processes", "1", "--out", tmp_path, "--share"]
    for share, count in (("1/2", 1), ("0/2", 3)):
        assert f"{count} of 3 agents" in finish(start(home, FOLDER / "run.py", *options, *small, share))
    rows = {path.stem: path.read_text().splitlines() for path in tmp_path.glob("*.jsonl")}
    seeds = {name: [json.loads(row)["seed"] for row in lines] for name, lines in rows.items()}
    assert seeds == {"agents_0_of_2": [0, 2], "agents_1_of_2": [1]}
    assert len(table.scores_of(table.read(tuple(tmp_path.glob("*.jsonl"))))["bc"][ENV]) == 3


@pytest.mark.slow
@pytest.mark.parametrize("share", ["2/2", "1", "a/2", "-1/2", "0/0"])
def test_a_share_that_is_none_is_named(home, tmp_path, share):
    process = start(home, FOLDER / "run.py", "--methods", "bc", "--tasks", ENV, "--out", tmp_path, f"--share={share}")
    _, complained = process.communicate(timeout=300)
    assert process.returncode == 1
    assert complained.strip() == f"run.py (share {share}): `share` must be like 0/4, 1/4, ..., 3/4, got {share!r}."


REPOSITORY = """
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any
import jax, jax.numpy as jnp, equinox as eqx


class Options(SimpleNamespace):
    __contains__ = lambda self, name: hasattr(self, name)
    __setitem__ = lambda self, name, value: setattr(self, name, value)


def get_config():
    return Options(actor_hidden_dims=(), value_hidden_dims=(), alpha=10.0, discount=0.9, tau=0.1)


@partial(jax.tree_util.register_dataclass, data_fields=["params", "opt_state"], meta_fields=["apply_fn", "tx"])
@dataclass
class TrainState:
    params: dict
    apply_fn: Any
    opt_state: Any = None
    tx: Any = None

    def replace(self, **fields):
        return replace(self, **fields)


class FQLAgent(eqx.Module):
    network: TrainState
    options: tuple = eqx.field(static=True)

    @staticmethod
    def create(seed, obs, action, options):
        mean = jnp.zeros(action.shape[1:])
        options = options.alpha, options.discount, options.tau, options.actor_hidden_dims
        return FQLAgent(TrainState({"actor": mean, "target": mean}, lambda: None), options)

    def replace(self, network):
        return FQLAgent(network, self.options)

    def update(self, batch):
        gradients = {name: 1e3 * (i + 1) * jnp.ones(2) for i, name in enumerate(self.network.params)}
        updates, opt_state = self.network.tx.update(gradients, self.network.opt_state)
        params = {name: value + updates[name] for name, value in self.network.params.items()}
        network = self.network.replace(params=params, opt_state=opt_state)
        return self.replace(network), {"critic/q_mean": batch["rewards"].mean()}

    def sample_actions(self, obs, seed, temperature):
        return self.network.params["actor"] + 0.01 * temperature * jax.random.normal(seed, (2,))
"""


def test_agents_of_a_checkout_of_the_fql_repository_fit_the_contract(monkeypatch, tmp_path):
    module = load("fql_repository")
    config = module.Config(alpha=3.0)
    batch = Transition(
        *map(jnp.asarray, (np.ones((4, 3)), np.full((4, 2), 0.5), np.ones(4), np.ones(4), np.ones((4, 3))))
    )
    networks = module.networks(batch, width=8, depth=2, key=jax.random.key(0))
    monkeypatch.setenv("FQL_REPOSITORY", str(tmp_path))
    with pytest.raises(ValueError, match="`FQL_REPOSITORY` must be the path of a checkout"):
        module.init(networks, config=config, optimizers=module.OPTIMIZERS)
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "fql.py").write_text(REPOSITORY)
    monkeypatch.setattr(sys, "path", list(sys.path))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.5))
    state = module.init(networks, config=config, optimizers=optimizer)
    assert state.options == (3.0, 0.99, 0.005, (8, 8))
    assert state.network.params["actor"] is not state.network.params["target"]  # run.py donates the state
    networks = module.networks(batch, width=8, depth=2, key=jax.random.key(1))
    other = module.init(networks, config=config, optimizers=optimizer)
    assert jax.tree.structure(state) == jax.tree.structure(other)  # run.py trains them together
    state, info = module.update(state, batch, config=config, optimizers=optimizer, key=jax.random.key(0))
    assert info.q == 1
    for params in state.network.params.values():  # each network clips its own gradient
        np.testing.assert_allclose(params, -0.5 / np.sqrt(2), rtol=1e-5)
    act, noise = (
        module.actor(state, config=config),
        jax.random.normal(jax.random.key(0), (2, *module.noise_shape(2, config=config))),
    )
    actions = jax.vmap(lambda noise: act(jnp.ones(3), noise))(noise)
    np.testing.assert_allclose(actions, -0.5 / np.sqrt(2), atol=0.1)
    assert (actions[0] != actions[1]).all()
