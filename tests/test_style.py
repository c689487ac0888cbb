"""One style, checked by machine."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("command", ["check", "format --check"])
def test_ruff_is_content(command):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command.split(), "."],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
