"""Several devices, and several processes: the same result as one device, from a share of the work."""

import os
import re
import socket

import numpy as np
import pytest
from running import finish, start

SMALL = ["many_devices.py", "--updates", "20", "--width", "32", "--depth", "2"]


def begin(home, devices, *args):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return start(home, *SMALL, *args, before=["env", f"XLA_FLAGS={flags}"])


def saved(path):
    """The arrays of a trained state and of its losses."""
    arrays = []
    with path.open("rb") as file:
        while file.peek(1):
            arrays.append(np.load(file))
    return arrays


@pytest.fixture(scope="module")
def alone(home, tmp_path_factory):
    path = tmp_path_factory.mktemp("devices") / "alone.eqx"
    assert "1 devices" in finish(begin(home, 1, "--out", path))
    return saved(path)


def assert_same(arrays, others):
    assert len(arrays) == len(others) > 60
    for one, other in zip(arrays, others, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * np.abs(one).max())


def test_eight_devices_are_one_and_each_computes_its_share(home, alone, tmp_path):
    """In the program of each, the products with a hidden layer have 256 / 8 rows."""
    dump = f"--xla_dump_to={tmp_path} --xla_dump_hlo_module_re=.*train.*"
    assert "8 devices" in finish(begin(home, f"8 {dump}", "--out", tmp_path / "eight.eqx"))
    assert_same(alone, saved(tmp_path / "eight.eqx"))
    (program,) = tmp_path.glob("*jit_train*after_optimizations.txt")
    rows = {int(rows) for rows in re.findall(r"= f32\[(\d+),32\]\S* dot\(", program.read_text())}
    assert 32 in rows
    assert 256 not in rows


def test_two_processes_are_one(home, alone, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    both = ["--processes", "2", "--coordinator", f"localhost:{port}", "--out", tmp_path / "two.eqx", "--process"]
    first, second = begin(home, 2, *both, "0"), begin(home, 2, *both, "1")
    assert "4 devices" in finish(first)
    finish(second)
    assert_same(alone, saved(tmp_path / "two.eqx"))
