"""OGBench datasets: made on the spot, read back by OGBench, and what happens when that goes wrong."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import ogbench
import pytest

from shortcutrl import data
from shortcutrl.data import _generate, _ogbench, _oracles

pytestmark = [
    # OGBench declares its action space in float64 and asks for float32, and leaves the files that it reads open.
    pytest.mark.filterwarnings("ignore:.*precision lowered by casting"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ENV = "scene-play-singletask-task1-v0"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tiny dataset, made by one process."""
    folder = tmp_path_factory.mktemp("made")
    return data.generate(
        "scene-play-v0", folder / "tiny.npz", episodes=2, episode_steps=40, seed=3, processes=1, progress=False
    )


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network, and nothing that OGBench downloaded before."""
    monkeypatch.setattr(_ogbench, "_reachable", lambda url: False)
    monkeypatch.setattr(_ogbench.ogbench.utils, "DEFAULT_DATASET_DIR", str(tmp_path / "none"))


def arrays(path):
    with np.load(path) as file:
        return dict(file)


def test_ogbench_loads_what_we_make(made):
    _, train, validation = ogbench.make_env_and_datasets(ENV, dataset_path=str(made))
    assert train["observations"].shape == (78, 40)  # the last step of an episode has no next observation
    assert len(validation["observations"]) == 39
    assert set(np.unique(train["rewards"])) <= set(np.arange(-5.0, 1.0))
    assert np.abs(train["actions"]).max() <= 1
    assert train["actions"].std(0).min() > 0.05  # the oracles move every actuator
    np.testing.assert_array_equal(np.flatnonzero(train["terminals"]), [38, 77])


def test_the_number_of_processes_does_not_matter(made, tmp_path):
    again = data.generate(
        "scene-play-v0", tmp_path / "tiny.npz", episodes=2, episode_steps=40, seed=3, processes=2, progress=False
    )
    for suffix in (".npz", "-val.npz"):
        one, two = (arrays(path.with_name(path.stem + suffix)) for path in (made, again))
        assert one.keys() == two.keys() == {"observations", "actions", "terminals", "qpos", "qvel", "button_states"}
        for key in one:
            np.testing.assert_array_equal(one[key], two[key])
    assert not np.array_equal(one["actions"], arrays(made)["actions"][:40])  # episodes differ


MAZE = {"dataset": "pointmaze-medium-stitch-v0", "episodes": 60, "seed": 5, "processes": 1}


@pytest.fixture(scope="module")
def maze(tmp_path_factory):
    """Made without an interruption."""
    return data.generate(path=tmp_path_factory.mktemp("maze") / "maze.npz", progress=False, **MAZE)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_generation_goes_on_to_the_same_data(how, maze, tmp_path):
    script, path = tmp_path / "script.py", tmp_path / "maze.npz"
    script.write_text(
        "from shortcutrl.data import generate\n"
        "if __name__ == '__main__':\n"
        f"    generate(path={str(path)!r}, **{MAZE})\n"
    )
    process = subprocess.Popen([sys.executable, script], stderr=subprocess.PIPE, start_new_session=True, text=True)
    parts = tmp_path / "maze.parts"
    while len(list(parts.glob("*.npz"))) < 10:
        assert process.poll() is None, "generation ended before it was interrupted"
        time.sleep(0.01)
    os.killpg(process.pid, how)
    said = process.communicate(timeout=60)[1]
    assert process.returncode != 0
    assert said.count("Traceback") == (1 if how == signal.SIGINT else 0)  # the caller's, none of the workers
    assert not path.exists()
    assert len(list(parts.glob("*.npz"))) < 66

    count = len(list(parts.glob("*.npz")))
    resumed = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, timeout=120)
    assert f" {count}/66" in resumed.stderr  # the bar starts where it goes on
    assert " 0/66" not in resumed.stderr
    for suffix in (".npz", "-val.npz"):
        one, two = (arrays(p.with_name(p.stem + suffix)) for p in (maze, path))
        for key in one:
            np.testing.assert_array_equal(one[key], two[key])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["maze-val.npz", "maze.npz", "script.py"]


def test_workers_do_not_outlive_their_parent(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from shortcutrl.data import generate\n"
        "if __name__ == '__main__':\n"
        f"    generate('scene-play-v0', {str(tmp_path / 'cut.npz')!r}, episodes=500, processes=1)\n"
    )
    process = subprocess.Popen([sys.executable, script], stderr=subprocess.DEVNULL, start_new_session=True)
    while not list((tmp_path / "cut.parts").glob("*.npz")):
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()  # the parent only
    process.wait()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    pytest.fail("a worker lives on")


def test_what_another_recipe_left_is_not_used(maze, tmp_path):
    left = _generate._open_parts(tmp_path / "maze.parts", {"dataset": MAZE["dataset"], "seed": 6})
    (left / "0.npz").write_bytes(b"of another seed")
    again = data.generate(path=tmp_path / "maze.npz", progress=False, **MAZE)
    np.testing.assert_array_equal(arrays(again)["actions"], arrays(maze)["actions"])


QUICK = {"cube-double-noisy-v0", "scene-noisy-v0", "puzzle-3x3-noisy-v0", "puzzle-3x3-play-v0"}
QUICK |= {"pointmaze-teleport-navigate-v0", "pointmaze-giant-stitch-v0"}


@pytest.mark.parametrize(
    "dataset", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in data.CAN_GENERATE]
)
def test_every_recipe(dataset):
    behaviour = _oracles.make_behaviour(dataset, episode_steps=12)
    episode = _oracles.record(behaviour, np.random.SeedSequence(1))
    again = _oracles.record(behaviour, np.random.SeedSequence(1))
    assert episode is not None
    assert again is not None
    for key, values in episode.items():
        assert len(values) == 12
        np.testing.assert_array_equal(values, again[key])  # whatever the process did before
    assert np.abs(episode["actions"]).max() <= 1
    assert episode["terminals"].tolist() == [False] * 11 + [True]
    behaviour.env.close()


def test_recipes_are_of_the_published_sizes():
    """Episodes and steps in the commands that OGBench publishes (data_gen_scripts/commands.sh)."""
    assert len(_oracles.RECIPES) == 26
    million = [name for name, recipe in _oracles.RECIPES.items() if recipe == (1000, 1001)]
    assert len(million) == 2 * (2 + 1 + 2) + 3
    for name in ("cube-triple-play-v0", "puzzle-4x5-noisy-v0"):
        assert _oracles.RECIPES[name] == (3000, 1001)
    for name in ("cube-quadruple-noisy-v0", "puzzle-4x6-play-v0"):
        assert _oracles.RECIPES[name] == (5000, 1001)
    assert _oracles.RECIPES["pointmaze-giant-navigate-v0"] == (500, 2001)
    assert _oracles.RECIPES["pointmaze-teleport-stitch-v0"] == (5000, 201)


def test_stitch_ends_four_cells_away_and_navigate_goes_on():
    def visited(dataset, steps):
        behaviour = _oracles.make_behaviour(dataset, steps)
        for seed in range(10):
            episode = _oracles.record(behaviour, np.random.SeedSequence(seed))
            assert episode is not None
            yield behaviour, [behaviour.maze.xy_to_ij(xy) for xy in episode["observations"]]

    for behaviour, cells in visited("pointmaze-large-stitch-v0", 201):
        near = behaviour._cells_at_distance(cells[0], 4)
        reached = min(np.hypot(*np.subtract(behaviour.maze.xy_to_ij(behaviour.maze.get_xy()), c)) for c in near)
        assert reached <= 1  # within the goal's tolerance of a quarter cell, and noise
    assert np.mean([len(set(cells)) for _, cells in visited("pointmaze-large-navigate-v0", 1001)]) > 15


def test_noisy_data_is_noisier_than_play():
    """White noise and random actions: successive actions agree less."""

    def agreement(dataset):
        behaviour = _oracles.make_behaviour(dataset, 400)
        episode = _oracles.record(behaviour, np.random.SeedSequence(0))
        assert episode is not None
        action = episode["actions"][:, :3]
        return np.mean([np.corrcoef(a[1:], a[:-1])[0, 1] for a in action.T])

    assert agreement("cube-single-play-v0") > agreement("cube-single-noisy-v0") + 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("size", "lights"), [("3x3", 9), ("4x4", 16)])
def test_rewards_of_a_puzzle_are_as_chance_has_it(size, lights, tmp_path):
    """Lights begin at random and presses keep them so: on average half of them are wrong, whatever the goal."""
    name = f"puzzle-{size}-play"
    path = data.generate(f"{name}-v0", tmp_path / "x.npz", episodes=6, episode_steps=200, progress=False)
    _, train, _ = ogbench.make_env_and_datasets(f"{name}-singletask-task1-v0", dataset_path=str(path))
    assert -train["rewards"].mean() == pytest.approx(lights / 2, rel=0.1)
    assert (train["masks"] == 0).mean() < 0.02  # one state in 512; in 4x4 OGBench's own million steps never solve it
    assert size == "3x3" or train["rewards"].max() <= -1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dataset": "scene-nosy-v0"}, "`dataset` must be one of .*scene-noisy-v0.*, got 'scene-nosy-v0'"),
        ({"path": "here.txt"}, r"`path` must end in \.npz, got 'here.txt'"),
        ({"episodes": 0}, "`episodes` must be at least 1, got 0"),
        ({"processes": 0}, "`processes` must be at least 1, got 0"),
        ({"seed": -1}, "`seed` must not be negative, got -1"),
    ],
)
def test_generate_refuses(changed, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        data.generate(**({"dataset": "scene-play-v0", "path": tmp_path / "x.npz"} | changed))


def test_a_folder_that_cannot_be_written_is_found_out_first(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        data.generate("scene-play-v0", tmp_path / "file" / "x.npz")


def cached(folder, made=None):
    """Where `load_ogbench` keeps a dataset of 2 episodes; with copies of `made`."""
    path = folder / "scene-play-v0-2-episodes-seed-0.npz"
    for suffix in (".npz", "-val.npz") if made else ():
        path.with_name(path.stem + suffix).write_bytes(made.with_name(made.stem + suffix).read_bytes())
    return path


def test_a_dataset_is_found_again(made, offline, tmp_path):
    path = cached(tmp_path, made)
    task = data.load_ogbench(ENV, folder=tmp_path, episodes=2)
    assert task.path == path
    assert task.dataset.obs.shape == (78, 40)
    assert task.episode_end.sum() == 2
    assert task.make_env().spec.id == "scene-singletask-task1-v0"


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"not a dataset", lambda data: b""]
)
def test_a_damaged_file_is_named(damage, made, offline, tmp_path):
    path = cached(tmp_path, made)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"{path.name} cannot be read as an OGBench dataset .* Delete it"):
        data.load_ogbench(ENV, folder=tmp_path, episodes=2)


def test_half_a_pair_is_not_taken_for_whole(made, offline, tmp_path, monkeypatch):
    path = cached(tmp_path, made)
    path.with_name(f"{path.stem}-val.npz").unlink()
    asked = []
    monkeypatch.setattr(_ogbench, "generate", lambda name, to, **_: asked.append(to) or made)
    assert data.load_ogbench(ENV, folder=tmp_path, episodes=2).path == made
    assert asked == [path]


def test_an_unknown_name_gets_a_suggestion():
    with pytest.raises(ValueError, match="did you mean 'scene-play-singletask-task1-v0'"):
        data.load_ogbench("scene-pley-singletask-task1-v0")
    with pytest.raises(ValueError, match="`name` must be an OGBench single-task dataset, got 'scene-play-v0'"):
        data.load_ogbench("scene-play-v0")


def test_what_can_be_neither_downloaded_nor_made_says_which_file_to_put_where(offline, tmp_path):
    with pytest.raises(OSError, match=r"antmaze-large-navigate-v0\.npz and .*-val\.npz .* into .*none"):
        data.load_ogbench("antmaze-large-navigate-singletask-v0", folder=tmp_path)
