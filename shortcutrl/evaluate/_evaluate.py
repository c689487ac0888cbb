"""Evaluation: every episode counts once, whatever its length."""

import warnings
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from shortcutrl._checks import as_size
from shortcutrl._typed import typed
from shortcutrl._types import Integer
from shortcutrl.evaluate._pool import EnvPool
from shortcutrl.evaluate._statistics import Evaluation

MAX_EPISODES = 1_000_000
MAX_SEED = 2**32 - 1


@typed
def evaluate(
    act: Callable[..., Any],
    pool: EnvPool,
    *,
    episodes: Integer,
    seed: Integer = 0,
    success_key: str | None = "success",
    progress: bool = False,
) -> Evaluation:
    """Run `episodes` episodes and count them all.

    A free environment takes the next episode. Every episode that starts is counted when it ends, so short episodes are
    not favoured. Episode i starts from the seed `seed + i` and draws the randomness of its actions from that seed. The
    result depends on the number of environments only by rounding, because a batch of another size may round
    differently.

    **Arguments:**

    - `act`: `act(obs, *, key) -> action` for one observation, such as [`keyed`][shortcutrl.evaluate.keyed] returns. It
      is batched and compiled here. If it is a pytree that holds the weights (an Equinox module, `eqx.Partial` or
      `functools.partial`), new weights do not compile again on the same pool. Values that it closes over are constants
      of the program, so new ones compile again. Actions are cast to the dtype of the action space; a warning says so if
      one lies outside that space.
    - `pool`: the environments, an [`EnvPool`][shortcutrl.evaluate.EnvPool].
    - `episodes`: the number of episodes, in [1, 1,000,000].
    - `seed`: the seed of the first episode. `seed + episodes` is at most 2**32.
    - `success_key`: an episode succeeds if the `info` of its last step has a true value under this name. A warning says
      so if no episode has one. `None`: the environments do not define success, and `success` is all false.
    - `progress`: whether to show a progress bar.

    **Returns:** an [`Evaluation`][shortcutrl.evaluate.Evaluation].

    **Raises:** `ValueError` or `TypeError` for bad arguments. These close the pool: a `ValueError` or `TypeError` for
    an action, observation or reward that is not finite or has the wrong form, with its episode's seed and step;
    `ValueError` for an observation of 64 bits that `act` gets, with values beyond the range of 32 bits;
    `RuntimeError` with the traceback of what an environment raises; what `act` raises.

    !!! Example

        ```python
        import functools, gymnasium, jax
        from shortcutrl import nn, rollout_k
        from shortcutrl.evaluate import EnvPool, evaluate, keyed

        policy = nn.ShortcutPolicy(3, 1, width=8, depth=1, key=jax.random.key(0))
        actor = functools.partial(rollout_k, policy, k=1, clip=(-2.0, 2.0))
        with EnvPool(lambda: gymnasium.make("Pendulum-v1"), processes=0) as pool:
            result = evaluate(keyed(actor, pool.action_shape), pool, episodes=2, success_key=None)
        assert result.episode_length.tolist() == [200, 200]
        ```
    """
    episodes, seed = as_size("episodes", episodes), as_size("seed", seed, 0, MAX_SEED)
    if episodes > (most := min(MAX_EPISODES, 1 + MAX_SEED - seed)):
        raise ValueError(f"`episodes` must be at most {most:,} with `seed` = {seed}, got {episodes}.")
    success, returns, lengths = np.zeros(episodes, bool), np.zeros(episodes), np.zeros(episodes, int)
    # Which episode each environment plays, -1 for none; across the groups, so that few episodes use every process.
    episode = np.arange(pool.groups * pool.group_size).reshape(pool.group_size, pool.groups).T.copy()
    upcoming = iter(range(episode.size, episodes))
    episode[episode >= episodes] = -1
    seeds = np.where(episode >= 0, seed + episode, -1)
    at_work = [group for group in range(pool.groups) if (episode[group] >= 0).any()]
    info_keys: set[str] = set()
    outside: list[np.ndarray] = []
    with pool._session(), tqdm(total=episodes, unit="episode", disable=not progress) as bar:
        decide = pool._compiler(act)
        for group in at_work:
            pool._send(group, None, seeds[group], success_key)
        while at_work:
            for group, reply in pool._receive():
                playing = episode[group]
                current = playing[reply.stepped]
                returns[current] += reply.reward[reply.stepped]
                lengths[current] += 1
                success[playing[reply.ended]] = reply.success[reply.ended]
                info_keys |= reply.info_keys
                bar.update(int(reply.ended.sum()))
                playing[reply.ended] = [next(upcoming, -1) for _ in range(reply.ended.sum())]
                if (playing < 0).all():
                    at_work.remove(group)
                    continue
                restart = np.where(reply.ended & (playing >= 0), seed + playing, -1)
                actions = decide(np.maximum(seed + playing, 0), lengths[playing], reply.obs)
                outside = outside or _outside(pool, actions[(playing >= 0) & (restart < 0)])
                pool._send(group, actions, restart, success_key)
    if outside:
        low, high = pool._action_space.low, pool._action_space.high
        warnings.warn(
            f"`act` returned actions outside the action space, such as {outside[0]} in {low} to {high}. Clip them in "
            "the actor. If the policy was trained on rescaled actions, wrap the environment in `ScaledActions`.",
            stacklevel=5,  # the caller of the function that `typed` wraps
        )
    warn_of_missing(success_key, info_keys)
    return Evaluation(success, returns, lengths)


def _outside(pool: EnvPool, actions: np.ndarray) -> list[np.ndarray]:
    """The actions outside the action space."""
    low, high = pool._action_space.low, pool._action_space.high
    if jnp.issubdtype(actions.dtype, jnp.floating):  # which may have rounded a bound
        low, high = low.astype(actions.dtype), high.astype(actions.dtype)
    with np.errstate(invalid="ignore"):  # NaN is refused later
        bad = (actions < low) | (actions > high)
    return list(actions[bad.any(axis=tuple(range(1, bad.ndim)))])


def warn_of_missing(success_key: str | None, info_keys: set[str]) -> None:
    if success_key is not None and success_key not in info_keys:
        keys = f"one of {sorted(info_keys)}" if info_keys else "the name that your environment uses"
        warnings.warn(
            f"no environment reported {success_key!r} in `info` at the end of an episode, so `success` is all false. "
            f"Set `success_key` to {keys}, or to None.",
            stacklevel=6,  # the caller of the function that `typed` wraps
        )
