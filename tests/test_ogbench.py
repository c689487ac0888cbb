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
from shortcutrl.data import _ogbench

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


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_generation_leaves_no_dataset(how, tmp_path):
    code = (
        "from shortcutrl.data import generate\n"
        "if __name__ == '__main__':\n"
        f"    generate('scene-play-v0', {str(tmp_path / 'cut.npz')!r}, episodes=500, processes=1)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    process = subprocess.Popen([sys.executable, script], stderr=subprocess.PIPE, start_new_session=True)
    assert process.stderr is not None
    while b"episode" not in (said := os.read(process.stderr.fileno(), 4096)):  # the progress bar: the pool is at work
        assert said, "generation ended before it was interrupted"
    time.sleep(5)
    os.killpg(process.pid, how)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert list(tmp_path.iterdir()) == [script]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dataset": "scene-noisy-v0"}, "`dataset` must be one of .*scene-play-v0.*, got 'scene-noisy-v0'"),
        ({"path": "here.txt"}, r"`path` must end in \.npz, got 'here.txt'"),
        ({"episodes": 0}, "`episodes` must be at least 1, got 0"),
        ({"processes": 0}, "`processes` must be at least 1, got 0"),
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
