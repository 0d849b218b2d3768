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
# Threads of an operation that wait for one another on busy cores make it tens of times slower.
export OMP_NUM_THREADS=1
# Files side by side, since many wait for processes; those that take longest first, whatever their number of tests.
exec python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
