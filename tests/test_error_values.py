"""Values out of range are refused with a message whose first line names the argument, its value and the remedy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from assertions import first_line
from calls import (
    BATCH,
    KEY,
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
    seeing,
    select,
    stay,
    target,
    traced,
    update,
)

from shortcutrl import (
    advantage_weight,
    bellman_target,
    best_of_n,
    clipped,
    consistency_gap,
    ddpm_sample,
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
    vp_schedule,
)

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
        lambda: flow_matching_loss(lambda *args: jnp.zeros(()), None, X, X, 0.5, h=0.0),
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
    "bounds that a narrow dtype makes equal": (
        lambda: clipped(act, None, X.astype("bfloat16"), clip=(0.999, 1.0)),
        "`clip`",
        "(0.999, 1.0)",
        "low < high in bfloat16",
    ),
    "noise without numbers": (
        lambda: ddpm_sample(stay, None, jnp.ones((2, 0)), steps=2, schedule=vp_schedule),
        "`noise`",
        "[2, 0]",
        "non-empty",
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
    "no row of noise for each candidate of an actor": (
        lambda: sorl.actor(sorl.init((policy, blind), **OPTIONS), config=OPTIONS["config"], n=4)(BATCH.obs[0], X),
        "`noise`",
        "float32[2]",
        "`noise_shape`",
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


@pytest.mark.parametrize("change", [{"reward": X}, {"mask": X}, {"reward": jnp.ones((1, 1))}], ids=str)
def test_a_transition_must_be_one(change):
    with pytest.raises(ValueError, match=r"`transition\.\w+` must be one number.*jax\.vmap"):
        fit(STEP._replace(**change), X, discount=0.9)
