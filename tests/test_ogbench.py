"""OGBench's suite: from a name to transitions and an environment, and each way in which that fails."""

import functools
import http.server
import pickle
import socket
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import gymnasium
import jax
import numpy as np
import ogbench
import pytest
from ogbench.relabel_utils import relabel_dataset
from ogbench.utils import load_dataset

from shortcutrl import data
from shortcutrl.suites import Task
from shortcutrl.suites import ogbench as suite
from shortcutrl.suites.ogbench import _download, _load, _names

pytestmark = [
    # OGBench declares its action space in float64 and asks for float32, and leaves the files that it reads open.
    pytest.mark.filterwarnings("ignore:.*precision lowered by casting"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

NAME, DATASET = "pointmaze-medium-navigate-singletask-v0", "pointmaze-medium-navigate-v0"
GENERATED = f"{DATASET}-1-episodes-seed-0.npz"


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network, and nothing that OGBench downloaded before."""
    monkeypatch.setattr(_load, "reachable", lambda url: False)
    monkeypatch.setattr(ogbench.utils, "DEFAULT_DATASET_DIR", str(tmp_path / "none"))


def example(name, rng, episodes=(7, 2, 1, 5)):
    """Arrays in OGBench's format: random, of these lengths, and at the goal in about every third row."""
    env = suite.make_env(name)
    _, info = env.reset()
    inner, rows = env.unwrapped, sum(episodes)
    columns = {"observations": len(env.observation_space.low), "actions": len(env.action_space.low)}
    columns |= {"qpos": inner.data.qpos.size, "qvel": inner.data.qvel.size}
    arrays = {key: rng.uniform(-1, 1, (rows, size)).astype(np.float32) for key, size in columns.items()}
    arrays["terminals"] = np.isin(np.arange(rows), np.cumsum(episodes) - 1)
    at_goal = rng.random(rows) < 0.4
    at_goal[-1] = True  # in the last row of an episode too
    start, goal = (0, inner.cur_goal_xy) if "maze" in name else (15, getattr(inner, "cur_goal_xy", None))
    if goal is not None:
        arrays["qpos"][at_goal, start : start + 2] = goal
    else:
        cubes = inner._data.mocap_pos
        for i in range(len(cubes)):
            arrays["qpos"][at_goal, 14 + 7 * i : 17 + 7 * i] = cubes[i]
        if "scene" in name:
            arrays["qpos"][at_goal, -2:] = inner._target_drawer_pos, inner._target_window_pos
        if "button_states" in info:
            arrays["button_states"] = rng.integers(0, 2, (rows, len(inner._target_button_states)))
            arrays["button_states"][at_goal] = inner._target_button_states
    env.close()
    return arrays


def save(path, arrays):
    """A dataset, and an empty file for the validation set, which is not read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.savez(file, **arrays)
    path.with_name(f"{path.stem}-val.npz").touch()


@pytest.fixture(scope="module")
def good():
    return example(NAME, np.random.default_rng(0))


def load(folder, name=NAME, **options):
    return suite.load(name, **({"folder": folder, "episodes": 1, "progress": False} | options))


KINDS = ["pointmaze-medium-navigate", "antsoccer-arena-stitch", "cube-double-noisy", "scene-play", "puzzle-3x3-play"]


@pytest.mark.parametrize("scene", KINDS)
def test_transitions_are_those_of_ogbench(scene, offline, tmp_path):
    name = f"{scene}-singletask-task2-v0"
    path = tmp_path / f"{scene}-v0.npz"
    save(path, example(name, np.random.default_rng(0), episodes=(7, 2, 1, 5, 30)))
    task = load(tmp_path, name)
    assert task.source == path
    assert task.scale is None

    expected = load_dataset(str(path), add_info=True)
    with gymnasium.make(_names.split(name)[0]) as env:
        relabel_dataset(_names.split(name)[0], env, expected)
    assert 0 < expected["masks"].mean() < 1
    rows = np.flatnonzero(~np.asarray(task.dataset.episode_end))
    fields = {"obs": "observations", "action": "actions", "reward": "rewards", "mask": "masks"}
    for field, key in fields.items():
        np.testing.assert_array_equal(getattr(task.dataset, field)[rows], expected[key])
    np.testing.assert_array_equal(task.dataset.obs[rows + 1], expected["next_observations"])
    ends = np.flatnonzero(expected["terminals"])
    np.testing.assert_array_equal(np.flatnonzero(np.isin(rows + 1, np.flatnonzero(task.dataset.episode_end))), ends)

    batch = data.sample(task.dataset, jax.random.key(0), batch_size=2000)
    index = {row.tobytes(): i for i, row in enumerate(expected["observations"])}
    drawn = np.array([index[row.tobytes()] for row in np.asarray(batch.obs)])
    assert set(drawn) == set(range(len(rows)))  # each of them, and no last row
    for field, key in (fields | {"next_obs": "next_observations"}).items():
        np.testing.assert_array_equal(getattr(batch, field), expected[key][drawn])


def test_a_dataset_is_generated_and_found_again(offline, tmp_path, monkeypatch):
    task = load(tmp_path, episodes=np.int64(1), seed=np.uint8(0), processes=np.int32(1))
    assert isinstance(task, Task)
    assert task.source == tmp_path / GENERATED
    assert task.dataset.obs.shape == (1001, 2)
    assert task.dataset.episode_end.sum() == 1
    monkeypatch.setattr(_load, "generate", lambda *args, **options: pytest.fail("generated again"))
    again = load(str(tmp_path))
    jax.tree.map(np.testing.assert_array_equal, task.dataset, again.dataset)
    env = pickle.loads(pickle.dumps(task.make_env))()
    assert env.spec.id == "pointmaze-medium-singletask-v0"
    env.close()


def test_ogbench_s_own_file_comes_first(good, offline, tmp_path, monkeypatch):
    monkeypatch.setattr(_load, "generate", lambda dataset, path, **options: path)
    sources = tmp_path / GENERATED, tmp_path / f"{DATASET}.npz", tmp_path / "none" / f"{DATASET}.npz"
    for source in sources:
        save(source, good)
        assert load(tmp_path).source == source
    for source, other in zip(sources[:0:-1], sources[-2::-1], strict=True):
        source.with_name(f"{source.stem}-val.npz").unlink()  # half a pair is not taken
        assert load(tmp_path).source == other


N = 15
CHANGES = {
    "observations cut": lambda a: {"observations": a["observations"][:-3]},
    "observations of one axis": lambda a: {"observations": a["observations"][:, 0]},
    "observations of three axes": lambda a: {"observations": a["observations"][..., None]},
    "observations of another size": lambda a: {"observations": np.zeros((N, 3))},
    "observations with NaN": lambda a: {"observations": np.where(a["observations"] > 0.9, np.nan, a["observations"])},
    "observations beyond float32": lambda a: {"observations": np.full((N, 2), 1e300)},
    "observations of text": lambda a: {"observations": np.full((N, 2), "1")},
    "complex observations": lambda a: {"observations": a["observations"] * 1j},
    "dates": lambda a: {"observations": np.zeros((N, 2), "datetime64[s]")},
    "objects": lambda a: {"observations": a["observations"].astype(object)},
    "actions cut": lambda a: {"actions": a["actions"][:-3]},
    "actions of another size": lambda a: {"actions": a["actions"][:, :1]},
    "actions out of range": lambda a: {"actions": a["actions"] * 3},
    "terminals cut": lambda a: {"terminals": a["terminals"][:-3]},
    "terminals as a column": lambda a: {"terminals": a["terminals"][:, None]},
    "no end": lambda a: {"terminals": np.zeros(N)},
    "only ends": lambda a: {"terminals": np.ones(N)},
    "an end of 0.5": lambda a: {"terminals": a["terminals"] * 0.5},
    "the last episode cut": lambda a: {"terminals": np.arange(N) == 5},
    "qpos cut": lambda a: {"qpos": a["qpos"][:-3]},
    "qpos of one axis": lambda a: {"qpos": np.zeros(N)},
    "qpos of one column": lambda a: {"qpos": np.zeros((N, 1))},
    "qpos of one row": lambda a: {"qpos": a["qpos"][:1]},
    "qpos with NaN": lambda a: {"qpos": np.full((N, 2), np.nan)},
    "empty": lambda a: {key: value[:0] for key, value in a.items()},
}


def refused(folder, path, name=NAME):
    with pytest.raises(
        ValueError, match=r" cannot be read as a dataset for \S+ \(.*\)\. To get it again, .*delete"
    ) as e:
        load(folder, name)
    assert str(e.value).startswith(str(path))
    assert "\n" not in str(e.value)
    return str(e.value)


@pytest.mark.parametrize("change", CHANGES)
def test_a_malformed_file_is_named(change, good, offline, tmp_path):
    save(tmp_path / GENERATED, good)
    assert len(load(tmp_path).dataset.reward) == N
    changed = CHANGES[change](good)
    save(tmp_path / GENERATED, good | changed)
    said = refused(tmp_path, tmp_path / GENERATED)
    assert any(f"`{key}" in said for key in (*changed, "observations", "terminals")) or "object" in change.lower()


PUZZLE = "puzzle-3x3-play-singletask-v0", "puzzle-3x3-play-v0.npz"


@functools.cache
def puzzle():
    return example(PUZZLE[0], np.random.default_rng(0))


@pytest.mark.parametrize("missing", ["observations", "actions", "terminals", "qpos", "button_states"])
def test_a_missing_array_is_named(missing, offline, tmp_path):
    save(tmp_path / PUZZLE[1], {key: value for key, value in puzzle().items() if key != missing})
    assert f"does not hold the array `{missing}`" in refused(tmp_path, tmp_path / PUZZLE[1], PUZZLE[0])


@pytest.mark.parametrize("shape", [(N,), (N, 1), (N, 8)])
def test_an_array_of_another_shape_is_named(shape, offline, tmp_path):
    save(tmp_path / PUZZLE[1], puzzle() | {"button_states": np.zeros(shape)})
    assert "`button_states` must have shape" in refused(tmp_path, tmp_path / PUZZLE[1], PUZZLE[0])


def cut(content):
    return content[: len(content) // 2]


def flip(content):
    """Damage the first array's values, which its checksum tells."""
    return content[:300] + bytes([content[300] ^ 255]) + content[301:]


@pytest.mark.parametrize(
    "damage", [cut, flip, lambda content: b"not a dataset", lambda content: b"", lambda content: b"PK"]
)
def test_a_damaged_file_is_named(damage, good, offline, tmp_path):
    path = tmp_path / GENERATED
    save(path, good)
    path.write_bytes(damage(path.read_bytes()))
    refused(tmp_path, path)


def test_what_is_no_archive_of_arrays_is_named(good, offline, tmp_path):
    path = tmp_path / GENERATED
    save(path, good)
    with path.open("wb") as file:
        np.save(file, good["observations"])
    assert "one array, not an archive" in refused(tmp_path, path)
    with zipfile.ZipFile(path, "w") as archive:
        for key in good:
            archive.writestr(key, "text")
    refused(tmp_path, path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:  # a header of a terabyte
        array = b"{'descr': '<f4', 'fortran_order': False, 'shape': (200000000000, 2), }"
        for key in good:
            archive.writestr(f"{key}.npy", b"\x93NUMPY\x01\x00" + len(array).to_bytes(2, "little") + array)
    assert "free memory, or delete" in refused(tmp_path, path)


def test_a_file_that_may_not_be_read_is_not_called_damaged(good, offline, tmp_path):
    save(tmp_path / GENERATED, good)
    (tmp_path / GENERATED).unlink()
    (tmp_path / GENERATED).mkdir()
    with pytest.raises(IsADirectoryError, match=GENERATED):
        load(tmp_path)


# Homes, folders and hosts.


@pytest.mark.parametrize("home", ["file/home", "missing"])
def test_a_home_that_cannot_be_used_is_not_needed(home, good, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / home))
    monkeypatch.setattr(_load, "reachable", lambda url: False)
    monkeypatch.setattr(_load, "generate", lambda dataset, path, **options: save(path, good) or path)
    assert load(tmp_path / "folder").source == tmp_path / "folder" / GENERATED
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder"}


def test_without_a_home_folder_is_required(good, tmp_path, monkeypatch):
    def expanduser(path):
        if "~" in str(path):
            raise RuntimeError("Could not determine home directory.")
        return path

    monkeypatch.setattr(Path, "expanduser", expanduser)
    monkeypatch.setattr(_load, "reachable", lambda url: False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    save(tmp_path / GENERATED, good)
    assert load(tmp_path).source == tmp_path / GENERATED
    with pytest.raises(ValueError, match=r"`folder` must be a path .*Could not determine home directory"):
        load(None)


@pytest.mark.parametrize("cache", ["cache", None])
def test_generated_datasets_are_kept_in_the_cache_folder(cache, good, offline, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / cache) if cache else "")
    monkeypatch.setattr(_load, "generate", lambda dataset, path, **options: save(path, good) or path)
    assert load(None).source == tmp_path / (cache or ".cache") / "shortcutrl" / GENERATED


def test_a_dataset_that_cannot_be_had_says_which_file_to_put_where(offline, tmp_path):
    with pytest.raises(OSError, match=r"antmaze-large-navigate-v0\.npz and .*-val\.npz .* into .*missing\.$") as caught:
        load(tmp_path / "missing", "antmaze-large-navigate-singletask-v0")
    assert "kept" not in str(caught.value)  # nothing was started
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(offline, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"`folder` must lie in a folder that can be written, got .*file"):
        load(tmp_path / "file")


@pytest.fixture
def answering():
    """Start a server that sends raw bytes to each connection, and give its address."""
    servers = []

    def start(answer):
        server = socket.create_server(("127.0.0.1", 0))
        servers.append(server)

        def serve():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(9999)
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        return f"http://127.0.0.1:{server.getsockname()[1]}"

    yield start
    for server in servers:
        server.shutdown(socket.SHUT_RDWR)
        server.close()


PORTAL = b"<html>Please log in</html>"
NONSENSE = {
    "no HTTP": b"\x05\xff\r\n",
    "nothing": b"",
    "a long header": b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70000 + b"\r\n\r\n",
    "many headers": b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 500 + b"\r\n",
    "a bad status": b"HTTP/1.1 abc OK\r\n\r\n",
    "no body": b"HTTP/1.1 200 OK\r\n\r\n",
    "less than announced": b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nPK",
    "a bad chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nPK",
    "a page to log in": b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(PORTAL), PORTAL),
    "not found": b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
    "a bad redirection": b"HTTP/1.1 302 Found\r\nLocation: http://[::1\r\nContent-Length: 0\r\n\r\n",
    "a proxy's refusal": b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("answer", NONSENSE)
def test_a_host_or_proxy_that_answers_nonsense_is_not_reachable(answer, answering, monkeypatch):
    url = answering(NONSENSE[answer])
    assert not _download.reachable(f"{url}/x.npz")
    monkeypatch.setenv("http_proxy", url)
    monkeypatch.setenv("no_proxy", "")
    assert not _download.reachable("http://dataset.invalid/x.npz")


@pytest.mark.parametrize("url", ["", "x", "http://", "http://[::1", "http://a b/x", "http://host:port/x", "ftp:/"])
def test_a_bad_url_is_not_reachable(url, monkeypatch):
    assert not _download.reachable(url)
    monkeypatch.setenv("http_proxy", url or "http://")
    monkeypatch.setenv("no_proxy", "")
    assert not _download.reachable("http://dataset.invalid/x.npz")


def test_a_host_that_does_not_answer_is_not_reachable():
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert not _download.reachable(f"http://127.0.0.1:{server.getsockname()[1]}/x.npz", timeout=0.1)


@pytest.fixture
def host(good, tmp_path, monkeypatch):
    """A host that has the maze's dataset. The folder of its files, with the list of what was asked for."""
    folder, asked = tmp_path / "host", []
    save(folder / f"{DATASET}.npz", good)
    save(folder / "val" / f"{DATASET}-val.npz", good)
    (folder / "val" / f"{DATASET}-val.npz").replace(folder / f"{DATASET}-val.npz")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def do_GET(self):
            asked.append((self.path, self.headers["Range"]))
            super().do_GET()

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(ogbench.utils, "DATASET_URL", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setattr(ogbench.utils, "DEFAULT_DATASET_DIR", str(tmp_path / "home" / "data"))
    yield folder, asked
    server.shutdown()
    server.server_close()


def test_a_dataset_is_downloaded_once_and_found_again(host, good, tmp_path, capsys):
    folder, asked = host
    sources = []
    threads = [threading.Thread(target=lambda: sources.append(load(tmp_path / "folder").source)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sources == [tmp_path / "home" / "data" / f"{DATASET}.npz"] * 3
    downloads = [path for path, limit in asked if limit is None]
    assert downloads == [f"/{DATASET}-val.npz", f"/{DATASET}.npz"]
    for suffix in (".npz", "-val.npz"):
        assert (tmp_path / "home/data" / f"{DATASET}{suffix}").read_bytes() == (
            folder / f"{DATASET}{suffix}"
        ).read_bytes()
    assert not (tmp_path / "folder").exists()  # it is not needed
    assert capsys.readouterr() == ("", "")  # no progress
    asked.clear()
    assert load(tmp_path / "folder").dataset.obs.shape == good["observations"].shape
    assert asked == []


def test_a_download_shows_its_progress(host, tmp_path, capsys):
    load(tmp_path / "folder", progress=True)
    assert f"downloading {DATASET}.npz" in capsys.readouterr().err


def test_without_a_home_the_download_is_kept_in_the_folder(host, tmp_path):
    (tmp_path / "home").touch()
    for _ in range(2):
        assert load(tmp_path / "folder").source == tmp_path / "folder" / f"{DATASET}.npz"
    assert sum(limit is None for _, limit in host[1]) == 2


@pytest.mark.parametrize("damage", [lambda content: content[:-20], lambda content: PORTAL, None])
def test_a_download_that_breaks_off_leaves_no_file(damage, host, tmp_path):
    file = host[0] / f"{DATASET}-val.npz"
    file.write_bytes(damage(file.read_bytes())) if damage else file.unlink()
    with pytest.raises(OSError, match=rf"{DATASET}-val\.npz cannot be downloaded to .*data \(.*\)\. Run again, or put"):
        load(tmp_path / "folder")
    assert [path.name for path in (tmp_path / "home" / "data").iterdir()] == [f".{DATASET}.lock"]


# Names.


def test_the_names_are_those_of_ogbench():
    registered = {name for name in gymnasium.registry if "-singletask" in name}
    missing = ("humanoidmaze-teleport", "cube-octuple")
    unpublished = {name for name in registered if name.removeprefix("visual-").startswith(missing)}
    assert {env for env, _ in _names.KNOWN.values()} == registered - unpublished
    assert len({dataset for _, dataset in _names.KNOWN.values()}) == 8 + 4 + 2 * (11 + 6 + 2 * (4 + 1 + 4))
    for name, (env, dataset) in _names.KNOWN.items():  # as `ogbench.make_env_and_datasets` takes a name apart
        parts = name.split("-")
        pos = parts.index("singletask")
        assert env == "-".join(parts[: pos - 1] + parts[pos:])
        assert dataset == "-".join(parts[:pos] + parts[-1:])
    assert set(suite.CAN_GENERATE) <= {dataset for _, dataset in _names.KNOWN.values()}


SCENE_TASKS = [f"scene-play-singletask{task}-v0" for task in ("", "-task1", "-task2", "-task3", "-task4", "-task5")]
NAMES = {
    "visual-scene-play-v0": ("is goal-conditioned", [f"visual-{name}" for name in SCENE_TASKS]),
    "visual-scene-pley-singletask-task1-v0": ("OGBench does not publish", [f"visual-{SCENE_TASKS[1]}"]),
    "powderworld-easy-play-v0": ("has image observations and no single-task version", []),
    "scene-play-v0": ("is goal-conditioned", SCENE_TASKS),
    "scene-play-oraclerep-v0": ("is goal-conditioned, with an oracle's representation of the goal", SCENE_TASKS),
    "scene-play-100m-v0": ("is published in many files", SCENE_TASKS),
    "scene-v0": ("is an environment without a dataset", [SCENE_TASKS[0], "scene-noisy-singletask-v0"]),
    "scene-singletask-task2-v0": (
        "is an environment without a dataset",
        [SCENE_TASKS[2], "scene-noisy-singletask-task2-v0"],
    ),
    "online-ant-xy-v0": ("is an environment without a dataset", []),
    "Scene-Play-Singletask-v0": ("is not in lower case", SCENE_TASKS[:1]),
    "scene-pley-singletask-task1-v0": ("OGBench does not publish", SCENE_TASKS[1:2]),
    "scene-play-singletask-task10-v0": ("OGBench does not publish", SCENE_TASKS[1:]),
    "scene-play-singletask": ("OGBench does not publish", SCENE_TASKS[:1]),
    "pointmaze-medium-explore-singletask-v0": (
        "OGBench does not publish",
        [f"pointmaze-medium-{kind}-singletask-v0" for kind in ("navigate", "stitch")],
    ),
    "cube-octuple-play-singletask-v0": (
        "OGBench does not publish",
        [f"cube-{count}-play-singletask-v0" for count in ("double", "triple", "quadruple")],
    ),
    "antmaze-medium-diverse-v2": (
        "OGBench does not publish",
        [f"antmaze-medium-{kind}-singletask-v0" for kind in ("navigate", "stitch", "explore")],
    ),
    **{name: ("OGBench does not publish", []) for name in ("hopper-medium-v2", "CartPole-v1", "", "3", "\0", "a\nb")},
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("function", [suite.load, suite.make_env])
def test_a_name_that_is_not_supported_says_why_and_what_to_use(name, function, monkeypatch):
    monkeypatch.setattr(_load, "reachable", lambda url: pytest.fail("asks the host"))
    with pytest.raises(ValueError, match=r"^`name` must be an OGBench single-task dataset, got") as caught:
        function(name)
    why, instead = NAMES[name]
    said = str(caught.value)
    *first, last = map(repr, instead or ["none"])
    use = f"Use {', '.join(first)} or {last}." if first else f"Use {last}."
    assert said.endswith(
        f", got {name!r}, which {why}. {use}" if instead else "see https://github.com/seohongpark/ogbench."
    )
    assert f"which {why}. " in said
    assert "\n" not in said


def test_a_long_name_is_shortened():
    with pytest.raises(ValueError, match=r"got 'x{100}\.\.\.', which") as caught:
        suite.load("x" * 10**6)
    assert len(str(caught.value)) < 400


NOT_SIZES = [True, 1.5, 1.0, float("nan"), "3", np.float64(2), [1], np.array(1), 1j, b"1"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        *(({"name": value}, "`name` must be a") for value in (None, 3, b"scene", [NAME], np.array(NAME))),
        *(
            ({"folder": value}, "`folder` must be a")
            for value in (3, b"folder", ["folder"], True, 1.5, "a\0b", "~no-such-user/x")
        ),
        *(({name: value}, f"`{name}` must be ") for name in ("episodes", "seed") for value in (*NOT_SIZES, -1)),
        *(({"processes": value}, "`processes` must be ") for value in (*NOT_SIZES, 0)),
        *(({"progress": value}, "`progress` must be True or False") for value in (None, 0, "no")),
        ({"seed": None}, "`seed` must be an integer, got None."),
        ({"episodes": 10**9}, "`episodes` must be an integer of at most 1000000"),
        ({"seed": 2**64}, "`seed` must be an integer of at most"),
    ],
)
def test_load_refuses(changed, said, offline, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_load, "generate", lambda *args, **options: pytest.fail("generates"))
    with pytest.raises((TypeError, ValueError)) as caught:
        load(**({"folder": "here", "name": NAME} | changed))
    assert said in str(caught.value).splitlines()[0]
    assert list(tmp_path.iterdir()) == []


# Environments.


def test_an_environment_is_made_with_options():
    env = suite.make_env(NAME, max_episode_steps=np.int64(3), width=32)
    assert env.spec.max_episode_steps == 3
    env.reset(seed=0)
    assert [env.step(env.action_space.sample())[3] for _ in range(3)] == [False, False, True]
    env.close()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        *(({"width": value}, "`width` must be an integer of at least 1") for value in ("3", 0, -1, 1.5, True)),
        ({"height": float("nan")}, "`height` must be an integer of at least 1"),
        ({"max_episode_steps": 0}, "`max_episode_steps` must be an integer of at least 1, got 0."),
        ({"colour": 3}, r"`options` must be arguments of `gymnasium.make` and of the environment, got {'colour': 3}"),
        *(
            ({"render_mode": value}, "`render_mode` must be one of human, rgb_array")
            for value in ("foo", 3, np.zeros(2))
        ),
        ({"width": 10**9}, "`width` must be an integer of at most 16384, got 1000000000."),
        ({"id": 3}, "`options` must be arguments"),
    ],
)
def test_make_env_refuses(options, said):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        suite.make_env(NAME, **options)
    assert said in str(caught.value).splitlines()[0]


@pytest.mark.parametrize("name", [None, 3, b"x", [NAME]])
def test_make_env_refuses_what_is_no_name(name):
    with pytest.raises(TypeError, match="`name` must be a `str`"):
        suite.make_env(name)


@pytest.mark.parametrize("missing", ["ogbench", "tqdm", "gymnasium", "filelock"])
def test_without_the_extra_the_error_says_what_to_install(missing):
    code = f"import sys; sys.modules[{missing!r}] = None; import shortcutrl.suites; import shortcutrl.suites.ogbench"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    said = f"ImportError: shortcutrl.suites.ogbench needs {missing}: pip install 'shortcutrl[ogbench]'"
    assert done.stderr.splitlines()[-1] == said
