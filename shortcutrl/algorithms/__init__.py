"""Algorithms: one file each with fixed names, built from the library's functions. Copy one and change what you need."""

from shortcutrl.algorithms import bc as bc
from shortcutrl.algorithms import cac as cac
from shortcutrl.algorithms import fawac as fawac
from shortcutrl.algorithms import fbrac as fbrac
from shortcutrl.algorithms import fql as fql
from shortcutrl.algorithms import idql as idql
from shortcutrl.algorithms import ifql as ifql
from shortcutrl.algorithms import iql as iql
from shortcutrl.algorithms import rebrac as rebrac
from shortcutrl.algorithms import sorl as sorl
from shortcutrl.algorithms import srpo as srpo
