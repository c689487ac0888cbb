"""Change the pages of the documentation at build: includes, tables from the sources, links, formulas as MathML.

A line `<!-- include: FILE -->` becomes the text of a file of the repository, without its title.
`<!-- include: FILE#Heading -->` becomes the section under that heading, and `FILE#` the text before the first heading.
`<!-- published -->`, `<!-- options -->` and `<!-- benchmarks -->` become tables, each made from its only source. Code
spans that are public names become links to the API.

The site also contains each page as Markdown, a list of them in `llms.txt`, and each tutorial as a notebook.
"""

import ast
import functools
import importlib
import inspect
import re
import sys
import textwrap
from html import unescape
from pathlib import Path
from urllib.parse import urljoin

import griffe
import jupytext
from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "README.md#run-it": "quickstart.md",
    "CONTRIBUTING.md": "design.md",
}
"""The pages that show what the repository's own files link to."""

LATEX = {r"\arg\max": r"\argmax", r"\lVert": r"\left\lVert", r"\rVert": r"\right\rVert"}
"""Commands that latex2mathml does not know or spaces badly, and commands that it knows."""

PRIMED = r'<mrow>\1<mo lspace="0" rspace="0">&#x02032;</mo></mrow>'
"""A prime is already raised. As a superscript it is too high without a mathematical font."""

FILES = {}
"""What the site contains besides its pages: the text of each file by its path."""


def on_config(config):
    source = (ROOT / "shortcutrl" / "__init__.py").read_text()
    config.extra["release"] = re.search(r'^__version__ = "(.+)"$', source, re.MULTILINE)[1]


def on_nav(nav, config, **_):
    """List the pages in the order of the navigation."""
    sections = [f"# {config.site_name}", f"> {config.site_description}"]
    for item in nav.items:
        pages = item.children if item.is_section else [item]
        lines = [f"- [{page.title or title(page)}]({page.file.src_uri})" for page in pages]
        sections.append("\n".join([f"## {item.title}\n", *lines] if item.is_section else lines))
    FILES["llms.txt"] = "\n\n".join(sections) + "\n"


def title(page):
    return re.search("^# (.+)$", Path(page.file.abs_src_path).read_text(), re.MULTILINE)[1]


def on_page_markdown(markdown, page, config, **_):
    up = "../" * page.file.src_uri.count("/")
    pattern = r"^<!-- include: ([^#\n]+?)(?:#(.*?))? -->$"
    markdown = re.sub(pattern, lambda match: include(*match.groups(), up), markdown, flags=re.MULTILINE)
    for name, table in TABLES.items():
        if f"<!-- {name} -->" in markdown:
            markdown = markdown.replace(f"<!-- {name} -->", table())
    FILES[page.file.src_uri] = re.sub(r"^::: (\S+)$", interface, markdown, flags=re.MULTILINE)
    if page.file.src_uri.startswith("tutorials/"):
        path = page.file.src_uri.replace(".md", ".ipynb")
        FILES[path] = notebook(markdown, urljoin(config.site_url, page.file.src_uri))
        branch = f"{config.repo_url.replace('https://github.com', 'github')}/blob/gh-pages"
        links = (
            f'<a href="https://colab.research.google.com/{branch}/{path}">Open in Colab</a> · '
            f'<a href="{Path(path).name}" download>Download the notebook</a>'
        )
        markdown = re.sub(r"^(# .+\n)", rf"\1\n{links}\n", markdown)
    return link_names(markdown)


def on_post_build(config, **_):
    for path, text in FILES.items():
        (Path(config.site_dir) / path).write_text(text)


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


def interface(match):
    """The signatures and docstrings of a public name, or of the public names of an algorithm."""
    found = package()[match[1].removeprefix("shortcutrl.")]
    found = found.final_target if found.is_alias else found
    parts = [found[name] for name in defined(found.filepath)] if found.is_module else [found]
    code = "\n\n".join(outline(part.source) for part in parts)
    about = f"{found.docstring.value}\n\n" if found.is_module else ""
    return f"## {match[1]}\n\n{about}````python\n{code}\n````"


@functools.cache
def package():
    return griffe.load("shortcutrl", search_paths=[ROOT])


def outline(source):
    """The source of a class or function, without the bodies of functions and without private methods."""
    tree = ast.parse(textwrap.dedent(source))
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            node.body = [part for part in node.body if not getattr(part, "name", "").startswith("_")] or [ast.Pass()]
        elif isinstance(node, ast.FunctionDef):
            documented = ast.get_docstring(node) is not None
            node.body = node.body[:1] if documented else [ast.Expr(ast.Constant(...))]
            node.decorator_list = []
    return ast.unparse(tree).replace("\\\\", "\\")


def notebook(markdown, url):
    """A notebook of a page. Its links lead to the site, and its commands are text."""

    def link(match):
        return f"]({urljoin(url, match[1].replace('.md', '.html'))})"

    packages = ["'shortcutrl[evaluate]'" if "shortcutrl.evaluate" in markdown else "shortcutrl"]
    packages += ["grain"] if "import grain" in markdown else []
    install = f"\n```python\n%pip install -q {' '.join(packages)}\n```\n"
    markdown = re.sub(r"^(# .+\n)", lambda title: title[1] + install, markdown)
    cells = jupytext.reads(markdown.replace("```bash", "```console"), fmt="md")
    cells.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    for number, cell in enumerate(cells.cells):
        cell["id"] = str(number)  # the same bytes from each build
        if cell["cell_type"] == "markdown":
            cell["source"] = re.sub(r"\]\((?!https?:|#)([^)]+)\)", link, cell["source"])
    return jupytext.writes(cells, fmt="ipynb")


def include(file, heading, up):
    """The text of a file or of one section, with links that work on the site."""
    text = (ROOT / file).read_text().split("\n", 1)[1]  # without the title
    if heading is not None:
        lines = re.split(r"(^ *```.*?^ *```$)", text, flags=re.MULTILINE | re.DOTALL)
        lines[1::2] = [re.sub(r"^#", r"\\#", code, flags=re.MULTILINE) for code in lines[1::2]]  # comments of code
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
        return label  # a file of the repository that is not a page

    return re.sub(r"\[([^\]]+)\]\(([^)]+)\)", link, text)


def link_names(markdown):
    """Link each code span that is a public name to the API, except in headings and blocks of code."""

    def link(match):
        name = match[1].removeprefix("shortcutrl.").removesuffix("()")
        return f"[{match[0]}][shortcutrl.{name}]" if f"shortcutrl.{name}" in documented() else match[0]

    parts = re.split(r"(^ *```.*?^ *```$|^#[^\n]*$)", markdown, flags=re.MULTILINE | re.DOTALL)
    spans = r"(?<![`\[])`([\w.]+(?:\(\))?)`(?![`\]])"
    parts[::2] = [re.sub(spans, link, part) for part in parts[::2]]
    return "".join(parts)


@functools.cache
def documented():
    """The names that the API pages document: those listed, and the public names of listed algorithms."""
    pages = Path(__file__).parent.glob("api/*.md")
    names = {name for page in pages for name in re.findall(r"^::: (\S+)", page.read_text(), re.M)}
    for file in (ROOT / "shortcutrl" / "algorithms").glob("[a-z]*.py"):
        if f"shortcutrl.{file.stem}" in names:
            names |= {f"shortcutrl.{file.stem}.{name}" for name in defined(file)}
    return names


def defined(file):
    """The public functions, classes and constants that a module defines."""
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            yield node.targets[0].id


@functools.cache
def example():
    """The module `examples/sorl.py`, which contains the presets and the published settings."""
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        return importlib.import_module("sorl")
    finally:
        sys.path.pop(0)


def rows(*cells):
    lines = [" | ".join(["", *map(str, row), ""]).strip() for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(cells[0]), *lines[1:]])


def published():
    """The published settings of each environment."""
    names = ("q_weight", "aggregate", "discount")
    paper = example().Args(**example().PRESETS["paper"])
    table = [(f"`{env}`", *(own.get(n, getattr(paper, n)) for n in names)) for env, own in example().PUBLISHED.items()]
    return rows(("environment", *(f"`{name}`" for name in names)), *table)


def options():
    """Every option of `examples/sorl.py` with its meaning, from the comment in its line."""
    said = re.findall(r"^    (\w+): .*?  # (.+)$", inspect.getsource(example().Args), re.MULTILINE)
    varies = {name for own in example().PUBLISHED.values() for name in own}

    def value(preset, name):
        if preset == "paper" and name in varies:
            return "above"
        return f"`{getattr(example().Args(**example().PRESETS[preset]), name)}`"

    table = [
        (f"`--{name.replace('_', '-')}`", value("laptop", name), value("paper", name), meaning)
        for name, meaning in said
        if name != "preset"
    ]
    return rows(("option", "`laptop`", "`paper`", "meaning"), *table)


def benchmarks():
    """The tables that `benchmarks/table.py` printed."""
    files = sorted(Path(__file__).parent.glob("benchmarks-*.md"))
    return "\n\n".join(file.read_text() for file in files)


TABLES = {"published": published, "options": options, "benchmarks": benchmarks}
