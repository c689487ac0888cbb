"""Bad input is refused with a message whose first line names the argument, its value and the remedy."""

import re
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calls import KEY, STEP, X, act, agree, both, critic, fit, improve, jump, match, roll, select, stay, target

from shortcutrl import (
    Transition,
    advantage_weight,
    bellman_target,
    best_of_n,
    clipped,
    consistency_gap,
    consistency_sample,
    critic_loss,
    distill_loss,
    draw_flow_matching,
    draw_self_consistency,
    expectile_loss,
    flow_matching_loss,
    fql,
    interpolate,
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
OPTIONS = {
    "config": sorl.Config(num_steps=2, max_jumps=2, condition_critic_on_k=False),
    "optimizers": sorl.OPTIMIZERS,
}


def traced(networks, options, batch=None, **changes):
    """`sorl.update`, which is only traced: it takes less time, and says the same."""
    state = sorl.init(networks, **options)._replace(**changes)
    return jax.eval_shape(lambda: sorl.update(state, BATCH if batch is None else batch, **options, key=KEY))


def update(batch):
    return traced((policy, blind), OPTIONS, batch)


class Blind(eqx.Module):
    """A critic of the user's own, with a leaf that is no array."""

    mlp: eqx.nn.MLP

    def __call__(self, obs, action):
        return self.mlp(jnp.concatenate([obs, action]))


mlp = eqx.nn.MLP(5, 2, 4, 1, key=KEY)


def update_with(*networks):
    return traced(networks, {"config": sorl.Config(num_steps=2, max_jumps=2), "optimizers": sorl.OPTIMIZERS})


wide = nn.ShortcutPolicy(3, 2, width=8, depth=1, key=KEY)


def update_state(**networks):
    return traced((policy, blind), OPTIONS, **networks)


def update_with_config(critic, **settings):
    config = sorl.Config(num_steps=1, max_jumps=1, **settings)
    return traced((policy, critic), {"config": config, "optimizers": sorl.OPTIMIZERS})


def loss_at(**draws):
    """`sorl.critic_loss` or `sorl.policy_loss` with a number of jumps of the user's own."""
    state = sorl.init((policy, blind), **OPTIONS)
    drawn = sorl.draw(KEY, BATCH, config=OPTIONS["config"])._replace(**draws)
    return sorl.critic_loss(state.critic, state, BATCH, drawn, config=OPTIONS["config"])


def match_with(velocity):
    return flow_matching_loss(velocity, None, X, X, 0.5, h=0.0)


def both_with(**times):
    return both(X, num_steps=8, **times, key=KEY)


VALUES = {
    "k of zero": (lambda: roll(X, k=0), "`k`", "0", "at least 1"),
    "negative k": (lambda: roll(X, k=-2), "`k`", "-2", "at least 1"),
    "num_steps": (lambda: both(X, num_steps=12, key=KEY), "`num_steps`", "12", "power of two"),
    "num_steps of a draw": (lambda: draw_flow_matching(KEY, num_steps=3), "`num_steps`", "3", "power of two"),
    "num_steps of no half": (lambda: draw_self_consistency(KEY, num_steps=1), "`num_steps`", "1", "at least 2"),
    "a negative weight": (
        lambda: both(X, num_steps=8, self_consistency_weight=-1.0, key=KEY),
        "`self_consistency_weight`",
        "-1.0",
        "not negative",
    ),
    "t below 0": (lambda: jump(X, -0.1, 0.5), "`t`", "-0.1", "[0, 1]"),
    "t above 1": (lambda: jump(X, 1.5, 0.0), "`t`", "1.5", "[0, 1]"),
    "t that is NaN": (lambda: jump(X, float("nan"), 0.0), "`t`", "nan", "[0, 1]"),
    "t of the path": (lambda: interpolate(X, X, 1.5), "`t`", "1.5", "[0, 1]"),
    "negative h": (lambda: jump(X, 0.5, -0.5), "`h`", "-0.5", "[0, 1]"),
    "h above 1": (lambda: jump(X, 0.0, jnp.float32(2.0)), "`h`", "2.0", "[0, 1]"),
    "beyond the end": (lambda: jump(X, 0.75, 0.5), "`t + h`", "t = 0.75 and h = 0.5", "smaller `h`"),
    "a gap beyond the end": (lambda: consistency_gap(stay, None, X, 0.75, 0.5), "`t + h`", "0.75", "smaller `h`"),
    "flow matching beyond the end": (lambda: match(X, X, 1.0, h=0.5), "`t + h`", "1.0", "smaller `h`"),
    "self-consistency beyond the end": (lambda: agree(X, X, 0.75, 0.5), "`t + h`", "0.75", "smaller `h`"),
    "a network beyond the end": (lambda: policy(jnp.ones(3), X, 0.75, 0.5), "`t + h`", "0.75", "smaller `h`"),
    "a network out of time": (lambda: policy(jnp.ones(3), X, 7.0, 0.0), "`t`", "7.0", "[0, 1]"),
    "a network at a negative step": (lambda: policy(jnp.ones(3), X, 0.0, -2.0), "`h`", "-2.0", "[0, 1]"),
    "a network at k of NaN": (lambda: seeing(jnp.ones(3), X, k=float("nan")), "`k`", "nan", "[1, inf]"),
    "an empty clip": (lambda: roll(X, k=1, clip=(1.0, 1.0)), "`clip`", "(1.0, 1.0)", "low < high"),
    "a clip upside down": (
        lambda: clipped(act, None, X, clip=(1.0, -1.0)),
        "`clip`",
        "(1.0, -1.0)",
        "low < high",
    ),
    "a clip upside down in one dimension": (
        lambda: roll(X, k=1, clip=(np.zeros(2), np.array([1.0, -1.0]))),
        "`clip`",
        "array([ 1., -1.])",
        "low < high",
    ),
    "a clip of another size": (
        lambda: roll(X, k=1, clip=(np.zeros(3), np.ones(3))),
        "`clip`",
        "float64[3]",
        "shape (2,)",
    ),
    "a clip of text": (lambda: roll(X, k=1, clip=["-1", "1"]), "`clip`", "'-1'", "two numbers"),
    "a clip of three": (lambda: roll(X, k=1, clip=[-1.0, 0.0, 1.0]), "`clip`", "[-1.0, 0.0, 1.0]", "(low, high)"),
    "no candidates": (lambda: select(jnp.zeros((0, 2))), "`noise`", "(0, 2)", "non-empty"),
    "one candidate that is a number": (lambda: select(jnp.ones(())), "`noise`", "()", "leading axis"),
    "candidates of two lengths": (
        lambda: select({"a": jnp.ones((3, 2)), "b": jnp.ones(2)}),
        "`noise`",
        "(3, 2)",
        "share",
    ),
    "unknown aggregate of the TD loss": (
        lambda: fit(STEP, X, discount=0.9, aggregate="max"),
        "`aggregate`",
        "'max'",
        "'min' or 'mean'",
    ),
    "unknown aggregate of the TD target": (
        lambda: target(STEP, X, discount=0.9, aggregate="median"),
        "`aggregate`",
        "'median'",
        "'min' or 'mean'",
    ),
    "unknown aggregate of the Q loss": (lambda: improve(X, aggregate=""), "`aggregate`", "''", "'min' or 'mean'"),
    "unknown aggregate of the selection": (
        lambda: select(X[None], aggregate="MIN"),
        "`aggregate`",
        "'MIN'",
        "'min' or 'mean'",
    ),
    "unknown aggregate of the best": (
        lambda: best_of_n(act, critic, None, X[None], aggregate="MIN"),
        "`aggregate`",
        "'MIN'",
        "'min' or 'mean'",
    ),
    "an aggregate of no number": (
        lambda: improve(X, aggregate=lambda q: q),
        "`aggregate`",
        "(2,)",
        "must return shape ()",
    ),
    "discount": (lambda: target(STEP, X, discount=1.01), "`discount`", "1.01", "[0, 1]"),
    "discount of a target": (lambda: bellman_target(STEP, 1.0, discount=-1), "`discount`", "-1", "[0, 1]"),
    "expectile": (
        lambda: expectile_loss(lambda obs: jnp.ones(()), None, 1.0, expectile=1.5),
        "`expectile`",
        "1.5",
        "[0, 1]",
    ),
    "a value that is a vector": (
        lambda: expectile_loss(lambda obs: jnp.ones(1), None, 1.0, expectile=0.9),
        "`value`",
        "(1,)",
        "must return shape ()",
    ),
    "temperature": (lambda: advantage_weight(1.0, 0.0, temperature=-1.0), "`temperature`", "-1.0", "not negative"),
    "a cap of zero": (
        lambda: advantage_weight(1.0, 0.0, temperature=1.0, cap=0.0),
        "`cap`",
        "0.0",
        "and positive",
    ),
    "a student of another size": (
        lambda: distill_loss(act, lambda obs, noise: noise[:1], None, X),
        "`student`",
        "(2,)",
        "`teacher` (1,)",
    ),
    "a batch of transitions": (
        lambda: fit(jax.tree.map(lambda leaf: leaf[None], STEP)._replace(action=X), X[None], discount=0.9),
        "`actor`",
        "(1, 2)",
        "jax.vmap",
    ),
    "a batch of rewards": (
        lambda: bellman_target(STEP._replace(reward=X), 1.0, discount=0.9),
        "`transition.reward`",
        "float32[2]",
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
        "must return shape (2,)",
    ),
    "a teacher that would broadcast": (
        lambda: self_consistency_loss(stay, lambda *args: jnp.zeros((1, 2)), None, X, X, 0.0, 1.0),
        "`teacher`",
        "(1, 2)",
        "jax.vmap",
    ),
    "an actor of a batch": (
        lambda: q_loss(lambda *args: jnp.ones((5, 2)), critic, None, X),
        "`actor`",
        "(5, 2)",
        "vmap",
    ),
    "a critic that is a scalar": (
        lambda: q_loss(act, lambda obs, action: action.sum(), None, X),
        "`critic`",
        "()",
        "shape (1,)",
    ),
    "a critic with a column": (
        lambda: q_loss(act, lambda obs, action: action[:, None], None, X),
        "`critic`",
        "(2, 1)",
        "(ensemble,)",
    ),
    "a critic without members": (
        lambda: q_loss(act, lambda obs, action: action[:0], None, X),
        "`critic`",
        "(0,)",
        "(ensemble,)",
    ),
    "a target critic that is a scalar": (
        lambda: td_target(lambda obs, a: a.sum(), act, STEP, X, discount=1.0),
        "`target_critic`",
        "()",
        "shape (1,)",
    ),
    "a critic without its k": (lambda: seeing(jnp.ones(3), X), "`k`", "missing", "functools.partial(critic, k=4)"),
    "a k too many": (lambda: blind(jnp.ones(3), X, k=4), "`k`", "4", "condition_on_k"),
    "an action of another size than the policy's": (
        lambda: policy(jnp.ones(3), jnp.ones(3), 0.0, 0.0),
        "`x`",
        "(3,)",
        "(2,)",
    ),
    "an observation of another size than the policy's": (lambda: policy(X, X, 0.0, 0.0), "`obs`", "(2,)", "(3,)"),
    "a critic's arguments swapped": (lambda: blind(X, jnp.ones(3)), "`action`", "(3,)", "(2,)"),
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
        "non-empty",
    ),
    "an update of one transition": (
        lambda: update(jax.tree.map(lambda x: x[0], BATCH)),
        "`batch.action`",
        "[2]",
        "shape (batch, action)",
    ),
    "an update of arrays of other lengths": (
        lambda: update(BATCH._replace(reward=jnp.ones(3))),
        "`batch`",
        ".reward` (3,)",
        "share",
    ),
    "an update of a column of masks": (
        lambda: update(BATCH._replace(mask=jnp.ones((4, 1)))),
        "`batch.mask`",
        "[4, 1]",
        "shape (batch,)",
    ),
    "jumps that are not integers": (lambda: loss_at(td_k=2.0), "`draws.td_k`", "2.0", "one of 1, 2"),
    "a network of small floats": (
        lambda: sorl.init((jax.tree.map(lambda x: x.astype("bfloat16"), policy), blind), **OPTIONS),
        "`networks.policy`",
        "bfloat16",
        "float32",
    ),
    "an observation that is no vector": (
        lambda: sorl.networks(BATCH._replace(obs={"a": jnp.ones((4, 3))}), key=KEY),
        "`example.obs`",
        "{'a':",
        "`encoder`",
    ),
    "no ensemble": (lambda: nn.EnsembleCritic(3, 2, ensemble=0, key=KEY), "`ensemble`", "0", "at least 1"),
    "no width": (lambda: nn.ShortcutPolicy(3, 2, width=0, key=KEY), "`width`", "0", "at least 1"),
    "no depth": (lambda: nn.EnsembleCritic(3, 2, depth=0, key=KEY), "`depth`", "0", "at least 1"),
    "no observation": (lambda: nn.ShortcutPolicy(-9, 2, key=KEY), "`obs_size`", "-9", "at least 1"),
    "no action": (lambda: nn.ShortcutPolicy(3, 0, key=KEY), "`action_size`", "0", "at least 1"),
    "no smallest step": (lambda: nn.ShortcutPolicy(3, 2, smallest_step=0.0, key=KEY), "`smallest_step`", "0", "(0, 1)"),
    "a dtype of integers": (
        lambda: nn.EnsembleCritic(3, 2, matmul_dtype=int, key=KEY),
        "`matmul_dtype`",
        "int",
        "jnp.bfloat16",
    ),
    "a dtype that is not one": (
        lambda: nn.ShortcutPolicy(3, 2, matmul_dtype="bf16", key=KEY),
        "`matmul_dtype`",
        "'bf16'",
        "jnp.bfloat16",
    ),
    "k of an agent": (
        lambda: sorl.actor(sorl.init((policy, blind), **OPTIONS), config=OPTIONS["config"], k=0),
        "`k`",
        "0",
        "at least 1",
    ),
    "n of an agent": (
        lambda: sorl.actor(sorl.init((policy, blind), **OPTIONS), config=OPTIONS["config"], n=0),
        "`n`",
        "0",
        "at least 1",
    ),
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
    "config: clip without a bound": (lambda: sorl.Config(clip=[None, 1.0]), "`clip`", "None", "two numbers"),
    "config: clip of text": (lambda: sorl.Config(clip=[-1.0, "1"]), "`clip`", "'1'", "two numbers"),
    "config: clip of flags": (lambda: sorl.Config(clip=(False, True)), "`clip`", "False", "two numbers"),
    "config: clip of three": (lambda: sorl.Config(clip=[-1, 0, 1]), "`clip`", "(-1, 0, 1)", "(low, high)"),
    "an encoder that returns integers": (
        lambda: sorl.networks(BATCH, encoder=lambda obs: jnp.ones(2, int), key=KEY),
        "`encoder`",
        "int64",
        "a float vector",
    ),
    "a batch without next observations": (
        lambda: update(BATCH._replace(next_obs=None)),
        "`batch.next_obs`",
        "None",
        "`batch.obs`",
    ),
    "next observations of another size": (
        lambda: update(BATCH._replace(next_obs=jnp.ones((4, 5)))),
        "`batch.next_obs`",
        "float64[4, 5]",
        "float64[4, 3]",
    ),
    "a policy of another size": (
        lambda: update_state(policy=wide),
        "`state.policy_opt_state`",
        "`state.policy`",
        "`init`",
    ),
    "an average of another size": (
        lambda: update_state(target_policy=wide),
        "`state.target_policy`",
        "`state.policy`",
        "`init`",
    ),
    "a critic that sees k for a config without": (
        lambda: update_with_config(seeing, condition_critic_on_k=False),
        "`k`",
        "missing",
        "`condition_critic_on_k` to True",
    ),
    "a critic that does not see k": (
        lambda: update_with_config(blind, condition_critic_on_k=True),
        "`k`",
        "got 1",
        "`condition_critic_on_k` to False",
    ),
    "config: flow_steps": (lambda: fql.Config(flow_steps=0), "`flow_steps`", "0", "at least 1"),
    "config: alpha": (lambda: fql.Config(alpha=float("nan")), "`alpha`", "nan", "not negative"),
}


@pytest.mark.parametrize(("call", "name", "value", "remedy"), VALUES.values(), ids=VALUES.keys())
def test_a_wrong_value_is_named_with_the_remedy(call, name, value, remedy):
    with pytest.raises(ValueError, match="`") as error:
        call()
    for part in (name, value, remedy):
        assert part in first_line(error), first_line(error)


def first_line(error):
    return str(error.value).splitlines()[0]


@pytest.mark.parametrize("change", [{"reward": X}, {"mask": X}, {"reward": jnp.ones((1, 1))}], ids=str)
def test_a_transition_must_be_one(change):
    with pytest.raises(ValueError, match=r"`transition\.\w+` must be one number.*jax\.vmap"):
        fit(STEP._replace(**change), X, discount=0.9)


# ------------------------------------------------------------------- shapes, dtypes and kinds

INTEGERS = jnp.ones(2, int)
DOUBLE = jnp.ones(2, jnp.float64)
COMPLEX = jnp.ones(2) * 1j
MASKED = np.ma.masked_array(np.ones(2), [True, False])
DATES = np.array(["2020-01-01", "2020-01-02"], "datetime64[D]")
OBJECTS = np.array([None, "1"], object)

KINDS = {
    "k that is a flag": (lambda: roll(X, k=True), "`k`", "True", "an integer"),
    "k that is a float": (lambda: roll(X, k=2.0), "`k`", "2.0", "Pass an integer"),
    "k that is text": (lambda: roll(X, k="2"), "`k`", "'2'", "Pass an integer"),
    "k that is an array": (lambda: roll(X, k=jnp.asarray(2)), "`k`", "2 (int", "pass `int(k)`"),
    "k that is traced": (lambda: jax.jit(lambda k: roll(X, k=k))(2), "`k`", "traced", "functools.partial(..., k=...)"),
    "mismatched sizes": (lambda: match(X, jnp.ones(3, jnp.float32), 0.0, h=0.0), "`noise`", "float32[3]", "`action`"),
    "mismatched sizes of self-consistency": (
        lambda: agree(jnp.ones(3, jnp.float32), X, 0.0, 1.0),
        "`noise`",
        "float32[2]",
        "`action` has float32[3]",
    ),
    "mismatched sizes of the path": (lambda: interpolate(X, jnp.ones(3), 0.0), "`action`", "float64[3]", "`noise`"),
    "a batch": (lambda: roll(jnp.ones((5, 2)), k=1), "`noise`", "float64[5, 2]", "jax.vmap"),
    "a scalar x": (lambda: jump(jnp.ones(()), 0.0, 1.0), "`x`", "1.0", "shape (action,)"),
    "integer x": (lambda: jump(INTEGERS, 0.0, 1.0), "`x`", "int64[2]", "astype"),
    "integer NumPy x": (lambda: jump(np.ones(2, int), 0.0, 1.0), "`x`", "int64[2]", "astype"),
    "integer action": (lambda: match(INTEGERS, X, 0.0, h=0.0), "`action`", "int64[2]", "astype"),
    "integer noise": (lambda: roll(INTEGERS, k=1), "`noise`", "int64[2]", "astype"),
    "integer candidates": (lambda: select(jnp.ones((4, 2), int)), "`actor`", "int64[2]", "float array"),
    "complex noise": (lambda: roll(COMPLEX, k=1), "`noise`", "complex128[2]", "float array"),
    "masked noise": (lambda: roll(MASKED, k=1), "`noise`", "a masked array", "filled"),
    "masked candidates": (lambda: select(np.ma.stack([MASKED, MASKED])), "`noise`", "a masked array", "Convert"),
    "candidates of text": (lambda: select(np.array([["1", "2"]])), "`noise`", "<U1[1, 2]", "Convert"),
    "num_steps of a config that is a float": (lambda: sorl.Config(num_steps=8.0), "`num_steps`", "8.0", "integer"),
    "clip of a config that is one number": (lambda: sorl.Config(clip=1.0), "`clip`", "1.0", "a pair of numbers"),
    "a list": (lambda: roll([1.0, 2.0], k=1), "`noise`", "[1.0, 2.0]", "jnp.asarray"),
    "t that is not a scalar": (lambda: jump(X, jnp.zeros(2), 1.0), "`t`", "float64[2]", "a number"),
    "t that is text": (lambda: jump(X, "0", 1.0), "`t`", "'0'", "Pass a number"),
    "t that is a flag": (lambda: jump(X, True, 0.0), "`t`", "True", "a number"),
    "t that is complex": (lambda: jump(X, 0j, 0.0), "`t`", "0j", "a number"),
    "clip that is one number": (lambda: roll(X, k=1, clip=1.0), "`clip`", "1.0", "Pass"),
    "a velocity that is None": (lambda: rollout_k(None, None, X, k=1), "`velocity`", "None", "velocity(obs, x, t, h)"),
    "an actor that is an array": (lambda: q_loss(X, critic, None, X), "`actor`", "float32[2]", "actor(obs, noise)"),
    "a critic that is None": (lambda: q_loss(act, None, None, X), "`critic`", "None", "critic(obs, action)"),
    "a value that is a number": (
        lambda: expectile_loss(1.0, None, 1.0, expectile=0.5),
        "`value`",
        "1.0",
        "value(obs)",
    ),
    "a transition that is a tuple": (
        lambda: fit(tuple(STEP), X, discount=0.9),
        "`transition`",
        "(Array",
        "`Transition`",
    ),
    "a key that is a seed": (lambda: both(X, num_steps=8, key=0), "`key`", "0", "jax.random.key(seed)"),
    "a key of a network that is a seed": (lambda: nn.ShortcutPolicy(3, 2, key=0), "`key`", "0", "jax.random.key(seed)"),
    "a width that is a float": (lambda: nn.ShortcutPolicy(3, 2, width=16.0, key=KEY), "`width`", "16.0", "integer"),
    "condition_on_k that is a number": (
        lambda: nn.EnsembleCritic(3, 2, condition_on_k=4, key=KEY),
        "`condition_on_k`",
        "4",
        "True or False",
    ),
    "layer_norm that is None": (
        lambda: nn.ShortcutPolicy(3, 2, layer_norm=None, key=KEY),
        "`layer_norm`",
        "None",
        "True or False",
    ),
    "an observation of a policy with an axis too many": (
        lambda: policy(jnp.ones((1, 3)), X, 0.0, 0.0),
        "`obs`",
        "float64[1, 3]",
        "jax.vmap",
    ),
    "integer action of a transition": (
        lambda: fit(STEP._replace(action=INTEGERS), X, discount=0.9),
        "`transition.action`",
        "int64",
        "Convert",
    ),
    "text as the action of a transition": (
        lambda: fit(STEP._replace(action=np.array(["1", "2"])), X, discount=0.9),
        "`transition.action`",
        "<U1",
        "Convert",
    ),
    "a list as the action of a transition": (
        lambda: critic_loss(critic, STEP._replace(action=[1.0, 2.0]), 1.0),
        "`transition.action`",
        "[1.0, 2.0]",
        "Convert",
    ),
    "a masked action of a transition": (
        lambda: critic_loss(critic, STEP._replace(action=MASKED), 1.0),
        "`transition.action`",
        "masked",
        "Convert",
    ),
    "a batch of actions": (
        lambda: fit(STEP._replace(action=jnp.ones((5, 2), jnp.float32)), X, discount=0.9),
        "`transition.action`",
        "(5, 2)",
        "jax.vmap",
    ),
    "a complex reward": (
        lambda: bellman_target(STEP._replace(reward=jnp.asarray(1j)), 1.0, discount=0.9),
        "`transition.reward`",
        "complex",
        "real number",
    ),
    "a span of time as the reward": (
        lambda: bellman_target(STEP._replace(reward=np.array(1, "timedelta64[s]")), 1.0, discount=0.9),
        "`transition.reward`",
        "timedelta64",
        "real number",
    ),
    "a date as the mask": (
        lambda: bellman_target(STEP._replace(mask=DATES[0]), 1.0, discount=0.9),
        "`transition.mask`",
        "2020-01-01",
        "real number",
    ),
    "a masked reward": (
        lambda: bellman_target(STEP._replace(reward=MASKED[:1].reshape(())), 1.0, discount=0.9),
        "`transition.reward`",
        "masked",
        "real number",
    ),
    "integer actions of a batch": (
        lambda: update(BATCH._replace(action=jnp.zeros((4, 2), int))),
        "`batch.action`",
        "int64",
        "Convert",
    ),
    "rewards of a batch that are text": (
        lambda: update(BATCH._replace(reward=np.array(["1"] * 4))),
        "`batch.reward`",
        "<U1[4]",
        "Convert",
    ),
    "an optimizer for two networks": (
        lambda: sorl.init((policy, blind), config=OPTIONS["config"], optimizers=sorl.OPTIMIZERS.policy),
        "`optimizers`",
        "Gradient",
        "(policy, critic)",
    ),
    "one network": (
        lambda: sorl.init(policy, config=OPTIONS["config"], optimizers=sorl.OPTIMIZERS),
        "`networks`",
        "ShortcutPolic",
        "a tuple",
    ),
    "a config of another algorithm": (
        lambda: sorl.init((policy, blind), config=fql.Config(), optimizers=sorl.OPTIMIZERS),
        "`config`",
        "`fql.Config`",
        "`sorl.Config`",
    ),
    "a state of another algorithm": (
        lambda: fql.update(
            sorl.init((policy, blind), **OPTIONS), BATCH, config=fql.Config(), optimizers=fql.OPTIMIZERS, key=KEY
        ),
        "`state`",
        "`sorl.State`",
        "`fql.State`",
    ),
    "a random key as noise": (lambda: roll(KEY, k=1), "`noise`", "a random key", "Pass a float array"),
    "random keys as a time": (
        lambda: jump(X, jax.random.split(KEY), 1.0),
        "`t`",
        "random keys of shape (2,)",
        "number",
    ),
    "noise in nested lists": (lambda: select([[0.0, 1.0]]), "`noise[0][0]`", "0.0", "jnp.asarray"),
    "no row of noise for each candidate": (
        lambda: sorl.actor(sorl.init((policy, blind), **OPTIONS), config=OPTIONS["config"], n=4)(BATCH.obs[0], X),
        "`noise`",
        "[2]",
        "one row for each candidate, got float32[2]. The error was",
    ),
    "a shape that is a number": (lambda: draw_flow_matching(KEY, num_steps=2, shape=4), "`shape`", "4", "a tuple"),
    "a level that is text": (
        lambda: consistency_sample(lambda obs, x, level: x, None, jnp.ones((1, 2)), levels=("80",)),
        "`levels`",
        "'80'",
        "numbers",
    ),
    "observations of integers": (
        lambda: update(BATCH._replace(obs=jnp.ones((4, 3), int))),
        "`obs`",
        "int64[3]",
        "Convert it to float32",
    ),
    "an encoder that keeps an axis": (
        lambda: nn.ShortcutPolicy(3, 2, encoder=lambda obs: obs[None], key=KEY).encode(jnp.ones(3)),
        "`encoder`",
        "float64[1, 3]",
        "(3,)",
    ),
    "an unknown option": (lambda: q_loss(act, critic, None, X, k=4), "`q_loss`", "'k'", "(actor, critic, obs, noise"),
    "a missing argument": (lambda: q_loss(act), "`q_loss`", "'critic'", "(actor, critic, obs, noise"),
    "an unknown setting": (lambda: sorl.Config(qweight=1), "`Config`", "'qweight'", "q_weight"),
    "a critic without k": (
        lambda: update_with(policy, Blind(mlp)),
        "`state.target_critic`",
        "'k'",
        "condition_critic_on_k",
    ),
    "networks of the user in the wrong order": (
        lambda: update_with(Blind(mlp), policy),
        "`state.policy`",
        "4 positional arguments (too many positional arguments)",
        "order",
    ),
}


@pytest.mark.parametrize(("call", "name", "value", "remedy"), KINDS.values(), ids=KINDS.keys())
def test_a_wrong_kind_is_named_with_the_remedy(call, name, value, remedy):
    with pytest.raises(TypeError) as error:
        call()
    for part in (name, value, remedy):
        assert part in first_line(error), first_line(error)
    assert len(first_line(error)) < 300


# ----------------------------------------------------------------- what the user's functions return

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
    "velocity of flow matching": lambda bad: match_with(bad),
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


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: match(X, DOUBLE, 0.0, h=0.0), "noise"),
        (lambda: agree(X, DOUBLE, 0.0, 1.0), "noise"),
        (lambda: interpolate(DOUBLE, X, 0.0), "noise"),
    ],
    ids=["flow matching", "self-consistency", "the path"],
)
def test_float64_against_float32_is_told_how_to_convert(call, name):
    with pytest.raises(TypeError, match=rf"`{name}` is float64 but `\w+` is float32.*`{name}\.astype"):
        call()


def test_the_checks_hold_under_jit():
    """As far as they can: shapes, dtypes and kinds; values are not known there."""
    for call, x, name in [
        (partial(roll, k=1), jnp.ones((5, 2)), "noise"),
        (lambda x: improve(x, aggregate="max"), X, "aggregate"),
        (partial(roll, k=0), X, "k"),
    ]:
        with pytest.raises((TypeError, ValueError), match=f"`{name}`"):
            jax.jit(call)(x)
