"""Datasets: arrays checked once, then sampled by index inside `jit`. Independent of any benchmark suite."""

from shortcutrl.data._crop import random_crop as random_crop
from shortcutrl.data._dataset import Dataset as Dataset
from shortcutrl.data._dataset import from_arrays as from_arrays
from shortcutrl.data._replay import Replay as Replay
from shortcutrl.data._replay import add_step as add_step
from shortcutrl.data._replay import empty_replay as empty_replay
from shortcutrl.data._sample import sample as sample
from shortcutrl.data._scale import ActionScale as ActionScale
