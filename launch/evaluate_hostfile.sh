#!/usr/bin/env bash
# Evaluate a checkpoint through the `deepspeed` launcher, on this node or, with HOSTFILE, on several. See launch/README.md.
#
#     [HOSTFILE=FILE] bash launch/evaluate_hostfile.sh RUN --scratch_dir DIR …         arguments go to ds_train/evaluate.py
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=cluster.sh
source "$(dirname "${BASH_SOURCE[0]}")/cluster.sh"
launch_with_deepspeed evaluate "$@"
