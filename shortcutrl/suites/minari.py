"""Minari: from the name of a dataset on this machine to a [`Task`][shortcutrl.suites.Task]. Needs `shortcutrl[minari]`.

Download a dataset by `minari download NAME`, and list those that exist by `minari list remote`.
"""

import os
import warnings
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from shortcutrl._typed import typed
from shortcutrl.data import ActionScale, from_arrays
from shortcutrl.suites._task import Task

try:
    import gymnasium
    import minari

    from shortcutrl.evaluate import ScaledActions
except ModuleNotFoundError as _error:
    raise ImportError(f"shortcutrl.suites.minari needs {_error.name}: pip install 'shortcutrl[minari]'") from _error


@typed
def load(name: str, *, rescale: bool = True) -> Task:
    """Load a Minari dataset that has been downloaded or created on this machine.

    Each observation is stored once, the last one of each episode included, so that a truncated episode bootstraps from
    it. Dictionaries and tuples of observations keep their structure.

    **Arguments:**

    - `name`: such as `"mujoco/halfcheetah/medium-v0"`.
    - `rescale`: whether to map actions from the bounds of the action space to [-1, 1], where policies usually act. The
      environment of the task then takes actions in [-1, 1], too. If false, actions stay as they are.

    **Returns:** the [`Task`][shortcutrl.suites.Task]. Its `make_env` is [`make_env`][shortcutrl.suites.minari.make_env]
    of this name, in [`ScaledActions`][shortcutrl.evaluate.ScaledActions] if the dataset's actions were rescaled.

    **Raises:** `ValueError` for a `name` that is not on this machine, for an action space that is no vector of floats,
    and for files or values that are not those of a dataset. `ImportError` if a package is missing.

    !!! Example

        ```python
        from shortcutrl.suites import minari

        try:
            task = minari.load("mujoco/halfcheetah/medium-v0")
        except ValueError as error:
            print(error)  # how to download it
        ```
    """
    stored = _open(name)
    space = stored.action_space
    if not isinstance(space, gymnasium.spaces.Box) or space.dtype.kind != "f" or len(space.shape) != 1:
        raise ValueError(f"`name` = {name!r} has the action space {space}. It must be a 1-D `Box` of floats.")
    if rescale and not space.is_bounded():
        raise ValueError(f"`rescale` needs bounds, but {name!r} has the action space {space}. Pass `rescale=False`.")
    try:
        episodes = [_rows(stored, episode) for episode in stored.iterate_episodes() if len(episode.rewards)]
        columns = jax.tree.map(lambda *parts: np.concatenate(parts), *episodes)
        with warnings.catch_warnings():  # the range is the environment's, not a mistake of the user
            warnings.filterwarnings("ignore", "`actions` use at most")
            dataset = from_arrays(**columns, action_range=(space.low, space.high), rescale=rescale)
    except ImportError as error:
        raise ImportError(f"{error}. For {name!r}: pip install 'shortcutrl[minari]'") from error
    except Exception as error:
        raise _malformed(name, error) from error
    # A terminal state is stored too, as the last row of its episode.
    dataset = dataset._replace(episode_end=jnp.asarray(columns["truncations"]))
    changes = rescale and not (np.all(space.low == -1) and np.all(space.high == 1))
    scale = ActionScale(space.low, space.high) if changes else None
    make = partial(make_env, name) if scale is None else partial(_make_scaled, name, scale)
    return Task(dataset, make, _folder() / name, scale)


def _make_scaled(name: str, scale: ActionScale, **options: Any) -> gymnasium.Env:
    return ScaledActions(make_env(name, **options), scale)


@typed
def make_env(name: str, **options: Any) -> gymnasium.Env:
    """Make the environment that a Minari dataset is to be evaluated in, or else the one that it was collected in.

    **Arguments:**

    - `name`: as in [`load`][shortcutrl.suites.minari.load].
    - `options`: passed to `gymnasium.make`, such as `render_mode`.

    **Returns:** the environment.

    **Raises:** `ValueError` for a `name` that is not on this machine, or without an environment; `ImportError` if the
    environment's package is missing.

    !!! Example

        ```python
        from shortcutrl.suites import minari

        try:
            env = minari.make_env("mujoco/halfcheetah/medium-v0", render_mode="rgb_array")
        except ValueError as error:
            print(error)  # how to download it
        ```
    """
    stored = _open(name)
    if stored.env_spec is None:
        raise ValueError(f"`name` = {name!r} does not say what its environment is. Make it by `gymnasium.make`.")
    try:
        return stored.recover_environment(eval_env=True, **options)
    except (gymnasium.error.UnregisteredEnv, gymnasium.error.DependencyNotInstalled, ModuleNotFoundError) as error:
        needs = stored.storage.metadata.get("requirements") or "the package that defines it"
        raise ImportError(f"the environment of {name!r} cannot be made. Install {needs}: {error}") from error


def _open(name: str) -> minari.MinariDataset:
    folder = _folder()
    local = sorted(path.parent.relative_to(folder).as_posix() for path in folder.glob("**/data") if path.is_dir())
    if name not in local:
        close = get_close_matches(name, local, n=3)
        hint = f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
        raise ValueError(
            f"`name` must be a Minari dataset in {folder}, got {name!r}. {hint}Download it by `minari download NAME`; "
            "`minari list remote` shows the names."
        )
    try:
        return minari.load_dataset(name)
    except ImportError as error:
        raise ImportError(f"{error}. For {name!r}: pip install 'shortcutrl[minari]'") from error
    except Exception as error:
        raise _malformed(name, error) from error


def _folder() -> Path:
    """Where Minari keeps its datasets. Minari's own function would create the folder."""
    return Path(os.environ.get("MINARI_DATASETS_PATH", "~/.minari/datasets")).expanduser()


def _malformed(name: str, error: Exception) -> ValueError:
    return ValueError(
        f"{_folder() / name} cannot be read as a dataset ({type(error).__name__}: {error}). Download it again by "
        f"`minari download {name} --force`, or pass its arrays to `data.from_arrays`."
    )


def _rows(stored: minari.MinariDataset, episode: minari.EpisodeData) -> dict[str, Any]:
    """The columns of an episode, with a last row for the observation after its last step."""
    steps = len(episode.rewards)
    for path, leaf in jax.tree.leaves_with_path(episode.observations):
        if np.shape(leaf)[:1] != (steps + 1,):
            where = jax.tree_util.keystr(path)
            raise ValueError(f"episode {episode.id} has {steps} rewards but {np.shape(leaf)} `observations{where}`")
    return {
        "observations": episode.observations,
        "actions": np.concatenate([episode.actions, episode.actions[-1:]]),
        "rewards": np.append(episode.rewards, 0.0),
        "terminations": np.append(episode.terminations, False),
        "truncations": np.arange(steps + 1) == steps,
    }
