"""Memory that a process keeps when it frees an array."""

import subprocess
import sys

import pytest

CODE = """
import sys, numpy as np, shortcutrl
assert len(sys.argv) < 2 or shortcutrl.keep_memory()
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096
before = resident()
array = np.ones(8_000_000)
most = resident()
del array
print(most - before, resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="keep_memory is for glibc")
def test_memory_is_kept_only_if_asked():
    def growth(*args):
        run = [sys.executable, "-W", "ignore", "-c", CODE, *args]
        return map(int, subprocess.run(run, capture_output=True, text=True, check=True).stdout.split())

    most, returned = growth()
    assert most > 60e6 > 10e6 > returned
    most, kept = growth("keep")
    assert most > 60e6
    assert kept > 60e6
