"""Shortcut policies for offline reinforcement learning: small, typed, pure functions for your own JAX loop."""

from shortcutrl import data as data
from shortcutrl import nn as nn
from shortcutrl import sorl as sorl
from shortcutrl._improve import QInfo as QInfo
from shortcutrl._improve import q_loss as q_loss
from shortcutrl._select import BestOfN as BestOfN
from shortcutrl._select import bon_select as bon_select
from shortcutrl._shortcut import ShortcutInfo as ShortcutInfo
from shortcutrl._shortcut import flow_matching_loss as flow_matching_loss
from shortcutrl._shortcut import self_consistency_loss as self_consistency_loss
from shortcutrl._shortcut import shortcut_loss as shortcut_loss
from shortcutrl._step import consistency_gap as consistency_gap
from shortcutrl._step import rollout_k as rollout_k
from shortcutrl._step import shortcut_step as shortcut_step
from shortcutrl._types import Critic as Critic
from shortcutrl._types import Transition as Transition
from shortcutrl._types import Velocity as Velocity
from shortcutrl._value import TDInfo as TDInfo
from shortcutrl._value import td_loss as td_loss
from shortcutrl._value import td_target as td_target

__version__ = "0.1.0"
