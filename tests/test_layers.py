"""The floors of the library: a file imports only from lower floors, and importing it brings in nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "shortcutrl"

FLOORS = [
    {"_types", "_processes"},
    {"_checks"},
    {"_step", "_path"},
    {"_shortcut", "_value"},
    {"_improve", "_select"},
    {"sorl"},
    {"_pool"},
    {"evaluate"},
]
BASE = FLOORS[0] | FLOORS[1]
BESIDE = {"nn", "data"}
"""These stand on the base, beside the floors: only `evaluate` may use them, and they use only themselves."""

NEED_EXTRAS = {"data", "_pool", "evaluate"}
FORBIDDEN = {"ogbench", "gymnasium", "mujoco", "matplotlib", "tqdm"}
"""What `import shortcutrl` must not bring in."""


def allowed(module):
    """The modules of the package that `module` may import."""
    if module == "__init__":
        return BESIDE.union(*FLOORS)
    if module in BESIDE:
        return BASE | {module}
    floor = next(i for i, modules in enumerate(FLOORS) if module in modules)
    return set().union(*FLOORS[:floor], BESIDE if module == "evaluate" else set())


def imports(source):
    """The modules that a file imports anywhere, at its top or in a function, such as `shortcutrl._step`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            if node.module == "shortcutrl":
                yield from (f"shortcutrl.{alias.name}" for alias in node.names)
            else:
                yield node.module


def violations(module, source):
    """What `module` (of the package's folder, or a folder in it) imports and should not."""
    for name in imports(source):
        package, *inside = name.split(".")
        if package == "shortcutrl":
            if not inside or inside[0] not in allowed(module):
                yield name
        elif (package == "optax" and module != "sorl") or (package in FORBIDDEN and module not in NEED_EXTRAS):
            yield name


files = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", files, ids=str)
def test_imports_go_down(file):
    module = file.parts[0].removesuffix(".py")
    assert list(violations(module, (PACKAGE / file).read_text())) == []


def test_every_floor_is_there():
    there = {file.stem for file in files if len(file.parts) == 1}
    assert set().union(*FLOORS) - {"evaluate"} <= there


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("_checks", "from shortcutrl._step import rollout_k"),
        ("_step", "from shortcutrl import _path"),
        ("_step", "from shortcutrl import rollout_k"),
        ("_step", "import shortcutrl"),
        ("_shortcut", "from shortcutrl._value import evaluate"),
        ("_value", "def f():\n    from shortcutrl import nn"),
        ("_improve", "import optax"),
        ("_select", "from gymnasium import Env"),
        ("nn", "from shortcutrl._step import rollout_k"),
        ("nn", "import optax.tree"),
        ("data", "from shortcutrl import sorl"),
        ("sorl", "from shortcutrl.data import sample"),
        ("sorl", "import tqdm.auto"),
    ],
)
def test_an_import_upwards_is_caught(module, source):
    assert list(violations(module, source))


def test_importing_brings_in_nothing_heavy():
    code = f"import shortcutrl, sys; print(sorted({FORBIDDEN!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["evaluate.evaluate", "data.load_ogbench"])
@pytest.mark.parametrize("missing", ["gymnasium", "tqdm"])
def test_without_the_extra_the_error_says_what_to_install(name, missing):
    module, function = name.split(".")
    code = f"import sys; sys.modules[{missing!r}] = None; from shortcutrl import {module}; {module}.{function}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode != 0
    assert f"needs {missing}: pip install 'shortcutrl[ogbench]'" in done.stderr.splitlines()[-1]
