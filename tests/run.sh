#!/usr/bin/env bash
# Install into .venv and run all checks and tests; arguments go to pytest (e.g. -m slow).
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/install.sh test
export PATH="${DS_TRAIN_VENV:-$PWD/.venv}/bin:$PATH"
ruff check .
ruff format --check .
mypy
exec python -m pytest "$@"
