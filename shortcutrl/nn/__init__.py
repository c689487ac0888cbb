"""Networks that fit the functions: an optional convenience, since any callable of the right shape does."""

from shortcutrl.nn._critic import EnsembleCritic as EnsembleCritic
from shortcutrl.nn._policy import ShortcutPolicy as ShortcutPolicy
