"""What the build of the documentation does to its pages: includes, generated tables, formulas as MathML.

A line `<!-- include: FILE -->` becomes the text of a file of the repository without its title, and
`<!-- include: FILE#Heading -->` what stands there between that heading and the next; before the first one, if none is
named. `<!-- published -->`, `<!-- options -->` and `<!-- benchmarks -->` become tables, each from the only place that
knows its values. Code spans that are public names become links to the API.
"""

import functools
import importlib
import inspect
import re
import sys
from html import unescape
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "README.md#run-it": "quickstart.md",
    "README.md#in-two-dimensions": "index.md#in-two-dimensions",
    "CONTRIBUTING.md": "design.md",
}
"""Where the documentation shows what the repository's own files link to."""


LATEX = {r"\arg\max": r"\argmax", r"\lVert": r"\left\lVert", r"\rVert": r"\right\rVert"}
"""What latex2mathml does not know or spaces badly, and what it does know."""

PRIMED = r'<mrow>\1<mo lspace="0" rspace="0">&#x02032;</mo></mrow>'
"""A prime is raised already; as a superscript it floats where there is no mathematical font."""


def on_page_markdown(markdown, page, **_):
    up = "../" * page.file.src_uri.count("/")
    pattern = r"^<!-- include: ([^#\n]+?)(?:#(.*?))? -->$"
    markdown = re.sub(pattern, lambda match: include(*match.groups(), up), markdown, flags=re.MULTILINE)
    for name, table in TABLES.items():
        if f"<!-- {name} -->" in markdown:
            markdown = markdown.replace(f"<!-- {name} -->", table())
    return link_names(markdown)


def on_page_content(html, page, **_):
    def formula(match):
        inline, block = match.groups()
        latex = unescape(inline or block)
        for usual, known in LATEX.items():
            latex = latex.replace(usual, known)
        mathml = convert(latex, display="inline" if inline else "block")
        if "\\" in mathml:
            raise PluginError(f"{page.file.src_uri}: a formula that cannot be converted: {latex}")
        mathml = re.sub(r"<msup>(<mi>\w</mi>)<mi>&#x02032;</mi></msup>", PRIMED, mathml)
        return mathml if inline else f'<div class="formula">{mathml}</div>'

    pattern = r'<span class="arithmatex">\\\((.*?)\\\)</span>|<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>'
    return re.sub(pattern, formula, html, flags=re.DOTALL)


def include(file, heading, up):
    """The text of a file, or of one of its sections up to the next heading, with links that work on the site."""
    text = (ROOT / file).read_text().split("\n", 1)[1]  # without the title
    if heading is not None:
        lines = re.split(r"(^ *```.*?^ *```$)", text, flags=re.MULTILINE | re.DOTALL)
        lines[1::2] = [re.sub(r"^#", r"\\#", code, flags=re.MULTILINE) for code in lines[1::2]]  # comments, no headings
        intro, *sections = re.split(r"^#+ (.+)$", "".join(lines), flags=re.MULTILINE)
        intro, *sections = (re.sub(r"^\\#", "#", part, flags=re.MULTILINE) for part in (intro, *sections))
        bodies = {"": intro, **dict(zip(sections[::2], sections[1::2], strict=True))}
        if heading not in bodies:
            raise PluginError(f"{file} has no heading {heading!r}.")
        text = bodies[heading]

    def link(match):
        label, target = match.groups()
        if re.match(r"https?:|#", target):
            return match[0]
        if target in PAGES:
            return f"[{label}]({up}{PAGES[target]})"
        if target.startswith("docs/"):
            return f"[{label}]({up}{target.removeprefix('docs/')})"
        return label  # a file of the repository that is no page

    return re.sub(r"\[([^\]]+)\]\(([^)]+)\)", link, text)


def link_names(markdown):
    """Link each code span that is a public name to its place in the API, outside headings and blocks of code."""

    def link(match):
        name = match[1].removeprefix("shortcutrl.").removesuffix("()")
        return f"[{match[0]}][shortcutrl.{name}]" if f"shortcutrl.{name}" in documented() else match[0]

    parts = re.split(r"(^ *```.*?^ *```$|^#[^\n]*$)", markdown, flags=re.MULTILINE | re.DOTALL)
    spans = r"(?<![`\[])`([\w.]+(?:\(\))?)`(?![`\]])"
    parts[::2] = [re.sub(spans, link, part) for part in parts[::2]]
    return "".join(parts)


@functools.cache
def documented():
    """The names that the API pages document."""
    return {
        name
        for page in Path(__file__).parent.glob("api/*.md")
        for name in re.findall(r"^::: (\S+)", page.read_text(), re.M)
    }


@functools.cache
def example():
    """The module of `examples/sorl.py`, which owns the presets and the published hyperparameters."""
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        return importlib.import_module("sorl")
    finally:
        sys.path.pop(0)


def rows(*cells):
    lines = [" | ".join(["", *map(str, row), ""]).strip() for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(cells[0]), *lines[1:]])


def published():
    """One row for each environment family of the paper, with what it shares with the others filled in."""
    names = ("q_weight", "aggregate", "discount")
    paper = example().Args(**example().PRESETS["paper"])
    table = [(f"`{env}`", *(own.get(n, getattr(paper, n)) for n in names)) for env, own in example().PUBLISHED.items()]
    return rows(("environment", *(f"`{name}`" for name in names)), *table)


def options():
    """Every option of `examples/sorl.py` with its meaning, which stands beside it in the source."""
    said = re.findall(r"^    (\w+): .*?  # (.+)$", inspect.getsource(example().Args), re.MULTILINE)
    varies = {name for own in example().PUBLISHED.values() for name in own}

    def value(preset, name):
        return (
            "above"
            if preset == "paper" and name in varies
            else f"`{getattr(example().Args(**example().PRESETS[preset]), name)}`"
        )

    table = [
        (f"`--{name.replace('_', '-')}`", value("laptop", name), value("paper", name), meaning)
        for name, meaning in said
        if name != "preset"
    ]
    return rows(("option", "`laptop`", "`paper`", "meaning"), *table)


def benchmarks():
    """The tables that the benchmarks wrote, if they were run."""
    files = sorted(Path(__file__).parent.glob("benchmarks-*.md"))
    return "\n\n".join(file.read_text() for file in files)


TABLES = {"published": published, "options": options, "benchmarks": benchmarks}
