"""Print the results of speed.py as a table in Markdown, with the machine and the versions.

python benchmarks/table.py speed.json > docs/benchmarks-speed-one-core.md
"""

import json
from importlib.metadata import version
from pathlib import Path

import tyro


def row(result: dict) -> str:
    name, _, case = result["name"].removeprefix("test_").rstrip("]").partition("[")
    name = name.replace("_", " ") + (": " + case.replace("-", ", ") if case else "")
    extra, seconds = result["extra_info"], result["stats"]["median"] / result["extra_info"]["per"]
    floor = f"{milliseconds(extra['floor'])} | {extra['floor'] / seconds:.0%}" if "floor" in extra else " | "
    memory = f"{extra['memory'] / 1e6:.0f} MB" if "memory" in extra else ""
    return f"| {name} | {milliseconds(seconds)} | {floor} | {memory} |"


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.3g} ms" if seconds < 1 else f"{1e3 * seconds:,.0f} ms"


def main(
    results: tyro.conf.Positional[Path],  # of pytest benchmarks/speed.py --benchmark-json
) -> None:
    measured = json.loads(results.read_text())
    machine = measured["machine_info"]
    cores = machine["cpu"]["count"]
    print(f"{machine['cpu']['brand_raw']}, {cores} core{'s' * (cores > 1)}; Python {machine['python_version']}", end="")
    print("".join(f", {name} {version(name)}" for name in ("jax", "jaxlib", "equinox", "optax")), end=".\n\n")
    print("| | median | floor | floor / median | memory |\n|---|---|---|---|---|")
    print("\n".join(row(result) for result in measured["benchmarks"]))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
