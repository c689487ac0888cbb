"""Draws of bad inputs: a valid call with one argument replaced, and what is wrong with its outcome.

The outcome must be a result, for a value that is good after all, or a `TypeError` or `ValueError` whose first line
names an argument.
"""

import datetime
import decimal
import fractions
import random
import re
import signal
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from algorithms import transitions
from calls import STEP, act, stay


class Call(NamedTuple):
    """A function and its arguments by name.

    `abstract`: too slow to run each time, so only traced. `costly`: run with bad values only.
    """

    function: Callable
    arguments: dict[str, Any]
    abstract: bool = False
    costly: bool = False

    def outcome(self, **changes):
        call = partial(self.function, **(self.arguments | changes))
        return jax.eval_shape(call) if self.abstract else call()


def value(obs):
    return jnp.float32(1)


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
    "a gigantic integer": 10**400,
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


COUNTS = {"two", "three", "a NumPy integer", "a small NumPy integer"}
FLAGS = {"True", "False", "NumPy's True"}
FRACTIONS = {"zero", "a 0-d array"}
POSITIVE = COUNTS | {"a large integer", "a huge integer", "one and a half", "a 0-d array"}
NOT_FINITE = {"a huge float", "NaN", "infinity", "minus infinity", "NumPy's NaN"}
REAL = POSITIVE | NOT_FINITE | {"zero", "minus one", "minus half", "a 0-d integer"}
VECTORS = {"a longer array", "half precision", "double precision", "NaNs"}
FUNCTIONS_OF_ANYTHING = {kind for kind in BAD if kind.startswith("a function of")}
ANYTHING = set(BAD)
ROWS = {"a matrix", "a row", "a column"}


def for_each(names, kinds):
    return dict.fromkeys(names, kinds)


FIELDS = ("transition", "batch", "example", "draws", "state", "networks", "optimizers")
"""Arguments of which a field is replaced instead, in half of the draws."""


def draw(rng, calls):
    """A call, the argument to replace, and the value in its place."""
    name = rng.choice(sorted(calls))
    argument = rng.choice(list(calls[name].arguments))
    kind = rng.choice(list(BAD))
    field = None
    given = calls[name].arguments[argument]
    if argument in FIELDS and getattr(given, "_fields", ()) and rng.random() < 0.5:
        field = rng.choice(given._fields)
    return name, argument, field, kind


def first_line(error):
    return (str(error) or repr(error)).splitlines()[0]


ROLES = {"velocity", "actor", "critic", "value", "network", "denoiser"}
"""What a network is to the function that calls it."""


def names_an_argument(call, line):
    """Whether a message names an argument of the call, or a field of one."""
    quoted = {re.split(r"[.\[ (]", each)[0] for each in re.findall(r"`([^`]+)`", line)}
    fields = {field for value in call.arguments.values() for field in getattr(value, "_fields", ())}
    return bool(quoted & {*call.arguments, *fields, "transition", *ROLES})


def is_finite(tree):
    floats = [leaf for leaf in jax.tree.leaves(tree) if eqx.is_inexact_array(leaf)]
    return all(bool(jnp.isfinite(leaf).all()) for leaf in floats)


def fault(call, changes, *, good, finite=True, seconds=60):
    """What is wrong with the outcome of a call, or `None`."""

    def alarm(*_):
        raise TimeoutError

    signal.signal(signal.SIGALRM, alarm)
    signal.alarm(seconds)
    try:
        result = call.outcome(**changes)
        if not good:
            return "silent: accepted"
        return None if not finite or call.abstract or is_finite(result) else "silent: not finite"
    except (TypeError, ValueError, RuntimeError) as error:
        line = first_line(error)
        if not names_an_argument(call, line):
            return f"obscure: {type(error).__name__}: {line}"
        return f"long: {line}" if len(line) > 300 else None
    except TimeoutError:
        return "endless"
    except Exception as error:
        return f"obscure: {type(error).__name__}: {first_line(error)}"
    finally:
        signal.alarm(0)


def outcome(call, argument, field, kind, good):
    """`None` if a draw ends well, or what is wrong with its end."""
    bad = BAD[kind]
    if good and call.costly:
        return None
    if field is not None:
        bad = call.arguments[argument]._replace(**{field: bad})
    finite = kind not in NOT_FINITE | {"NaNs", "a huge integer"}
    return fault(call, {argument: bad}, good=good, finite=finite)


def assert_draws_end_well(calls, is_good, *, seed, count):
    """`is_good(name, argument, field, kind)`: whether the argument, or its field, may be `BAD[kind]`."""
    rng = random.Random(seed)
    faults = []
    for name, argument, field, kind in (draw(rng, calls) for _ in range(count)):
        if wrong := outcome(calls[name], argument, field, kind, is_good(name, argument, field, kind)):
            faults.append(f"{name}({argument}{'.' + field if field else ''} = {kind}): {wrong}")
    assert not faults, f"{len(faults)} of {count}:\n" + "\n".join(faults)


def ignore_warnings(test):
    """About large numbers, from NumPy; generators as leaves, from JAX; and success keys that no environment reports."""
    for text in ("overflow encountered", "Python iterable type", "no environment reported"):
        test = pytest.mark.filterwarnings(f"ignore:{text}")(test)
    return test
