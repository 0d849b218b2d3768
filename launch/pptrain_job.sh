#!/usr/bin/env bash
# Pre-pretrain as a Slurm job that resumes by itself: preempted or out of time, it saves and requeues. See launch/README.md.
#
#     sbatch launch/pptrain_job.sh --scratch_dir DIR …         in the repository; arguments go to ds_train/pptrain.py

# Edit these; options of the sbatch command line win over them.
#SBATCH --job-name=pptrain
##SBATCH --partition=NAME
##SBATCH --account=NAME
##SBATCH --mail-user=NAME@EXAMPLE.ORG
#SBATCH --time=24:00:00
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --mem=0

# Preemption, requeueing and the log depend on these.
#SBATCH --signal=USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm/%j_pptrain.out
#SBATCH --mail-type=BEGIN,END,FAIL,REQUEUE

set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit this file with sbatch}" # Slurm runs a copy of this file, which is elsewhere
# shellcheck source-path=SCRIPTDIR source=cluster.sh
source launch/cluster.sh || { echo "error: submit in the repository: sbatch launch/pptrain_job.sh" >&2 && exit 1; }
run_job pptrain "$@"
