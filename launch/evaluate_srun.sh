#!/usr/bin/env bash
# Evaluate a checkpoint as one Slurm task a device, inside salloc or sbatch, or with SRUN_OPTIONS by itself. See launch/README.md.
#
#     bash launch/evaluate_srun.sh RUN --scratch_dir DIR …         arguments go to ds_train/evaluate.py
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=cluster.sh
source "$(dirname "${BASH_SOURCE[0]}")/cluster.sh"
launch_with_srun evaluate "$@"
