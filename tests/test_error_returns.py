"""What the user's own functions return is checked, with a message that names the function and the value."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from assertions import first_line
from calls import (
    COMPLEX,
    DATES,
    KEY,
    MASKED,
    OBJECTS,
    STEP,
    X,
    act,
    both,
    critic,
    improve,
    stay,
)

from shortcutrl import (
    best_of_n,
    clipped,
    critic_loss,
    distill_loss,
    expectile_loss,
    flow_matching_loss,
    q_loss,
    rollout_k,
    self_consistency_loss,
    td_target,
)


def both_with(**times):
    return both(X, num_steps=8, **times, key=KEY)


RETURNS = {
    "integers": (lambda *args: jnp.ones(2, int), "int64[2]"),
    "complex numbers": (lambda *args: COMPLEX, "complex128[2]"),
    "text": (lambda *args: np.array(["1", "2"]), "<U1[2]"),
    "objects": (lambda *args: OBJECTS, "object[2]"),
    "dates": (lambda *args: DATES, "datetime64[D][2]"),
    "spans of time": (lambda *args: DATES - DATES, "timedelta64[D][2]"),
    "a masked array": (lambda *args: MASKED, "masked"),
    "a list": (lambda *args: [1.0, 2.0], "[1.0, 2.0]"),
    "a pair": (lambda *args: (X, X), "(Array"),
    "nothing": (lambda *args: None, "None"),
    "a string": (lambda *args: "12", "'12'"),
    "a flag": (lambda *args: True, "True"),
    "an integer": (lambda *args: 1, "1"),
    "a function": (lambda *args: stay, "`stay`"),
}
CALLERS = {
    "velocity": lambda bad: rollout_k(bad, None, X, k=2),
    "velocity of flow matching": lambda bad: flow_matching_loss(bad, None, X, X, 0.5, h=0.0),
    "teacher": lambda bad: self_consistency_loss(stay, bad, None, X, X, 0.0, 1.0),
    "teacher of a distillation": lambda bad: distill_loss(act, bad, None, X),
    "student": lambda bad: distill_loss(bad, act, None, X),
    "actor": lambda bad: q_loss(bad, critic, None, X),
    "actor of a target": lambda bad: target_with(actor=bad),
    "target_critic": lambda bad: target_with(target_critic=bad),
    "critic": lambda bad: q_loss(act, bad, None, X),
    "critic of a loss": lambda bad: critic_loss(bad, STEP, 1.0),
    "critic of a selection": lambda bad: best_of_n(act, bad, None, X[None]),
    "actor of a selection": lambda bad: best_of_n(bad, critic, None, X[None]),
    "actor within bounds": lambda bad: clipped(bad, None, X, clip=(-1, 1)),
    "value": lambda bad: expectile_loss(bad, None, 1.0, expectile=0.5),
    "aggregate": lambda bad: improve(X, aggregate=bad),
}


def target_with(target_critic=critic, actor=act):
    return td_target(target_critic, actor, STEP, X, discount=0.9)


@pytest.mark.parametrize(("function", "value"), RETURNS.values(), ids=RETURNS)
@pytest.mark.parametrize("caller", CALLERS)
def test_what_a_function_returns_is_checked(caller, function, value):
    """An integer, a complex or an object array is never converted in silence."""
    with pytest.raises(TypeError) as error:
        CALLERS[caller](function)
    assert f"`{caller.partition(' ')[0]}` must return one float array" in first_line(error)
    assert value in first_line(error)


SWAPPED = {
    "velocity and critic": (lambda: rollout_k(critic, None, X, k=2), "`velocity`", "4 positional"),
    "actor and critic of the Q loss": (lambda: q_loss(stay, critic, None, X), "`actor`", "2 positional"),
    "a velocity as a critic": (lambda: q_loss(act, stay, None, X), "`critic`", "2 positional"),
    "a velocity as an actor": (lambda: target_with(actor=stay), "`actor`", "2 positional"),
    "a value as a critic": (lambda: critic_loss(lambda obs: X, STEP, 1.0), "`critic`", "2 positional"),
    "a critic as a value": (
        lambda: expectile_loss(critic, None, 1.0, expectile=0.5),
        "`value`",
        "1 positional",
    ),
    "a critic that sees k": (
        lambda: q_loss(act, lambda obs, action, *, k: action, None, X),
        "`critic`",
        "functools.partial",
    ),
    "an aggregate of two": (lambda: improve(X, aggregate=lambda q, v: q), "`aggregate`", "1 positional"),
}


@pytest.mark.parametrize(("call", "name", "part"), SWAPPED.values(), ids=SWAPPED)
def test_functions_in_each_others_place_are_named(call, name, part):
    with pytest.raises(TypeError) as error:
        call()
    assert name in first_line(error), first_line(error)
    assert part in first_line(error), first_line(error)


def test_an_error_of_the_users_own_stays_as_it_is():
    def broken(obs, action):
        raise TypeError("my own")

    with pytest.raises(TypeError, match=r"^my own$"):
        q_loss(act, broken, None, X)


TIMES = {
    "one number": (lambda key: 0.5, TypeError, "a pair"),
    "three": (lambda key: (0.5, 0.0, 0.0), TypeError, "a pair"),
    "None": (lambda key: None, TypeError, "a pair"),
    "text": (lambda key: ("0.5", "0.0"), TypeError, "`flow_matching_times`"),
    "an array of times": (lambda key: (jnp.zeros(2), 0.0), TypeError, "`flow_matching_times`"),
    "out of range": (lambda key: (1.5, 0.0), ValueError, "`t` of `flow_matching_times` must be in [0, 1]"),
    "beyond the end": (lambda key: (0.75, 0.5), ValueError, "`t + h` of `flow_matching_times`"),
    "complex": (lambda key: (0.5j, 0.0), TypeError, "`flow_matching_times`"),
    "flags": (lambda key: (True, False), TypeError, "`flow_matching_times`"),
    "no arguments": (lambda: (0.5, 0.0), TypeError, "`flow_matching_times`"),
}


@pytest.mark.parametrize(("times", "kind", "part"), TIMES.values(), ids=TIMES)
def test_what_a_sampler_returns_is_checked(times, kind, part):
    with pytest.raises(kind) as error:
        both_with(flow_matching_times=times)
    assert part in first_line(error), first_line(error)


@pytest.mark.parametrize("name", ["flow_matching_times", "self_consistency_times"])
@pytest.mark.parametrize("bad", [0.5, "uniform", (0.5, 0.0)], ids=str)
def test_a_sampler_must_be_a_function(name, bad):
    with pytest.raises(TypeError, match=re.escape(f"`{name}` must be a function or None")):
        both_with(**{name: bad})
