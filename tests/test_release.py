"""The settings of the repository agree with each other, and the package can be released."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

import shortcutrl

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WORKFLOWS = {path.stem: path.read_text() for path in (ROOT / ".github" / "workflows").glob("*.yml")}
CLASSIFIER = r"Programming Language :: Python :: (3\.\d+)"


def test_pre_commit_uses_the_same_versions():
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    hooks = dict(re.findall(r"repo: .*/(ruff|pyright)-\S+\n    rev: v(.+)", text))
    dev = dict(line.split("==") for line in PROJECT["project"]["optional-dependencies"]["dev"] if "==" in line)
    assert hooks == dev


def test_the_workflows_test_every_python_that_a_classifier_names():
    named = re.findall(CLASSIFIER, "\n".join(PROJECT["project"]["classifiers"]))
    assert named[0] == PROJECT["project"]["requires-python"].removeprefix(">=")
    for tested in re.findall(r"python: \[(.+)\]", WORKFLOWS["test"]):
        assert re.findall(r"\d\.\d+", tested) == named


def test_the_citation_has_the_version_of_the_package():
    assert f"\nversion: {shortcutrl.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_scripts_of_the_workflows_exist():
    for text in WORKFLOWS.values():
        for script in re.findall(r"\.github/[\w/]+\.(?:sh|py|yml)", text):
            assert (ROOT / script).exists(), script


def readme_on_pypi():
    text = (ROOT / "README.md").read_text()
    for each in PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(each["pattern"], each["replacement"], text)
    return text


def test_the_links_of_the_readme_work_on_pypi():
    text = re.sub(r"^```.*?^```$", "", readme_on_pypi(), flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"(!?)\[[^\]]*\]\((.*?)\)", text)
    assert len(links) > 10
    for image, link in links:
        assert link.startswith("https://"), link
        found = re.fullmatch(r"https://(\w+\.)?github.*/shortcutrl/(blob/)?v\$HFPR_VERSION/(.+?)(#.*)?", link)
        if found:
            assert (found[1], found[2]) == (("raw.", None) if image else (None, "blob/")), link
            assert (ROOT / found[3]).exists(), link


def test_the_substitutions_leave_code_alone():
    code = r"^```.*?^```$"
    find = lambda text: re.findall(code, text, flags=re.DOTALL | re.MULTILINE)
    assert find(readme_on_pypi()) == find((ROOT / "README.md").read_text())


@pytest.mark.slow
def test_the_package_builds_and_is_importable_without_extras():
    done = subprocess.run([ROOT / ".github" / "build.sh"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"imported shortcutrl {shortcutrl.__version__}" in done.stdout
