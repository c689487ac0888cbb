"""The names of OGBench's datasets: which are supported, and what to use instead of the others."""

from collections.abc import Iterable
from difflib import SequenceMatcher

_MAZE = ("navigate", "stitch")
_MANIPULATION = ("play", "noisy")

# What OGBench publishes: its data_gen_scripts/commands.sh.
_KINDS = {f"pointmaze-{size}": _MAZE for size in ("medium", "large", "giant", "teleport")}
_KINDS |= {f"antmaze-{size}": (*_MAZE, "explore") for size in ("medium", "large", "teleport")}
_KINDS |= {"antmaze-giant": _MAZE}
_KINDS |= {f"humanoidmaze-{size}": _MAZE for size in ("medium", "large", "giant")}
_KINDS |= {f"antsoccer-{field}": _MAZE for field in ("arena", "medium")}
_KINDS |= {f"cube-{count}": _MANIPULATION for count in ("single", "double", "triple", "quadruple")}
_KINDS |= {"scene": _MANIPULATION}
_KINDS |= {f"puzzle-{size}": _MANIPULATION for size in ("3x3", "4x4", "4x5", "4x6")}
_KINDS |= {f"visual-{scene}": kinds for scene, kinds in _KINDS.items() if not scene.startswith(("point", "antsoccer"))}

KNOWN = {
    f"{scene}-{kind}-singletask{task}-v0": (f"{scene}-singletask{task}-v0", f"{scene}-{kind}-v0")
    for scene, kinds in _KINDS.items()
    for kind in kinds
    for task in ("", *(f"-task{number}" for number in range(1, 6)))
}
"""The names of the environment and of the dataset, which all tasks share, for each supported name."""

_UNSUPPORTED = {
    "powderworld": "has image observations and no single-task version",
    "oraclerep": "is goal-conditioned, with an oracle's representation of the goal",
    "100m": "is published in many files",
    "online": "is an environment without a dataset",
}


def split(name: str) -> tuple[str, str]:
    """The names of the environment and of the dataset."""
    if name in KNOWN:
        return KNOWN[name]
    why, instead = _explain(name.lower())
    raise ValueError(
        f"`name` must be an OGBench single-task dataset, got {quote(name)}, which {why}. "
        + (f"Use {either(instead)}." if instead else "For the names, see https://github.com/seohongpark/ogbench.")
    )


def _explain(name: str) -> tuple[str, list[str]]:
    """What is wrong with a name, and at most six names to use instead, in natural order."""
    parts = name.split("-")
    why = next((reason for part, reason in _UNSUPPORTED.items() if part in parts), "")
    base = "-".join(part for part in parts if part not in _UNSUPPORTED)
    if base in KNOWN:
        return why or "is not in lower case", [base]
    if instead := [known for known, (_, dataset) in KNOWN.items() if base == dataset]:
        return why or "is goal-conditioned", instead
    if instead := [known for known, (env, _) in KNOWN.items() if base in (env, env.replace("-singletask", ""))]:
        return why or "is an environment without a dataset", instead
    if "powderworld" in parts:
        return why, []
    return why or "OGBench does not publish", similar(base, [k for k in KNOWN if ("-task" in k) == ("-task" in base)])


def similar(name: str, known: Iterable[str]) -> list[str]:
    """At most six known names that resemble `name` most, in the order of `known`; none if none resembles it."""
    if len(name) > 100:
        return []
    parts, core, likeness = name.split("-"), _core(name), {}
    for other in known:
        agree = other.startswith(f"{parts[0]}-"), len({*parts} & {*other.split("-")})
        likeness[other] = agree, SequenceMatcher(None, core, _core(other)).ratio()
    best, most = max(likeness.values())
    return [other for other, (agree, ratio) in likeness.items() if agree == best and ratio > max(most - 0.1, 0.6)][:6]


def quote(name: str) -> str:
    """A name, shortened if it is no name."""
    return repr(str(name) if len(name) <= 100 else f"{name[:100]}...")


def either(names: list[str]) -> str:
    """The names as a list in words."""
    *first, last = map(repr, names)
    return f"{', '.join(first)} or {last}" if first else last


def _core(name: str) -> str:
    """What tells names apart."""
    return name.replace("-singletask", "").removesuffix("-v0")
