"""A run of the example that is killed, or that runs out of disk, resumes and ends like one that was not interrupted."""

import json
import os
import signal
import struct
import sys
import time

import numpy as np
import pytest
from running import ENV, SMOKE, finish, start
from tensorboardX.proto.event_pb2 import Event

TRAIN = [*SMOKE, "--env", ENV, "--updates", "150"]


@pytest.fixture(scope="module")
def trained_run(home):
    """The folder of a run that was not interrupted."""
    finish(start(home, *TRAIN, "--out", home / "trained"))
    return home / "trained"


def rows(path):
    """Of a file of JSON lines, without the one number that is never the same: how long an action took."""
    return [{**json.loads(line), "milliseconds": None} for line in path.read_text().splitlines()]


def board(folder):
    """What TensorBoard shows: step, name and value."""
    (path,) = folder.glob("events*")
    content, at, shown = path.read_bytes(), 0, []
    while at < len(content):  # length (8 bytes), its checksum (4), the event, its checksum (4)
        (size,) = struct.unpack("<Q", content[at : at + 8])
        event = Event.FromString(content[at + 12 : at + 12 + size])
        at += size + 16
        shown += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
    return shown


def assert_same(one, other):
    assert rows(one / "metrics.jsonl") == rows(other / "metrics.jsonl")
    assert [row["step"] for row in rows(one / "metrics.jsonl")] == list(range(10, 151, 10))
    assert rows(one / "table.jsonl") == rows(other / "table.jsonl")
    assert board(one / "tensorboard") == board(other / "tensorboard")
    assert len(board(one / "tensorboard")) == 15 * 5
    first, second = (dict(np.load(folder / "checkpoints" / "150" / "state.npz")) for folder in (one, other))
    assert first.keys() == second.keys()
    assert len(first) > 20
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)


def kill_at_random(home, out, rng):
    """Kill a run while it writes a checkpoint, just after, or at any time. Returns whether it was still alive."""
    process = start(home, *TRAIN, "--out", out, start_new_session=True)
    checkpoints = out / "checkpoints"
    before = set(checkpoints.glob("*"))
    if rng.random() < 0.5:
        while set(checkpoints.glob("*")) <= before and process.poll() is None:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.3))
    else:
        time.sleep(rng.uniform(0, 15))
    alive = process.poll() is None
    if alive:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return alive


KILLS = 20


@pytest.mark.slow
def test_a_killed_run_ends_like_an_uninterrupted_one(home, trained_run):
    rng, killed, runs = np.random.default_rng(KILLS), 0, 0
    while killed < KILLS:
        out = home / f"kills-{runs}"
        trained = (out / "checkpoints" / "150").exists()
        killed += kill_at_random(home, out, rng)
        if trained or killed == KILLS:  # perhaps killed in its evaluation
            finish(start(home, *TRAIN, "--out", out))
            assert_same(out, trained_run)
            runs += 1


@pytest.mark.slow
def test_out_of_disk(home, trained_run):
    out = home / "full"
    process = start(home, *TRAIN, "--out", out, start_new_session=True)
    while not [path for path in (out / "checkpoints").glob("*") if path.name.isdigit()]:
        time.sleep(0.001)
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    limit = "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))"  # bytes in one file
    process = start(
        home, *TRAIN, "--out", out, before=[sys.executable, "-c", f"{limit}; os.execv(sys.argv[1], sys.argv[1:])"]
    )
    said = process.communicate(timeout=900)[1]
    assert process.returncode == 1
    assert "Traceback" not in said
    assert "File too large" in said
    assert "the same command resumes" in said
    finish(start(home, *TRAIN, "--out", out))
    assert_same(out, trained_run)
