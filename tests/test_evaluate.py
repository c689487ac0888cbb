"""Evaluation counts every episode once, whatever its length and however many environments there are."""

from functools import partial

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from shortcutrl.evaluate import ChunkedActions, Evaluation, evaluate, vector_env


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


def sync(num_envs):
    return SyncVectorEnv([Countdown] * num_envs, autoreset_mode=AutoresetMode.DISABLED)


def lengths(seed, episodes):
    env = Countdown()
    return [int(env.reset(seed=seed + i)[0][0]) for i in range(episodes)]


@pytest.mark.parametrize("num_envs", [1, 2, 5, 16])
@pytest.mark.parametrize("episodes", [1, 7])
def test_every_episode_counts_once(num_envs, episodes):
    result = evaluate(Actor(jnp.array(1.0)), sync(num_envs), episodes=episodes, seed=11)
    expected = lengths(11, episodes)
    np.testing.assert_array_equal(result.episode_length, expected)
    np.testing.assert_array_equal(result.success, np.array(expected) <= 8)
    alone = evaluate(Actor(jnp.array(1.0)), sync(1), episodes=episodes, seed=11)
    np.testing.assert_allclose(result.episode_return, alone.episode_return, rtol=1e-6)


def test_short_episodes_are_not_favoured():
    """Counting the first episodes to end, of environments that go on by themselves, favours the short."""
    result = evaluate(Actor(jnp.array(0.0)), sync(16), episodes=16, seed=0)
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


def test_processes_agree_with_one_process():
    with vector_env(Countdown, 2) as envs:
        result = evaluate(Actor(jnp.array(1.0)), envs, episodes=5, seed=2)
    expected = evaluate(Actor(jnp.array(1.0)), sync(2), episodes=5, seed=2)
    jax.tree.map(np.testing.assert_array_equal, result, expected)


def test_new_parameters_do_not_compile_anew():
    traces = []

    def act(scale, obs, *, key):
        traces.append(1)
        return jnp.array([scale, scale], jnp.float32)

    for scale in (1.0, 2.0, 3.0):
        evaluate(eqx.Partial(act, jnp.array(scale)), sync(2), episodes=2)
    assert len(traces) == 1


def test_wilson_interval():
    result = Evaluation(np.array([True] * 9 + [False]), np.zeros(10), np.ones(10))
    assert result.success_rate == 0.9
    np.testing.assert_allclose(result.success_interval(), (0.5958, 0.9821), atol=1e-4)  # Wilson (1927)


def test_refusals():
    with pytest.raises(ValueError, match="`episodes` must be at least 1, got 0"):
        evaluate(Actor(jnp.array(1.0)), sync(1), episodes=0)
    with pytest.raises(ValueError, match=r"autoreset_mode=AutoresetMode\.DISABLED"):
        evaluate(Actor(jnp.array(1.0)), SyncVectorEnv([Countdown]), episodes=1)
    with pytest.raises(ValueError, match="`num_envs` must be at least 1, got 0"), vector_env(partial(Countdown), 0):
        pass
