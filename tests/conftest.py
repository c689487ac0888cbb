"""How the suite runs: float64 at hand for the oracles, nothing broadcast by accident, every warning an error."""

import os

import hypothesis
import jax
import pytest
from running import TRAIN, finish, start

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)  # the suite compiles much and computes little

hypothesis.settings.register_profile("laptop", deadline=None, max_examples=30)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=30, derandomize=True, print_blob=True)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=1000)  # --hypothesis-profile=thorough
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "laptop")


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "error")


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A home folder of our own for the examples, so that they share a dataset and compiled programs."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def trained_run(home):
    """The folder of a small run of `sorl.py` that nothing interrupted."""
    finish(start(home, *TRAIN, "--out", home / "trained"))
    return home / "trained"
