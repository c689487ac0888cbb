"""The documentation: its code runs, its names exist, it builds without a warning and loads nothing from other hosts."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import shortcutrl

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
LONG = [DOCS / "tutorials" / "agents.md", DOCS / "tutorials" / "devices.md"]
WITH_CODE = [
    pytest.param(page, marks=[pytest.mark.slow] if page in LONG else [])
    for page in PAGES
    if "```python" in page.read_text()
]
TEXTS = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def name(page):
    return str(page.relative_to(ROOT))


# ------------------------------------------------------------------- the sources


@pytest.mark.parametrize("page", WITH_CODE, ids=name)
@pytest.mark.usefixtures("without_x64")
def test_the_code_of_a_page_runs(page):
    namespace = {"__name__": "page"}
    for block in re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE):
        exec(compile(block, name(page), "exec"), namespace)


def public(path):
    """The names that a module defines, or re-exports as themselves."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module != "shortcutrl":
            yield from (alias.name for alias in node.names if alias.asname == alias.name)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name


def test_the_api_pages_document_the_public_names_and_no_others():
    """An algorithm is documented as a module, which lists all its names."""
    package = ROOT / "shortcutrl"
    lists = [file for file in package.rglob("__init__.py") if file.parent.name != "algorithms"]
    modules = [package / "suites" / "minari.py"]
    names = set()
    for file in lists + modules:
        module = file.parent if file.name == "__init__.py" else file.with_suffix("")
        names |= {".".join(["shortcutrl", *module.relative_to(package).parts, each]) for each in public(file)}
    names |= {f"shortcutrl.{each}" for each in public(package / "algorithms" / "__init__.py")}
    documented = [each for page in PAGES for each in re.findall(r"^::: (\S+)", page.read_text(), re.MULTILINE)]
    assert sorted(documented) == sorted(names)


def test_every_algorithm_is_public():
    files = {file.stem for file in (ROOT / "shortcutrl" / "algorithms").glob("[a-z]*.py")}
    assert set(public(ROOT / "shortcutrl" / "algorithms" / "__init__.py")) == files


def options(script):
    """The annotated fields and arguments in a script and in its `settings`, and what pytest adds for benchmarks."""
    for node in ast.walk(ast.parse((ROOT / script).read_text())):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.ImportFrom) and node.module == "settings":
            yield from options(Path(script).with_name("settings.py"))
    yield from re.findall(r"addoption\(\"--(\w+)\"", (ROOT / "benchmarks" / "conftest.py").read_text())


@pytest.mark.parametrize("page", TEXTS, ids=name)
def test_the_commands_of_a_page_name_scripts_and_options_that_exist(page):
    text = page.read_text().replace("\\\n", " ")
    for script, rest in re.findall(r"\b((?:examples|benchmarks)/[\w/]+\.py)([^\n`|]*)", text):
        known = set(options(script))
        for option in re.findall(r"--([a-z][\w-]*)", rest):
            name = option.removeprefix("no-").replace("-", "_")
            assert name in known, f"{script} has no --{option}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_code_of_a_page_fits_into_its_column(page):
    for block in re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE):
        assert [line for line in block.split("\n") if len(line) > 80] == []


def test_the_method_fits_on_one_page():
    text = (DOCS / "method.md").read_text()
    for formula in (r"\$\$.*?\$\$", r"\$.*?\$", r"\]\(.*?\)"):  # and addresses
        text = re.sub(formula, " ", text, flags=re.DOTALL)
    assert len(re.findall(r"[A-Za-z][\w'-]*", text)) <= 600


@pytest.mark.parametrize("page", TEXTS, ids=name)
def test_a_page_uses_plain_words(page):
    """Words that readers stumbled over, each with a plainer one in the style guide."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    odd = r"\b(anew|goes on|go on|on the spot|had better|wanted|verdict|nobody|has not|have not|beside)\b(?! been)"
    assert re.findall(odd, text, re.IGNORECASE) == []


def messages():
    """The constant parts of every string in the sources."""
    for path in [*ROOT.glob("shortcutrl/**/*.py"), *ROOT.glob("examples/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_the_messages_of_the_faq_are_the_sources_messages():
    said = list(messages())
    quotations = re.findall(r"^(`.+`)\n:   ", (DOCS / "faq.md").read_text(), re.MULTILINE)
    assert len(quotations) > 10
    for quotation in quotations:
        parts = [part for quoted in re.findall(r"`([^`]+)`", quotation) for part in quoted.split("…")]
        assert any(all(part.strip() in message for part in parts) for message in said), quotation


# ------------------------------------------------------------------- the built site


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs", reason="needs the extra `docs`")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr, done.stderr
    return folder


class Links(HTMLParser):
    """Where a page's links go, what it loads, and the anchors that it has."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loads, self.anchors = set(), set(), set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors |= {attrs.get("id"), attrs.get("name")}
        if tag == "a":
            self.links.add(attrs.get("href"))
        elif tag == "link" and attrs.get("rel") != "canonical":
            self.loads.add(attrs.get("href"))
        elif "src" in attrs:
            self.loads.add(attrs["src"])


def test_links_and_anchors_lead_somewhere(site):
    pages = {path: Links(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > len(PAGES) / 2
    for path, page in pages.items():
        for link in (page.links | page.loads) - {None}:
            url = urlsplit(link)
            if url.scheme in ("http", "https", "mailto"):
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path not in ("", ".") else path
            target = target / "index.html" if target.is_dir() else target
            assert target.exists(), f"{path.name}: {link}"
            if url.fragment and target in pages:
                assert unquote(url.fragment) in pages[target].anchors, f"{path.name}: {link}"


def test_no_page_asks_another_host_for_anything(site):
    for path in site.rglob("*.html"):
        for load in Links(path).loads - {None}:
            assert not urlsplit(load).netloc, f"{path.name} loads {load}"
    for path in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", path.read_text()), path.name


def test_the_header_shows_the_repository_and_the_version(site):
    for path in site.rglob("*.html"):
        header = re.search(r"<header.*?</header>", path.read_text(), re.DOTALL)[0]
        assert "https://github.com/shortcutrl/shortcutrl" in header, path.name
        assert shortcutrl.__version__ in header, path.name


def test_the_site_has_each_page_as_markdown_and_lists_them(site):
    pages = {str(path.relative_to(site).with_suffix(".md")) for path in site.rglob("*.html")} - {"404.md"}
    assert set(re.findall(r"\]\((.+?)\)", (site / "llms.txt").read_text())) == pages
    for page in pages:
        text = (site / page).read_text()
        assert text.startswith("# "), page
        assert not re.search("^(<!-- (include: .*|published|options|benchmarks) -->|::: .*)$", text, re.MULTILINE), page
    assert "def rollout_k(velocity: Velocity" in (site / "api" / "jumps.md").read_text()


@pytest.mark.parametrize("page", sorted(DOCS.glob("tutorials/*.md")), ids=name)
def test_a_tutorial_is_a_notebook(site, page):
    path = page.relative_to(DOCS).with_suffix(".ipynb")
    cells = json.loads((site / path).read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    blocks = re.findall(r"^```python\n(.*?)\n```$", page.read_text(), re.DOTALL | re.MULTILINE)
    assert code[0].startswith("%pip install -q ")
    assert code[1:] == blocks
    assert ("[evaluate]" in code[0]) == any("shortcutrl.evaluate" in block for block in blocks)
    assert ("grain" in code[0]) == any("import grain" in block for block in blocks)
    text = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    assert all(link.startswith(("https://", "#")) for link in re.findall(r"\]\((.+?)\)", text))
    assert f"/blob/gh-pages/{path}" in (site / path.with_suffix(".html")).read_text()


@pytest.fixture(scope="session")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with api.sync_playwright() as playwright:
        try:
            opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except api.Error as error:
            pytest.skip(f"needs a browser, by `playwright install chromium` or the system's chromium: {error}")
        yield opened
        opened.close()


BUILT = [page.relative_to(DOCS).with_suffix(".html") for page in PAGES if not page.name.startswith("benchmarks-")]

MISFITS = """() => {
    const scrolls = element => /auto|scroll/.test(getComputedStyle(element).overflowX)
    const column = document.querySelector(".md-content").getBoundingClientRect()
    const found = []
    for (const element of document.querySelectorAll("article *:not(math *, svg *, nav *)")) {
        const box = element.getBoundingClientRect(), style = getComputedStyle(element)
        const more = element.scrollWidth > element.clientWidth + 1 && element.clientWidth > 0
        const out = box.width > 0 && (box.right > column.right + 1 || box.left < column.left - 1)
        let around = element.parentElement
        while (around.tagName != "ARTICLE" && !scrolls(around)) around = around.parentElement
        const why = out && around.tagName == "ARTICLE" ? "is wider than the column"
            : more && /hidden|clip/.test(style.overflowX) ? "is cut off"
            : more && scrolls(element) && !style.backgroundImage.includes("gradient") ? "scrolls without a sign"
            : null
        if (why) found.push(`${element.tagName}.${element.className} ${why}: ${element.textContent.slice(0, 60)}`)
    }
    if (document.documentElement.scrollWidth > innerWidth) found.push("the page scrolls sideways")
    return found
}"""


@pytest.fixture(scope="module")
def window(browser):
    context = browser.new_context()
    context.set_default_timeout(120_000)  # on a busy machine
    yield context.new_page()
    context.close()


@pytest.fixture
def complaints(window):
    """What the browser reports while a test runs."""
    found = []
    listeners = {
        "console": lambda message: message.type == "error" and found.append(message.text),
        "pageerror": lambda error: found.append(str(error)),
        "requestfailed": lambda request: "ABORTED" in request.failure or found.append(request.url),
        "request": lambda request: request.url.startswith("http") and found.append(request.url),
    }
    for event, listener in listeners.items():
        window.on(event, listener)
    yield found
    for event, listener in listeners.items():
        window.remove_listener(event, listener)


@pytest.mark.slow
@pytest.mark.parametrize("page", BUILT, ids=str)
def test_a_page_fits_a_phone_and_a_desktop(site, window, complaints, page):
    window.goto((site / page).as_uri())
    for width in (390, 1280, 1920):
        window.set_viewport_size({"width": width, "height": 900})
        assert window.evaluate(MISFITS) == [], width
    assert complaints == []


@pytest.mark.slow
def test_formulas_use_the_font_of_the_site(site, browser):
    page = browser.new_page()
    page.set_default_timeout(120_000)
    tools, fonts = page.context.new_cdp_session(page), {}
    for path in [path for path in map(site.joinpath, BUILT) if "<math" in path.read_text()]:
        page.goto(path.as_uri())
        page.evaluate("document.fonts.ready.then(() => null)")
        tools.send("DOM.enable")
        tools.send("CSS.enable")
        root = tools.send("DOM.getDocument", {"depth": 0})["root"]["nodeId"]
        symbols = tools.send("DOM.querySelectorAll", {"nodeId": root, "selector": "math :is(mi, mn, mo, mtext)"})
        for node in symbols["nodeIds"]:
            for font in tools.send("CSS.getPlatformFontsForNode", {"nodeId": node})["fonts"]:
                fonts.setdefault((font["familyName"], font["isCustomFont"]), path.name)
    assert set(fonts) == {("STIX Two Math", True)}, fonts
    page.close()


@pytest.mark.slow
def test_search_finds_a_function_from_the_disk(site, browser):
    page = browser.new_page()
    page.goto((site / "index.html").as_uri())
    page.click("input.md-search__input")
    page.keyboard.type("consistency_gap")
    page.wait_for_selector(".md-search-result__link[href*='jumps.html']", state="attached")
    page.close()
