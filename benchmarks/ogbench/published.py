"""Published settings and results of every method on OGBench's single tasks with state observations, as data.

Sources: FQL is the FQL paper (arXiv 2502.02538; its tables of settings and results) and its repository. SORL is the
SORL paper (arXiv 2505.22866) and its repository. All results are those of OGBench 1.1.

Settings that no `Config` holds: 1M gradient steps (IDQL 3M), batches of 256, Adam with 3e-4 (SORL 1e-4), networks of
4 x 512 (IQL 4 x 256 on the manipulation environments). Results: 8 seeds, 50 episodes, mean of 800K, 900K and 1M steps.
"""

from typing import Any

from shortcutrl.algorithms import bc, cac, fawac, fbrac, fql, idql, ifql, iql, rebrac, sorl, srpo

LOCOMOTION = (
    "antmaze-large-navigate",
    "antmaze-giant-navigate",
    "humanoidmaze-medium-navigate",
    "humanoidmaze-large-navigate",
    "antsoccer-arena-navigate",
)
MANIPULATION = ("cube-single-play", "cube-double-play", "scene-play", "puzzle-3x3-play", "puzzle-4x4-play")
ENVIRONMENTS = LOCOMOTION + MANIPULATION

LONG = {
    "antmaze-giant-navigate",
    "humanoidmaze-medium-navigate",
    "humanoidmaze-large-navigate",
    "antsoccer-arena-navigate",
}
"""Where the discount is 0.995; elsewhere it is 0.99."""

PESSIMISTIC = {"antmaze-large-navigate", "antmaze-giant-navigate"}
"""Where TD targets take the minimum of the critics; elsewhere the mean. IQL and ReBRAC always take the minimum."""


def _settings(module: Any, *rows: Any) -> dict[str, Any]:
    """A `Config` for each environment; `None` where nothing is published."""
    found = {}
    for environment, row in zip(ENVIRONMENTS, rows, strict=True):
        if row is not None:
            common: dict[str, Any] = {"discount": 0.995 if environment in LONG else 0.99}
            if hasattr(module.Config, "aggregate"):
                common["aggregate"] = "min" if environment in PESSIMISTIC else "mean"
            found[environment] = module.Config(**common, **row)
    return found


def _each(name: str, *values: float | None) -> list[dict[str, float] | None]:
    return [None if value is None else {name: value} for value in values]


def _penalties(*pairs: tuple[float, float]) -> list[dict[str, float]]:
    return [{"policy_penalty": policy, "critic_penalty": critic} for policy, critic in pairs]


SETTINGS: dict[str, dict[str, Any]] = {
    "bc": {environment: bc.Config() for environment in ENVIRONMENTS},
    "iql": _settings(iql, *_each("alpha", 10, 10, 10, 10, 1, 1, 0.3, 10, 10, 3)),
    "rebrac": _settings(
        rebrac,
        *_penalties(*[(0.003, 0.01)] * 2, *[(0.01, 0.01)] * 3, (1, 0), (0.1, 0), (0.1, 0.01), *[(0.3, 0.01)] * 2),
    ),
    "idql": _settings(
        idql,
        *[{"num_candidates": 32, "expectile": 0.7}] * 4,
        None,
        *[{"num_candidates": 32, "expectile": 0.9}] * 5,
    ),
    "srpo": _settings(
        srpo,
        *[{"beta": 0.3, "expectile": 0.7}] * 4,
        None,
        *[{"beta": beta, "expectile": 0.9} for beta in (0.03, 0.1, 0.1, 0.1, 0.1)],
    ),
    "cac": _settings(cac, *_each("eta", 1, 1, 0.03, 1, None, 0.003, 0.3, 0.3, 0.01, 0.01)),
    "fawac": _settings(fawac, *_each("alpha", 3, 3, 3, 3, None, 1, 0.3, 0.3, 0.3, 0.3)),
    "fbrac": _settings(fbrac, *_each("alpha", 3, 10, 30, 30, None, 100, 100, 100, 100, 300)),
    "ifql": _settings(ifql, *_each("num_candidates", 32, 32, 32, 32, 64, 32, 32, 32, 32, 32)),
    "fql": _settings(fql, *_each("alpha", 10, 10, 30, 30, 10, 300, 300, 300, 1000, 1000)),
    "sorl": _settings(sorl, *_each("q_weight", 500, 500, 100, 500, 500, 10, 50, 100, None, None)),
}
"""Method to environment to `Config`. Tuned on the default task of each environment.

Source: FQL, table of settings; sorl: SORL, its repository. The row of antsoccer was not readable: there, fql is set as
in its repository, and iql, rebrac and ifql as FQL sets them for offline-to-online training. Environments are missing
where no setting is published or readable.
"""


def _results(*rows: float | None) -> dict[str, float]:
    return {environment: row for environment, row in zip(ENVIRONMENTS, rows, strict=True) if row is not None}


RESULTS: dict[str, dict[str, float]] = {
    "bc": _results(11, 0, 2, 1, 1, 5, 2, 5, 2, 0),
    "iql": _results(53, 4, 33, 2, 8, 83, 7, 28, 9, 7),
    "rebrac": _results(81, 26, 22, 2, 0, 91, 12, 41, 21, 14),
    "idql": _results(21, 0, 1, 1, 12, 95, 15, 46, 10, 29),
    "srpo": _results(11, 0, 1, 0, 1, 80, 2, 20, 18, 10),
    "cac": _results(33, 0, 53, 0, 2, 85, 6, 40, 19, 15),
    "fawac": _results(6, 0, 19, 0, 12, 81, 5, 30, 6, 1),
    "fbrac": _results(60, 4, 38, 2, 16, 79, 15, 45, 14, 13),
    "ifql": _results(28, 3, 60, 11, 33, 79, 14, 30, 19, 25),
    "fql": _results(79, 9, 58, 4, 60, 96, 29, 56, 30, 17),
    "sorl": _results(89, 9, 64, 5, 69, 97, 25, 57, None, None),
}
"""Method to environment to success in percent, mean of the environment's five tasks.

Source: FQL, table of results; sorl: SORL, read second-hand.
"""
