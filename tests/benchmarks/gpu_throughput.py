"""Tokens a second and MFU of pretraining on one NVIDIA GPU, against the reference: bf16, ZeRO-1, seq_len 2048.

    python -m tests.benchmarks.gpu_throughput
    python -m tests.benchmarks.gpu_throughput --models pythia-1b --micro_batch 8

The real loop with data (film reviews and 2 % synthetic blocks). The reference does the same steps in a micro batch that
leaves room for its fp32 logits. MFU = tokens/s × FLOPs per token / peak, with FLOPs per token = 6 × (parameters without
the input embedding) + 6 × layers × hidden × seq_len; the last term is the causal half of attention, which PaLM
(arXiv 2204.02311, appendix B) counts whole, with 12. Flags that this benchmark does not know go to our trainer.
"""

import torch

from data_tools.base.errors import UserError, run_command
from ds_train.model.causal_lm import load_model_config
from ds_train.model.flops import training_flops
from ds_train.model.peaks import peak_flops
from tests.benchmarks.measure import (
    Comparison,
    build_pack,
    build_splits,
    compare_phase,
    has_gpu,
    parser,
    print_table,
    rounds_table,
    scratch_directory,
)

SEQ_LEN = 2048
# Model: (our micro batch, the reference's), for 80 GB.
MICRO_BATCHES = {"pythia-160m": (16, 8), "pythia-410m": (16, 8), "pythia-1b": (8, 4)}


def main(argv: list[str] | None = None) -> None:
    command = parser(__doc__, rounds=2)
    command.add_argument("--models", nargs="+", default=list(MICRO_BATCHES), help="presets (default 160m, 410m, 1b)")
    command.add_argument("--global_batch", type=int, default=64, help="rows of a step (default 64)")
    command.add_argument("--micro_batch", type=int, help="ours (default by model)")
    command.add_argument("--reference_micro_batch", type=int, help="the reference's (default by model)")
    command.add_argument("--steps", type=int, default=25, help="optimizer steps of a run (default 25)")
    command.add_argument("--dropped", type=int, default=5, help="first steps that are not counted (default 5)")
    args, ours_only = command.parse_known_args(argv)
    if not has_gpu():
        raise UserError("gpu_throughput needs an NVIDIA GPU, and torch sees none here; nothing was measured.")
    with scratch_directory() as scratch:
        build_splits(scratch, SEQ_LEN, mixin_size=400)
        build_pack(scratch, SEQ_LEN, num_blocks=min(3000, args.steps * args.global_batch))
        for model_name in args.models:
            ours_micro, reference_micro = MICRO_BATCHES.get(model_name, (8, 4))
            shared = f"--tokenizer {scratch}/tokenizer --model_name {model_name} --total_steps {args.steps}".split()
            ours_layout = layout(args.micro_batch or ours_micro, args.global_batch)
            reference_layout = layout(args.reference_micro_batch or reference_micro, args.global_batch)
            compared = compare_phase(
                "pretrain", scratch, [*shared, *ours_layout, *ours_only], [*shared, *reference_layout], args.rounds,
                on_gpu=True, dropped=args.dropped,
            )  # fmt: skip
            print_model(model_name, args.global_batch, compared)


def layout(micro_batch: int, global_batch: int) -> list[str]:
    """Flags of a layout on one rank."""
    if global_batch % micro_batch:
        raise UserError(f"--global_batch {global_batch} is no multiple of micro batch {micro_batch}")
    return ["--micro_batch", str(micro_batch), "--grad_accum", str(global_batch // micro_batch)]


def print_model(model_name: str, global_batch: int, compared: list[Comparison]) -> None:
    """The table of a model, with MFU where the peak of the device is known."""
    peak = peak_flops(torch.device("cuda"))
    columns = ["", *Comparison.COLUMNS, *(["our MFU", "its MFU"] if peak else [])]
    per_token = flops_per_token(model_name)
    by_round = [
        [*each.values, *([rate * per_token / peak for rate in (each.ours, each.reference)] if peak else [])]
        for each in compared
    ]
    print_table(f"pretrain, {model_name}, global batch {global_batch} × {SEQ_LEN}", columns, rounds_table(by_round))


def flops_per_token(model_name: str) -> float:
    """Forward and backward of a full row, per token."""
    return training_flops(load_model_config(model_name)).of_documents([SEQ_LEN]) / SEQ_LEN


if __name__ == "__main__":
    run_command(main)
