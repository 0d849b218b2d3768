"""Useful tokens a second of a pretrain step with a share of synthetic blocks against the reference, one rank.

    python -m tests.benchmarks.pretrain_step --seq_len 512
    python -m tests.benchmarks.pretrain_step --seq_len 2048

The documents are film reviews. The reference pads each example of a synthetic block to its own row. At
--seq_len 512 problems have a lookahead of up to 16, at 2048 up to 64. Medians over the steps after the second. Flags
that this benchmark does not know go to our trainer.
"""

from data_tools.base.errors import run_command
from tests.benchmarks.measure import (
    build_pack,
    build_splits,
    compare_phase,
    parser,
    print_comparison,
    scratch_directory,
)


def main(argv: list[str] | None = None) -> None:
    command = parser(__doc__, rounds=2)
    command.add_argument("--model_name", default="pythia-160m", help="preset (default pythia-160m)")
    command.add_argument("--seq_len", type=int, default=512, help="tokens of a row (default 512)")
    command.add_argument("--micro_batch", type=int, help="rows of a forward (default 2 at 512, else 1)")
    command.add_argument("--grad_accum", type=int, default=2, help="micro-batches of a step (default 2)")
    command.add_argument("--mixin_percent", type=float, default=0.02, help="synthetic share of tokens (default 0.02)")
    command.add_argument("--steps", type=int, default=10, help="optimizer steps of a run, at least 4 (default 10)")
    args, ours_only = command.parse_known_args(argv)
    micro_batch = args.micro_batch or (2 if args.seq_len <= 512 else 1)
    with scratch_directory() as scratch:
        build_splits(scratch, args.seq_len, mixin_size=64)
        build_pack(scratch, args.seq_len, num_blocks=args.steps * micro_batch * args.grad_accum)
        flags = f"""--tokenizer {scratch}/tokenizer --model_name {args.model_name} --total_steps {args.steps}
            --seq_len {args.seq_len} --mixin_percent {args.mixin_percent}
            --micro_batch {micro_batch} --grad_accum {args.grad_accum}""".split()
        compared = compare_phase("pretrain", scratch, [*flags, *ours_only], flags, args.rounds)
    layout = f"micro batch {micro_batch} × accumulation {args.grad_accum}"
    share = f"{100 * args.mixin_percent:g} % mixin"
    print_comparison(f"pretrain step, {args.model_name}, seq_len {args.seq_len}, {share}, {layout}", compared)


if __name__ == "__main__":
    run_command(main)
