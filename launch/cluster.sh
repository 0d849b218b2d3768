# Shell lines shared by the scripts that start training on nodes. Source it after `set -euo pipefail`.
# shellcheck shell=bash
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# Variables of this shell that every node of a hostfile gets. Names like WANDB_API_KEY are left out: pdsh would show them
# to every user of a node; use those programs' own login files.
forwarded='^(PATH|LD_LIBRARY_PATH|CUDA_HOME|OMP_NUM_THREADS|MALLOC_[A-Z_]*|TQDM_DISABLE'
forwarded+='|(PYTHON|DS_|TORCH_|PYTORCH_|NCCL_|GLOO_|UCX_|HF_|TRANSFORMERS_|TOKENIZERS_|WANDB_).*)$'
secret='_(TOKEN|KEY|SECRET|PASSWORD)$'

# Set `num_nodes` and `num_ranks` from hostfile $1. Stricter than DeepSpeed, which continues with this node alone if it
# cannot find the file.
read_hostfile() {
    local file=$1 line seen=" " number=0
    local form='^([^[:space:]#]+)[[:space:]]+slots=([1-9][0-9]*)[[:space:]]*(#.*)?$'
    [[ -f "$file" && -r "$file" ]] ||
        fail "HOSTFILE is '$file', which is not a readable file; see launch/hostfile.example, or unset it for one node"
    num_nodes=0 num_ranks=0
    while read -r line || [[ -n "$line" ]]; do
        number=$((number + 1))
        [[ -z "$line" || "$line" == '#'* ]] && continue
        [[ "$line" =~ $form ]] || fail "$file line $number is '$line', expected 'NAME slots=NUMBER', e.g. 'worker-0 slots=8'"
        [[ "$seen" != *" ${BASH_REMATCH[1]} "* ]] ||
            fail "$file line $number names ${BASH_REMATCH[1]} again; give each node one line with all its slots"
        seen+="${BASH_REMATCH[1]} "
        num_nodes=$((num_nodes + 1)) num_ranks=$((num_ranks + BASH_REMATCH[2]))
    done <"$file"
    ((num_nodes > 0)) || fail "$file names no node; expected lines like 'worker-0 slots=8'"
}

# A shell on the node takes DeepSpeed's command apart, and pdsh replaces %h and its like before.
special=$'[][:space:]"\'`$\\\\|&;<>(){}*?!#~%[]'

# Print $1 as it must stand within the double quotes that DeepSpeed adds; it escapes those inside itself for arguments.
escaped() {
    local text=${1//%/%%}
    text=${text//\\/\\\\}
    text=${text//\$/\\\$}
    printf '%s' "${text//\`/\\\`}"
}

# Set `node_arguments` to the arguments such that each arrives on the nodes as it was given.
set_node_arguments() {
    local argument
    node_arguments=()
    for argument in "$@"; do
        [[ "$argument" != *$'\n'* ]] || fail "the argument '$argument' has two lines, which the launcher cannot pass on"
        if [[ "$argument" == *' '* ]]; then # DeepSpeed puts it into double quotes
            argument="$(escaped "$argument")"
        elif [[ -z "$argument" || "$argument" =~ $special ]]; then
            argument=${argument//\'/\'\\\'\'}
            argument="'${argument//%/%%}'"
        fi
        node_arguments+=("$argument")
    done
}

# Refuse directories that DeepSpeed would not quote: it would train in another one, or not at all.
check_directories() {
    local directory
    for directory in "$PWD" "$repository" "$virtualenv"; do
        [[ ! "$directory" =~ $special ]] ||
            fail "'$directory' has characters that DeepSpeed does not quote for the nodes of a hostfile; use a directory without blanks and signs like \$ or '"
    done
}

# Print NAME=VALUE lines for the nodes: this shell's variables, then those of the user's own DeepSpeed environment file.
node_environment() {
    local name file value
    for name in $(compgen -e); do
        if [[ "$name" =~ $forwarded && ! "$name" =~ $secret && "${!name}" != *$'\n'* ]]; then
            value="$(escaped "${!name}")"
            printf '%s=%s\n' "$name" "${value//\"/\\\"}"
        fi
    done
    for file in "${HOME:+$HOME/.deepspeed_env}" .deepspeed_env; do
        [[ -z "${DS_ENV_FILE:-}" ]] || file="$DS_ENV_FILE"
        if [[ -f "$file" ]]; then
            sed -n '/^[[:space:]]*#/d; /=/p' "$file"
        fi
    done
}

# Refuse malformed numbers before anything starts.
check_numbers() {
    [[ -z "${NUM_RANKS:-}" || "$NUM_RANKS" =~ ^[1-9][0-9]*$ ]] || fail "NUM_RANKS is '$NUM_RANKS', expected a number from 1"
    [[ -z "${MASTER_PORT:-}" || ("$MASTER_PORT" =~ ^[1-9][0-9]{0,4}$ && "$MASTER_PORT" -lt 65536) ]] ||
        fail "MASTER_PORT is '$MASTER_PORT', expected a number from 1 to 65535"
    [[ -z "${DS_ENV_FILE:-}" || -f "$DS_ENV_FILE" ]] || fail "DS_ENV_FILE is '$DS_ENV_FILE', which is not a file"
}

# Train phase $1 through the `deepspeed` launcher: over the nodes of $HOSTFILE, or without one on this node.
launch_with_deepspeed() {
    local trainer="$repository/ds_train/$1.py" options ranks environment node_arguments
    shift
    check_numbers
    use_virtualenv
    if [[ -n "${HOSTFILE+set}" ]]; then
        read_hostfile "$HOSTFILE"
        check_directories
        set_node_arguments "$@"
        set -- "${node_arguments[@]}"
        command -v pdsh >/dev/null || fail "HOSTFILE is set but there is no pdsh here, which reaches the nodes; install it"
        # A node that vanishes without closing its connections is noticed after two minutes.
        export PDSH_SSH_ARGS_APPEND="-o ServerAliveInterval=15 -o ServerAliveCountMax=8 ${PDSH_SSH_ARGS_APPEND:-}"
        # DeepSpeed takes only a file name. The file is removed at once and stays readable through the descriptor.
        environment="$(mktemp)"
        exec 9<"$environment" # inherited by deepspeed
        node_environment >"$environment"
        rm "$environment"
        export DS_ENV_FILE=/dev/fd/9
        # Without --force_multi a hostfile of one node would be run here, whichever node it names.
        options=(--hostfile "$HOSTFILE" --force_multi ${MASTER_ADDR:+--master_addr "$MASTER_ADDR"})
    else
        choose_ranks 1024
        num_nodes=1 num_ranks="${NUM_RANKS:-$ranks}"
        set_device_options "$num_ranks"
        options=("${device_options[@]}")
    fi
    exec deepspeed --quiet --master_port "${MASTER_PORT:-$(free_port)}" "${options[@]}" \
        "$trainer" --num_ranks "$num_ranks" --num_nodes "$num_nodes" "$@"
}

# Set `srun_command` to the command that runs phase $1 as one task per device of the surrounding allocation.
# $SRUN_OPTIONS, split at blanks, shape the step or, outside of an allocation, request one.
set_srun_command() {
    local options
    read -ra options <<<"${SRUN_OPTIONS:-}"
    check_numbers
    use_virtualenv
    export SRUN_CPUS_PER_TASK="${SRUN_CPUS_PER_TASK:-${SLURM_CPUS_PER_TASK:-}}" # since Slurm 22.05 not inherited
    [[ -n "$SRUN_CPUS_PER_TASK" ]] || unset SRUN_CPUS_PER_TASK
    # Ranks exit together, and srun returns the largest of their exit codes. If it killed them at the first one that is
    # not 0, it would return 143 instead. A rank that has not exited a minute later hangs.
    srun_command=(srun --kill-on-bad-exit=0 --wait=60 "${options[@]}" python "$repository/ds_train/$1.py")
    if [[ -n "${NUM_RANKS:-}" ]]; then
        srun_command+=(--num_ranks "$NUM_RANKS")
    fi
}

launch_with_srun() {
    local srun_command phase=$1
    shift
    set_srun_command "$phase"
    exec "${srun_command[@]}" "$@"
}

# The value of trainer flag $1 among the arguments that follow the default $2.
flag_value() {
    local name=$1 value=$2
    shift 2
    while (($# > 0)); do
        case "$1" in
            "$name") value="${2:-}" ;;
            "$name="*) value="${1#*=}" ;;
        esac
        shift
    done
    echo "$value"
}

# The step of the newest checkpoint in run directory $1, 0 where there is none.
newest_step() {
    local directory newest=0
    for directory in "$1"/checkpoints/step_*; do
        if [[ "$directory" =~ /step_([0-9]+)$ ]] && ((10#${BASH_REMATCH[1]} > newest)); then
            newest=$((10#${BASH_REMATCH[1]}))
        fi
    done
    echo "$newest"
}

describe_job() {
    echo "== $(date --iso-8601=seconds)  job $SLURM_JOB_ID, restart ${SLURM_RESTART_COUNT:-0}, on $SLURM_JOB_NODELIST," \
        "${SLURM_NTASKS} tasks"
    echo "repository $repository, commit $(git -C "$repository" describe --always --dirty 2>/dev/null || echo unknown)"
    echo "arguments $*"
    python -c 'import sys
from importlib.metadata import version
print("python", sys.version.split()[0], *(f"{name} {version(name)}" for name in ("torch", "deepspeed", "transformers")))'
    if has_nvidia_gpu; then nvidia-smi -L; fi
    env | grep -E '^(SLURM_(JOB|NTASKS|NNODES|GPUS|CPUS|CLUSTER)|CUDA|NCCL|GLOO|OMP|DS_|TORCH)' | sort
    echo
}

# Ask Slurm to run this job again, unless it was cancelled meanwhile: only a running job is requeued.
requeue() {
    local state
    state="$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *JobState=\([A-Z_]*\).*/\1/p')"
    if [[ "$state" != RUNNING ]]; then
        echo "not requeued: this job is $state"
        return
    fi
    echo "requeued: $1"
    scontrol requeue "$SLURM_JOB_ID"
}

# After a lost rank: requeue, at most $MAX_RESTARTS times (default 3) while the newest checkpoint, of step $1, stays the
# same. File $2 keeps count.
requeue_after_failure() {
    local step=$1 counts=$2 restarts=0 step_before=-1
    if [[ -f "$counts" ]]; then
        read -r restarts step_before <"$counts"
    fi
    if ((step > step_before)); then restarts=0; fi
    if ((restarts >= ${MAX_RESTARTS:-3})); then
        echo "not requeued: $restarts restarts at step $step brought no newer checkpoint (MAX_RESTARTS)"
        return
    fi
    echo "$((restarts + 1)) $step" >"$counts"
    requeue "a rank died or hung; restart $((restarts + 1)) of at most ${MAX_RESTARTS:-3} at step $step"
}

# The body of a batch job that trains phase $1; the other arguments are the trainer's.
run_job() {
    local phase=$1 code=0 run counts srun_command
    shift
    [[ -n "${SLURM_NTASKS:-}" ]] || fail "the number of tasks is not set; give --ntasks-per-node, one a device"
    run="$(flag_value --scratch_dir "" "$@")/$(flag_value --run_name "$phase" "$@")"
    counts="slurm/${SLURM_JOB_ID}_$phase.restarts"
    trap : TERM USR1 # this shell outlives the trainer, to decide what comes next
    NUM_RANKS="${NUM_RANKS:-$SLURM_NTASKS}"
    set_srun_command "$phase"
    describe_job "$@"
    "${srun_command[@]}" "$@" || code=$?
    echo "== $(date --iso-8601=seconds)  exit code $code"
    if ((code == 85)); then
        requeue "preempted at step $(newest_step "$run")"
    elif ((code == 87 || code > 128)); then # srun gives 128 + the signal that killed a rank, e.g. 137 out of memory
        requeue_after_failure "$(newest_step "$run")" "$counts"
    fi
    exit "$code"
}

# Set `arguments` to the arguments, where a task of an array keeps only its own of the names after --steps, and `names`
# to the names that are kept.
choose_steps() {
    local argument number=0 is_name=false
    arguments=() names=()
    for argument in "$@"; do
        if [[ "$argument" == --* ]]; then
            is_name=false
            [[ "$argument" != --steps ]] || is_name=true
        elif $is_name; then
            number=$((number + 1))
            [[ -z "${SLURM_ARRAY_TASK_ID:-}" ]] || ((number == SLURM_ARRAY_TASK_ID + 1)) || continue
            names+=("$argument")
        fi
        arguments+=("$argument")
    done
    [[ -z "${SLURM_ARRAY_TASK_ID:-}" ]] || ((${#names[@]} > 0)) ||
        fail "task $SLURM_ARRAY_TASK_ID of the array has none of the $number names after --steps; they begin with task 0"
}

# Print the sum of the newest steps of the runs in $1: of the names that follow, or of all.
steps_of_runs() {
    local directory=$1 run runs sum=0
    runs=("${@:2}")
    ((${#runs[@]} > 0)) || mapfile -t runs < <(cd "$directory" && { compgen -G '*/seed_*'; compgen -G '*/*/seed_*'; })
    for run in "${runs[@]}"; do
        sum=$((sum + $(newest_step "$directory/$run")))
    done
    echo "$sum"
}

# The body of a batch job of the experiment; the arguments are those of ds_train.experiment, CONFIG and DIR first.
run_experiment_job() {
    local directory code child is_signalled is_preempted=false arguments names
    [[ $# -ge 2 && "$1" != --* && "$2" != --* ]] || fail "give CONFIG and DIR, then flags of ds_train.experiment"
    [[ -n "${SLURM_NTASKS:-}" ]] || fail "the number of tasks is not set; give --ntasks-per-node, one a device"
    choose_steps "$@"
    check_numbers
    use_virtualenv
    export NUM_RANKS="${NUM_RANKS:-$SLURM_NTASKS}"
    directory="$(realpath -m "$2")"
    mkdir -p "$directory/queue"
    describe_job "${arguments[@]}"
    # In the background: a shell handles signals only between commands that it waits for.
    python -m ds_train.experiment --launcher "${LAUNCHER:-bash launch/{\}_srun.sh}" "${arguments[@]}" &
    child=$!
    trap 'is_signalled=true is_preempted=true; kill -USR1 "$child" 2>/dev/null || true' TERM USR1
    is_signalled=true
    while $is_signalled; do # a signal ends the wait, not the experiment
        is_signalled=false code=0
        wait "$child" || code=$?
    done
    echo "== $(date --iso-8601=seconds)  exit code $code"
    if ((code == 85)) || { $is_preempted && ((code > 128)); }; then # above 128: it was still starting
        requeue "preempted"
    elif ((code == 87 || code > 128)); then
        requeue_after_failure "$(steps_of_runs "$directory" "${names[@]}")" "$directory/queue/$SLURM_JOB_ID.restarts"
    fi
    exit "$code"
}
