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
# DS_ACCELERATOR=cpu leaves the GPUs alone.
# On CPU each rank gets one thread: unset, every rank would start one a core.
choose_ranks() {
    local limit=$1 devices=0
    if [[ "${DS_ACCELERATOR:-}" != cpu ]]; then
        devices="$(python -c 'import torch; print(torch.cuda.device_count())')"
    fi
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
    if [[ -n "${CUDA_VISIBLE_DEVICES:-}" && "${DS_ACCELERATOR:-}" != cpu ]]; then
        # --num_gpus would take the first ones of the machine, and deepspeed knows devices by number only.
        set_device_numbers "$(cut -d , -f "-$1" <<<"$CUDA_VISIBLE_DEVICES")"
        device_options=(--include "localhost:$device_numbers")
    fi
}

# Set `device_numbers` to the numbers of the GPUs $1, separated by commas, each given by its number or its UUID.
set_device_numbers() {
    local device number numbers=()
    for device in ${1//,/ }; do
        number="$device"
        if [[ "$device" == GPU-* ]]; then # nvidia-smi numbers devices by their place on the bus
            export CUDA_DEVICE_ORDER=PCI_BUS_ID
            number="$(nvidia-smi --query-gpu=index,uuid --format=csv,noheader | sed -n "s/^\([0-9]*\), $device.*/\1/p")"
        fi
        [[ "$number" =~ ^[0-9]+$ ]] ||
            fail "CUDA_VISIBLE_DEVICES has '$device', expected numbers or UUIDs of GPUs as nvidia-smi -L lists them; a part of a GPU (MIG) takes one process: python ds_train/…"
        numbers+=("$number")
    done
    device_numbers="$(IFS=,; echo "${numbers[*]}")"
}

# A port that was free a moment ago, so that two jobs of one machine do not meet at the launcher's default.
free_port() {
    python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
}
