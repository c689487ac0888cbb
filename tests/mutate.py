"""Change the mathematics in one place at a time, and count the changes that the tests catch.

    python tests/mutate.py --sample 100 --seed 0

A mutant is one expression of `OWN`'s files that is changed mechanically: an operator, a comparison, a constant or
default, a reduction, a condition, or a stopped gradient. It runs in a copy of the repository, against the tests that
concern its file. The libraries do not fit: mutmut skips decorated functions, which all public ones are, and cosmic-ray
runs one command for all files and does not know `stop_gradient`.
"""

import argparse
import ast
import copy
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import shortcutrl
from shortcutrl.evaluate import Evaluation

ROOT = Path(__file__).parents[1]
ALGORITHMS = [path.stem for path in sorted((ROOT / "shortcutrl" / "algorithms").glob("[!_]*.py"))]

OWN = {
    "_step": "step rollout error_*",
    "_path": "draws flow error_*",
    "_flow": "flow draws error_* bc",
    "_value": "value error_*",
    "_improve": "improve error_*",
    "_select": "select error_*",
    "_diffusion": "diffusion",
    "_consistency": "consistency cac",
    "_actors": "error_*",
    "_training": "sorl iql algorithms",
    "_switch": "sorl",
    "data/_index": "sample",
    "data/_sample": "sample data",
    "evaluate/_statistics": "evaluate -k interval",
} | {f"algorithms/{name}": f"{name} algorithms" for name in ALGORITHMS}
"""The tests of each file, with options of pytest."""

TIMEOUT = 900
"""Seconds. A mutant whose tests do not end is caught."""

EQUIVALENT = {
    ("_step", "steps > (8 if compiling else 128)"): "whether steps are unrolled: the time of compilation",
    ("_step", "(jax.checkpoint(jump), 1, 0, vary_like(jump(noise, 0.0), noise))"): "how jumps are grouped: memory",
    ("_step", "(jump, 8, noise)"): "how many jumps of a scan are unrolled: speed",
    ("_step", "(k - 1) % unroll + 1 if is_long(k) else k"): "how many jumps stand before the scan: speed",
    ("_diffusion", "is_long(steps)"): "the same",
    ("_diffusion", "unroll=8"): "how many steps of a scan are unrolled: speed",
    ("data/_index", "2 ** 24"): "from which size on rows are visited one by one: memory",
    ("data/_sample", "512"): "the rows of one round of drawing: speed",
    ("data/_sample", "32"): "how often each row is drawn on average before the search ends; one in e^32 is missed",
}
"""Expressions that are not changed, because the result does not depend on them, and why."""

SWAPS = {ast.Add: ast.Sub, ast.Mult: ast.Div, ast.Pow: ast.Mult, ast.FloorDiv: ast.Div, ast.BitOr: ast.BitAnd}
SWAPS |= {ast.Lt: ast.LtE, ast.Gt: ast.GtE, ast.Eq: ast.NotEq, ast.Is: ast.IsNot, ast.In: ast.NotIn, ast.And: ast.Or}
SWAPS |= {new: old for old, new in SWAPS.items() if old not in (ast.Pow, ast.FloorDiv)}
NAMES = {"mean": "sum", "min": "max", "minimum": "maximum", "argmax": "argmin", "square": "abs", "floor": "ceil"}
NAMES |= {new: old for old, new in NAMES.items()}
TRANSPARENT = {"stop_gradient", "fixed", "abs", "square", "sqrt", "exp", "log", "clip"}
"""Functions whose call may be replaced by their first argument."""


class Mutant(NamedTuple):
    module: str
    node: ast.expr
    code: str

    def source(self, text: str) -> str:
        """The file with the expression replaced."""
        lines = text.encode().splitlines(keepends=True)
        start = sum(map(len, lines[: self.node.lineno - 1])) + self.node.col_offset
        end = sum(map(len, lines[: self.node.end_lineno - 1])) + self.node.end_col_offset
        return (text.encode()[:start] + self.code.encode() + text.encode()[end:]).decode()

    def __str__(self) -> str:
        return f"shortcutrl/{self.module}.py:{self.node.lineno}: {ast.unparse(self.node)} -> {self.code}"


def mutants(module: str) -> list[Mutant]:
    tree = ast.parse(path_of(ROOT, module).read_text())
    found = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.expr | ast.keyword)}
    if gone := {text for name, text in EQUIVALENT if name == module} - found:
        raise SystemExit(f"`EQUIVALENT` names expressions that {module} does not contain: {gone}")
    return [Mutant(module, node, code) for node in expressions(tree, module) for code in changes(node)]


def expressions(node: ast.AST, module: str) -> Iterator[ast.expr]:
    """Those that are computed: no annotation, no text of an error, and not the `strict` of `zip`."""
    if isinstance(node, ast.Raise | ast.JoinedStr) or (isinstance(node, ast.keyword) and node.arg == "strict"):
        return
    if isinstance(node, ast.expr | ast.keyword) and (module, ast.unparse(node)) in EQUIVALENT:
        return
    if isinstance(node, ast.expr):
        yield node
    for name, field in ast.iter_fields(node):
        if name not in ("annotation", "returns", "decorator_list"):
            for child in field if isinstance(field, list) else [field]:
                if isinstance(child, ast.AST):
                    yield from expressions(child, module)


def changes(node: ast.expr) -> Iterator[str]:
    """The code of each change of one expression."""
    match node:
        case ast.BinOp(op=op) | ast.BoolOp(op=op) if type(op) in SWAPS:
            yield changed(node, op=SWAPS[type(op)]())
        case ast.Compare(ops=[op, *rest]) if type(op) in SWAPS:
            yield changed(node, ops=[SWAPS[type(op)](), *rest])
        case ast.UnaryOp(op=ast.USub() | ast.Not() | ast.Invert(), operand=operand):
            yield f"({ast.unparse(operand)})"
        case ast.Constant(value=bool(value)):
            yield str(not value)
        case ast.Constant(value=int(value)):
            yield str(value + 1)
        case ast.Constant(value=float(value)):
            yield str(value * 2 if value else 1.0)
        case ast.Constant(value=("mean" | "min") as value):
            yield repr({"mean": "min", "min": "mean"}[value])
        case ast.IfExp(body=body, orelse=orelse):
            yield f"({ast.unparse(body)})"
            yield f"({ast.unparse(orelse)})"
        case ast.Attribute(attr=name) if name in NAMES:
            yield changed(node, attr=NAMES[name])
        case ast.Call(func=ast.Attribute(attr=name), args=[first, *_]) if name in TRANSPARENT:
            yield f"({ast.unparse(first)})"


def changed(node: ast.expr, **fields) -> str:
    other = copy.copy(node)
    for name, value in fields.items():
        setattr(other, name, value)
    return f"({ast.unparse(other)})"


def tests_of(module: str) -> list[list[str]]:
    """Its own tests, and those of all algorithms or functions as far as they concern it; the quickest first."""
    own, *options = OWN[module].split(" -k ")
    own = [*files(own), *[word for option in options for word in ("-k", option)]]
    if "algorithms/" in module:
        return [own, [*files("algorithms"), "-k", Path(module).name]]
    tree = ast.parse(path_of(ROOT, module).read_text())
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and hasattr(shortcutrl, node.name)]
    tables = [*files("public transformations"), "-k", f"(default or {' or '.join(names)}) and not sorl"]
    return [tables, own] if names else [own]


def files(names: str) -> list[str]:
    paths = [path for name in names.split() for path in sorted(ROOT.glob(f"tests/test_{name}.py"))]
    return [str(path.relative_to(ROOT)) for path in paths]


def path_of(root: Path, module: str) -> Path:
    return root / "shortcutrl" / f"{module}.py"


class Copy:
    """A copy of the repository, in which mutants run."""

    def __init__(self, folder: str) -> None:
        self.root = Path(folder) / "copy"
        self.cache = self.root / ".pytest_cache"
        self.trusted: set[str] = set()
        shutil.copytree(ROOT, self.root, ignore=shutil.ignore_patterns(".git", ".venv", "site", "dist", ".*_cache"))

    def failed(self, tests: list[str]) -> list[str]:
        """The tests that fail, at most one; those that do not end in time, all."""
        shutil.rmtree(self.cache, ignore_errors=True)
        command = [sys.executable, "-B", "-m", "pytest", "-x", "-q", *tests]
        environment = os.environ | {"PYTHONPATH": str(self.root), "CI": "1"}  # hypothesis draws the same each time
        options = {"cwd": self.root, "env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        try:
            code = subprocess.run(command, **options, timeout=TIMEOUT).returncode
        except subprocess.TimeoutExpired:
            return tests
        if code in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED):
            raise SystemExit(f"There are no such tests: {' '.join(tests)}")
        if code == pytest.ExitCode.OK:
            return []
        record = self.cache / "v" / "cache" / "lastfailed"
        return list(json.loads(record.read_text())) if record.exists() else tests

    def catches(self, mutant: Mutant) -> bool:
        """Whether a test fails that passes without the mutant."""
        path = path_of(self.root, mutant.module)
        right = path.read_text()
        path.write_text(mutant.source(right))
        failed = next(filter(None, map(self.failed, tests_of(mutant.module))), [])
        path.write_text(right)
        for test in set(failed) - self.trusted:
            if "::" in test and self.failed([test]):
                raise SystemExit(f"The tests fail without a mutant: {test}")
        self.trusted.update(failed)
        return bool(failed)


def main(sample: int, seed: int, only: str) -> None:
    population = [mutant for module in OWN if only in module for mutant in mutants(module)]
    random.Random(seed).shuffle(population)
    print(f"{sample} of {len(population)} mutants, seed {seed}", flush=True)
    caught = []
    with tempfile.TemporaryDirectory() as folder:
        copied = Copy(folder)
        for mutant in population[:sample]:  # a smaller sample is the beginning of a larger one
            caught.append(copied.catches(mutant))
            print("caught  " if caught[-1] else "SURVIVED", mutant, flush=True)
    low, high = Evaluation(np.array(caught), *[np.zeros(len(caught))] * 2).success_interval()
    print(f"caught {sum(caught)} of {len(caught)} (95% interval {low:.3f} to {high:.3f})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, default=100, help="the number of mutants")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--only", default="", help="a part of the file's name, such as _step or sorl")
    main(**vars(parser.parse_args()))
