"""The layers of the library: a file imports only from lower layers, and importing it brings in nothing heavy."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "shortcutrl"

LAYERS = [
    {"_types", "_typed", "_processes", "_memory"},
    {"_checks", "_files", "_sharding"},
    {"_call"},
    {"_step", "_path", "_actors"},
    {"_flow", "_value", "_diffusion", "_consistency"},
    {"_improve", "_select"},
    {"_contract"},
    {"_training"},
    {"_switch"},
    {"algorithms"},
]
BASE = set().union(*LAYERS[:3])
BESIDE = {"nn": set(), "data": set(), "suites": {"data", "evaluate"}, "evaluate": {"data"}, "runs": set()}
"""These stand on the base beside the layers, and use each other as listed. Of them only algorithms use `nn`."""

WITH_OPTAX = {"_training", "algorithms"}
WITH_EXTRAS = {"suites", "evaluate", "runs"}
EXTRAS = {
    *("ogbench", "gymnasium", "minari", "mujoco", "matplotlib", "tqdm", "cloudpickle", "filelock"),
    *("scipy", "tensorboardX", "tyro"),
}
HEAVY = {"ogbench", "gymnasium", "minari", "mujoco", "matplotlib", "tqdm", "tensorboardX", "tyro"}
"""What `import shortcutrl` must not bring in."""


def allowed(module):
    """The modules of the package that `module` may import."""
    if module == "__init__":
        return set(BESIDE).union(*LAYERS)
    if module in BESIDE:
        return BASE | {module} | BESIDE[module]
    layer = next(i for i, modules in enumerate(LAYERS) if module in modules)
    return set().union(*LAYERS[:layer], {"nn"} if module == "algorithms" else set())


def imports(source):
    """The modules that a file imports anywhere, at its top or in a function, such as `shortcutrl._step`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(module, source):
    """What `module` (of the package's folder, or a folder in it) imports although it must not."""
    for name in imports(source):
        package, *inside = name.split(".")
        if package == "shortcutrl":
            if not inside or inside[0] not in allowed(module):
                yield name
        elif (package == "optax" and module not in WITH_OPTAX) or (package in EXTRAS and module not in WITH_EXTRAS):
            yield name


files = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


RE_EXPORTS = Path("algorithms/__init__.py")


@pytest.mark.parametrize("file", [file for file in files if file != RE_EXPORTS], ids=str)
def test_imports_go_down(file):
    module = file.parts[0].removesuffix(".py")
    assert list(violations(module, (PACKAGE / file).read_text())) == []


def test_every_layer_is_there():
    there = {file.parts[0].removesuffix(".py") for file in files}
    assert there == {"__init__", *BESIDE}.union(*LAYERS)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("_checks", "from shortcutrl._step import rollout_k"),
        ("_types", "from shortcutrl import _checks"),
        ("_checks", "from shortcutrl._call import action_of"),
        ("_step", "from shortcutrl import _path"),
        ("_step", "from shortcutrl import rollout_k"),
        ("_step", "import shortcutrl"),
        ("_flow", "from shortcutrl._value import td_loss"),
        ("_value", "def f():\n    from shortcutrl import nn"),
        ("_flow", "from shortcutrl.data import sample"),
        ("_improve", "import optax"),
        ("_select", "from gymnasium import Env"),
        ("_training", "from shortcutrl import nn"),
        ("_training", "from shortcutrl.algorithms import sorl"),
        ("nn", "from shortcutrl._step import rollout_k"),
        ("nn", "import optax.tree"),
        ("data", "from shortcutrl import sorl"),
        ("data", "from shortcutrl.suites import Task"),
        ("evaluate", "from shortcutrl.suites import Task"),
        ("evaluate", "from shortcutrl.algorithms import sorl"),
        ("evaluate", "from shortcutrl.suites.ogbench import load"),
        ("algorithms", "from shortcutrl.data import sample"),
        ("algorithms", "from shortcutrl.evaluate import evaluate"),
        ("algorithms", "from shortcutrl.algorithms import sorl"),
        ("algorithms", "from shortcutrl.algorithms.sorl import Config"),
        ("algorithms", "from shortcutrl import sorl"),
        ("algorithms", "import tqdm.auto"),
        ("runs", "from shortcutrl import sorl"),
    ],
)
def test_an_import_upwards_is_caught(module, source):
    assert list(violations(module, source))


# --------------------------------------------------------------------------- no circular import


def file_of(name):
    """The file that has the module or the name `name`, such as `data/__init__.py` for `shortcutrl.data.sample`."""
    parts = name.split(".")[1:]
    for length in range(len(parts), -1, -1):
        path = Path(*parts[:length])
        for file in (path.with_suffix(".py") if length else path, path / "__init__.py"):
            if file in files:
                return file
    raise LookupError(name)


def graph(sources):
    """Which files of the package each file imports."""
    return {
        file: {file_of(name) for name in imports(source) if name.split(".")[0] == "shortcutrl"}
        for file, source in sources.items()
    }


SOURCES = {file: (PACKAGE / file).read_text() for file in files}


def test_no_import_is_circular():
    graphlib.TopologicalSorter(graph(SOURCES)).prepare()


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("data/_scale.py", "from shortcutrl.data import sample"),
        ("_types.py", "from shortcutrl._checks import as_size"),
        ("nn/_mlp.py", "from shortcutrl.nn import Value"),
        ("nn/_mlp.py", "import shortcutrl"),
    ],
)
def test_a_circular_import_is_caught(file, line):
    sources = SOURCES | {Path(file): f"{SOURCES[Path(file)]}\n{line}\n"}
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(graph(sources)).prepare()


# ---------------------------------------------------------------------------------- light imports


def test_importing_brings_in_nothing_heavy():
    code = f"import shortcutrl, sys; print(sorted({HEAVY!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("module", "missing"), [("evaluate", "gymnasium"), ("suites.ogbench", "tqdm")])
def test_without_the_extra_the_error_says_what_to_install(module, missing):
    code = f"import sys; sys.modules[{missing!r}] = None; import shortcutrl.{module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode != 0
    extra = module.removeprefix("suites.")
    assert f"needs {missing}: pip install 'shortcutrl[{extra}]'" in done.stderr.splitlines()[-1]
