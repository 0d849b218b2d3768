#!/usr/bin/env bash
# The experiment from one file: conditions × seeds; ends with a report, a table and a comparison.
#
#     bash launch/experiment.sh [CONFIG [SCRATCH_DIR]] [FLAG …]            default: the small one, no hub, no GPU
#
# You can stop it at any time (Ctrl-C, SIGUSR1, SIGTERM: exit code 85, with a checkpoint); the same command continues.
# LAUNCHER starts pptrain, pretrain and evaluate, whose name replaces {}. Default: 'bash launch/{}_hostfile.sh', this
# machine or the nodes of HOSTFILE; in a Slurm allocation: LAUNCHER='bash launch/{}_srun.sh'. See launch/README.md.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

paths=()
while (($# > 0)) && [[ "$1" != --* ]]; do # flags follow, some with several values
    paths+=("$1")
    shift
done
config="$(realpath -m "${paths[0]:-$repository/ds_configs/experiments/small.yaml}")"
scratch="$(realpath -m "${paths[1]:-$repository/runs/experiment_$(basename "${config%.*}")}")"
use_virtualenv
if [[ -z "${LAUNCHER:-}${HOSTFILE+set}${NUM_RANKS:-}" ]]; then
    choose_ranks 8 # more would not divide the small global batches
    export NUM_RANKS="$ranks"
fi
cd "$repository" # relative paths within CONFIG begin here
exec python -m ds_train.experiment "$config" "$scratch" --launcher "${LAUNCHER:-bash launch/{\}_hostfile.sh}" "${paths[@]:2}" "$@"
