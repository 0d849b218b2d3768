# Shell lines shared by the scripts of this directory. Source it after `set -euo pipefail`.
# shellcheck shell=bash

repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
virtualenv="$repository/.venv"

fail() {
    echo "error: $*" >&2
    exit 1
}

has_nvidia_gpu() {
    command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q '^GPU '
}

# Cores this process may use (nproc alone would answer with OMP_NUM_THREADS).
num_cores() {
    env -u OMP_NUM_THREADS nproc
}

# Put the installed package first on PATH; later commands find python, deepspeed and ninja there.
use_virtualenv() {
    [[ -x "$virtualenv/bin/deepspeed" ]] || fail "ds-train is not installed in $virtualenv: run bash launch/install.sh"
    export PATH="$virtualenv/bin:$PATH"
    export PYTHONWARNINGS="${PYTHONWARNINGS:-ignore::FutureWarning}"
    export TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}" # the loader workers are the parallelism
}

# How many ranks to start here: one a device, at most $1. Sets `ranks`, and on CPU what its ranks need.
choose_ranks() {
    local limit=$1 gpus
    gpus="$(python -c 'import torch; print(torch.cuda.device_count())')"
    if ((gpus > 0)); then
        ranks=$((gpus < limit ? gpus : limit))
        return
    fi
    ranks="$(num_cores)"
    ranks=$((ranks < limit ? ranks : limit))
    export DS_ACCELERATOR=cpu
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # unset, every rank would take all cores
}
