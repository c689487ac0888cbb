"""OGBench's visual tasks: rendered where no file is, loaded in uint8, and refused at once without a renderer."""

import importlib
import json
import os
import re
import subprocess
import sys
import textwrap

import mujoco
import numpy as np
import pytest
import tyro
from running import EXAMPLES, finish, start

from shortcutrl.suites import ogbench as suite
from shortcutrl.suites.ogbench import _load, _renderer

NAME, DATASET = "visual-cube-single-play-singletask-task1-v0", "visual-cube-single-play-v0"
EGL = {"MUJOCO_GL": "egl"}


def run(code, folder, **env):
    """A script in a process of its own, because MuJoCo reads MUJOCO_GL when it is imported."""
    script = folder / "script.py"
    script.write_text(textwrap.dedent(code))
    done = subprocess.run([sys.executable, script], env=os.environ | env, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def renderer():
    probe = subprocess.run([sys.executable, "-c", _renderer._RENDER], env=os.environ | EGL, capture_output=True)
    if probe.returncode != 0:
        pytest.skip("MuJoCo cannot render here by EGL")


@pytest.fixture
def blind(monkeypatch):
    """A machine without a renderer, as MuJoCo sees it."""
    monkeypatch.setenv("MUJOCO_GL", "off")
    _renderer._failure.cache_clear()
    yield
    _renderer._failure.cache_clear()


@pytest.mark.parametrize("function", ["load", "make_env", "generate"])
def test_a_machine_without_a_renderer_is_told_so_before_anything_else(function, blind, tmp_path, monkeypatch):
    monkeypatch.setattr(_load, "reachable", lambda url: pytest.fail("asks the host"))
    call = {
        "load": lambda: suite.load(NAME, folder=tmp_path / "new"),
        "make_env": lambda: suite.make_env(NAME),
        "generate": lambda: suite.generate(DATASET, tmp_path / "new" / "data.npz", episodes=1),
    }[function]
    with pytest.raises(OSError, match=r"^visual-cube-single-play-.*needs a renderer.*MUJOCO_GL='off'") as caught:
        call()
    assert "Set MUJOCO_GL=egl before Python starts; on Debian, `apt install libegl1" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", ["os._exit(3)", "os.abort()", "raise ValueError('no driver')"])
def test_a_renderer_that_crashes_does_not_take_the_process_along(how, monkeypatch):
    monkeypatch.setattr(_renderer, "_RENDER", f"import os\n{how}")
    reason = _renderer._failure.__wrapped__("egl")
    assert reason in ("exit code 3", "exit code -6", "ValueError: no driver")


@pytest.mark.parametrize(("at_import", "works"), [("egl", True), ("glfw", False), (None, False)])
@pytest.mark.parametrize("function", ["load", "make_env"])
def test_a_backend_set_after_mujoco_was_imported_is_refused(function, at_import, works, monkeypatch, tmp_path):
    """Where another process renders with MUJOCO_GL and this one has another backend."""
    context = at_import and type("GLContext", (), {"__module__": f"mujoco.{at_import}"})
    monkeypatch.setattr(mujoco, "GLContext", context, raising=False)
    monkeypatch.setattr(_renderer, "_failure", lambda backend: None if backend == "egl" else "no display")
    monkeypatch.setenv("MUJOCO_GL", "egl")
    for module, name in ((_load, "_find"), (_load.gymnasium, "make")):
        monkeypatch.setattr(module, name, lambda *args: 1 / 0)
    goes_on = pytest.raises(ZeroDivisionError)
    late = pytest.raises(OSError, match=rf"^{NAME} needs a renderer, but MuJoCo was imported before MUJOCO_GL='egl'")
    with goes_on if works else late as caught:
        suite.load(NAME, folder=tmp_path) if function == "load" else suite.make_env(NAME)
    if not works:
        assert f"with '{at_import or 'off'}'" in str(caught.value)
        assert "Restart Python" in str(caught.value)


@pytest.mark.slow
@pytest.mark.usefixtures("renderer")
def test_where_mujoco_was_imported_too_early_load_and_make_env_say_so_and_generate_works(tmp_path):
    said = run(
        f"""
        import json, os
        from shortcutrl.suites import ogbench

        if __name__ == "__main__":
            ogbench.make_env("{NAME.removeprefix("visual-")}").close()
            os.environ["MUJOCO_GL"] = "egl"
            said = []
            for call in ogbench.load, ogbench.make_env:
                try:
                    call("{NAME}")
                except OSError as error:
                    said.append(str(error))
            path = ogbench.generate("{DATASET}", "data.npz", episodes=1, episode_steps=2, processes=1, progress=False)
            print(json.dumps([*said, path.exists()]))
        """,
        tmp_path,
        MUJOCO_GL="off",
    )
    assert len(said) == 3
    assert all("MuJoCo was imported before MUJOCO_GL='egl' was set" in each for each in said[:2])
    assert said[2]


def test_state_datasets_need_no_renderer(blind):
    suite.make_env(NAME.removeprefix("visual-")).close()


def test_without_the_host_and_without_an_oracle_the_error_says_which_files_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setattr(_load, "reachable", lambda url: False)
    monkeypatch.setattr(_load, "check_renderer", lambda name, here: None)
    monkeypatch.setattr(_load.utils, "DEFAULT_DATASET_DIR", str(tmp_path / "none"))
    with pytest.raises(OSError, match=r"rail\.eecs\.berkeley\.edu.* cannot be reached") as caught:
        suite.load("visual-antmaze-medium-navigate-singletask-v0", folder=tmp_path)
    for file in ("visual-antmaze-medium-navigate-v0.npz", "visual-antmaze-medium-navigate-v0-val.npz"):
        assert file in str(caught.value)


@pytest.mark.slow
@pytest.mark.usefixtures("renderer")
def test_visual_episodes_are_those_of_the_states_rendered_and_loaded_in_uint8(tmp_path):
    said = run(
        """
        import json
        import numpy as np
        from shortcutrl.suites import ogbench
        from shortcutrl.suites.ogbench import _load

        NAME, OPTIONS = "cube-single-play", {"episodes": 1, "episode_steps": 6, "processes": 1, "progress": False}

        if __name__ == "__main__":
            _load.reachable = lambda url: False
            visual = ogbench.generate(f"visual-{NAME}-v0", f"visual-{NAME}-v0-1-episodes-seed-0.npz", **OPTIONS)
            states = ogbench.generate(f"{NAME}-v0", "states.npz", **OPTIONS)
            task = ogbench.load(f"visual-{NAME}-singletask-task1-v0", folder=".", episodes=1)
            env = task.make_env()
            obs, _ = env.reset(seed=0)
            with np.load(visual) as a, np.load(states) as b:
                same = [name for name in a if name != "observations" and np.array_equal(a[name], b[name])]
                kept = np.array_equal(a["observations"], task.dataset.obs)
                said = {
                    "same": same, "kept": kept, "shape": a["observations"].shape, "dtype": str(task.dataset.obs.dtype),
                    "frames": len({frame.tobytes() for frame in a["observations"]}), "obs": [str(obs.dtype), obs.shape],
                    "contrast": float(a["observations"].std()),
                }
            print(json.dumps(said))
        """,
        tmp_path,
        **EGL,
    )
    assert sorted(said["same"]) == ["actions", "qpos", "qvel", "terminals"]
    assert said["kept"]
    assert said["shape"] == [6, 64, 64, 3]
    assert said["dtype"] == "uint8"
    assert said["frames"] == 6
    assert said["contrast"] > 10
    assert said["obs"] == ["uint8", [64, 64, 3]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x.astype(np.float32), "`observations` must be uint8, got float32"),
        (lambda x: x[..., 0], r"`observations` must have shape \(rows, 64, 64, 3\), got \(4, 64, 64\)"),
        (lambda x: x[:3], "`actions` has 4 rows but `observations` has 3"),
    ],
)
def test_malformed_images_are_named(change, said, tmp_path):
    path = tmp_path / f"{DATASET}.npz"
    arrays = {"observations": change(np.zeros((4, 64, 64, 3), np.uint8)), "actions": np.zeros((4, 5), np.float32)}
    np.savez(path, **arrays, qpos=np.zeros((4, 21), np.float32), terminals=np.arange(4) == 3)

    class Env:  # of images, without a renderer
        action_space = suite.make_env(NAME.removeprefix("visual-")).action_space
        data = type("Data", (), {"qpos": np.zeros(21)})
        unwrapped = property(lambda self: self)

        def reset(self):
            return np.zeros((64, 64, 3), np.uint8), {}

    with pytest.raises(ValueError, match=said):
        _load._read(path, "visual-cube-single-singletask-task1-v0", Env())


def test_the_full_run_of_the_visual_example_takes_what_is_published(monkeypatch):
    """For images by FQL: updates, batches, stacks, crops; for cube-single-play by SORL: the rest."""
    monkeypatch.syspath_prepend(EXAMPLES)
    visual = importlib.import_module("visual")
    command = re.findall(r"python examples/visual\.py (--.*?)\n\n", visual.__doc__, re.DOTALL)[0]
    full = tyro.cli(visual.Args, args=command.split())
    assert (full.updates, full.batch_size, full.episodes) == (500_000, 256, 50)
    assert (full.learning_rate, full.q_weight, full.tau) == (1e-4, 10.0, 0.005)
    assert (full.width, full.depth, full.data_episodes) == (512, 4, 1000)
    for args in full, visual.Args():
        assert (args.frame_stack, args.crop_probability) == (3, 0.5)


@pytest.mark.slow
@pytest.mark.usefixtures("renderer")
def test_the_visual_example_runs_small(home, tmp_path, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "egl")
    small = ["--data-episodes", "1", "--updates", "2", "--updates-per-row", "1", "--batch-size", "2"]
    said = finish(start(home, "visual.py", "--out", tmp_path / "out", *small, "--episodes", "1"), timeout=3_600)
    assert "lower than the dataset's mean action by" in said
    assert "rendered steps of the evaluation" in said
