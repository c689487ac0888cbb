"""Evaluation in many environments at once. Needs the extra `ogbench`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import equinox as eqx
import gymnasium
import jax
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from scipy.stats import binomtest
from tqdm import tqdm


class Evaluation(NamedTuple):
    """What happened in each episode, in the order of their seeds: arrays of length `episodes`.

    `episode_length` counts decisions; in [`ChunkedActions`][shortcutrl.evaluate.ChunkedActions] each is several steps.
    """

    success: np.ndarray
    episode_return: np.ndarray
    episode_length: np.ndarray

    @property
    def success_rate(self) -> float:
        """The share of episodes that succeeded, in [0, 1]."""
        return float(self.success.mean())

    def success_interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Wilson's interval for the success rate."""
        test = binomtest(int(self.success.sum()), len(self.success))
        low, high = test.proportion_ci(confidence, method="wilson")
        return float(low), float(high)


class ChunkedActions(gymnasium.Wrapper):
    """Carry out `length` actions for each decision: for policies trained on [`data.chunk`][shortcutrl.data.chunk].

    One step takes the actions one after the other, until the episode ends; its reward is their sum.
    """

    def __init__(self, env: gymnasium.Env, length: int):
        super().__init__(env)
        if length < 1:
            raise ValueError(f"`length` must be at least 1, got {length}.")
        space = env.action_space
        if not (isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 1):
            raise ValueError(f"`env` must have a flat Box as its action space, got {space}.")
        self.length = length
        low, high = np.tile(space.low, length), np.tile(space.high, length)
        self.action_space = gymnasium.spaces.Box(low, high, dtype=space.dtype.type)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        first, *rest = np.split(action, self.length)
        obs, reward, terminated, truncated, info = self.env.step(first)
        total = float(reward)
        for each in rest:
            if terminated or truncated:
                break
            obs, reward, terminated, truncated, info = self.env.step(each)
            total += float(reward)
        return obs, total, terminated, truncated, info


@contextmanager
def vector_env(make_env: Callable[[], gymnasium.Env], num_envs: int) -> Iterator[AsyncVectorEnv]:
    """Open `num_envs` environments, each in a process of its own, for [`evaluate`][shortcutrl.evaluate.evaluate].

    The processes are spawned, so a script that calls this needs the `if __name__ == "__main__":` guard.
    """
    if num_envs < 1:
        raise ValueError(f"`num_envs` must be at least 1, got {num_envs}.")
    envs = AsyncVectorEnv([make_env] * num_envs, context="spawn", autoreset_mode=AutoresetMode.DISABLED)
    try:
        yield envs
    finally:
        envs.close()


def evaluate(
    act: Callable[..., Any],
    envs: AsyncVectorEnv | SyncVectorEnv,
    *,
    episodes: int,
    seed: int = 0,
    progress: bool = False,
) -> Evaluation:
    """Run `episodes` episodes and count them all.

    A free environment takes the next episode, and each that was started is counted when it ends, however long it takes:
    short episodes are not favoured. Episode i starts from the seed `seed + i` and draws its actions' randomness from
    that seed too, so neither depends on the number of environments.

    **Arguments:**

    - `act`: `act(obs, key=key) -> action` for one observation; batched and jitted here. Make it a pytree (an
      equinox Module or `eqx.Partial`) so that new parameters do not compile anew.
    - `envs`: a gymnasium vector environment whose `autoreset_mode` is disabled, as
      [`vector_env`][shortcutrl.evaluate.vector_env] makes them.
    - `episodes`: at least 1.
    - `seed`: of the first episode.
    - `progress`: whether to show a progress bar.

    **Returns:** an [`Evaluation`][shortcutrl.evaluate.Evaluation]; an episode succeeds if its last step's `info` says
    so under `"success"`; in an environment that never does, none succeeds.
    """
    if episodes < 1:
        raise ValueError(f"`episodes` must be at least 1, got {episodes}.")
    if envs.metadata.get("autoreset_mode") != AutoresetMode.DISABLED:
        raise ValueError("`envs` resets by itself; make it with `autoreset_mode=AutoresetMode.DISABLED`.")
    success, returns, lengths = np.zeros(episodes, bool), np.zeros(episodes), np.zeros(episodes, int)
    episode = np.arange(envs.num_envs)  # which episode each environment plays; `episodes` or more: none, it idles
    started = envs.num_envs
    obs, _ = envs.reset(seed=[seed + int(i) for i in episode])
    with tqdm(total=episodes, unit="episode", disable=not progress) as bar:
        while (playing := episode < episodes).any():
            current = episode[playing]
            keys = _keys(seed, episode, np.where(playing, lengths[np.minimum(episode, episodes - 1)], 0))
            obs, reward, terminated, truncated, info = envs.step(np.asarray(_act(act, obs, keys)))
            returns[current] += reward[playing]
            lengths[current] += 1
            ended = terminated | truncated
            if ended.any():
                finished = ended & playing
                success[episode[finished]] = np.asarray(info.get("success", np.zeros(envs.num_envs)))[finished]
                bar.update(int(finished.sum()))
                episode[ended] = started + np.arange(ended.sum())
                started += int(ended.sum())
                seeds: list[int | None] = [seed + int(i) for i in episode]
                obs, _ = envs.reset(seed=seeds, options={"reset_mask": ended})
    return Evaluation(success, returns, lengths)


@jax.jit
def _keys(seed, episode, step):
    fold = jax.random.fold_in
    return jax.vmap(lambda e, s: fold(fold(jax.random.key(seed), e), s))(episode, step)


@eqx.filter_jit
def _act(act, obs, keys):
    return jax.vmap(lambda obs, key: act(obs, key=key))(obs, keys)
