"""Evaluation in many environments at once. Needs the extra `ogbench`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np

try:
    import gymnasium
    from scipy.stats import binomtest, bootstrap
    from tqdm import tqdm

    from shortcutrl._pool import EnvPool as EnvPool
    from shortcutrl._pool import reset
except ModuleNotFoundError as error:
    raise ImportError(f"shortcutrl.evaluate needs {error.name}: pip install 'shortcutrl[ogbench]'") from error


class Evaluation(NamedTuple):
    """What happened in each episode, in the order of their seeds: arrays of length `episodes`.

    - `success`: whether it succeeded.
    - `episode_return`: the sum of its rewards, not discounted.
    - `episode_length`: its decisions; in [`ChunkedActions`][shortcutrl.evaluate.ChunkedActions] each is several steps.
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

    def return_interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """The bootstrap's interval for the mean return; always the same for the same returns."""
        if np.ptp(self.episode_return) == 0:
            return float(self.episode_return[0]), float(self.episode_return[0])
        rng = np.random.default_rng(0)
        result = bootstrap((self.episode_return,), np.mean, confidence_level=confidence, method="percentile", rng=rng)
        low, high = result.confidence_interval
        return float(low), float(high)


class ChunkedActions(gymnasium.Wrapper):
    """Carry out `length` actions for each decision: for policies trained on [`data.chunk`][shortcutrl.data.chunk].

    One step takes the actions one after the other, until the episode ends; its reward is their sum.

    !!! Example

        ```python
        import gymnasium
        from shortcutrl.evaluate import ChunkedActions

        env = ChunkedActions(gymnasium.make("Pendulum-v1"), length=4)
        assert env.action_space.shape == (4,)
        ```
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
        if action.shape != self.action_space.shape:
            raise ValueError(f"`action` must have shape {self.action_space.shape}, got {action.shape}.")
        first, *rest = np.split(action, self.length)
        obs, reward, terminated, truncated, info = self.env.step(first)
        total = float(reward)
        for each in rest:
            if terminated or truncated:
                break
            obs, reward, terminated, truncated, info = self.env.step(each)
            total += float(reward)
        return obs, total, terminated, truncated, info


def evaluate(
    act: Callable[..., Any], pool: EnvPool, *, episodes: int, seed: int = 0, progress: bool = False
) -> Evaluation:
    """Run `episodes` episodes and count them all.

    A free environment takes the next episode, and each that was started is counted when it ends, however long it takes:
    short episodes are not favoured. Episode i starts from the seed `seed + i` and draws its actions' randomness from
    that seed too, so neither depends on the number of environments.

    **Arguments:**

    - `act`: `act(obs, key=key) -> action` for one observation; batched and jitted here. Make it a pytree (an
      equinox Module or `eqx.Partial`) so that new parameters do not compile anew.
    - `pool`: the environments, an [`EnvPool`][shortcutrl.evaluate.EnvPool].
    - `episodes`: at least 1.
    - `seed`: of the first episode, not negative.
    - `progress`: whether to show a progress bar.

    **Returns:** an [`Evaluation`][shortcutrl.evaluate.Evaluation]; an episode succeeds if its last step's `info` says
    so under `"success"`; in an environment that never does, none succeeds.

    **Raises:** `ValueError` for no episodes or a negative seed, and what an environment or `act` raises; the pool is
    closed then.

    !!! Example

        ```python
        import equinox as eqx, gymnasium, jax
        from shortcutrl import nn, rollout_k
        from shortcutrl.evaluate import EnvPool, evaluate


        def act(policy, obs, key):
            return rollout_k(policy, obs, jax.random.normal(key, (1,)), k=1, clip=(-2.0, 2.0))


        policy = nn.ShortcutPolicy(3, 1, width=8, depth=1, key=jax.random.key(0))
        with EnvPool(lambda: gymnasium.make("Pendulum-v1"), processes=0) as pool:
            result = evaluate(eqx.Partial(act, policy), pool, episodes=2)
        assert result.episode_length.tolist() == [200, 200]
        ```
    """
    if not isinstance(pool, EnvPool):
        raise TypeError(f"`pool` must be an `EnvPool`, which holds environments in processes, got {pool}.")
    if episodes < 1:
        raise ValueError(f"`episodes` must be at least 1, got {episodes}.")
    if seed < 0:
        raise ValueError(f"`seed` must not be negative, got {seed}.")
    success, returns, lengths = np.zeros(episodes, bool), np.zeros(episodes), np.zeros(episodes, int)
    # Which episode each environment plays, -1 for none; across the groups, so that few episodes use every process.
    episode = np.arange(pool.groups * pool.group_size).reshape(pool.group_size, pool.groups).T.copy()
    upcoming = iter(range(episode.size, episodes))
    episode[episode >= episodes] = -1
    seeds = np.where(episode >= 0, seed + episode, -1)
    at_work = [group for group in range(pool.groups) if (episode[group] >= 0).any()]
    try:
        for group in at_work:
            pool.send(group, None, seeds[group])
        with tqdm(total=episodes, unit="episode", disable=not progress) as bar:
            while at_work:
                for group, reply in pool.receive():
                    playing = episode[group]
                    current = playing[reply.stepped]
                    returns[current] += reply.reward[reply.stepped]
                    lengths[current] += 1
                    success[playing[reply.ended]] = reply.success[reply.ended]
                    bar.update(int(reply.ended.sum()))
                    playing[reply.ended] = [next(upcoming, -1) for _ in range(reply.ended.sum())]
                    if (playing < 0).all():
                        at_work.remove(group)
                        continue
                    restart = np.where(reply.ended & (playing >= 0), seed + playing, -1)
                    action = _act(act, seed + playing, lengths[playing], reply.obs)
                    pool.send(group, np.asarray(action), restart)
    except BaseException:
        pool.close()  # answers to what was asked may still be on their way
        raise
    return Evaluation(success, returns, lengths)


def record(act: Callable[..., Any], env: gymnasium.Env, *, seed: int = 0, every: int = 1) -> tuple[np.ndarray, bool]:
    """Play one episode and keep pictures of it.

    **Arguments:**

    - `act`: as in [`evaluate`][shortcutrl.evaluate.evaluate].
    - `env`: an environment whose `render()` returns a picture.
    - `seed`: of the start and of the actions' randomness, which are those of `evaluate`'s episode of that seed.
    - `every`: how many steps from picture to picture, for drawing takes longer than the steps; the end has one too.

    **Returns:** the pictures, shape `(pictures, height, width, 3)`, 8 bit; and whether the episode succeeded.

    !!! Example

        ```python
        import gymnasium, jax.numpy as jnp, numpy as np
        from shortcutrl.evaluate import record


        class Drawn(gymnasium.Wrapper):
            def render(self):
                return np.full((4, 4, 3), 255, np.uint8)


        env = Drawn(gymnasium.make("Pendulum-v1"))
        pictures, success = record(lambda obs, key: jnp.zeros(1), env, every=50)
        assert pictures.shape == (5, 4, 4, 3) and not success
        ```
    """
    obs, info = reset(env, seed)
    pictures, ended, steps = [env.render()], False, 0
    while not ended:
        batch = jax.tree.map(lambda x: np.asarray(x)[None], obs)
        action = _act(act, np.asarray([seed]), np.asarray([steps]), batch)[0]
        obs, _, terminated, truncated, info = env.step(np.asarray(action))
        ended, steps = terminated or truncated, steps + 1
        if ended or steps % every == 0:
            pictures.append(env.render())
    return np.stack(pictures), bool(info.get("success", False))  # pyright: ignore[reportArgumentType, reportCallIssue]


@eqx.filter_jit
def _act(act, seed, step, obs):
    def one(seed, step, obs):
        action = act(obs, key=jax.random.fold_in(jax.random.key(seed), step))
        if not isinstance(action, jax.Array | np.ndarray):
            raise TypeError(f"`act` must return one array, the action, got {type(action).__name__}.")
        return action

    return jax.vmap(one)(seed, step, obs)
