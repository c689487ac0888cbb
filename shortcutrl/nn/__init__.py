"""Networks for the library's functions. They are optional: any callable of the right shape works."""

from shortcutrl._types import Features as Features
from shortcutrl.nn._critic import EnsembleCritic as EnsembleCritic
from shortcutrl.nn._gaussian import DeterministicPolicy as DeterministicPolicy
from shortcutrl.nn._gaussian import GaussianPolicy as GaussianPolicy
from shortcutrl.nn._impala import Impala as Impala
from shortcutrl.nn._policy import FlowPolicy as FlowPolicy
from shortcutrl.nn._policy import OneStepPolicy as OneStepPolicy
from shortcutrl.nn._policy import ShortcutPolicy as ShortcutPolicy
from shortcutrl.nn._residual import ResidualDenoiser as ResidualDenoiser
from shortcutrl.nn._value import Value as Value
