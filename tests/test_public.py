"""The public names, and their docstrings: complete, with examples that run."""

import ast
import inspect
import re
import textwrap
from pathlib import Path

import pytest
from algorithms import MODULES

import shortcutrl
from shortcutrl import data, evaluate, nn, runs, suites
from shortcutrl.suites import ogbench
from shortcutrl.suites.ogbench import _load

INIT = Path(shortcutrl.__file__)


def public(module):
    """The functions and classes of a module by their public names; of a package, those that it re-exports."""
    name = module.__name__.removeprefix("shortcutrl").removeprefix(".").removeprefix("algorithms.")
    home = "shortcutrl" if hasattr(module, "__path__") else module.__name__
    for symbol, value in vars(module).items():
        own = getattr(value, "__module__", "").startswith(home)
        if own and not symbol.startswith("_") and (inspect.isfunction(value) or inspect.isclass(value)):
            yield f"{name}.{symbol}".removeprefix("."), value


PACKAGES = shortcutrl, nn, data, suites, ogbench, evaluate, runs, *MODULES.values()
SYMBOLS = {name: value for module in PACKAGES for name, value in public(module)}
EXAMPLES = {
    f"{name}-{i}": textwrap.dedent(block)
    for name, value in SYMBOLS.items()
    for i, block in enumerate(re.findall(r"```python\n(.*?)```", value.__doc__ or "", re.DOTALL))
}


def test_the_public_names():
    """A change here is a change for every user. Those of each algorithm are in `test_algorithms.py`."""
    core = {name for name in SYMBOLS if "." not in name or name.startswith("nn.")}
    assert core == {
        *("shortcut_step", "rollout_k", "consistency_gap"),
        *("interpolate", "draw_flow_matching", "draw_self_consistency"),
        *("flow_matching_loss", "self_consistency_loss", "shortcut_loss", "ShortcutInfo", "gaussian_nll"),
        *("vp_schedule", "diffuse", "denoising_loss", "ddpm_sample", "score_distillation_loss"),
        *("noise_level", "consistency_function", "consistency_loss", "consistency_sample"),
        *("bellman_target", "td_target", "td_loss", "critic_loss", "TDInfo", "expectile_loss"),
        *("q_loss", "QInfo", "distill_loss", "advantage_weight"),
        *("clipped", "noiseless", "bon_select", "best_of_n", "BestOfN"),
        *("Actor", "Critic", "Value", "Velocity", "Denoiser", "ConsistencyModel", "Transition"),
        "keep_memory",
        *("nn.ShortcutPolicy", "nn.FlowPolicy", "nn.OneStepPolicy", "nn.EnsembleCritic", "nn.Value"),
        *("nn.GaussianPolicy", "nn.DeterministicPolicy", "nn.ResidualDenoiser", "nn.Impala", "nn.Features"),
    }


@pytest.mark.parametrize("name", MODULES)
def test_algorithms_are_importable_from_the_package(name):
    assert getattr(shortcutrl, name) is MODULES[name]


@pytest.mark.parametrize("file", [INIT, Path(nn.__file__)], ids=["shortcutrl", "nn"])
def test_names_are_re_exported_as_themselves(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert all(alias.asname == alias.name for alias in node.names), ast.unparse(node)


WIDE = {"width": 512, "depth": 4, "encoder": None}
POLICY, CRITIC = ({**WIDE, "layer_norm": norm, "matmul_dtype": None} for norm in (False, True))
DEFAULTS = {
    "advantage_weight": {"cap": 100.0},
    "best_of_n": {"aggregate": "mean"},
    "bon_select": {"aggregate": "mean"},
    "consistency_sample": {"clip": None},
    "ddpm_sample": {"clip": None},
    "draw_flow_matching": {"shape": ()},
    "draw_self_consistency": {"shape": ()},
    "q_loss": {"aggregate": "mean"},
    "rollout_k": {"clip": None, "remat": False},
    "shortcut_loss": {
        "flow_matching_weight": 1.0,
        "self_consistency_weight": 1.0,
        "flow_matching_times": None,
        "self_consistency_times": None,
    },
    "td_loss": {"aggregate": "mean"},
    "td_target": {"aggregate": "mean"},
    "Transition": {"next_action": None},
    "vp_schedule": {"beta_min": 0.1, "beta_max": 20.0},
    "nn.DeterministicPolicy": POLICY,
    "nn.EnsembleCritic": CRITIC | {"ensemble": 2, "condition_on_k": False},
    "nn.FlowPolicy": POLICY,
    "nn.GaussianPolicy": POLICY,
    "nn.Impala": {"channels": (16, 32, 32), "blocks": 1, "width": 512},
    "nn.OneStepPolicy": POLICY,
    "nn.ResidualDenoiser": {"width": 256, "blocks": 3, "encoder": None},
    "nn.ShortcutPolicy": POLICY | {"smallest_step": 1 / 256},
    "nn.Value": CRITIC,
    "data.random_crop": {"padding": 3, "probability": 0.5},
    "data.sample": {"n_step": 1, "chunk": 1, "frame_stack": 1, "discount": None},
    "sorl.networks": WIDE | {"condition_critic_on_k": True},
    "cac.networks": WIDE | {"policy_width": 256, "policy_depth": 3},
    "idql.networks": WIDE | {"policy_width": 256, "blocks": 3},
    "srpo.networks": WIDE | {"diffusion_width": 256, "blocks": 3},
} | {f"{name}.networks": WIDE for name in ("bc", "fawac", "fbrac", "fql", "ifql", "iql", "rebrac")}
"""Where a default is published, it is the published one. Those of each `Config` are in the tests of its algorithm."""


def defaults(function):
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


@pytest.mark.parametrize("name", DEFAULTS)
def test_the_defaults_of_arguments(name):
    assert defaults(SYMBOLS[name]) == DEFAULTS[name]


def test_no_function_of_the_core_has_other_defaults():
    core = {name for name in SYMBOLS if "." not in name or name.startswith("nn.") or name.endswith(".networks")}
    assert {name for name in core if defaults(SYMBOLS[name])} == DEFAULTS.keys() - {"data.sample", "data.random_crop"}


@pytest.mark.parametrize("name", SYMBOLS)
def test_every_public_name_is_documented(name):
    docstring = SYMBOLS[name].__doc__ or ""
    first_line = docstring.split("\n")[0]
    assert re.match(r"[A-Z`].*[.:]$", first_line), f"the docstring of {name} starts with {first_line!r}"


@pytest.mark.parametrize("name", [name for name, value in SYMBOLS.items() if inspect.isfunction(value)])
def test_every_function_says_what_it_takes_and_gives(name):
    docstring, arguments = inspect.getdoc(SYMBOLS[name]), inspect.signature(SYMBOLS[name]).parameters
    owner, _, own = name.partition(".")
    # The examples of `policy_loss` and `update` stand for these.
    shown = owner in MODULES and own in ("networks", "init", "draw", "critic_loss", "value_loss")
    sections = ["**Arguments:**", "**Raises:**"] * bool(arguments) + ["**Returns:**"] + ["!!! Example"] * (not shown)
    for section in sections:
        assert section in docstring, f"the docstring of {name} has no {section}"
    for argument in arguments:
        said = f"`{argument}`" in docstring or "as in [" in docstring
        assert said, f"the docstring of {name} does not say what `{argument}` is"


def test_there_are_examples():
    assert len(EXAMPLES) >= 100


def in_its_time(example):
    """Those of the algorithms are alike: by default, those of one run."""
    like_sorl = example.split(".")[0] in MODULES.keys() - {"sorl"}
    return pytest.param(example, marks=pytest.mark.slow) if like_sorl else example


@pytest.mark.parametrize("example", [in_its_time(example) for example in EXAMPLES])
def test_examples_run(example, monkeypatch):
    monkeypatch.setattr(_load, "reachable", lambda url: False)  # or a whole dataset would be downloaded
    exec(compile(EXAMPLES[example], f"<the docstring of {example}>", "exec"), {})
