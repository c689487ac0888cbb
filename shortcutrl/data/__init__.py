"""Datasets: transitions on the device and, with the extra `ogbench`, OGBench's by name."""

from typing import TYPE_CHECKING

from shortcutrl.data._transitions import chunk as chunk
from shortcutrl.data._transitions import n_step as n_step
from shortcutrl.data._transitions import sample as sample
from shortcutrl.data._transitions import transitions as transitions

if TYPE_CHECKING:
    from shortcutrl.data._generate import CAN_GENERATE as CAN_GENERATE
    from shortcutrl.data._generate import generate as generate
    from shortcutrl.data._ogbench import Task as Task
    from shortcutrl.data._ogbench import load_ogbench as load_ogbench
    from shortcutrl.data._ogbench import make_env as make_env

_NEEDS_OGBENCH = {"CAN_GENERATE": "_generate", "generate": "_generate"}
_NEEDS_OGBENCH |= {"Task": "_ogbench", "load_ogbench": "_ogbench", "make_env": "_ogbench"}


def __getattr__(name: str):
    """Import what needs ogbench, gymnasium and tqdm only when it is asked for."""
    if name not in _NEEDS_OGBENCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    try:
        return getattr(import_module(f"{__name__}.{_NEEDS_OGBENCH[name]}"), name)
    except ModuleNotFoundError as error:
        raise ImportError(f"shortcutrl.data.{name} needs {error.name}: pip install 'shortcutrl[ogbench]'") from error
