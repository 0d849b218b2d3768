#!/usr/bin/env bash
# Install into .venv and run all checks and tests: with --fast those that start neither training nor services.
# Further arguments go to pytest (e.g. -m slow).
set -euo pipefail
cd "$(dirname "$0")/.."
if [[ ${1:-} == --fast ]]; then
    shift
    set -- -m "not launch and not service and not slow" "$@"
fi
bash launch/install.sh test
export PATH="${DS_TRAIN_VENV:-$PWD/.venv}/bin:$PATH"
ruff check .
ruff format --check .
mypy
# Files side by side, since many wait for processes; those that take longest first, whatever their number of tests.
exec python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
