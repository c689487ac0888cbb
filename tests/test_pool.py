"""Pools say what is wrong with environments, and leave no process behind."""

import gc
import multiprocessing
import os
import threading
import warnings
from functools import partial

import cloudpickle
import equinox as eqx
import gymnasium
import jax.numpy as jnp
import numpy as np
import pytest
from environments import Changed, Countdown, Echo, raising, replaced
from hypothesis import given, settings
from hypothesis import strategies as st

from shortcutrl import rollout_k
from shortcutrl.evaluate import ChunkedActions, EnvPool, ScaledActions, _environment, _record, evaluate, keyed, record
from shortcutrl.evaluate._worker import serve

still = eqx.Partial(lambda action, obs, key: action, jnp.zeros(2))


def here(make_env=Countdown, num_envs=1):
    return EnvPool(make_env, processes=0, envs_per_process=num_envs)


@pytest.fixture(autouse=True)
def no_process_is_left():
    yield
    if multiprocessing.active_children():
        gc.collect()
    assert multiprocessing.active_children() == []


def ask(make_env, *messages):
    """The answers of a worker process, which is a thread here because threads start sooner."""
    ours, theirs = multiprocessing.Pipe()
    worker = threading.Thread(target=serve, args=(theirs, cloudpickle.dumps(make_env), 1))
    worker.start()
    replies = [ours.recv()]
    for message in messages:
        if isinstance(replies[-1], Exception):
            break
        ours.send(message)
        replies.append(ours.recv())
    ours.close()
    worker.join()
    return replies


RESET = (None, np.array([3]), "success")
STEP = (np.zeros((1, 2)), np.array([-1]), "success")


# What environments raise


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize("kind", [ValueError, EOFError, BrokenPipeError, ConnectionResetError, SystemExit, Interrupted])
@pytest.mark.parametrize("at", ["make_env", "reset", "step"])
def test_what_an_environment_raises_is_shown_with_its_traceback(kind, at):
    def make_env():
        if at == "make_env":
            raise kind("the simulator hung up")
        return Changed(**{at: raising(kind("the simulator hung up"))})

    where = {"make_env": "", "reset": r" \(seed 3, step 0\)", "step": r" \(seed 3, step 1\)"}[at]
    function = "make_env" if at == "make_env" else "change"
    message = rf"the environment failed in `{at}`{where}: .*{kind.__name__}: the simulator hung up"
    *_, error = ask(make_env, RESET, STEP)
    assert isinstance(error, RuntimeError)
    with pytest.raises(RuntimeError, match=f"(?s)^{message}\n\nTraceback .*in {function}"):
        raise error
    with pytest.raises(RuntimeError, match=f"^{message}$") as raised:
        evaluate(still, here(make_env), episodes=1, seed=3)
    assert isinstance(raised.value.__cause__, kind)


def test_an_interrupt_of_the_environment_is_told_apart_from_the_users():
    *_, error = ask(lambda: Changed(step=raising(KeyboardInterrupt("of the environment"))), RESET, STEP)
    assert isinstance(error, RuntimeError)
    assert "KeyboardInterrupt: of the environment" in str(error)
    with pytest.raises(KeyboardInterrupt):  # this process cannot tell
        evaluate(still, here(lambda: Changed(step=raising(KeyboardInterrupt()))), episodes=1)


def test_what_an_environment_raises_in_a_process_is_raised_here():
    pool = EnvPool(lambda: Changed(step=raising(EOFError("the simulator hung up"))), processes=1, envs_per_process=1)
    with pytest.raises(RuntimeError, match=r"in `step` \(seed 0, step 1\): EOFError: the simulator hung up\n\nTrace"):
        evaluate(still, pool, episodes=1)
    with pytest.raises(RuntimeError, match="the pool is closed"):
        evaluate(still, pool, episodes=1)


def test_rendering_that_fails_is_told():
    with pytest.raises(RuntimeError, match=r"failed in `render` \(seed 0, step 0\): EOFError: no display"):
        record(still, Changed(render=raising(EOFError("no display"))))


def test_a_process_that_died_is_told():
    pool = EnvPool(lambda: Changed(step=lambda env, result: os._exit(7)), processes=2)
    with pytest.raises(RuntimeError, match="an environment's process died with exit code 7"):
        evaluate(still, pool, episodes=20)


@pytest.mark.parametrize(
    ("make_env", "kind", "message"),
    [
        (lambda: None, TypeError, r"`make_env` must return a `gymnasium.Env`, got None"),
        (lambda: os._exit(1), RuntimeError, r"died with exit code 1.*__main__"),
    ],
)
def test_what_is_not_an_environment_is_refused_at_once(make_env, kind, message):
    with pytest.raises(kind, match=message):
        EnvPool(make_env, processes=1)


def test_a_pool_that_is_dropped_ends_its_processes():
    pool = EnvPool(Countdown, processes=1)
    (worker,) = pool._workers
    del pool
    gc.collect()
    worker.join(10)
    assert worker.exitcode == 0


def test_closing_closes_the_environments(tmp_path):
    class Closing(Countdown):
        def close(self):
            (tmp_path / str(os.getpid())).touch()

    for processes in (0, 1):
        pool = EnvPool(Closing, processes=processes, envs_per_process=1)
        pool.close()
        pool.close()
        assert len(list(tmp_path.iterdir())) == processes + 1


@pytest.mark.parametrize("processes", [0, 1])
def test_an_error_in_close_hides_neither_results_nor_errors(processes, tmp_path):
    class Failing(Countdown):
        def close(self):
            (tmp_path / str(id(self))).touch()
            raise OSError("busy")

    class Broken(Failing):
        def step(self, action):
            raise ZeroDivisionError("of the simulator")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with EnvPool(Failing, processes=processes, envs_per_process=2) as pool:
            assert len(evaluate(still, pool, episodes=2).episode_length) == 2
    assert len(list(tmp_path.iterdir())) == 2  # both are closed
    told = [str(warning.message) for warning in caught if "in `close`" in str(warning.message)]
    assert len(told) == (0 if processes else 2)
    assert all("OSError: busy" in text for text in told)
    pool = EnvPool(Broken, processes=processes, envs_per_process=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RuntimeError, match="ZeroDivisionError: of the simulator"):
            evaluate(still, pool, episodes=2)


def test_a_pool_is_closed_when_an_evaluation_is_cut_short():
    def act(obs, *, key):
        raise KeyboardInterrupt

    for processes in (0, 1):
        pool = EnvPool(Countdown, processes=processes)
        with pytest.raises(KeyboardInterrupt):
            evaluate(act, pool, episodes=3)
        with pytest.raises(RuntimeError, match="the pool is closed"):
            evaluate(still, pool, episodes=3)


def test_a_pool_serves_one_evaluation_at_a_time():
    pool = here(lambda: Changed(step=lambda env, result: evaluate(still, pool, episodes=1)))
    with pytest.raises(RuntimeError, match="the pool is in use by another evaluation"):
        evaluate(still, pool, episodes=1)


# What environments return


@pytest.mark.parametrize("wrong", [np.ones(2), None, "1.0", 1j, [], [[1.0], [2.0, 3.0]], np.ma.array(1.0, mask=True)])
def test_a_reward_that_is_not_one_number_is_named(wrong):
    pool = here(lambda: Changed(step=replaced(reward=wrong)))
    with pytest.raises(ValueError, match=r"`reward` must be one number, got .*returned it \(seed 4, step 1\)"):
        evaluate(still, pool, episodes=1, seed=4)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, np.float32(-np.inf), jnp.array([jnp.nan], jnp.bfloat16)])
def test_a_reward_that_is_not_finite_is_named(wrong):
    late = lambda env, result: replaced(reward=wrong)(env, result) if len(env.actions) == 3 else result
    with pytest.raises(ValueError, match=r"`reward` must be finite, got -?(nan|inf)\..*\(seed 4, step 3\)"):
        evaluate(still, here(lambda: Changed(step=late)), episodes=1, seed=4)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_observation_that_is_not_finite_is_named(bad):
    space = gymnasium.spaces.Dict({"eye": gymnasium.spaces.Box(-1, 1, (2, 2), np.float32)})
    image = np.array([[0, 0], [bad, 0]], np.float32)
    reset = lambda env, result: ({"eye": image}, {})
    pool = here(lambda: Changed(observation_space=space, reset=reset))
    message = rf"`observation\['eye'\]` must be finite, got {bad} at index \(1, 0\)\..*\(seed 7, step 0\)"
    with pytest.raises(ValueError, match=message):
        evaluate(still, pool, episodes=1, seed=7)
    with pytest.raises(ValueError, match=r"`observation` must be finite.*\(seed 0, step 1\)"):
        record(still, Changed(step=replaced(obs=np.full(1, bad))))


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_an_action_that_is_not_finite_is_named(bad, dtype):
    act = lambda obs, key: jnp.array([0.0, jnp.where(obs[0] == 0, 1, bad)], dtype)  # after the first observation
    step = replaced(obs=np.ones(1, np.float32))
    with pytest.raises(
        ValueError, match=rf"`act` must return a finite action, got \[ ?0\.? {bad}\] \(seed 5, step 2\)"
    ):
        evaluate(act, here(lambda: Changed(step=step), num_envs=2), episodes=1, seed=5)
    with pytest.raises(ValueError, match=r"finite.*\(seed 5, step 2\)"):
        record(act, Changed(step=step), seed=5)


def test_actions_of_environments_that_rest_are_not_judged():
    act = lambda obs, key: jnp.where(obs[0] == 0, jnp.nan, jnp.ones(2))  # 0 is seen at the end only
    assert evaluate(act, here(num_envs=3), episodes=3).episode_return.min() > 0


@pytest.mark.parametrize(
    ("obs", "message"),
    [
        (np.zeros(2, np.float32), r"`observation` must be an array of shape \(1,\), .* got float32\[2\]"),
        (None, r"`observation` must be an array of shape \(1,\), .* got None"),
        (["0"], r"`observation` must be an array of shape \(1,\)"),
        (np.ma.array([0.0], mask=[True]), r"`observation` must be an array of shape \(1,\)"),
        ({"x": np.zeros(1)}, r"`observation` must be an array of shape \(1,\)"),
    ],
)
def test_an_observation_that_is_not_of_its_space_is_named(obs, message):
    with pytest.raises(ValueError, match=message):
        evaluate(still, here(lambda: Changed(step=replaced(obs=obs))), episodes=1)


def test_observations_are_not_truncated():
    make_env = lambda value: Changed(
        observation_space=gymnasium.spaces.Box(0, 9, (1,), np.int32),
        action_space=gymnasium.spaces.Box(0, 9, (2,), np.float32),
        step=replaced(obs=[value]),
        reset=first,
    )
    first = lambda env, result: ([3.0], {})
    act = lambda obs, key: jnp.full(2, obs[0])
    assert evaluate(act, here(lambda: make_env(4.0)), episodes=1).episode_return == 2 * (3 + 4 * 4)
    with pytest.raises(ValueError, match="`observation` is float64 and would lose its values as int32"):
        evaluate(act, here(lambda: make_env(4.5)), episodes=1)


@pytest.mark.parametrize(
    ("dtype", "fits", "too_large"), [(np.int64, 2**31 - 1, 2**31), (np.int64, -(2**31), -(2**40)), (float, 1e38, -1e39)]
)
def test_an_observation_that_jax_would_change_is_refused(without_x64, dtype, fits, too_large):
    def make_env(value):
        low, high = (-(2**62), 2**62) if dtype is np.int64 else (-np.inf, np.inf)
        space = gymnasium.spaces.Box(low, high, (1,), dtype)
        return Changed(observation_space=space, reset=lambda env, result: (np.array([value], dtype), {}))

    seen = lambda obs, key: jnp.where(obs[0] == fits, 1.0, 0.0) * jnp.ones(2)
    narrow = "int32" if dtype is np.int64 else "float32"
    message = f"`observation` has values from .*{str(too_large)[:4]}.*, but JAX reads {narrow[:-2]}64 as {narrow}"
    assert evaluate(seen, here(lambda: make_env(fits)), episodes=1).episode_return > 0
    with pytest.raises(ValueError, match=message):
        evaluate(seen, here(lambda: make_env(too_large)), episodes=1)
    with pytest.raises(ValueError, match=message):
        record(seen, make_env(too_large))


def test_the_part_of_an_observation_that_jax_would_change_is_named(without_x64):
    space = gymnasium.spaces.Dict({"a": gymnasium.spaces.Box(-(2**62), 2**62, (1,), np.int64)})
    make_env = lambda: Changed(observation_space=space, reset=lambda env, result: ({"a": np.array([2**40])}, {}))
    with pytest.raises(ValueError, match=r"`observation\['a'\]` has values from .* but JAX reads int64 as int32"):
        evaluate(still, here(make_env), episodes=1)


SPACES = gymnasium.spaces.Dict({"a": Echo.observation_space}), gymnasium.spaces.Tuple([Echo.observation_space])


@pytest.mark.parametrize(
    ("space", "obs", "message"),
    [
        (SPACES[0], {"b": np.zeros(1)}, r"`observation` must be a dictionary of \['a'\], .* got \['b'\]"),
        (SPACES[0], np.zeros(1), r"`observation` must be a dictionary of \['a'\], .* got float64\[1\]"),
        (SPACES[0], {"a": np.zeros(2)}, r"`observation\['a'\]` must be an array of shape \(1,\)"),
        (SPACES[1], np.zeros(1), r"`observation` must be a tuple of 1, .* got float64\[1\]"),
        (SPACES[1], (None,), r"`observation\[0\]` must be an array of shape \(1,\)"),
    ],
)
def test_a_nested_observation_that_is_not_of_its_space_is_named(space, obs, message):
    pool = here(lambda: Changed(observation_space=space, reset=lambda env, result: (obs, {})))
    with pytest.raises(ValueError, match=message):
        evaluate(still, pool, episodes=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": lambda env, result: result[:4]}, r"`env.step` must return \(obs, reward, .* \(seed 0, step 1\)"),
        ({"step": lambda env, result: None}, r"`env.step` must return .* got None"),
        ({"reset": lambda env, result: result[0]}, r"`env.reset` must return \(obs, info\), .* \(seed 0, step 0\)"),
        ({"step": replaced(terminated="False")}, "`terminated` must be true or false, or 0 or 1, got 'False'"),
        ({"step": replaced(truncated=None)}, "`truncated` must be true or false"),
        ({"step": replaced(terminated=0.5)}, "`terminated` must be true or false"),
        ({"step": replaced(info=None)}, "`info` must be a dictionary, got None"),
        ({"step": replaced(info={"success": "no"}, terminated=True)}, r"`info\['success'\]` must be true or false"),
        ({"step": replaced(info={"success": 0.3}, terminated=True)}, r"`info\['success'\]` must be true or false"),
    ],
)
def test_a_result_of_another_form_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        evaluate(still, here(lambda: Changed(**change)), episodes=1)


def test_an_episode_that_does_not_end_is_an_error(monkeypatch):
    monkeypatch.setattr(_environment, "MAX_STEPS", 20)
    endless = lambda: Changed(step=replaced(terminated=False))
    with pytest.raises(RuntimeError, match=r"has not ended its episode after 20 steps \(seed 3\).*TimeLimit"):
        evaluate(still, here(endless), episodes=1, seed=3)
    with pytest.raises(RuntimeError, match=r"has not ended its episode after 20 steps"):
        record(still, endless(), every=100)


# Films


@pytest.mark.parametrize(
    "wrong", [None, "text", [np.zeros((2, 2, 3), np.uint8)], np.zeros((2, 2)), np.zeros((2, 2, 3))]
)
def test_what_is_not_a_picture_is_refused_with_the_remedy(wrong):
    with pytest.raises(ValueError, match=r"`env.render\(\)` must return a picture.*render_mode=\"rgb_array\""):
        record(still, Changed(render=lambda env, result: wrong))


def test_an_environment_without_a_render_mode_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"got None\. Make the environment with `render_mode=\"rgb_array\"`"):
        record(lambda obs, key: jnp.zeros(1), gymnasium.make("Pendulum-v1"))


def test_pictures_have_one_shape_and_fit_in_memory(monkeypatch):
    growing = lambda env, result: np.zeros((2 + len(env.actions), 2, 3), np.uint8)
    with pytest.raises(ValueError, match=r"pictures of one shape, got \(2, 2, 3\) and \(3, 2, 3\)"):
        record(still, Changed(render=growing))
    monkeypatch.setattr(_record, "MAX_BYTES", 50)
    with pytest.raises(ValueError, match=r"take more than 4 GiB\. Pass a larger `every`, got 1"):
        record(still, Echo())


# Wrappers


@given(st.integers(1, 7), st.lists(st.tuples(st.floats(-1, 1), st.floats(-2, 2)), min_size=7, max_size=7))
def test_chunked_actions_are_carried_out_in_order_until_the_end(length, pairs):
    plain, chunked = Echo(), ChunkedActions(Echo(), np.int64(length))
    np.testing.assert_array_equal(chunked.action_space.high, [1, 2] * length)
    plain.reset(seed=0), chunked.reset(seed=0)
    chunk = np.array(pairs[:length])
    obs, reward, terminated, truncated, info = chunked.step(chunk.ravel())
    expected = [plain.step(action) for action in chunk[:5]]
    np.testing.assert_array_equal(chunked.unwrapped.actions, chunk[:5])
    np.testing.assert_allclose(reward, sum(step[1] for step in expected), atol=1e-12)
    assert (obs.tolist(), terminated, truncated, info) == (expected[-1][0].tolist(), *expected[-1][2:])


class Scale:
    def __init__(self, low, high):
        self.low, self.high = low, high

    def from_unit(self, action):
        return self.low + (action + 1) / 2 * (self.high - self.low)


@settings(max_examples=10)
@given(st.tuples(st.floats(-1, 1), st.floats(-1, 1)))
def test_scaled_actions_are_those_of_the_scale(unit):
    space = Echo.action_space
    env = ScaledActions(Echo(), Scale(space.low, space.high))
    np.testing.assert_array_equal((env.action_space.low, env.action_space.high), [[-1, -1], [1, 1]])
    env.reset(seed=0)
    env.step(np.float32(unit))
    (action,) = env.unwrapped.actions
    assert action.dtype == np.float32
    assert action.flags.writeable
    np.testing.assert_allclose(action, np.array(unit) * (1, 2), atol=1e-6)


def test_scaled_chunks_are_evaluated():
    make_env = lambda: ChunkedActions(ScaledActions(Echo(), Scale(np.array([-1, -2]), np.array([1, 2]))), 2)
    result = evaluate(lambda obs, key: jnp.array([1.0, 1.0, 0.0, -1.0]), here(make_env, num_envs=2), episodes=3)
    assert result.episode_return.tolist() == [3 * 3 - 2 * 2] * 3
    assert result.episode_length.tolist() == [3] * 3


# Bad arguments


POOL = here()


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: evaluate(None, POOL, episodes=1), TypeError, "`act` must be a function, got None"),
        (lambda: evaluate(still, Countdown, episodes=1), TypeError, "`pool` must be an `EnvPool`"),
        (lambda: evaluate(still, POOL, episodes="3"), TypeError, "`episodes` must be an integer, got '3'"),
        (lambda: evaluate(still, POOL, episodes=2.0), TypeError, "`episodes` must be an integer, got 2.0"),
        (lambda: evaluate(still, POOL, episodes=0), ValueError, "`episodes` must be an integer of at least 1, got 0"),
        (lambda: evaluate(still, POOL, episodes=True), TypeError, "`episodes` must be an integer, got True"),
        (lambda: evaluate(still, POOL, episodes=10**9), ValueError, "`episodes` must be at most 1,000,000"),
        (lambda: evaluate(still, POOL, episodes=1, seed=-1), ValueError, "`seed` must be an integer of at least 0"),
        (lambda: evaluate(still, POOL, episodes=1, seed=1.5), TypeError, "`seed` must be an integer, got 1.5"),
        (lambda: evaluate(still, POOL, episodes=1, seed=float("nan")), TypeError, "`seed` must be an integer, got nan"),
        (
            lambda: evaluate(still, POOL, episodes=1, seed=2**32),
            ValueError,
            "`seed` must be an integer of at most 4294967295",
        ),
        (lambda: evaluate(still, POOL, episodes=2, seed=2**32 - 1), ValueError, "`episodes` must be at most 1 with"),
        (lambda: evaluate(still, POOL, episodes=1, success_key=1), TypeError, "`success_key` must be"),
        (lambda: evaluate(still, POOL, episodes=1, progress=None), TypeError, "`progress` must be"),
        (lambda: record(still, None), TypeError, "`env` must be an `Env`, got None"),
        (lambda: record(None, Echo()), TypeError, "`act` must be a function, got None"),
        (lambda: record(still, Echo(), every=0), ValueError, "`every` must be an integer of at least 1, got 0"),
        (lambda: record(still, Echo(), every=1.0), TypeError, "`every` must be an integer, got 1.0"),
        (lambda: record(still, Echo(), seed=-1), ValueError, "`seed` must be an integer of at least 0, got -1"),
        (lambda: EnvPool(Countdown()), TypeError, "`make_env` must be a function"),
        (lambda: EnvPool(lambda: None, processes=0), TypeError, "`make_env` must return a `gymnasium.Env`, got None"),
        (lambda: EnvPool(Countdown, processes=-1), ValueError, "`processes` must be an integer of at least 0, got -1"),
        (lambda: EnvPool(Countdown, processes=True), TypeError, "`processes` must be an integer or None, got True"),
        (lambda: EnvPool(Countdown, processes=2.0), TypeError, "`processes` must be an integer or None, got 2.0"),
        (lambda: EnvPool(Countdown, processes=10**9), ValueError, "`processes` must be at most"),
        (lambda: EnvPool(Countdown, envs_per_process=0), ValueError, "`envs_per_process` must be an integer of at"),
        (
            lambda: EnvPool(Countdown, envs_per_process=10**9),
            ValueError,
            "`envs_per_process` must be an integer of at most 1024",
        ),
        (lambda: EnvPool(Countdown, envs_per_process=None), TypeError, "`envs_per_process` must be an integer"),
        (lambda: EnvPool(partial(print, threading.Lock())), TypeError, "`make_env` cannot be sent to a process"),
        (lambda: here(partial(lambda env: env, Echo()), num_envs=2), ValueError, "`make_env` must make a new env"),
        (lambda: ChunkedActions(None, 2), TypeError, "`env` must be an `Env`, got None"),
        (lambda: ChunkedActions(Echo(), 0), ValueError, "`length` must be an integer of at least 1, got 0"),
        (lambda: ChunkedActions(Echo(), 2.0), TypeError, "`length` must be an integer, got 2.0"),
        (lambda: ChunkedActions(Echo(), 10**9), ValueError, "`length` must be an integer of at most 10000"),
        (lambda: ChunkedActions(Echo(), 3).step(np.zeros(2)), ValueError, r"`action` must be an array of shape \(6,\)"),
        (
            lambda: ScaledActions(Echo(), None),
            TypeError,
            "`scale` must have a method .*got None",
        ),
        (lambda: ScaledActions(Echo(), Scale(np.zeros(3), np.ones(3))), ValueError, r"`scale` must map .* \(2,\)"),
        (lambda: ScaledActions(Echo(), Scale), ValueError, r"`scale` must map an action of shape \(2,\)"),
        (
            lambda: ScaledActions(Echo(), Scale(np.array([-1, -3]), np.array([1, 2]))),
            ValueError,
            r"`scale` maps actions to \[-1. -3.\] to \[1. 2.\], but those of the environment are in \[-1. -2.\]",
        ),
        (lambda: keyed(None, (2,)), TypeError, "`actor` must be a function.*got None"),
        (lambda: keyed(still, 2), ValueError, r"`shape` must be a tuple of integers, such as \(2,\), got 2"),
        (lambda: keyed(still, (2.0,)), ValueError, "`shape` must be an integer of at least 1, got 2.0"),
        (lambda: keyed(still, (10**9,)), ValueError, "`shape` must have at most 10,000,000 elements"),
    ],
)
def test_bad_arguments_are_refused(call, kind, message):
    with pytest.raises(kind, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)
    assert evaluate(still, POOL, episodes=1).episode_length == Countdown().reset(seed=0)[0]  # the pool is still open


@pytest.mark.parametrize("space", [gymnasium.spaces.Discrete(3), gymnasium.spaces.MultiBinary(2), None])
def test_action_spaces_other_than_boxes_are_refused(space):
    make_env = lambda: Changed(action_space=space)
    for use in (here, lambda make: record(still, make()), lambda make: ChunkedActions(make(), 2)):
        with pytest.raises(ValueError, match=r"the action space of `env` must be a Box, got .*TransformAction"):
            use(make_env)
    with pytest.raises(ValueError, match="must have a flat Box"):
        ChunkedActions(Changed(action_space=gymnasium.spaces.Box(-1, 1, (2, 2))), 2)


def test_observation_spaces_without_arrays_are_refused():
    space = gymnasium.spaces.Dict({"words": gymnasium.spaces.Text(5)})
    with pytest.raises(ValueError, match=r"`observation_space\['words'\]` must be a Box.*TransformObservation"):
        here(lambda: Changed(observation_space=space))


def test_environments_of_a_pool_have_the_same_spaces():
    sizes = iter((2, 3))
    make_env = lambda: Changed(action_space=gymnasium.spaces.Box(-1, 1, (next(sizes),)))
    with pytest.raises(ValueError, match="`make_env` must make environments of one observation space"):
        here(make_env, num_envs=2)


@pytest.mark.parametrize(
    ("act", "kind", "message"),
    [
        (lambda obs, key: (jnp.zeros(2), None), TypeError, "`act` must return one array of real numbers.*got"),
        (lambda obs, key: None, TypeError, "`act` must return one array of real numbers, the action, got None"),
        (lambda obs, key: "left", TypeError, "`act` must return one array of real numbers, the action, got 'left'"),
        (lambda obs, key: jnp.zeros(2, complex), TypeError, "`act` must return one array of real numbers"),
        (lambda obs, key: jnp.zeros(2, bool), TypeError, "`act` must return one array of real numbers"),
        (
            lambda obs, key: jnp.zeros(3),
            ValueError,
            r"`act` must return an action of shape \(2,\).*got \(3,\).*`ChunkedActions`",
        ),
        (lambda obs, key: jnp.zeros((1, 2)), ValueError, r"`act` must return .* got \(1, 2\).*one unbatched obs"),
        (
            lambda obs, noise: noise,
            TypeError,
            r"`act` cannot be called with 1 positional argument and `key` \(.*`keyed\(actor, shape\)`",
        ),
        (lambda obs: jnp.zeros(2), TypeError, "`act` cannot be called with 1 positional argument and `key`"),
        (print, TypeError, "`act` cannot be called with 1 positional argument and `key`"),
        (int, TypeError, "`act` must be a function, got the class `int`"),
        (Countdown, TypeError, "`act` must be a function, got the class `Countdown`"),
        (
            partial(partial(rollout_k, None), k=1),
            TypeError,
            r"`act` cannot be called.*\(missing .* 'noise'\). If it is an actor, pass `keyed\(actor, shape\)`",
        ),
        (keyed(lambda obs: obs, (2,)), TypeError, r"`actor` cannot be called with 2 .* \(too many pos"),
        (keyed(print, (2,)), TypeError, "`act` must return one array of real numbers, the action, got None"),
        (lambda obs, key: obs + int(None), TypeError, r"^int\(\) argument must be"),
    ],
)
def test_what_acts_in_another_way_is_told(act, kind, message):
    for use in (lambda: evaluate(act, here(), episodes=1), lambda: record(act, Countdown())):
        with pytest.raises(kind, match=message):
            use()
