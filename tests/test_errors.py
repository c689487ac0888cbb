"""Bad input is turned away with a message that names the argument, its value and the remedy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calls import KEY, STEP, X, agree, both, fit, improve, jump, match, roll, select, stay, target

from shortcutrl import (
    Transition,
    consistency_gap,
    flow_matching_loss,
    nn,
    q_loss,
    rollout_k,
    self_consistency_loss,
    sorl,
    td_target,
)

policy = nn.ShortcutPolicy(3, 2, width=4, depth=1, key=KEY)
seeing, blind = (nn.EnsembleCritic(3, 2, width=4, depth=1, condition_on_k=on, key=KEY) for on in (True, False))

BATCH = Transition(jnp.ones((4, 3)), jnp.zeros((4, 2)), jnp.ones(4), jnp.ones(4), jnp.ones((4, 3)))
CONFIG = sorl.Config(num_steps=2, max_jumps=2)


def update(batch, **options):
    return sorl.update(sorl.init(policy, blind, config=CONFIG), batch, config=CONFIG, key=KEY, **options)


VALUES = {
    "k that is no power of two": (lambda: roll(X, k=3), "`k`", "3", "power of two (1, 2, 4"),
    "k of zero": (lambda: roll(X, k=0), "`k`", "0", "power of two"),
    "negative k": (lambda: roll(X, k=-2), "`k`", "-2", "power of two"),
    "k that is a bool": (lambda: roll(X, k=True), "`k`", "True", "power of two"),
    "k in the TD target": (lambda: target(STEP, X, k=6, discount=0.9), "`k`", "6", "power of two"),
    "k in the TD loss": (lambda: fit(STEP, X, k=6, discount=0.9), "`k`", "6", "power of two"),
    "k in the Q loss": (lambda: improve(X, k=6), "`k`", "6", "power of two"),
    "k in the selection": (lambda: select(X[None], k=6), "`k`", "6", "power of two"),
    "num_steps": (lambda: both(X, num_steps=12, key=KEY), "`num_steps`", "12", "power of two"),
    "a negative weight": (
        lambda: both(X, num_steps=8, self_consistency_weight=-1.0, key=KEY),
        "`self_consistency_weight`",
        "-1.0",
        "not negative",
    ),
    "t below 0": (lambda: jump(X, -0.1, 0.5), "`t`", "-0.1", "[0, 1]"),
    "t above 1": (lambda: jump(X, 1.5, 0.0), "`t`", "1.5", "[0, 1]"),
    "t that is NaN": (lambda: jump(X, float("nan"), 0.0), "`t`", "nan", "[0, 1]"),
    "negative h": (lambda: jump(X, 0.5, -0.5), "`h`", "-0.5", "[0, 1]"),
    "h above 1": (lambda: jump(X, 0.0, jnp.float32(2.0)), "`h`", "2.0", "[0, 1]"),
    "beyond the end": (lambda: jump(X, 0.75, 0.5), "`t + h`", "t = 0.75 and h = 0.5", "smaller `h`"),
    "a gap beyond the end": (lambda: consistency_gap(stay, None, X, 0.75, 0.5), "`t + h`", "0.75", "smaller `h`"),
    "flow matching beyond the end": (lambda: match(X, X, 1.0, h=0.5), "`t + h`", "1.0", "smaller `h`"),
    "self-consistency beyond the end": (lambda: agree(X, X, 0.75, 0.5), "`t + h`", "0.75", "smaller `h`"),
    "an empty clip": (lambda: roll(X, k=1, clip=(1.0, 1.0)), "`clip`", "(1.0, 1.0)", "low < high"),
    "a clip upside down": (lambda: improve(X, k=1, clip=(1.0, -1.0)), "`clip`", "(1.0, -1.0)", "low < high"),
    "no candidates": (lambda: select(jnp.zeros((0, 2)), k=1), "`noise`", "(0, 2)", "n at least 1"),
    "unknown aggregate of the TD loss": (
        lambda: fit(STEP, X, k=1, discount=0.9, aggregate="max"),
        "`aggregate`",
        "'max'",
        "'min' or 'mean'",
    ),
    "unknown aggregate of the TD target": (
        lambda: target(STEP, X, k=1, discount=0.9, aggregate="median"),
        "`aggregate`",
        "'median'",
        "'min' or 'mean'",
    ),
    "unknown aggregate of the Q loss": (lambda: improve(X, k=1, aggregate=""), "`aggregate`", "''", "'min' or 'mean'"),
    "unknown aggregate of the selection": (
        lambda: select(X[None], k=1, aggregate="MIN"),
        "`aggregate`",
        "'MIN'",
        "'min' or 'mean'",
    ),
    "discount": (lambda: target(STEP, X, k=1, discount=1.01), "`discount`", "1.01", "[0, 1]"),
    "a batch of transitions": (
        lambda: fit(jax.tree.map(lambda leaf: leaf[None], STEP)._replace(action=X), X, k=1, discount=0.9),
        "`transition.reward`",
        "(1,)",
        "jax.vmap",
    ),
    "a velocity that would broadcast": (
        lambda: rollout_k(lambda *args: jnp.zeros((5, 2)), None, X, k=1),
        "`velocity`",
        "(5, 2)",
        "jax.vmap",
    ),
    "a velocity that is a scalar": (
        lambda: match_with(lambda *args: jnp.zeros(())),
        "`velocity`",
        "()",
        "one velocity",
    ),
    "a teacher that would broadcast": (
        lambda: self_consistency_loss(stay, lambda *args: jnp.zeros((1, 2)), None, X, X, 0.0, 1.0),
        "`teacher`",
        "(1, 2)",
        "jax.vmap",
    ),
    "a critic that is a scalar": (
        lambda: q_loss(stay, lambda obs, action: action.sum(), None, X, k=1),
        "`critic`",
        "()",
        "shape (1,)",
    ),
    "a critic with a column": (
        lambda: q_loss(stay, lambda obs, action: action[:, None], None, X, k=1),
        "`critic`",
        "(2, 1)",
        "(ensemble,)",
    ),
    "a critic of nobody": (
        lambda: q_loss(stay, lambda obs, action: action[:0], None, X, k=1),
        "`critic`",
        "(0,)",
        "(ensemble,)",
    ),
    "a target critic that is a scalar": (
        lambda: td_target(lambda obs, a: a.sum(), stay, STEP, X, k=1, discount=1.0),
        "critic`",
        "()",
        "shape (1,)",
    ),
    "a critic without its k": (lambda: seeing(jnp.ones(3), X), "`k`", "missing", "functools.partial(critic, k=4)"),
    "a k too many": (lambda: blind(jnp.ones(3), X, k=4), "`k`", "4", "condition_on_k"),
    "a velocity that returns a tuple": (
        lambda: rollout_k(lambda obs, x, t, h: (x, x), None, X, k=1),
        "`velocity`",
        "tuple",
        "one array",
    ),
    "a critic that returns a list": (
        lambda: q_loss(stay, lambda obs, action: [action], None, X, k=1),
        "`critic`",
        "list",
        "one array",
    ),
    "an action of another size than the policy's": (
        lambda: policy(jnp.ones(3), jnp.ones(3), 0.0, 0.0),
        "`x`",
        "(3,)",
        "(2,)",
    ),
    "an observation of another size than the policy's": (lambda: policy(X, X, 0.0, 0.0), "`obs`", "(2,)", "(3,)"),
    "a critic's arguments swapped": (lambda: blind(X, jnp.ones(3)), "`obs`", "(2,)", "(3,)"),
    "an action of another size than the critic's": (
        lambda: blind(jnp.ones(3), jnp.ones(3)),
        "`action`",
        "(3,)",
        "(2,)",
    ),
    "an update of an empty batch": (
        lambda: update(jax.tree.map(lambda x: x[:0], BATCH)),
        "`batch`",
        "(0, 3)",
        "not empty",
    ),
    "an update of one transition": (
        lambda: update(jax.tree.map(lambda x: x[0], BATCH)),
        "`batch`",
        ".reward ()",
        "leading",
    ),
    "an update of arrays of other lengths": (
        lambda: update(BATCH._replace(reward=jnp.ones(3))),
        "`batch`",
        ".reward (3,)",
        "as long in each",
    ),
    "a width that is no integer": (lambda: nn.ShortcutPolicy(3, 2, width=16.0, key=KEY), "`width`", "16.0", "integer"),
    "jumps that are no integers": (
        lambda: update(BATCH, jumps=sorl.Jumps(td=2.0, improvement=1)),
        "`jumps.td`",
        "2.0",
        "one of 1, 2",
    ),
    "no ensemble": (lambda: nn.EnsembleCritic(3, 2, ensemble=0, key=KEY), "`ensemble`", "0", "at least 1"),
    "no width": (lambda: nn.ShortcutPolicy(3, 2, width=0, key=KEY), "`width`", "0", "at least 1"),
    "no depth": (lambda: nn.EnsembleCritic(3, 2, depth=0, key=KEY), "`depth`", "0", "at least 1"),
    "no observation": (lambda: nn.ShortcutPolicy(-9, 2, key=KEY), "`obs_size`", "-9", "at least 1"),
    "no action": (lambda: nn.ShortcutPolicy(3, 0, key=KEY), "`action_size`", "0", "at least 1"),
    "no smallest step": (lambda: nn.ShortcutPolicy(3, 2, smallest_step=0.0, key=KEY), "`smallest_step`", "0", "(0, 1)"),
    "config: num_steps": (lambda: sorl.Config(num_steps=6), "`num_steps`", "6", "power of two"),
    "config: max_jumps": (lambda: sorl.Config(max_jumps=5), "`max_jumps`", "5", "power of two"),
    "config: too many jumps": (lambda: sorl.Config(num_steps=4, max_jumps=8), "`max_jumps`", "8", "`num_steps` = 4"),
    "config: discount": (lambda: sorl.Config(discount=-0.1), "`discount`", "-0.1", "[0, 1]"),
    "config: aggregate": (lambda: sorl.Config(aggregate="max"), "`aggregate`", "'max'", "'min' or 'mean'"),
    "config: a weight": (lambda: sorl.Config(q_weight=-1.0), "`q_weight`", "-1.0", "not negative"),
    "config: an infinite weight": (
        lambda: sorl.Config(flow_matching_weight=float("inf")),
        "`flow_matching_weight`",
        "inf",
        "finite",
    ),
    "config: tau of 0": (lambda: sorl.Config(tau=0.0), "`tau`", "0.0", "(0, 1]"),
    "config: tau above 1": (lambda: sorl.Config(tau=1.5), "`tau`", "1.5", "(0, 1]"),
    "config: clip": (lambda: sorl.Config(clip=(1.0, -1.0)), "`clip`", "(1.0, -1.0)", "low < high"),
}


def match_with(velocity):
    return flow_matching_loss(velocity, None, X, X, 0.5, h=0.0)


@pytest.mark.parametrize(("call", "name", "value", "remedy"), VALUES.values(), ids=VALUES.keys())
def test_a_wrong_value_is_named_with_the_remedy(call, name, value, remedy):
    with pytest.raises(ValueError, match="`") as error:
        call()
    for part in (name, value, remedy):
        assert part in str(error.value), str(error.value)


@pytest.mark.parametrize("change", [{"reward": X}, {"mask": X}, {"reward": jnp.ones((1, 1))}], ids=str)
def test_a_transition_must_be_one(change):
    with pytest.raises(ValueError, match=r"`transition\.\w+` must be a scalar.*jax\.vmap"):
        fit(STEP._replace(**change), X, k=1, discount=0.9)


# ------------------------------------------------------------------- shapes, dtypes and kinds

INTEGERS = jnp.ones(2, int)
DOUBLE = jnp.ones(2, jnp.float64)

KINDS = {
    "mismatched sizes": (lambda: match(X, jnp.ones(3, jnp.float32), 0.0, h=0.0), "noise", "f32[3]"),
    "mismatched sizes of self-consistency": (lambda: agree(jnp.ones(3, jnp.float32), X, 0.0, 1.0), "noise", "f32[2]"),
    "a batch": (lambda: roll(jnp.ones((5, 2)), k=1), "noise", "f64[5,2]"),
    "a scalar x": (lambda: jump(jnp.ones(()), 0.0, 1.0), "x", "f64[]"),
    "one candidate that is no row": (lambda: select(X, k=1), "noise", "f32[2]"),
    "integer x": (lambda: jump(INTEGERS, 0.0, 1.0), "x", "i64[2]"),
    "integer NumPy x": (lambda: jump(np.ones(2, int), 0.0, 1.0), "x", "i64[2](numpy)"),
    "integer action": (lambda: match(INTEGERS, X, 0.0, h=0.0), "action", "i64[2]"),
    "integer noise": (lambda: roll(INTEGERS, k=1), "noise", "i64[2]"),
    "integer candidates": (lambda: select(jnp.ones((4, 2), int), k=1), "noise", "i64[4,2]"),
    "num_steps of a config that is a float": (lambda: sorl.Config(num_steps=8.0), "num_steps", "8.0"),
    "clip of a config that is one number": (lambda: sorl.Config(clip=1.0), "clip", "1.0"),
    "optimizer of a config that is none": (lambda: sorl.Config(optimizer=None), "optimizer", "None"),
    "a list": (lambda: roll([1.0, 2.0], k=1), "noise", "[1.0, 2.0]"),
    "t that is not a scalar": (lambda: jump(X, jnp.zeros(2), 1.0), "t", "f64[2]"),
    "t that is text": (lambda: jump(X, "0", 1.0), "t", "'0'"),
    "k that is a float": (lambda: roll(X, k=2.0), "k", "2.0"),
    "clip that is one number": (lambda: roll(X, k=1, clip=1.0), "clip", "1.0"),
    "a velocity that is no function": (lambda: rollout_k(None, None, X, k=1), "velocity", "None"),
    "a transition that is a tuple": (lambda: fit(tuple(STEP), X, k=1, discount=0.9), "transition", "tuple"),
    "a key that is a seed": (lambda: both(X, num_steps=8, key=0), "key", "0"),
    "float64 x of a policy's observation": (lambda: policy(jnp.ones((1, 3)), X, 0.0, 0.0), "obs", "f64[1,3]"),
    "integer action of a transition": (
        lambda: fit(STEP._replace(action=INTEGERS), X, k=1, discount=0.9),
        "transition.action",
        "int64",
    ),
    "integer action of a transition, NumPy noise": (
        lambda: fit(STEP._replace(action=INTEGERS), np.ones(2), k=1, discount=0.9),
        "transition.action",
        "int64",
    ),
    "a batch of actions": (
        lambda: fit(STEP._replace(action=jnp.ones((5, 2), jnp.float32)), X, k=1, discount=0.9),
        "transition.action",
        "(5, 2)",
    ),
    "integer actions of a batch": (
        lambda: update(BATCH._replace(action=jnp.zeros((4, 2), int))),
        "batch.action",
        "int64",
    ),
    "an action of another size in the transition": (
        lambda: fit(STEP._replace(action=jnp.ones(3, jnp.float32)), X, k=1, discount=0.9),
        "action",
        "3",
    ),
}


@pytest.mark.parametrize(("call", "name", "value"), KINDS.values(), ids=KINDS.keys())
def test_a_wrong_kind_is_named(call, name, value):
    with pytest.raises(TypeError) as error:
        call()
    for part in (name, value):
        assert part in str(error.value), str(error.value)
    assert any(remedy in str(error.value) for remedy in ("Expected type: ", "Convert ", "Pass ", "Use `jax.vmap`"))


@pytest.mark.parametrize(
    "call",
    [
        lambda: improve(jnp.ones((5, 2)), k=1),
        lambda: roll(X, k=np.int64(2)),
        lambda: jax.jit(lambda k: roll(X, k=k))(2),
    ],
    ids=["a batch", "k of NumPy", "k that is traced"],
)
def test_the_most_likely_mistakes_come_with_a_remedy_once(call):
    with pytest.raises(TypeError) as error:
        call()
    (note,) = [note for note in error.value.__notes__ if "jax.vmap" in note]
    assert "functools.partial" in note


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: match(X, DOUBLE, 0.0, h=0.0), "noise"),
        (lambda: agree(X, DOUBLE, 0.0, 1.0), "noise"),
        (lambda: fit(STEP, DOUBLE, k=1, discount=0.9), "noise"),
    ],
    ids=["flow matching", "self-consistency", "TD"],
)
def test_float64_against_float32_is_told_how_to_convert(call, name):
    with pytest.raises(TypeError, match=rf"`{name}` is float64 but `\w+` is float32.*`{name}\.astype"):
        call()
