"""Useful tokens a second of a pptrain step against the reference, Pythia-160m shapes, alpha 0.5, one rank.

    python -m tests.benchmarks.pptrain_step
    python -m tests.benchmarks.pptrain_step --micro_batch 16 --steps 5

Ours is the trainer through its command line, loader worker included. Useful tokens are targets that are no padding.
Medians over the steps after the second. Flags that this benchmark does not know go to our trainer.
"""

from data_tools.base.errors import run_command
from tests.benchmarks.measure import build_splits, compare_phase, parser, print_comparison, scratch_directory


def main(argv: list[str] | None = None) -> None:
    command = parser(__doc__, rounds=2)
    command.add_argument("--model_name", default="pythia-160m", help="preset (default pythia-160m)")
    command.add_argument("--micro_batch", type=int, default=2, help="samples of a forward (default 2)")
    command.add_argument("--grad_accum", type=int, default=2, help="micro-batches of a step (default 2)")
    command.add_argument("--stage", type=int, default=32, help="alpha = stage / 64 (default 32)")
    command.add_argument("--steps", type=int, default=8, help="optimizer steps of a run, at least 4 (default 8)")
    args, ours_only = command.parse_known_args(argv)
    with scratch_directory() as scratch:
        build_splits(scratch)
        flags = f"""--tokenizer {scratch}/tokenizer --model_name {args.model_name} --max_steps {args.steps}
            --micro_batch {args.micro_batch} --grad_accum {args.grad_accum} --start_stage {args.stage}""".split()
        compared = compare_phase("pptrain", scratch, [*flags, *ours_only], flags, args.rounds)
    layout = f"micro batch {args.micro_batch} × accumulation {args.grad_accum}"
    print_comparison(f"pptrain step, {args.model_name}, alpha {args.stage / 64:g}, {layout}", compared)


if __name__ == "__main__":
    run_command(main)
