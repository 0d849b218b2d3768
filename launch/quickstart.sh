#!/usr/bin/env bash
# The whole comparison in miniature: installs, pre-pretrains a 1 M-parameter model on problems, then trains it and a
# fresh one on the same documents, and says which one needed fewer.
#
#     bash launch/quickstart.sh [SCRATCH_DIR]         default: runs/demo
#
# You can stop it at any time. Started again, it keeps finished parts, and a run continues from its newest checkpoint.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

scratch="$(realpath -m "${1:-$repository/runs/demo}")"
splits="$scratch/data/nl_splits/mis48_look8_seed12345"
cd "$repository"
export TQDM_DISABLE=1 # nothing here takes long enough for a progress bar

stage() {
    printf '\n== %d:%02d  %s\n' $((SECONDS / 60)) $((SECONDS % 60)) "$1"
}

# Run a script of ds_train on all ranks. Of train rows every fiftieth step is shown; logs/train.jsonl holds every tenth.
launch() {
    deepspeed --quiet "${device_options[@]}" --master_port "$(free_port)" \
        "ds_train/$1.py" "${@:2}" --scratch_dir "$scratch" 2>&1 |
        sed -uE '/^[^ ]+ [^ ]+ p(p|re)train [0-9]*([1-9]|[1-46-9]0)\//d' # not awk: mawk waits for whole blocks
}

stage "install"
bash launch/install.sh
use_virtualenv
choose_ranks 8
set_device_options "$ranks"

stage "documents, problems, tokenizer, packed blocks"
python -m data_tools.fetch_assets corpus --out "$scratch/corpus"
if [[ ! -e "$splits/meta.json" ]]; then # appears last
    python data_tools/build_data_splits.py --scratch_dir "$scratch" --max_input_size 48 --max_lookahead 8 \
        --eval_size 500 --test_size 1000 --mixin_size 5000
fi
python -m data_tools.train_tokenizer --corpus "$scratch/corpus" --documents 2000 --extra "$splits/mixin.jsonl" \
    --extra_rows 5000 --vocab_size 1024 --out "$scratch/tokenizer"
python data_tools/build_pretrain.py --scratch_dir "$scratch" --source "$scratch/corpus" \
    --tokenizer "$scratch/tokenizer" --seq_len 512 --total_steps 200 --effective_batch 8 --val_blocks 64

stage "pptrain on $ranks ranks: 8 stages; 98 % of the last 200 problems right opens the next"
launch pptrain --model_name pythia-tiny --tokenizer "$scratch/tokenizer" --seq_len 512 --max_steps 750 \
    --micro_batch 4 --lr 1e-3 --warmup_steps 100 --mixed_precision no --eval_subset_size 200

stage "pretrain on $ranks ranks: the pre-pretrained model, and a fresh one on the same documents"
pretrain() { # RUN_NAME, then where its weights come from
    launch pretrain --run_name "$1" "${@:2}" --seq_len 512 --total_steps 200 --mixin_percent 0 \
        --global_batch 8 --micro_batch 1 --lr 1e-3 --warmup_steps 30 --mixed_precision no \
        --eval_every 25 --save_every 100 --eval_subset_size 200
}
pretrain pre-pretrained --pptrain_checkpoint latest
pretrain fresh --pptrain_checkpoint none --model_name pythia-tiny --tokenizer "$scratch/tokenizer"

stage "evaluate pptrain on the test split"
launch evaluate "$scratch/pptrain" --split test --micro_batch 2 --output "$scratch/pptrain/test.json" >/dev/null

stage "results"
runs=("$scratch/pptrain" "$scratch/pre-pretrained" "$scratch/fresh")
python -m data_tools.summarize_run "${runs[@]}" --evaluation "$scratch/pptrain/test.json"
python -m data_tools.plot_run "${runs[@]}" --out "$scratch/report" --evaluation "$scratch/pptrain/test.json"
cat <<'TEXT'

How to read this: the curriculum advances by its own rule only, 98 % of the last 200 problems right, each seen for the
first time. Up to stage 2 (lookahead 0 and 1) the answer is always the goal that the prompt names, so copying it is
enough; search begins with lookahead 2, in stage 3, and takes far longer than this demo. Held-out and test problems are
of full difficulty: lookahead 0 … 6. The curriculum has 8 stages, but no longer path fits into problems of size 48. This
demo's curriculum reaches only the easiest of them.

Accuracy on problems falls in the second phase, because this demo mixes none into the documents (--mixin_percent 0): the
model forgets them. The purpose of pre-pretraining is a lower loss on documents, so the last words compare the two runs
on held-out documents. One seed of a model of 1 M parameters shows how the question is answered, not what the answer is;
bash launch/experiment.sh --seeds 1 2 3 compares more conditions, over three seeds.

TEXT
python -m data_tools.compare --base "$scratch/fresh" --run "$scratch/pre-pretrained" --out "$scratch/comparison"
