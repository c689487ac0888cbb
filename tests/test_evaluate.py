"""Evaluation counts every episode once, whatever its length and however many environments there are."""

import os

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shortcutrl.evaluate import ChunkedActions, EnvPool, Evaluation, evaluate, record


class Countdown(gymnasium.Env):
    """Lasts 2 to 30 steps, as the seed says; succeeds if it lasts at most 8; pays the action's first component."""

    observation_space = gymnasium.spaces.Box(0, 100, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-10, 10, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = self.length = int(self.np_random.integers(2, 31))
        return np.float32([self.left]), {}

    def step(self, action):
        self.left -= 1
        ended = self.left <= 0
        success = {"success": self.length <= 8} if ended else {}
        return np.float32([self.left]), float(action[0]), ended, False, success


class Actor(eqx.Module):
    scale: jax.Array

    def __call__(self, obs, *, key):
        return jnp.array([self.scale * obs[0] + jax.random.uniform(key), 0.0], jnp.float32)


def here(num_envs):
    """All in this process."""
    return EnvPool(Countdown, processes=0, envs_per_process=num_envs)


def lengths(seed, episodes):
    env = Countdown()
    return [int(env.reset(seed=seed + i)[0][0]) for i in range(episodes)]


@pytest.mark.parametrize("num_envs", [1, 2, 5, 16])
@pytest.mark.parametrize("episodes", [1, 7])
def test_every_episode_counts_once(num_envs, episodes):
    result = evaluate(Actor(jnp.array(1.0)), here(num_envs), episodes=episodes, seed=11)
    expected = lengths(11, episodes)
    np.testing.assert_array_equal(result.episode_length, expected)
    np.testing.assert_array_equal(result.success, np.array(expected) <= 8)
    alone = evaluate(Actor(jnp.array(1.0)), here(1), episodes=episodes, seed=11)
    np.testing.assert_allclose(result.episode_return, alone.episode_return, rtol=1e-6)


def test_short_episodes_are_not_favoured():
    """Counting the first episodes to end, of environments that go on by themselves, favours the short."""
    result = evaluate(Actor(jnp.array(0.0)), here(16), episodes=16, seed=0)
    played = [lengths(16 * env, 16) for env in range(16)]
    first_to_end = sorted(end for row in played for end in zip(np.cumsum(row), row, strict=True))[:16]
    assert np.mean([length <= 8 for _, length in first_to_end]) > 0.4
    assert result.success_rate == np.mean(np.array(lengths(0, 16)) <= 8) < 0.25


class Echo(gymnasium.Env):
    """Lasts 5 steps; observes and pays the action's sum."""

    observation_space = gymnasium.spaces.Box(-100, 100, (1,), np.float32)
    action_space = gymnasium.spaces.Box(np.float32([-1, -2]), np.float32([1, 2]))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.float32([action.sum()]), float(action.sum()), self.steps == 5, False, {"steps": self.steps}


def test_chunked_actions_are_carried_out_in_order_until_the_end():
    env = ChunkedActions(Echo(), 3)
    np.testing.assert_array_equal(env.action_space.high, [1, 2, 1, 2, 1, 2])
    env.reset(seed=0)
    obs, reward, terminated, _, info = env.step(np.float32([1, 0, 1, 1, 0, 1]))
    assert (obs[0], reward, terminated, info["steps"]) == (1, 4, False, 3)
    obs, reward, terminated, _, info = env.step(np.float32([1, 0, 1, 1, 9, 9]))
    assert (obs[0], reward, terminated, info["steps"]) == (2, 3, True, 5)


def test_only_flat_boxes_are_chunked():
    env = Echo()
    env.action_space = gymnasium.spaces.Discrete(3)
    with pytest.raises(ValueError, match=r"`env` must have a flat Box .* got Discrete\(3\)"):
        ChunkedActions(env, 2)


@pytest.mark.parametrize(("processes", "envs_per_process"), [(1, 1), (2, 3), (3, 1)])
def test_processes_agree_with_one_process(processes, envs_per_process):
    with EnvPool(Countdown, processes=processes, envs_per_process=envs_per_process) as pool:
        for episodes in (5, 2, 11):  # a pool can be used again
            result = evaluate(Actor(jnp.array(1.0)), pool, episodes=episodes, seed=2)
            expected = evaluate(Actor(jnp.array(1.0)), here(2), episodes=episodes, seed=2)
            jax.tree.map(np.testing.assert_allclose, result, expected)


class Counting(Countdown):
    """Refuses to step after its end, as an environment may."""

    def step(self, action):
        assert self.left > 0, "stepped after its end"
        return super().step(action)


def test_an_environment_rests_after_its_last_episode():
    pool = EnvPool(Counting, processes=0, envs_per_process=4)
    result = evaluate(Actor(jnp.array(1.0)), pool, episodes=5)
    assert result.episode_length.tolist() == lengths(0, 5)


class Pictured(Countdown):
    """Its picture is its observation."""

    def render(self):
        return np.full((2, 3, 3), self.left, np.uint8)


def test_record_plays_the_episode_that_evaluate_plays():
    rewards = []

    class Watched(Pictured):
        def step(self, action):
            rewards.append(float(action[0]))
            return super().step(action)

    result = evaluate(Actor(jnp.array(1.0)), here(3), episodes=4, seed=5)
    pictures, success = record(Actor(jnp.array(1.0)), Watched(), seed=5 + 2)
    assert pictures.shape == (result.episode_length[2] + 1, 2, 3, 3)
    assert pictures[:, 0, 0, 0].tolist() == list(range(result.episode_length[2], -1, -1))
    assert success == result.success[2]
    np.testing.assert_allclose(sum(rewards), result.episode_return[2], rtol=1e-6)
    fewer, _ = record(Actor(jnp.array(1.0)), Watched(), seed=5 + 2, every=4)
    length = int(result.episode_length[2])
    assert fewer[:, 0, 0, 0].tolist() == [length - step for step in range(length) if step % 4 == 0] + [0]


class Faulty(Countdown):
    def step(self, action):
        raise ZeroDivisionError("of the environment")


def test_what_an_environment_raises_is_told():
    pool = EnvPool(Faulty, processes=1)
    with pool, pytest.raises(RuntimeError, match="ZeroDivisionError: of the environment"):
        evaluate(Actor(jnp.array(1.0)), pool, episodes=1)


def test_a_pool_is_closed_when_an_evaluation_is_cut_short():
    def act(obs, *, key):
        raise KeyboardInterrupt

    for processes in (0, 1):
        pool = EnvPool(Countdown, processes=processes)
        with pytest.raises(KeyboardInterrupt):
            evaluate(act, pool, episodes=3)
        with pytest.raises(RuntimeError, match="the pool is closed"):
            evaluate(Actor(jnp.array(1.0)), pool, episodes=3)


class Global(Countdown):
    """Draws from generators that `reset` does not seed, as OGBench's mazes do."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = self.length = 2 + int(np.random.randint(29)) + int(self.action_space.sample()[0] > 0)  # noqa: NPY002
        return np.float32([self.left]), {}


def test_an_episode_depends_on_its_seed_only():
    played = [
        evaluate(Actor(jnp.array(1.0)), EnvPool(Global, processes=0, envs_per_process=m), episodes=6, seed=seed)
        for m, seed in ((1, 0), (4, 0), (2, 3))
    ]
    assert played[0].episode_length.tolist() == played[1].episode_length.tolist()
    assert played[2].episode_length[:3].tolist() == played[0].episode_length[3:].tolist()
    assert len(set(played[0].episode_length)) > 1


class Dying(Countdown):
    def step(self, action):
        os._exit(1)


def test_a_dead_process_is_told():
    pool = EnvPool(Dying, processes=2)
    with pool, pytest.raises(RuntimeError, match="an environment's process died"):
        evaluate(Actor(jnp.array(1.0)), pool, episodes=20)


class Nested(Countdown):
    """Observes a dictionary."""

    observation_space = gymnasium.spaces.Dict({"left": Countdown.observation_space})

    def reset(self, **options):
        obs, info = super().reset(**options)
        return {"left": obs}, info

    def step(self, action):
        obs, *rest = super().step(action)
        return {"left": obs}, *rest


def test_observations_may_be_dictionaries():
    def act(actor, obs, *, key):
        return actor(obs["left"], key=key)

    pool = EnvPool(Nested, processes=0, envs_per_process=3)
    result = evaluate(eqx.Partial(act, Actor(jnp.array(1.0))), pool, episodes=5)
    expected = evaluate(Actor(jnp.array(1.0)), here(3), episodes=5)
    jax.tree.map(np.testing.assert_array_equal, result, expected)


def test_new_parameters_do_not_compile_anew():
    traces = []

    def act(scale, obs, *, key):
        traces.append(1)
        return jnp.array([scale, scale], jnp.float32)

    for scale in (1.0, 2.0, 3.0):
        evaluate(eqx.Partial(act, jnp.array(scale)), here(2), episodes=2)
    assert len(traces) == 1


def test_wilson_interval():
    result = Evaluation(np.array([True] * 9 + [False]), np.zeros(10), np.ones(10))
    assert result.success_rate == 0.9
    np.testing.assert_allclose(result.success_interval(), (0.5958, 0.9821), atol=1e-4)  # Wilson (1927)


def test_bootstrap_interval():
    returns = np.random.default_rng(1).normal(size=400)
    result = Evaluation(returns > 0, returns, np.ones(400))
    normal = returns.mean() + np.array([-1.96, 1.96]) * returns.std() / 20
    np.testing.assert_allclose(result.return_interval(), normal, atol=0.02)
    same = Evaluation(np.ones(3, bool), np.full(3, 2.0), np.ones(3))
    assert same.return_interval() == (2.0, 2.0)


def test_an_action_may_be_a_constant_of_numpy():
    result = evaluate(lambda obs, key: np.ones(2, np.float32), here(2), episodes=2)
    assert (result.episode_return == result.episode_length).all()


def test_refusals():
    with pytest.raises(ValueError, match="`episodes` must be at least 1, got 0"):
        evaluate(Actor(jnp.array(1.0)), here(1), episodes=0)
    with pytest.raises(ValueError, match="`seed` must not be negative, got -1"):
        evaluate(Actor(jnp.array(1.0)), here(1), episodes=1, seed=-1)
    with pytest.raises(TypeError, match="`pool` must be an `EnvPool`"):
        evaluate(Actor(jnp.array(1.0)), Countdown, episodes=1)
    with pytest.raises(TypeError, match="`make_env` must be a function that makes an environment"):
        EnvPool(Countdown(), processes=0)
    with pytest.raises(TypeError, match="`act` must return one array, the action, got tuple"):
        evaluate(lambda obs, key: (jnp.zeros(2), None), here(1), episodes=1)
    with pytest.raises(ValueError, match=r"`act` must return an action of shape \(2,\).*got \(3,\)"):
        evaluate(lambda obs, key: jnp.zeros(3), here(1), episodes=1)
    with pytest.raises(ValueError, match=r"`action` must have shape \(6,\), got \(2,\)"):
        ChunkedActions(Countdown(), 3).step(np.zeros(2))
    with pytest.raises(ValueError, match="`processes` must not be negative, got -1"):
        EnvPool(Countdown, processes=-1)
    with pytest.raises(ValueError, match="`envs_per_process` must be at least 1, got 0"):
        EnvPool(Countdown, envs_per_process=0)
