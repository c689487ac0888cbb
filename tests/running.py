"""Run the examples, small, in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"
ENV = "pointmaze-medium-navigate-singletask-v0"  # quick to simulate
SMOKE = ["sorl.py", "--preset", "smoke"]


def start(home, script, *args, before=(), **options):
    """Start an example with `home` as its home folder. `before`: a command that starts it."""
    here = {"XDG_CACHE_HOME": str(home), "HOME": str(home), "JAX_COMPILATION_CACHE_DIR": str(home / "jax")}
    env = os.environ | here | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [*before, sys.executable, EXAMPLES / script, *args]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def finish(process, timeout=900):
    """Wait for a process, which must succeed. Returns what it printed."""
    with process:
        try:
            said, complained = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    assert process.returncode == 0, complained
    return said
