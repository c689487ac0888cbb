"""Evaluation counts every episode once, whatever its length and however many environments there are."""

import functools
import gc
import logging
import random
import warnings
import weakref
from contextlib import contextmanager

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from environments import Changed, Countdown, Echo, replaced
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random.mtrand import get_bit_generator

from shortcutrl import nn, rollout_k
from shortcutrl.evaluate import EnvPool, Evaluation, evaluate, keyed, record


class Actor(eqx.Module):
    scale: jax.Array

    def __call__(self, obs, *, key):
        return jnp.array([self.scale * obs[0] + jax.random.uniform(key), 0.0], jnp.float32)


ACT = Actor(jnp.array(1.0))


def still(obs, key):
    return jnp.zeros(2)


def here(num_envs, make_env=Countdown):
    """All in this process."""
    return EnvPool(make_env, processes=0, envs_per_process=num_envs)


def lengths(seed, episodes):
    env = Countdown()
    return [int(env.reset(seed=seed + i)[0][0]) for i in range(episodes)]


@settings(max_examples=10)
@given(num_envs=st.integers(1, 9), episodes=st.integers(1, 12), seed=st.integers(0, 2**32 - 13))
def test_every_episode_counts_once(num_envs, episodes, seed):
    result = evaluate(ACT, here(num_envs), episodes=episodes, seed=seed)
    expected = lengths(seed, episodes)
    np.testing.assert_array_equal(result.episode_length, expected)
    np.testing.assert_array_equal(result.success, np.array(expected) <= 8)
    alone = evaluate(ACT, here(1), episodes=episodes, seed=seed)
    np.testing.assert_allclose(result.episode_return, alone.episode_return, rtol=1e-6)


def test_actions_draw_from_the_seed_of_their_episode_and_the_step():
    result = evaluate(Actor(jnp.array(0.0)), here(2), episodes=3, seed=5)
    for i, length in enumerate(lengths(5, 3)):
        keys = [jax.random.fold_in(jax.random.key(5 + i), step) for step in range(length)]
        expected = sum(float(jnp.float32(jax.random.uniform(key))) for key in keys)
        np.testing.assert_allclose(result.episode_return[i], expected, rtol=1e-6)


def test_short_episodes_are_not_favoured():
    """Counting the first episodes to end, of environments that restart by themselves, favours the short."""
    result = evaluate(Actor(jnp.array(0.0)), here(16), episodes=16, seed=0)
    played = [lengths(16 * env, 16) for env in range(16)]
    first_to_end = sorted(end for row in played for end in zip(np.cumsum(row), row, strict=True))[:16]
    assert np.mean([length <= 8 for _, length in first_to_end]) > 0.4
    assert result.success_rate == np.mean(np.array(lengths(0, 16)) <= 8) < 0.25


@pytest.mark.parametrize(("processes", "envs_per_process"), [(1, 1), (2, 3)])
def test_processes_agree_with_one_process(processes, envs_per_process):
    with EnvPool(Countdown, processes=processes, envs_per_process=envs_per_process) as pool:
        for episodes in (5, 2, 11):  # a pool can be used again
            result = evaluate(ACT, pool, episodes=np.int64(episodes), seed=np.uint8(2))
            expected = evaluate(ACT, here(2), episodes=episodes, seed=2)
            jax.tree.map(np.testing.assert_allclose, result, expected)


def test_an_environment_rests_after_its_last_episode():
    class Counting(Countdown):
        def step(self, action):
            assert self.left > 0, "stepped after its end"
            return super().step(action)

    assert evaluate(ACT, here(4, Counting), episodes=5).episode_length.tolist() == lengths(0, 5)


# Observations, actions, rewards, success


NESTED = gymnasium.spaces.Dict(
    {
        "left": Countdown.observation_space,
        "more": gymnasium.spaces.Tuple([gymnasium.spaces.Discrete(4), gymnasium.spaces.Box(0, 255, (2, 2), np.uint8)]),
    }
)


class Nested(Countdown):
    """Observes a dictionary with a tuple in it."""

    observation_space = NESTED

    def nested(self, obs):
        return {"left": obs, "more": (3, np.full((2, 2), 200, np.uint8))}

    def reset(self, **options):
        obs, info = super().reset(**options)
        return self.nested(obs), info

    def step(self, action):
        obs, *rest = super().step(action)
        return self.nested(obs), *rest


@pytest.mark.parametrize("processes", [0, 1])
def test_observations_may_be_dictionaries_and_tuples(processes):
    def act(actor, obs, *, key):
        number, image = obs["more"]
        assert (number.shape, image.shape, image.dtype) == ((), (2, 2), jnp.uint8)
        return actor(obs["left"], key=key) + (number - 3) + (image.mean() - 200)

    with EnvPool(Nested, processes=processes, envs_per_process=3) as pool:
        result = evaluate(eqx.Partial(act, ACT), pool, episodes=5)
    expected = evaluate(ACT, here(3), episodes=5)
    jax.tree.map(np.testing.assert_array_equal, result, expected)
    pictures, _ = record(eqx.Partial(act, ACT), Nested(), seed=2)
    assert len(pictures) == expected.episode_length[2] + 1


@pytest.mark.parametrize("processes", [0, 1])
def test_actions_outside_the_space_are_warned_of_once(processes):
    def make_env():
        return Changed(action_space=gymnasium.spaces.Box(np.float32([0, -1]), np.float32([5, np.inf])))

    with EnvPool(make_env, processes=processes) as pool:
        with pytest.warns(UserWarning, match=r"actions outside the action space, such as \[6. 7.\] in \[") as caught:
            evaluate(lambda obs, key: jnp.array([6.0, 7.0]), pool, episodes=3)
        assert len(caught) == 1
        assert caught[0].filename == __file__
        evaluate(
            lambda obs, key: jnp.array([5.0, 7.0]), pool, episodes=3
        )  # within: no warning, which would be an error


def test_whole_numbers_are_within_a_space_without_bounds():
    make_env = lambda: Changed(action_space=gymnasium.spaces.Box(-np.inf, np.inf, (2,)))
    evaluate(lambda obs, key: jnp.array([0, 300]), here(1, make_env), episodes=1)  # a warning would be an error


class OwnBox(gymnasium.spaces.Box):
    """A space of a class that only this module has."""


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_actions_at_the_bounds_are_within_and_the_space_may_be_of_any_class(dtype):
    make_env = lambda: Changed(action_space=OwnBox(-0.1, 0.1, (2,), np.float64))
    with EnvPool(make_env, processes=1) as pool:
        evaluate(lambda obs, key: jnp.array([-0.1, 0.1], dtype), pool, episodes=2)  # a warning would be an error


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("action_dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.int32])
def test_environments_get_writable_actions_in_the_dtype_of_their_space(dtype, action_dtype):
    def change(env, result):
        env.actions[-1] *= 2
        assert env.actions[-1].dtype == dtype
        return result

    def make_env():
        return Changed(action_space=gymnasium.spaces.Box(-1, 1, (2,), dtype), step=change)

    act = lambda obs, key: jnp.ones(2, action_dtype)
    assert evaluate(act, here(2, make_env), episodes=3).episode_return.tolist() == [10.0] * 3
    record(act, make_env())


def test_environments_of_integers_get_integers():
    make_env = lambda: Changed(action_space=gymnasium.spaces.Box(0, 255, (2,), np.uint8))
    assert evaluate(lambda obs, key: jnp.full(2, 200.0), here(1, make_env), episodes=1).episode_return == 5 * 400
    for wrong in (0.5, 256.0, -1.0):
        with pytest.raises(ValueError, match=r"`act` must return whole numbers in the range of uint8"):
            evaluate(lambda obs, key, wrong=wrong: jnp.full(2, wrong), here(1, make_env), episodes=1)


def test_an_action_may_be_a_constant_of_numpy():
    result = evaluate(lambda obs, key: np.ones(2, np.float32), here(2), episodes=2)
    assert (result.episode_return == result.episode_length).all()


@pytest.mark.parametrize("form", [np.float64, np.int8, lambda x: np.full((1,), x), lambda x: [[x]], jnp.bfloat16])
def test_a_reward_may_be_any_one_number(form):
    make_env = lambda: Changed(step=replaced(reward=form(3)))
    assert evaluate(still, here(1, make_env), episodes=1).episode_return == 15
    assert evaluate(still, here(1, lambda: Changed(step=replaced(reward=True))), episodes=1).episode_return == 5


@pytest.mark.parametrize("value", [True, np.True_, 1.0, np.ones(1)])
def test_success_has_the_name_that_the_environment_gives_it(value):
    make_env = lambda: Changed(step=replaced(info={"is_success": value, "success": False}))
    assert not evaluate(still, here(1, make_env), episodes=2).success.any()
    assert evaluate(still, here(1, make_env), episodes=2, success_key="is_success").success.all()
    assert record(still, make_env(), success_key="is_success")[1]


def test_success_that_is_never_reported_is_a_warning():
    with pytest.warns(UserWarning, match=r"reported 'won' in `info`.*one of \['elapsed', 'success'\]") as caught:
        result = evaluate(still, here(2), episodes=4, success_key="won")
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert result.success.tolist() == [False] * 4
    with pytest.warns(UserWarning, match="reported 'won' in `info`") as caught:
        assert not record(still, Countdown(), success_key="won")[1]
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not evaluate(still, here(2), episodes=4, success_key=None).success.any()


# Random generators


class Global(Echo):
    """Draws from generators that `reset` does not seed, as old environments and OGBench's mazes do."""

    def __init__(self):
        self.made = random.random() + np.random.normal()  # noqa: NPY002

    def reset(self, **options):
        self.bonus = random.random() + np.random.normal() + float(self.action_space.sample()[0])  # noqa: NPY002
        return super().reset(**options)

    def step(self, action):
        obs, _, *rest = super().step(action)
        return obs, self.made + self.bonus + random.gauss() + np.random.normal(), *rest  # noqa: NPY002

    def render(self):
        random.random(), np.random.normal()  # noqa: NPY002
        return super().render()


def test_an_episode_depends_on_its_seed_only():
    def returns(num_envs, seed, **options):
        with EnvPool(Global, **({"processes": 0} | options), envs_per_process=num_envs) as pool:
            return evaluate(still, pool, episodes=6, seed=seed).episode_return.tolist()

    expected = returns(1, 0)
    assert len(set(expected)) == 6
    assert returns(1, 0) == returns(4, 0) == returns(2, 0, processes=2) == expected
    assert returns(2, 3)[:3] == expected[3:]


def test_the_generators_of_the_user_are_left_alone():
    def draws(between):
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        first = random.gauss(), np.random.normal()  # noqa: NPY002 (each keeps a second number for the next call)
        generator = get_bit_generator()
        between()
        assert get_bit_generator() is generator
        return *first, random.gauss(), np.random.normal()  # noqa: NPY002

    expected, env = draws(lambda: None), Global()
    assert draws(lambda: evaluate(still, here(2, Global), episodes=3)) == expected
    assert draws(lambda: record(still, env)) == expected

    def failing():
        with pytest.raises(RuntimeError, match="the environment failed"):
            evaluate(still, here(1, lambda: Changed(step=lambda env, result: np.random.normal() / 0)), episodes=1)  # noqa: NPY002

    assert draws(failing) == expected


def test_environments_may_share_what_they_return():
    shared = np.zeros(1, np.float32)

    def told(env, result):
        shared[0] = env.np_random.integers(100)
        return shared, *result[1:]

    def act(obs, *, key):
        return jnp.array([obs[0] / 100, 0.0])

    make_env = lambda: Changed(reset=told, step=told)
    alone, together = (evaluate(act, here(size, make_env), episodes=3).episode_return for size in (1, 3))
    np.testing.assert_allclose(together, alone, rtol=1e-6)
    assert len(set(alone)) == 3


# Compilation


@contextmanager
def compiled():
    """The names of the programs that JAX compiles here."""
    names, handler = [], logging.Handler()
    handler.emit = lambda record: names.append(record.getMessage())
    logger = logging.getLogger("jax._src.dispatch")
    logger.addHandler(handler)
    with jax.log_compiles():
        yield names
    logger.removeHandler(handler)
    names[:] = [name for name in names if name.startswith("Finished XLA compilation of jit(many)")]


@pytest.mark.parametrize("bind", [eqx.Partial, functools.partial, jax.tree_util.Partial])
def test_new_weights_do_not_compile_again(bind):
    def act(scale, obs, *, key):
        return jnp.array([scale, scale], jnp.float32)

    pool = here(2)
    with compiled() as first:
        for scale in (1.0, 2.0, 3.0):
            result = evaluate(bind(act, jnp.array(scale)), pool, episodes=2)
            assert (result.episode_return == scale * result.episode_length).all()
    with compiled() as second:
        evaluate(bind(act, np.ones(1)[0]), pool, episodes=2)  # another program: NumPy scalars are static
        evaluate(bind(act, np.ones(1)[0]), pool, episodes=2)
    assert len(first) == len(second) == 1


class Layers(eqx.Module):
    """A velocity whose layers have functions as leaves."""

    mlp: eqx.nn.MLP

    def __call__(self, obs, x, t, h):
        return self.mlp(jnp.concatenate([obs.astype(x.dtype), x, t[None], h[None]]))


def test_actors_with_new_weights_do_not_compile_again():
    pool, returns = here(2), []
    with compiled() as programs:
        for seed in range(3):
            policy = Layers(eqx.nn.MLP(5, 2, 8, 1, key=jax.random.key(seed)))
            actor = functools.partial(rollout_k, policy, k=2, clip=(-1.0, 1.0))
            returns.append(tuple(evaluate(keyed(actor, (2,)), pool, episodes=2).episode_return))
    assert len(programs) == 1
    assert len(set(returns)) == 3


def test_a_closure_is_read_again_at_each_evaluation():
    pool, scale = here(2), 1.0

    def act(obs, *, key):
        return jnp.full(2, scale)

    for scale in (1.0, 2.0):
        result = evaluate(act, pool, episodes=2)
        assert (result.episode_return == scale * result.episode_length).all()


def test_weights_may_come_in_another_structure():
    pool = here(2)
    for bound in ({"a": jnp.ones(2)}, {"b": jnp.ones(2)}, [jnp.full(2, 3.0)]):
        act = eqx.Partial(lambda weights, obs, *, key: jax.tree.leaves(weights)[0], bound)
        result = evaluate(act, pool, episodes=2)
        assert (result.episode_return == jax.tree.leaves(bound)[0][0] * result.episode_length).all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_functions_that_call_python_are_not_confused():
    def calling(value):
        like = jax.ShapeDtypeStruct((2,), jnp.float32)
        told = lambda obs: np.full(2, value, np.float32)
        return lambda obs, *, key: jax.pure_callback(told, like, obs, vmap_method="sequential")

    pool = here(2)
    for value in (1.0, 2.0):
        result = evaluate(calling(value), pool, episodes=2)
        assert (result.episode_return == value * result.episode_length).all()


def test_a_program_that_is_traced_again_is_that_of_the_last_function():
    class Mutable:
        value = 1.0

    pool, mutable = here(2), Mutable()
    evaluate(lambda obs, *, key: jnp.full(2, mutable.value), pool, episodes=2)
    mutable.value = 7.0
    evaluate(last := lambda obs, *, key: jnp.full(2, 1.0), pool, episodes=2)
    with jax.default_matmul_precision("highest"):
        result = evaluate(last, pool, episodes=2)
    assert (result.episode_return == result.episode_length).all()


def test_an_array_that_is_bound_but_not_used_is_not_needed():
    unused = jnp.ones(2)
    act = eqx.Partial(lambda unused, obs, *, key: jnp.ones(2), unused)
    unused.delete()
    assert (evaluate(act, here(2), episodes=2).episode_return > 0).all()


def test_another_choice_of_bound_arrays_is_another_program():
    pool, bound = here(2), [jnp.full(2, 1.0), jnp.full(2, 2.0)]
    for i in (0, 1):
        result = evaluate(eqx.Partial(lambda *args, i=i, key: args[i], *bound), pool, episodes=2)
        assert (result.episode_return == bound[i][0] * result.episode_length).all()


def test_a_closure_beside_bound_arrays_is_read_again():
    pool, settings = here(2), {}

    def act(weight, obs, *, key):
        return weight * jnp.ravel(settings["scale"])[0]

    for scale in (1.0, jnp.array([2.0, 2.0]), jnp.arange(3.0, 5003.0), np.arange(4.0, 5004.0)):
        settings["scale"] = scale
        result = evaluate(functools.partial(act, jnp.ones(2)), pool, episodes=2)
        assert (result.episode_return == np.ravel(scale)[0] * result.episode_length).all()


@pytest.mark.parametrize("bind", [lambda weights: eqx.Partial(lambda w, obs, *, key: w[:2], weights), None])
def test_what_the_user_drops_is_freed(bind):
    pool, dropped = here(1), []
    for i in range(3):
        weights = jnp.full(1000, float(i))
        act = bind(weights) if bind else lambda obs, key, weights=weights: weights[:2]
        evaluate(act, pool, episodes=1)
        dropped += [weakref.ref(weights), weakref.ref(act.func if bind else act)]
    del act, weights
    gc.collect()
    # A program that serves all three, or the last of three with what it closes over.
    assert [i for i, ref in enumerate(dropped) if ref() is not None] == ([5] if bind else [4, 5])
    del pool
    gc.collect()
    assert all(ref() is None for ref in dropped)


def test_keyed_draws_noise_of_the_shape():
    policy = nn.ShortcutPolicy(3, 2, width=8, depth=1, key=jax.random.key(0))
    actor = functools.partial(rollout_k, policy, k=2, clip=(-1.0, 1.0))
    obs, key = jnp.ones(3), jax.random.key(4)
    act = keyed(actor, (np.int64(2),))
    np.testing.assert_array_equal(act(obs, key=key), actor(obs, jax.random.normal(key, (2,))))
    assert isinstance(act, eqx.Partial)
    weights = jax.tree.leaves(eqx.filter(policy, eqx.is_array))
    assert all(any(leaf is weight for leaf in jax.tree.leaves(act)) for weight in weights)
    doubled = jax.tree.map(lambda x: 2 * x if eqx.is_array(x) else x, act)
    assert not np.array_equal(doubled(obs, key=key), act(obs, key=key))


def test_a_bound_argument_may_be_replaced_as_in_functools():
    act = functools.partial(lambda obs, key=None: jnp.full(2, jax.random.uniform(key)), key=None)
    assert (evaluate(act, here(1), episodes=2).episode_return > 0).all()


# Films


def test_record_plays_the_episode_that_evaluate_plays():
    rewards = []

    class Watched(Countdown):
        def step(self, action):
            rewards.append(float(action[0]))
            return super().step(action)

    result = evaluate(ACT, here(3), episodes=4, seed=5)
    pictures, success = record(ACT, Watched(), seed=5 + 2)
    assert pictures.shape == (result.episode_length[2] + 1, 2, 3, 3)
    assert pictures[:, 0, 0, 0].tolist() == list(range(result.episode_length[2], -1, -1))
    assert success == result.success[2]
    np.testing.assert_allclose(sum(rewards), result.episode_return[2], rtol=1e-6)
    fewer, _ = record(ACT, Watched(), seed=np.int32(5 + 2), every=np.int64(4))
    length = int(result.episode_length[2])
    assert fewer[:, 0, 0, 0].tolist() == [length - step for step in range(length) if step % 4 == 0] + [0]


def test_record_copies_pictures():
    buffer = np.zeros((2, 2, 3), np.uint8)

    def draw(env, result):
        buffer[:] = len(env.actions)
        return buffer

    pictures, _ = record(still, Changed(render=draw))
    assert pictures[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]


# Intervals


def evaluation(successes, n, returns=None):
    return Evaluation(np.arange(n) < successes, np.zeros(n) if returns is None else returns, np.ones(n, int))


@pytest.mark.parametrize(
    ("successes", "n", "confidence", "expected"),
    [
        (9, 10, 0.95, (0.595850, 0.982124)),
        (9, 10, 0.9, (0.652281, 0.977365)),
        (0, 20, 0.95, (0.0, 0.161125)),
        (20, 20, 0.95, (0.838875, 1.0)),
        (81, 263, 0.95, (0.255289, 0.366210)),  # Newcombe (1998), table 1: 0.2553 to 0.3662
        (15, 148, 0.95, (0.062386, 0.160487)),  # the same: 0.0624 to 0.1605
    ],
)
def test_wilson_interval(successes, n, confidence, expected):
    result = evaluation(successes, n)
    assert result.success_rate == successes / n
    np.testing.assert_allclose(result.success_interval(confidence), expected, atol=1e-6)


@given(st.integers(1, 300), st.floats(0, 1), st.floats(0.01, 0.999))
def test_wilson_interval_holds_the_rates_that_a_score_test_does_not_reject(n, share, confidence):
    result = evaluation(round(share * n), n)
    low, high = result.success_interval(confidence)
    assert 0 <= low <= result.success_rate <= high <= 1
    z = float(jax.scipy.stats.norm.ppf((1 + confidence) / 2))
    for end in (low, high):
        if 0 < end < 1:
            assert abs(end - result.success_rate) == pytest.approx(z * np.sqrt(end * (1 - end) / n), rel=1e-6)
    mirrored = evaluation(n - round(share * n), n).success_interval(confidence)
    np.testing.assert_allclose(mirrored, (1 - high, 1 - low), atol=1e-12)


@pytest.mark.parametrize(
    ("confidence", "expected"), [(0.95, (0.825, 4 + 2 / 3)), (0.9, (5 / 6, 4.5)), (np.float32(0.5), (4 / 3, 3.0))]
)
def test_bootstrap_interval(confidence, expected):
    result = evaluation(0, 6, np.array([1.0, 2.0, 2.0, 1.0, 0.0, 8.0]))
    np.testing.assert_allclose(result.return_interval(confidence), expected, atol=1e-12)


def test_bootstrap_interval_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    returns = np.random.default_rng(1).normal(size=37)
    for confidence in (0.95, 0.6):
        options = {"confidence_level": confidence, "method": "percentile", "rng": np.random.default_rng(0)}
        expected = stats.bootstrap((returns,), np.mean, **options).confidence_interval
        np.testing.assert_allclose(evaluation(0, 37, returns).return_interval(confidence), expected, rtol=1e-9)


def test_the_interval_of_equal_returns_is_a_point():
    assert evaluation(0, 3, np.full(3, 2.0)).return_interval() == (2.0, 2.0)


def test_one_return_has_no_interval():
    assert np.isnan(evaluation(0, 1, np.ones(1)).return_interval()).all()


@pytest.mark.parametrize("success", [[2, 0], [0.5, 1], [np.nan, 1]])
def test_success_is_0_or_1(success):
    result = evaluation(1, 2)._replace(success=np.array(success))
    for use in (lambda: result.success_rate, result.success_interval):
        with pytest.raises(ValueError, match="`success` must be 0 or 1 for each episode, got "):
            use()


def test_an_interval_is_of_95_percent_by_default():
    result = evaluation(3, 6, np.array([1.0, 2.0, 2.0, 1.0, 0.0, 8.0]))
    assert result.success_interval() == result.success_interval(0.95) != result.success_interval(0.9)
    assert result.return_interval() == result.return_interval(0.95) != result.return_interval(0.9)


@pytest.mark.parametrize("interval", [Evaluation.success_interval, Evaluation.return_interval])
def test_confidence_is_checked(interval):
    for wrong in (0, 1, 0.0, 1.0, 95, -0.5, float("nan"), np.float64(2), 1 - 2**-53):
        with pytest.raises(ValueError, match=r"`confidence` must be between 0 and 1, such as 0\.95, got"):
            interval(evaluation(1, 2), wrong)
    for wrong in ("0.95", None, [0.95], 1j, True):
        with pytest.raises(TypeError, match="`confidence` must be a number, got"):
            interval(evaluation(1, 2), wrong)
    with pytest.raises(ValueError, match=r"must be an array of shape \(episodes,\)"):
        interval(Evaluation(np.array([]), np.array([]), np.array([])))
