"""Good input of every kind is accepted: Python's, NumPy's and JAX's numbers and arrays, keys old and new."""

from dataclasses import dataclass
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
    critic_loss,
    distill_loss,
    expectile_loss,
    interpolate,
    nn,
    rollout_k,
    sorl,
    td_target,
)
from shortcutrl._typed import typed

TIMES = {
    "Python": (0.5, 0.25),
    "integers": (0, 1),
    "NumPy scalars": (np.float64(0.5), np.float32(0.25)),
    "NumPy arrays": (np.array(0.5), np.array(0.25, np.float32)),
    "float64": (jnp.float64(0.5), jnp.float64(0.25)),
    "bfloat16": (jnp.bfloat16(0.5), jnp.asarray(0.25, jnp.bfloat16)),
}
DTYPES = ["bfloat16", "float32", "float64"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("times", TIMES.values(), ids=TIMES.keys())
def test_times_of_any_kind_take_the_dtype_of_x(times, dtype):
    x = jnp.ones(2, dtype)
    assert jump(x, *times).dtype == dtype
    assert consistency_gap(stay, None, x, *times).dtype == dtype
    assert match(x, x, times[0], h=times[1]).dtype == dtype
    assert agree(x, x, *times).dtype == dtype
    assert interpolate(x, x, times[0]).dtype == dtype
    assert both(x, num_steps=4, flow_matching_times=lambda key: times, key=KEY)[0].dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_have_the_dtype_of_the_input(dtype):
    x = jnp.ones(2, dtype)
    step = jax.tree.map(lambda leaf: leaf.astype(dtype), STEP)
    outputs = (
        roll(x, k=2, clip=(-1, 1)),
        both(x, num_steps=4, key=KEY),
        bellman_target(step, x[0], discount=0.9),
        target(step, x, discount=0.9),
        critic_loss(critic, step, 1.0),
        fit(step, x, discount=0.9),
        expectile_loss(lambda obs: obs[0], x, x[0], expectile=0.9),
        improve(x),
        distill_loss(act, act, None, x),
        advantage_weight(x[0], 0.5, temperature=3.0),
        clipped(act, None, x, clip=(np.float32(-1), np.ones(2))),
        select(x[None])[0],
        best_of_n(act, critic, None, x[None]),
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(outputs)} == {jnp.dtype(dtype)}


def test_numpy_arrays_are_ordinary():
    """As they come out of an environment, float64 or float32, observations included."""
    rng = np.random.default_rng(0)
    obs, x, noises = rng.normal(size=3), rng.normal(size=2), rng.normal(size=(4, 2))
    step = Transition(obs, x, np.float64(1.0), 1.0, obs.astype(np.float32))
    calls = [
        lambda v: jump(v(x), 0.0, 1.0),
        lambda v: roll(v(x), k=2, clip=(v(-(x**2) - 1), v(x**2 + 1))),
        lambda v: match(v(x), v(x), 0.5, h=0.0),
        lambda v: agree(v(x), v(x), 0.5, 0.5),
        lambda v: both(v(x), num_steps=4, key=KEY)[0],
        lambda v: fit(jax.tree.map(v, step), v(x), discount=np.float64(0.9))[0],
        lambda v: critic_loss(critic, jax.tree.map(v, step), v(0.5))[0],
        lambda v: bellman_target(step, v(0.5), discount=v(0.9)),
        lambda v: expectile_loss(lambda obs: v(0.5), None, v(0.7), expectile=v(0.9)),
        lambda v: advantage_weight(v(0.5), v(0.7), temperature=v(0.9), cap=v(2.0)),
        lambda v: improve(v(x))[0],
        lambda v: distill_loss(act, lambda obs, noise: v(noises)[0], None, v(x)),
        lambda v: clipped(act, None, v(x), clip=(v(-0.1), v(0.1))),
        lambda v: interpolate(v(x), v(noises)[0], v(0.3)),
        lambda v: select(v(noises))[0],
    ]
    for call in calls:
        np.testing.assert_allclose(call(np.asarray), call(jnp.asarray))


@pytest.mark.parametrize("arrays", [(X, np.ones(2)), (np.ones(2), X)], ids=["after", "before"])
def test_numpy_takes_the_dtype_of_the_jax_array(arrays):
    assert match(*arrays, 0.0, h=0.0).dtype == jnp.float32


def test_a_transition_of_python_numbers_is_ordinary():
    step = Transition(np.ones(2), np.ones(2, np.float32), 1.0, 0, np.ones(2))
    assert target(step, X, discount=1) == 1
    assert bellman_target(step, 7, discount=1) == 1


def test_flags_and_integers_are_rewards_and_masks():
    """As datasets hold them: `terminals` negated, rewards that count."""
    step = STEP._replace(reward=np.uint8(200), mask=np.bool_(True))
    assert bellman_target(step, 100.0, discount=1.0) == 300.0
    assert bellman_target(STEP._replace(reward=jnp.asarray(3), mask=jnp.asarray(False)), 1.0, discount=1.0) == 3.0


@pytest.mark.parametrize("scalar", [float, np.float32, np.float64, np.array, jnp.asarray])
def test_a_function_may_return_any_kind_of_float(scalar):
    value = lambda obs: scalar(0.5)
    assert expectile_loss(value, None, 1.5, expectile=0.5) == 0.5
    assert td_target(lambda obs, action: np.ones(2), lambda obs, noise: np.ones(1), STEP, None, discount=1.0) == 2.0


def test_an_actor_may_be_anything_that_acts():
    """A rollout, a Gaussian, a policy that ignores its noise, and one whose noise is a pytree."""
    actors = {
        "rollout": (partial(rollout_k, stay, k=3), X),
        "Gaussian": (lambda obs, noise: 0.5 * X + 0.1 * noise, X),
        "deterministic": (lambda obs, noise: X, None),
        "mixture": (lambda obs, noise: noise["mode"] * X + noise["deviation"], {"mode": 1.0, "deviation": X}),
    }
    for actor, noise in actors.values():
        assert td_target(critic, actor, STEP, noise, discount=0.9).shape == ()
        assert clipped(actor, None, noise, clip=(-1, 1)).shape == (2,)


@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey], ids=["new", "old"])
def test_keys_old_and_new(make):
    assert both(X, num_steps=4, key=make(0)) == both(X, num_steps=4, key=KEY)
    new, old = (nn.ShortcutPolicy(3, 2, width=4, depth=1, key=key) for key in (KEY, make(0)))
    assert eqx.tree_equal(new, old)


def test_an_update_with_an_old_key():
    options = {"config": sorl.Config(num_steps=2, max_jumps=1), "optimizers": sorl.OPTIMIZERS}
    ones = jnp.ones((4, 3))
    batch = Transition(ones, ones[:, :2], ones[:, 0], ones[:, 0], ones)
    state = sorl.init(sorl.networks(batch, width=4, depth=1, key=jax.random.PRNGKey(0)), **options)
    update = jax.jit(partial(sorl.update, **options))
    assert jnp.isfinite(update(state, batch, key=jax.random.PRNGKey(0))[1].td)


def test_values_that_are_traced_are_not_checked():
    """Under `jit` their values are not known, so the caller must keep t and h in range."""
    assert jax.jit(jump)(X, 0.75, 0.5).shape == (2,)


def test_shapes_are_checked_under_jit_too():
    with pytest.raises(TypeError, match="noise"):
        jax.jit(partial(roll, k=1))(jnp.ones((5, 2)))


def test_an_integer_is_a_number_in_a_config_of_your_own():
    @typed
    @dataclass(frozen=True)
    class Config:
        alpha: float = 1.0
        clip: tuple[float, float] = (-1.0, 1.0)

    assert Config(alpha=2, clip=(-1, 1)).alpha == 2
    with pytest.raises(TypeError, match="`alpha` must be a number, got True"):
        Config(alpha=True)
    with pytest.raises(TypeError, match=r"`alpha` must be a number, got 2.0 \(float32\). Pass `float\(alpha\)`"):
        Config(alpha=np.float32(2))
