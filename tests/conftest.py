"""Settings of the suite: float64 for the oracles, no implicit broadcasting, warnings as errors."""

import os
import sys
from pathlib import Path

import hypothesis
import jax
import pytest
from running import SMOKE, finish, start

SCRIPTS = [Path(__file__).parents[1] / folder for folder in ("examples", "benchmarks", "benchmarks/ogbench")]

FLAGS = "--xla_cpu_parallel_codegen_split_count=1"
if jax.__version_info__ < (0, 11):  # later versions do not know this flag
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
if FLAGS not in os.environ.get("XLA_FLAGS", ""):  # workers inherit them; so do the examples
    os.environ["XLA_FLAGS"] = f"{FLAGS} {os.environ.get('XLA_FLAGS', '')}"  # compile in half of the time

os.environ.setdefault("MUJOCO_GL", "disabled")  # otherwise OGBench warns on machines without a renderer

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)  # compiling takes longer than running here
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # and so it does in the processes that tests start
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".cache" / "programs"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

hypothesis.settings.register_profile("laptop", deadline=None, max_examples=15)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=15, derandomize=True, print_blob=True)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=1000)  # --hypothesis-profile=thorough
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "laptop")


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "error")
    # Old versions of JAX read a program while another worker writes it. They then compile it again.
    config.addinivalue_line("filterwarnings", "ignore:Error reading persistent compilation cache entry:UserWarning")


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Each compiled program holds memory maps, of which a process may have only so many."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module", autouse=True)
def forget_scripts():
    """Examples and benchmarks have modules of one name, such as `methods`, which may be imported in one process."""
    yield
    for name, module in [*sys.modules.items()]:
        if Path(getattr(module, "__file__", None) or "").parent in SCRIPTS:
            del sys.modules[name]


@pytest.fixture
def without_x64():
    """JAX as its users have it, for what differs."""
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", True)


@pytest.fixture
def optimised():
    """Compiled as a user's program is."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A home folder for the examples, so that they share datasets and compiled programs."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def smoke_run(home):
    """The folder of a small run of `sorl.py`. What it printed is next to it, in `smoke.txt`."""
    (home / "smoke.txt").write_text(finish(start(home, *SMOKE, "--out", home / "smoke")))
    return home / "smoke"
