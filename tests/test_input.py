"""Ordinary input stays ordinary: numbers, arrays and keys of every kind that means what is asked for."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calls import KEY, STEP, X, agree, both, fit, improve, jump, match, roll, select, stay, target

from shortcutrl import (
    Transition,
    consistency_gap,
    nn,
    sorl,
)

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


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_have_the_dtype_of_the_input(dtype):
    x = jnp.ones(2, dtype)
    step = jax.tree.map(lambda leaf: leaf.astype(dtype), STEP)
    outputs = (
        roll(x, k=2, clip=(-1, 1)),
        both(x, num_steps=4, key=KEY),
        target(step, x, k=2, discount=0.9),
        fit(step, x, k=2, discount=0.9),
        improve(x, k=2),
        select(x[None], k=2)[0],
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(outputs)} == {jnp.dtype(dtype)}


def test_numpy_arrays_are_ordinary():
    """As they come out of an environment, float64 or float32, observations included."""
    rng = np.random.default_rng(0)
    obs, x, noises = rng.normal(size=3), rng.normal(size=2), rng.normal(size=(4, 2))
    step = Transition(obs, x, np.float64(1.0), 1.0, obs.astype(np.float32))
    calls = [
        lambda v: jump(v(x), 0.0, 1.0),
        lambda v: roll(v(x), k=2),
        lambda v: match(v(x), v(x), 0.5, h=0.0),
        lambda v: agree(v(x), v(x), 0.5, 0.5),
        lambda v: both(v(x), num_steps=4, key=KEY)[0],
        lambda v: fit(jax.tree.map(v, step), v(x), k=2, discount=np.float64(0.9))[0],
        lambda v: improve(v(x), k=2)[0],
        lambda v: select(v(noises), k=2)[0],
    ]
    for call in calls:
        np.testing.assert_allclose(call(np.asarray), call(jnp.asarray))


@pytest.mark.parametrize("arrays", [(X, np.ones(2)), (np.ones(2), X)], ids=["after", "before"])
def test_numpy_takes_the_dtype_of_the_jax_array(arrays):
    assert match(*arrays, 0.0, h=0.0).dtype == jnp.float32


def test_a_transition_of_python_numbers_is_ordinary():
    step = Transition(np.ones(2), np.ones(2, np.float32), 1.0, 0, np.ones(2))
    assert target(step, X, k=1, discount=1) == 1


@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey], ids=["new", "old"])
def test_keys_old_and_new(make):
    assert both(X, num_steps=4, key=make(0)) == both(X, num_steps=4, key=KEY)
    new, old = (nn.ShortcutPolicy(3, 2, width=4, depth=1, key=key) for key in (KEY, make(0)))
    assert eqx.tree_equal(new, old)


def test_an_update_with_an_old_key():
    config = sorl.Config(num_steps=2, max_jumps=1)
    critic = nn.EnsembleCritic(3, 2, width=4, depth=1, key=KEY)
    state = sorl.init(nn.ShortcutPolicy(3, 2, width=4, depth=1, key=KEY), critic, config=config)
    ones = jnp.ones((4, 3))
    batch = Transition(ones, ones[:, :2], ones[:, 0], ones[:, 0], ones)
    update = jax.jit(partial(sorl.update, config=config))
    assert jnp.isfinite(update(state, batch, key=jax.random.PRNGKey(0))[1].td)


def test_values_that_are_traced_are_not_checked():
    """There is none to look at: under `jit`, t and h are the caller's to keep in range."""
    assert jax.jit(jump)(X, 0.75, 0.5).shape == (2,)


def test_shapes_are_checked_under_jit_too():
    with pytest.raises(TypeError, match="noise"):
        jax.jit(partial(roll, k=1))(jnp.ones((5, 2)))
