"""Bad inputs, drawn over every argument of every public function: no obscure, silent or endless outcome.

Each draw takes a valid call and replaces one argument. The outcome must be a result, for a value that is good after
all, or a `TypeError` or `ValueError` whose first line names an argument.
"""

import dataclasses
import datetime
import decimal
import fractions
import inspect
import re
import signal
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from algorithms import MODULES, draws, learner, losses, networks, optimizers, small, start, transitions
from calls import KEY, STEP, X, act, critic, stay

import shortcutrl
from shortcutrl import nn

# ------------------------------------------------------------------------------- the valid calls


class Call(NamedTuple):
    """A function and its arguments by name. `abstract`: too slow to run each time, so only traced."""

    function: Callable
    arguments: dict[str, Any]
    abstract: bool = False

    def outcome(self, **changes):
        call = partial(self.function, **(self.arguments | changes))
        return jax.eval_shape(call) if self.abstract else call()


def value(obs):
    return jnp.float32(1)


def denoiser(obs, x, t):
    return jnp.zeros_like(x)


FUNCTIONS = {
    "shortcut_step": {"velocity": stay, "obs": None, "x": X, "t": 0.25, "h": 0.5},
    "rollout_k": {"velocity": stay, "obs": None, "noise": X, "k": 2, "clip": (-1.0, 1.0), "remat": False},
    "consistency_gap": {"velocity": stay, "obs": None, "x": X, "t": 0.25, "h": 0.5},
    "interpolate": {"noise": X, "action": X, "t": 0.5},
    "draw_flow_matching": {"key": KEY, "num_steps": 8, "shape": (3,)},
    "draw_self_consistency": {"key": KEY, "num_steps": 8, "shape": (3,)},
    "flow_matching_loss": {"velocity": stay, "obs": None, "action": X, "noise": X, "t": 0.25, "h": 0.5},
    "self_consistency_loss": {
        **{"velocity": stay, "teacher": stay, "obs": None, "action": X, "noise": X},
        **{"t": 0.25, "h": 0.5},
    },
    "shortcut_loss": {
        **{"velocity": stay, "teacher": stay, "obs": None, "action": X, "num_steps": 4, "key": KEY},
        **{"flow_matching_weight": 1.0, "self_consistency_weight": 1.0},
        **{"flow_matching_times": lambda key: (0.5, 0.0), "self_consistency_times": lambda key: (0.5, 0.5)},
    },
    "gaussian_nll": {"mean": X, "action": X},
    "bellman_target": {"transition": STEP, "next_value": 1.0, "discount": 0.9},
    "td_target": {
        **{"target_critic": critic, "actor": act, "transition": STEP, "noise": X},
        **{"discount": 0.9, "aggregate": "min"},
    },
    "td_loss": {
        **{"critic": critic, "target_critic": critic, "actor": act, "transition": STEP, "noise": X},
        **{"discount": 0.9, "aggregate": "min"},
    },
    "critic_loss": {"critic": critic, "transition": STEP, "target": 1.0},
    "expectile_loss": {"value": value, "obs": None, "q": 1.0, "expectile": 0.7},
    "q_loss": {"actor": act, "critic": critic, "obs": None, "noise": X, "aggregate": "mean"},
    "distill_loss": {"student": act, "teacher": act, "obs": None, "noise": X},
    "advantage_weight": {"q": 1.0, "v": 0.5, "temperature": 3.0, "cap": 100.0},
    "clipped": {"actor": act, "obs": None, "noise": X, "clip": (-1.0, 1.0)},
    "noiseless": {"actor": act, "obs": None, "noise": X},
    "bon_select": {"actor": act, "critic": critic, "obs": None, "noise": jnp.ones((3, 2)), "aggregate": "mean"},
    "best_of_n": {"actor": act, "critic": critic, "obs": None, "noise": jnp.ones((3, 2)), "aggregate": "mean"},
}
OTHER_TESTS = {
    *("vp_schedule", "diffuse", "denoising_loss", "ddpm_sample", "score_distillation_loss"),
    *("noise_level", "consistency_function", "consistency_loss", "consistency_sample"),
}
"""Functions of diffusion and consistency models, whose own tests draw bad inputs."""

SIZES = {"obs_size": 3, "action_size": 2, "width": 4, "depth": 1, "blocks": 1, "ensemble": 2}


def network_calls():
    """The constructors of `nn`, and calls of what they make."""
    inputs = {"obs": jnp.ones(3), "x": jnp.ones(2), "t": 0.25, "h": 0.5, "noise": jnp.ones(2), "action": jnp.ones(2)}
    for name, kind in vars(nn).items():
        if inspect.isclass(kind):
            parameters = inspect.signature(kind).parameters
            arguments = {p.name: SIZES.get(p.name, p.default) for p in parameters.values()} | {"key": KEY}
            yield f"nn.{name}", Call(kind, arguments)
            network = kind(**arguments)
            names = [p.name for p in inspect.signature(network).parameters.values() if p.default is p.empty]
            yield f"nn.{name}()", Call(network, {name: inputs[name] for name in names})
    seeing = nn.EnsembleCritic(3, 2, width=4, depth=1, condition_on_k=True, key=KEY)
    yield "nn.EnsembleCritic(condition_on_k=True)()", Call(seeing, {"obs": jnp.ones(3), "action": jnp.ones(2), "k": 4})


def algorithm_calls(name, module):
    config, group = small(module), optimizers(module)
    state, batch = start(module), transitions()
    drawn = draws(module, KEY, batch, config)
    given = {"state": state, "batch": batch, "draws": drawn, "config": config, "optimizers": group, "key": KEY}
    given |= {"networks": networks(module), "example": batch, "k": 2, "n": 2, "jumps_key": KEY, "sample": False}

    def call(function, **own):
        known = SIZES | given | own
        names = inspect.signature(function).parameters
        return {name: known.get(name, names[name].default) for name in names}

    yield f"{name}.Config", Call(module.Config, dataclasses.asdict(config))
    for function in ("networks", "actor"):
        yield f"{name}.{function}", Call(getattr(module, function), call(getattr(module, function)))
    for function in ("init", "draw", "update"):
        yield f"{name}.{function}", Call(getattr(module, function), call(getattr(module, function)), True)
    for loss in losses(module):
        first = next(iter(inspect.signature(getattr(module, loss)).parameters))
        network = learner(module, loss, state)
        yield f"{name}.{loss}", Call(getattr(module, loss), call(getattr(module, loss), **{first: network}), True)


CALLS = {name: Call(getattr(shortcutrl, name), arguments) for name, arguments in FUNCTIONS.items()}
CALLS |= dict(network_calls())
for name, module in MODULES.items():
    CALLS |= dict(algorithm_calls(name, module))


def test_every_public_function_is_there():
    functions = {name for name, value in vars(shortcutrl).items() if inspect.isfunction(value)}
    assert functions == {*FUNCTIONS, *OTHER_TESTS}


@pytest.mark.parametrize("name", CALLS)
def test_the_calls_are_valid(name):
    CALLS[name].outcome()


# --------------------------------------------------------------------------------- the bad values


class Odd:
    def __repr__(self):
        raise RuntimeError("no repr")


def forever():
    while True:
        yield 1.0


BAD = {
    "None": None,
    "text": "abc",
    "digits": "3",
    "an empty text": "",
    "bytes": b"3",
    "True": True,
    "False": False,
    "NumPy's True": np.True_,
    "zero": 0,
    "minus one": -1,
    "two": 2,
    "three": 3,
    "a large integer": 10**9,
    "a huge integer": 10**30,
    "a NumPy integer": np.int64(7),
    "a small NumPy integer": np.uint8(200),
    "minus half": -0.5,
    "one and a half": 1.5,
    "a huge float": 1e300,
    "NaN": float("nan"),
    "infinity": float("inf"),
    "minus infinity": float("-inf"),
    "NumPy's NaN": np.float32("nan"),
    "complex": 1 + 1j,
    "a fraction": fractions.Fraction(1, 2),
    "a decimal": decimal.Decimal("0.5"),
    "a date": datetime.date(2020, 1, 1),
    "a NumPy date": np.datetime64("2020-01-01"),
    "a time": np.timedelta64(1, "s"),
    "a list": [1.0, 2.0],
    "an empty list": [],
    "a tuple": (1.0, 2.0),
    "an empty tuple": (),
    "a nested list": [[1.0], [2.0, 3.0]],
    "a dictionary": {"a": 1.0},
    "a set": {1.0},
    "a range": range(2),
    "a generator": forever(),
    "an object": object(),
    "an object without a repr": Odd(),
    "a type": float,
    "a module": np,
    "an ellipsis": ...,
    "integers": jnp.ones(2, int),
    "NumPy integers": np.ones(2, np.int32),
    "flags": np.ones(2, bool),
    "complex numbers": jnp.ones(2) * 1j,
    "texts": np.array(["1", "2"]),
    "objects": np.array([None, 1.0], object),
    "dates": np.array(["2020-01-01", "2020-01-02"], "datetime64[D]"),
    "records": np.zeros(2, [("a", float)]),
    "a masked array": np.ma.masked_array(np.ones(2), [True, False]),
    "a matrix": jnp.ones((2, 2)),
    "a row": jnp.ones((1, 2)),
    "a column": np.ones((2, 1)),
    "a longer array": jnp.ones(3),
    "an empty array": np.zeros(0),
    "a 0-d array": jnp.asarray(0.5),
    "a 0-d integer": np.asarray(2),
    "half precision": np.ones(2, np.float16),
    "double precision": jnp.ones(2),
    "NaNs": jnp.full(2, jnp.nan),
    "a key": jax.random.key(1),
    "keys": jax.random.split(jax.random.key(1)),
    "an old key": jax.random.PRNGKey(1),
    "a function of nothing": lambda: None,
    "a function of anything to None": lambda *args, **options: None,
    "a function of anything to text": lambda *args, **options: "1",
    "a function of anything to integers": lambda *args, **options: jnp.ones(2, int),
    "a function of anything to a matrix": lambda *args, **options: jnp.ones((2, 2)),
    "a function of anything to a complex number": lambda *args, **options: jnp.ones(2) * 1j,
    "a function of anything to a list": lambda *args, **options: [1.0, 2.0],
    "a velocity": stay,
    "an actor": act,
    "a value": value,
    "a transition": STEP,
    "a batch": transitions(),
}

FIELDS = ("transition", "batch", "example", "draws", "state", "networks", "optimizers")
"""Arguments of which a field is replaced instead, in half of the draws."""


def draw(rng):
    """A call, the argument to replace, and the value in its place."""
    name = rng.choice(list(CALLS))
    argument = rng.choice(list(CALLS[name].arguments))
    kind = rng.choice(list(BAD))
    field = None
    given = CALLS[name].arguments[argument]
    if argument in FIELDS and getattr(given, "_fields", ()) and rng.random() < 0.5:
        field = rng.choice(given._fields)
    return name, argument, field, kind


# ------------------------------------------------------------------------------------ the outcomes


def first_line(error):
    return (str(error) or repr(error)).splitlines()[0]


def names_an_argument(call, argument, line):
    """Whether a message names the argument, or another argument of the call that took the value further."""
    quoted = {re.split(r"[.\[ (]", each)[0] for each in re.findall(r"`([^`]+)`", line)}
    fields = {field for value in call.arguments.values() for field in getattr(value, "_fields", ())}
    return bool(quoted & {*call.arguments, *fields, "transition"})


def accepted(argument, kind, result):
    raise NotImplementedError


def outcome(name, argument, field, kind):
    """`None` if a draw ends well, or what is wrong with its end."""
    call, bad = CALLS[name], BAD[kind]
    if field is not None:
        bad = call.arguments[argument]._replace(**{field: bad})

    def alarm(*_):
        raise TimeoutError

    signal.signal(signal.SIGALRM, alarm)
    signal.alarm(60)
    try:
        result = call.outcome(**{argument: bad})
    except (TypeError, ValueError) as error:
        line = first_line(error)
        if not names_an_argument(call, argument, line):
            return f"obscure: {type(error).__name__}: {line}"
        return f"long: {line}" if len(line) > 300 else None
    except TimeoutError:
        return "endless"
    except Exception as error:
        return f"obscure: {type(error).__name__}: {first_line(error)}"
    finally:
        signal.alarm(0)
    return ("accepted", result)
