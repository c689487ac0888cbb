#!/usr/bin/env bash
# Build the sdist and the wheel into dist/, and check them. Needs uv, which the extra `dev` contains.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

rm -rf dist
uv build                                  # the wheel is built from the sdist
uv build --wheel --out-dir "$work"        # and from the repository: the same bytes
cmp dist/*.whl "$work"/*.whl
uvx twine check --strict dist/*
if unzip -p dist/*.whl '*/METADATA' | grep -E '\]\((docs/|examples/|.*HFPR)'; then
  echo "PyPI cannot follow these links of the README" && exit 1
fi

uv venv --no-project "$work/env"          # without extras, away from the sources
uv pip install --python "$work/env" dist/*.whl
cd "$work"
env/bin/python -W error -c 'import shortcutrl; print("imported shortcutrl", shortcutrl.__version__)'
