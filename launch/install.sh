#!/usr/bin/env bash
# Install ds-train into .venv of this repository; run again, it does only what is missing.
#
#     bash launch/install.sh [test]         test: with the tools that tests/run.sh needs
#
# PYTHON names the interpreter (default python3). Without an NVIDIA GPU the exact versions of constraints-cpu.txt are
# taken, with one the newest that setup.cfg allows: of torch at most 2.13, the version that the tests were run with. pip's own variables (PIP_INDEX_URL, PIP_CONSTRAINT …) are respected.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[[ $# -le 1 && "${1:-test}" == test ]] || fail "install.sh takes no argument or the word test, got: $*"
python="${PYTHON:-python3}"
stamp="$virtualenv/installed.txt" # describes what is there

command -v "$python" >/dev/null || fail "no $python here: install Python 3.11 or newer, or name one with PYTHON=…"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$("$python" --version) is too old: ds-train needs 3.11 or newer; name one with PYTHON=…"

mkdir -p "$repository/slurm" # logs of the job scripts; Slurm does not create it

constraints=()
if ! has_nvidia_gpu; then
    constraints=(--constraint "$repository/launch/constraints-cpu.txt")
fi

# All that decides what an installation with extra $1 holds.
description() {
    echo "$repository" "$1" "${constraints[@]}"
    cat "$repository/setup.cfg" "$repository/pyproject.toml" "$repository/launch/constraints-cpu.txt"
}

for extra in "${1:-}" test; do
    if [[ -f "$stamp" && "$(<"$stamp")" == "$(description "$extra")" ]]; then
        echo "already installed in $virtualenv"
        exit
    fi
done

if [[ ! -x "$virtualenv/bin/pip" ]]; then
    "$python" -m venv "$virtualenv" ||
        fail "$python cannot make a virtual environment; on Debian and Ubuntu install python3-venv"
fi
rm -f "$stamp"
echo "installing into $virtualenv${constraints:+, exact versions because there is no NVIDIA GPU here} (minutes)"
"$virtualenv/bin/pip" install -qq --disable-pip-version-check "${constraints[@]}" --editable "$repository${1:+[$1]}"
description "${1:-}" >"$stamp"
