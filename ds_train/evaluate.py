"""Evaluate a checkpoint on graph search (eval or test split) and on held-out C4.

    python ds_train/evaluate.py RUN/checkpoints/step_00010000 --scratch_dir DIR --split test --output result.json

CHECKPOINT is a step directory, a run directory (its newest checkpoint) or a Hugging Face directory.
"""

import argparse
import sys
from pathlib import Path

if __package__ in (None, ""):  # launched as a file: import the project, not the modules beside this file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from data_tools.base.command_line import CommandParser, any_seed, length, positive
from data_tools.base.errors import UserError
from ds_train.ranks.entry import run_entry


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    if args.output and (args.output.is_dir() or not args.output.parent.is_dir()):
        raise UserError(f"--output {args.output}: expected a file in a directory that exists; make it first.")
    from ds_train.phases.scores import score  # takes seconds

    return score(args)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the flags; refuses bad values before anything is read."""
    parser = CommandParser(description=__doc__)
    parser.add_argument("checkpoint", help="step, run or Hugging Face directory")
    parser.add_argument("--scratch_dir", required=True, help="directory of all data and runs")
    parser.add_argument("--split", choices=("eval", "test"), default="eval", help="which problems")
    parser.add_argument("--data_dir", help="directory of the splits (default: the only one under scratch_dir)")
    parser.add_argument("--pack_dir", type=Path, help="packed C4 (default: scratch_dir/data/c4_packed, if it exists)")
    parser.add_argument("--tokenizer", help="hub id, directory or tokenizer.json (default: the checkpoint's)")
    parser.add_argument(
        "--seq_len", type=length, help="longest example, in tokens (default: the checkpoint's, or 2048)"
    )
    parser.add_argument("--num_examples", type=positive, help="size of a seeded subset of the examples (default: all)")
    parser.add_argument("--seed", type=any_seed, default=1337, help="seed of the subset (default 1337)")
    parser.add_argument("--micro_batch", type=positive, default=8, help="examples per forward (default 8)")
    parser.add_argument(
        "--dtype", choices=("fp32", "bf16"), default="fp32", help="precision of the model (default fp32)"
    )
    parser.add_argument("--output", type=Path, help="write the results here as JSON")
    parser.add_argument(
        "--num_ranks", type=positive, help="number of ranks that this launch must have; any other is an error"
    )
    parser.add_argument(
        "--num_nodes", type=positive, help="number of nodes that this launch must have; any other is an error"
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # given by the deepspeed launcher
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_entry(main)
