# Shell lines shared by the scripts of this directory. Source it after `set -euo pipefail`.
# shellcheck shell=bash

repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
virtualenv="${DS_TRAIN_VENV:-$repository/.venv}" # on a cluster: where every node sees it

fail() {
    echo "error: $*" >&2
    exit 1
}

has_nvidia_gpu() {
    command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep '^GPU ' >/dev/null
}

# Put what install.sh installed first on PATH, and quieten the libraries.
use_virtualenv() {
    [[ -x "$virtualenv/bin/deepspeed" ]] || fail "nothing is installed in $virtualenv: run bash launch/install.sh"
    export PATH="$virtualenv/bin:$PATH"
    export PYTHONWARNINGS="${PYTHONWARNINGS:-ignore::FutureWarning}"
    export TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}" # loader workers are the parallelism
}

# Set `ranks` to the devices of this machine (GPUs, else cores), at most $1, rounded down to a power of two.
# On CPU each rank gets one thread: unset, every rank would start one a core.
choose_ranks() {
    local limit=$1 devices
    devices="$(python -c 'import torch; print(torch.cuda.device_count())')"
    if ((devices == 0)); then
        devices="$(env -u OMP_NUM_THREADS nproc)" # with the variable set nproc would answer that
        export DS_ACCELERATOR=cpu OMP_NUM_THREADS=1
        # A step frees and allocates the same tensors again and again: glibc keeps their pages instead of returning them.
        export MALLOC_MMAP_MAX_="${MALLOC_MMAP_MAX_:-0}" MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:--1}"
    fi
    ranks=1
    while ((ranks * 2 <= devices && ranks * 2 <= limit)); do
        ranks=$((ranks * 2))
    done
}

# Set `device_options` to what makes deepspeed use $1 devices of this machine: of those that are visible, if not all are.
# shellcheck disable=SC2034 # read by the scripts that source this one
set_device_options() {
    device_options=(--num_gpus "$1")
    if [[ -n "${CUDA_VISIBLE_DEVICES:-}" ]]; then # --num_gpus would take the first ones of the machine
        device_options=(--include "localhost:$(cut -d , -f "-$1" <<<"$CUDA_VISIBLE_DEVICES")")
    fi
}

# A port that was free a moment ago, so that two jobs of one machine do not meet at the launcher's default.
free_port() {
    python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
}
