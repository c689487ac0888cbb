"""The public face: names re-exported on purpose, and docstrings that are complete and whose examples run."""

import ast
import inspect
import re
import textwrap
from pathlib import Path

import pytest

import shortcutrl
from shortcutrl import data, evaluate, nn, sorl
from shortcutrl.data import _ogbench

INIT = Path(shortcutrl.__file__)


def public(module):
    """The functions and classes of a module by their public names; of a package, those that it re-exports."""
    name = module.__name__.removeprefix("shortcutrl").removeprefix(".")
    for symbol, value in vars(module).items():
        own = getattr(value, "__module__", "").startswith(module.__name__)
        if own and not symbol.startswith("_") and (inspect.isfunction(value) or inspect.isclass(value)):
            yield f"{name}.{symbol}".removeprefix("."), value


LAZY = {f"data.{name}": getattr(data, name) for name in ("load_ogbench", "make_env", "generate", "Task")}
SYMBOLS = LAZY | {name: value for module in (shortcutrl, nn, sorl, data, evaluate) for name, value in public(module)}
SYMBOLS["evaluate.EnvPool"] = evaluate.EnvPool
EXAMPLES = {
    f"{name}-{i}": textwrap.dedent(block)
    for name, value in SYMBOLS.items()
    for i, block in enumerate(re.findall(r"```python\n(.*?)```", value.__doc__ or "", re.DOTALL))
}


def test_the_public_names():
    """A change here is a change for every user."""
    assert {name for name in SYMBOLS if not name.startswith(("data.", "evaluate."))} == {
        *("shortcut_step", "rollout_k", "consistency_gap"),
        *("flow_matching_loss", "self_consistency_loss", "shortcut_loss", "ShortcutInfo"),
        *("td_target", "td_loss", "TDInfo", "q_loss", "QInfo", "bon_select", "BestOfN"),
        *("Critic", "Transition", "Velocity", "nn.ShortcutPolicy", "nn.EnsembleCritic"),
        *("sorl.Config", "sorl.Info", "sorl.Jumps", "sorl.State", "sorl.draw_jumps", "sorl.init", "sorl.update"),
    }


@pytest.mark.parametrize("file", [INIT, Path(nn.__file__)], ids=["shortcutrl", "nn"])
def test_names_are_re_exported_as_themselves(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert all(alias.asname == alias.name for alias in node.names), ast.unparse(node)


@pytest.mark.parametrize("name", SYMBOLS)
def test_every_public_name_is_documented(name):
    docstring = SYMBOLS[name].__doc__ or ""
    first_line = docstring.split("\n")[0]
    assert re.match(r"[A-Z`].*[.:]$", first_line), f"the docstring of {name} starts with {first_line!r}"


@pytest.mark.parametrize("name", [name for name, value in SYMBOLS.items() if inspect.isfunction(value)])
def test_every_function_says_what_it_takes_and_gives(name):
    docstring = inspect.getdoc(SYMBOLS[name])
    for section in ("**Arguments:**", "**Returns:**", "!!! Example"):
        assert section in docstring, f"the docstring of {name} has no {section}"
    for argument in inspect.signature(SYMBOLS[name]).parameters:
        said = f"`{argument}`" in docstring or "as in [" in docstring
        assert said, f"the docstring of {name} does not say what `{argument}` is"


def test_there_are_examples():
    assert len(EXAMPLES) >= 25


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_run(example, monkeypatch):
    monkeypatch.setattr(_ogbench, "_reachable", lambda url: False)  # or a whole dataset would be downloaded
    exec(compile(EXAMPLES[example], f"<the docstring of {example}>", "exec"), {})
