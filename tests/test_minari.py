"""Minari's datasets, created locally: the transitions that were recorded, and the environment they came from."""

import pickle
import re
import shutil
import subprocess
import sys
import warnings

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, Tuple

from shortcutrl import data

minari_package = pytest.importorskip("minari")
h5py = pytest.importorskip("h5py")

from minari.data_collector import EpisodeBuffer  # noqa: E402

from shortcutrl.suites import Task, minari  # noqa: E402

PENDULUM, MANY = "pendulum/random-v0", 6
ABOUT = {"algorithm_name": "random", "author": "a", "author_email": "a@b.c", "code_permalink": "https://x.y"}


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("minari")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("MINARI_DATASETS_PATH", str(path))
        warnings.simplefilter("ignore")  # Minari's, about a description that is missing
        collect()
        yield path


@pytest.fixture
def copy(folder, tmp_path, monkeypatch):
    """A copy of the Pendulum's dataset, to be damaged."""
    shutil.copytree(folder / PENDULUM, tmp_path / PENDULUM)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return tmp_path / PENDULUM


def collect():
    """Two episodes of Pendulum, of `MANY` steps, which are cut off and never terminal."""
    env = minari_package.DataCollector(gymnasium.make("Pendulum-v1", max_episode_steps=MANY))
    env.action_space.seed(0)
    for seed in range(2):
        env.reset(seed=seed)
        for _ in range(MANY):
            env.step(env.action_space.sample())
    env.create_dataset(dataset_id=PENDULUM, **ABOUT)
    env.close()


def store(name, episodes, *, observations=None, actions=None, env=None):
    """A dataset of episodes that are given as lists of (observation, action, reward, terminated) and a last one."""
    buffers = []
    for i, (steps, last) in enumerate(episodes):
        *before, end = steps
        buffer = EpisodeBuffer(
            id=i,
            observations=jax.tree.map(lambda *x: list(x), *[step[0] for step in steps], last),
            actions=[step[1] for step in steps],
            rewards=[step[2] for step in steps],
            terminations=[False for _ in before] + [end[3]],
            truncations=[False for _ in before] + [not end[3]],
        )
        buffers.append(buffer)
    spaces = {"observation_space": observations or Box(-9, 9, (2,)), "action_space": actions or Box(-1, 1, (2,))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        minari_package.create_dataset_from_buffers(name, buffers, env=env, **spaces, **ABOUT)


def walk(first, steps, *, terminated, observe=lambda i: np.full(2, i, np.float32)):
    """Steps that count: the observation, the action and the reward of step i come from i."""
    numbers = range(first, first + steps)
    return [(observe(i), np.full(2, i / 100, np.float32), float(i), terminated) for i in numbers], observe(
        first + steps
    )


def recorded(name):
    return list(minari_package.load_dataset(name).iterate_episodes())


def test_the_transitions_are_those_that_were_recorded(folder):
    task, episodes = minari.load(PENDULUM), recorded(PENDULUM)
    assert isinstance(task, Task)
    assert task.source == folder / PENDULUM
    expected = {
        tuple(np.float32([*e.observations[t], *e.actions[t] / 2, e.rewards[t], 1, *e.observations[t + 1]]).round(4))
        for e in episodes
        for t in range(MANY)
    }
    batch = data.sample(task.dataset, jax.random.key(0), batch_size=400)
    columns = batch.obs, batch.action, batch.reward[:, None], batch.mask[:, None], batch.next_obs
    assert set(map(tuple, np.concatenate(columns, axis=1).round(4))) == expected
    assert len(expected) == 2 * MANY


def test_actions_in_the_data_have_the_effect_in_the_environment_that_was_recorded():
    task = minari.load(PENDULUM)
    assert isinstance(task.scale, data.ActionScale)
    assert (task.scale.low.tolist(), task.scale.high.tolist()) == ([-2], [2])
    make_env = pickle.loads(pickle.dumps(task.make_env))
    with make_env(render_mode="rgb_array") as env:
        assert env.spec.max_episode_steps == MANY
        assert (env.action_space.low, env.action_space.high) == (-1, 1)
        assert env.render_mode == "rgb_array"
        obs, _ = env.reset(seed=0)
        for row in range(MANY):
            np.testing.assert_allclose(obs, task.dataset.obs[row], atol=1e-5)
            obs, reward, *_ = env.step(np.asarray(task.dataset.action[row]))
            np.testing.assert_allclose(reward, task.dataset.reward[row], rtol=1e-4)


def test_actions_stay_as_they_are_on_request():
    task = minari.load(PENDULUM, rescale=False)
    assert task.scale is None
    np.testing.assert_array_equal(task.dataset.action[:MANY], recorded(PENDULUM)[0].actions)


def test_actions_in_the_unit_range_need_no_scale():
    store("unit-v0", [walk(0, 3, terminated=True)])
    assert minari.load("unit-v0").scale is None


def test_a_terminal_state_is_kept_and_not_bootstrapped_from():
    store("ends-v0", [walk(0, 3, terminated=True), walk(10, 2, terminated=False), walk(20, 1, terminated=True)])
    dataset = minari.load("ends-v0").dataset
    batch = data.sample(dataset, jax.random.key(0), batch_size=400)
    drawn = np.stack(
        [batch.obs[:, 0], batch.action[:, 0] * 100, batch.reward, batch.mask, batch.next_obs[:, 0]], axis=1
    )
    assert set(map(tuple, drawn.round(3).tolist())) == {
        *((0, 0, 0, 1, 1), (1, 1, 1, 1, 2), (2, 2, 2, 0, 3)),
        *((10, 10, 10, 1, 11), (11, 11, 11, 1, 12)),
        (20, 20, 20, 0, 21),
    }
    batch = data.sample(dataset, jax.random.key(0), batch_size=400, n_step=3, discount=0.5)
    drawn = np.stack([batch.obs[:, 0], batch.reward, batch.mask], axis=1)
    assert set(map(tuple, drawn.tolist())) == {
        *((0, 0 + 0.5 + 0.5, 0), (1, 1 + 1, 0), (2, 2, 0)),
        *((10, 10 + 5.5, 0.5), (11, 11, 1), (20, 20, 0)),
    }


def test_the_last_action_of_an_episode_is_repeated_where_none_follows():
    store("next-v0", [walk(10, 2, terminated=False)])
    batch = data.sample(minari.load("next-v0").dataset, jax.random.key(0), batch_size=64)
    pairs = {(int(a), round(float(b) * 100)) for a, b in zip(batch.obs[:, 0], batch.next_action[:, 0], strict=True)}
    assert pairs == {(10, 11), (11, 11)}


def test_observations_may_be_dictionaries_and_tuples_of_arrays():
    space = Dict({"image": Box(0, 255, (32, 32, 3), np.uint8), "body": Tuple([Box(-9, 9, (2,)), Discrete(50)])})

    def observe(i):
        return {"image": np.full((32, 32, 3), i, np.uint8), "body": (np.full(2, i, np.float32), np.int64(i))}

    store("dict-v0", [walk(0, 3, terminated=False, observe=observe)], observations=space)
    obs = minari.load("dict-v0").dataset.obs
    assert {k: (x.shape, x.dtype) for k, x in (("image", obs["image"]), ("body", obs["body"][0]))} == {
        "image": ((4, 32, 32, 3), np.uint8),
        "body": ((4, 2), np.float32),
    }
    assert obs["body"][1].tolist() == [0, 1, 2, 3]
    assert isinstance(obs["body"], tuple)


@pytest.mark.parametrize("call", [minari.load, minari.make_env])
def test_a_name_that_is_not_here_is_answered_with_those_that_are_like_it(call, folder):
    message = (
        f"`name` must be a Minari dataset in {folder}, got 'pendulum/rand-v0'. Did you mean '{PENDULUM}'? Download"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        call("pendulum/rand-v0")


@pytest.mark.parametrize("name", ["", ".", "..", "/", "nothing like it", "pendulum", "pendulum/random-v0/data"])
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(ValueError, match=r"^`name` must be a Minari dataset in .*, got '.*`minari list remote` shows"):
        minari.load(name)


@pytest.mark.parametrize("name", [None, 3, b"pendulum/random-v0", ["pendulum/random-v0"]])
@pytest.mark.parametrize("call", [minari.load, minari.make_env])
def test_a_name_that_is_no_text_is_refused(call, name):
    with pytest.raises(TypeError, match=r"^`name` must be a"):
        call(name)


def test_looking_for_a_dataset_creates_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv("MINARI_DATASETS_PATH")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(ValueError, match=f"must be a Minari dataset in {tmp_path}"):
        minari.load(PENDULUM)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("space", [Discrete(3), Box(0, 5, (2,), np.int32), Box(-1, 1, (2, 1))])
def test_actions_that_are_no_vectors_of_floats_are_refused(space):
    name = f"{type(space).__name__.lower()}-{len(space.shape or ())}-{space.dtype or 'none'}-v0"
    steps = [(np.zeros(2, np.float32), space.sample(), 0.0, True)]
    store(name, [(steps, np.zeros(2, np.float32))], actions=space)
    with pytest.raises(ValueError, match=f"`name` = '{name}' has the action space .* 1-D `Box` of floats"):
        minari.load(name)


def test_actions_without_bounds_cannot_be_rescaled():
    store("free-v0", [walk(0, 3, terminated=True)], actions=Box(-np.inf, np.inf, (2,)))
    with pytest.raises(ValueError, match=r"`rescale` needs bounds, but 'free-v0' has .* Pass `rescale=False`"):
        minari.load("free-v0")
    assert minari.load("free-v0", rescale=False).dataset.action.shape == (4, 2)


def test_a_dataset_without_an_environment_can_be_loaded_but_says_so():
    store("alone-v0", [walk(0, 3, terminated=True)])
    task = minari.load("alone-v0")
    with pytest.raises(ValueError, match="`name` = 'alone-v0' does not say what its environment is"):
        task.make_env()


def test_an_environment_whose_package_is_missing_is_named(copy):
    metadata = (copy / "data/metadata.json").read_text()
    (copy / "data/metadata.json").write_text(metadata.replace("gymnasium.envs.classic_control.pendulum", "gone.envs"))
    with pytest.raises(ImportError, match=f"the environment of '{PENDULUM}' cannot be made.* No module named 'gone'"):
        minari.load(PENDULUM).make_env()


def cut(key):
    def change(file):
        values = file[f"episode_1/{key}"][:-1]
        del file[f"episode_1/{key}"]
        file[f"episode_1/{key}"] = values

    return change


def delete(key):
    return lambda file: file.__delitem__(f"episode_1/{key}")


def write(key, value):
    def change(file):
        file[f"episode_1/{key}"][1] = value

    return change


CHANGES = {
    "observations cut": (cut("observations"), r"episode 1 has 6 rewards but \(6, 3\) `observations`"),
    "actions cut": (cut("actions"), "`actions` has 13 rows but `rewards` has 14"),
    "rewards cut": (cut("rewards"), "episode 1 has 5 rewards"),
    "terminations cut": (cut("terminations"), "`terminations` has 13 rows but `rewards` has 14"),
    "no observations": (delete("observations"), "KeyError"),
    "no actions": (delete("actions"), "KeyError"),
    "no episode": (lambda file: file.__delitem__("episode_1"), "KeyError"),
    "an observation of NaN": (write("observations", np.nan), r"`observations\[8, 0\]` = nan is not finite"),
    "a reward of infinity": (write("rewards", np.inf), r"`rewards\[8\]` = inf is not finite"),
    "an action out of bounds": (write("actions", 2.5), r"`actions\[8, 0\]` = 2.5 lies outside"),
}


@pytest.mark.parametrize(("change", "why"), CHANGES.values(), ids=CHANGES.keys())
def test_damaged_values_are_named_with_the_dataset(copy, change, why):
    with h5py.File(copy / "data/main_data.hdf5", "a") as file:
        change(file)
    with pytest.raises(ValueError, match=rf"^{copy} cannot be read as a dataset \([^\n]*{why}.*--force"):
        minari.load(PENDULUM)


@pytest.mark.parametrize("name", ["data/main_data.hdf5", "data/metadata.json"])
@pytest.mark.parametrize("keep", [None, 0, 100])
def test_damaged_files_are_named_with_the_dataset(copy, name, keep):
    content = (copy / name).read_bytes()
    (copy / name).unlink()
    if keep is not None:
        (copy / name).write_bytes(content[:keep])
    with pytest.raises(ValueError, match=rf"^{copy} cannot be read as a dataset \("):
        minari.load(PENDULUM)


@pytest.mark.parametrize("missing", ["minari", "gymnasium"])
def test_without_the_extra_the_error_says_what_to_install(missing):
    code = f"import sys; sys.modules[{missing!r}] = None; from shortcutrl.suites import minari"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: shortcutrl.suites.minari needs {missing}: pip install 'shortcutrl[minari]'"
    )


def test_without_the_format_of_the_file_the_error_says_what_to_install():
    code = "import sys; sys.modules['h5py'] = None; from shortcutrl.suites import minari; minari.load(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, PENDULUM], capture_output=True, text=True)
    assert "ImportError: h5py is not installed" in done.stderr.splitlines()[-1]
    assert f"For '{PENDULUM}': pip install 'shortcutrl[minari]'" in done.stderr.splitlines()[-1]
