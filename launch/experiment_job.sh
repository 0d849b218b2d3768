#!/usr/bin/env bash
# The experiment as a Slurm job that continues by itself: preempted or out of time, it stops and requeues. See launch/README.md.
#
#     sbatch launch/experiment_job.sh CONFIG DIR [FLAG …]      in the repository; all steps, one after another, in one job
#     python -m ds_train.experiment CONFIG DIR --submit        the same steps as jobs that depend on each other

# Edit these; options of the sbatch command line, and of --sbatch, win over them.
#SBATCH --job-name=experiment
##SBATCH --partition=NAME
##SBATCH --account=NAME
##SBATCH --mail-user=NAME@EXAMPLE.ORG
#SBATCH --time=24:00:00
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --mem=0

# Preemption, requeueing and the log depend on these. B: the shell passes the signal on, also while no trainer runs.
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm/%j_experiment.out
#SBATCH --mail-type=BEGIN,END,FAIL,REQUEUE

set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit this file with sbatch}" # Slurm runs a copy of this file, which is elsewhere
# shellcheck source-path=SCRIPTDIR source=cluster.sh
source launch/cluster.sh || { echo "error: submit in the repository: sbatch launch/experiment_job.sh" >&2 && exit 1; }
run_experiment_job "$@"
