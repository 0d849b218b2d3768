#!/usr/bin/env bash
# The whole pipeline in miniature: installs, then trains a 1 M-parameter model through both phases on this machine.
#
#     bash launch/quickstart.sh [SCRATCH_DIR]         default: runs/demo
#
# Two CPU cores take about eight minutes. Stop it whenever you like: started again, every stage finds what is finished
# and the runs go on from their newest checkpoint. RANKS=n sets the number of processes (default: one a core or GPU,
# at most 8); like any other layout it changes the speed, not the result.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

scratch="$(realpath -m "${1:-$repository/runs/demo}")"
cd "$repository"

# What both phases share. Real runs take all but the model from the DeepSpeed JSON; the demo is short, so it warms up
# fast and learns fast.
demo_flags=(--scratch_dir "$scratch" --model_name pythia-tiny --tokenizer "$scratch/tokenizer" --seq_len 512)

started=$SECONDS
stage() {
    printf '\n[%d:%02d] %s\n' $(((SECONDS - started) / 60)) $(((SECONDS - started) % 60)) "$*"
}
