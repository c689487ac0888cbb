"""Wrong shapes, dtypes and kinds are refused with a message that names the argument, its value and the remedy."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from assertions import first_line
from calls import (
    BATCH,
    COMPLEX,
    DATES,
    KEY,
    MASKED,
    OPTIONS,
    STEP,
    X,
    act,
    agree,
    blind,
    both,
    critic,
    fit,
    improve,
    jump,
    match,
    policy,
    roll,
    select,
    traced,
    update,
)

from shortcutrl import (
    bellman_target,
    best_of_n,
    consistency_sample,
    critic_loss,
    draw_flow_matching,
    expectile_loss,
    fql,
    interpolate,
    nn,
    q_loss,
    rollout_k,
    sorl,
)
from shortcutrl.runs import Run

mlp = eqx.nn.MLP(5, 2, 4, 1, key=KEY)


class Blind(eqx.Module):
    """A critic of the user's own, with a leaf that is no array."""

    mlp: eqx.nn.MLP

    def __call__(self, obs, action):
        return self.mlp(jnp.concatenate([obs, action]))


def update_with(*networks):
    return traced(networks, {"config": sorl.Config(num_steps=2, max_jumps=2), "optimizers": sorl.OPTIMIZERS})


INTEGERS = jnp.ones(2, int)
DOUBLE = jnp.ones(2, jnp.float64)

KINDS = {
    "k that is a flag": (lambda: roll(X, k=True), "`k`", "True", "an integer"),
    "k that is a float": (lambda: roll(X, k=2.0), "`k`", "2.0", "Pass an integer"),
    "k that is text": (lambda: roll(X, k="2"), "`k`", "'2'", "Pass an integer"),
    "k that is an array": (lambda: roll(X, k=jnp.asarray(2)), "`k`", "2 (int", "pass `int(k)`"),
    "a setting that is traced": (
        lambda: jax.vmap(lambda weight: sorl.Config(q_weight=weight).num_steps)(X),
        "`q_weight`",
        "traced",
        "one `sorl.Config` for each value",
    ),
    "a step that is traced": (
        lambda: jax.jit(lambda step: Run.log(None, step, {"td": 1.0}))(1),
        "`step`",
        "traced",
        "functools.partial(..., step=...)`.",
    ),
    "a class for an argument": (lambda: roll(X, k=nn.Value), "`k`", "the class `Value`", "Pass an integer"),
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
        lambda: best_of_n(partial(rollout_k, policy, k=1), blind, BATCH.obs[0], X),
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
    "a time that is an integer array": (lambda: jump(X, jnp.int32(0), 0.5), "`t`", "0 (int32)", "Pass `float(t)`"),
    "a flag of NumPy": (lambda: sorl.Config(remat=np.True_), "`remat`", "True (bool)", "pass `bool(remat)`"),
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
