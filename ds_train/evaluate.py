"""Evaluate checkpoints on graph search (eval or test split), on held-out C4, and on tasks of lm-evaluation-harness.

    python ds_train/evaluate.py RUN/checkpoints/step_00010000 --scratch_dir DIR --split test --output result.json
    python ds_train/evaluate.py RUN --scratch_dir DIR --all_checkpoints --csv results.csv --tasks blimp lambada_openai

CHECKPOINT is a step directory, a run directory (its newest checkpoint) or a Hugging Face directory. Repeat a command
with --csv, and it evaluates the checkpoints that the file lacks.
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
    for name in ("output", "csv"):
        path = vars(args)[name]
        if path and (path.is_dir() or not path.parent.is_dir()):
            raise UserError(f"--{name} {path}: expected a file in a directory that exists; make it first.")
    if args.output and (args.all_checkpoints or len(args.checkpoint) > 1):
        raise UserError("--output holds the results of one checkpoint; give --csv FILE for several.")
    if args.tasks_dir and not args.tasks:
        raise UserError("--tasks_dir is where --tasks are looked for; give their names.")
    from ds_train.phases.scores import score  # takes seconds

    return score(args)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the flags; refuses bad values before anything is read."""
    parser = CommandParser(description=__doc__)
    parser.add_argument("checkpoint", nargs="+", help="step, run or Hugging Face directory")
    parser.add_argument("--all_checkpoints", action="store_true", help="each checkpoint of each run, oldest first")
    parser.add_argument("--scratch_dir", required=True, help="directory of all data and runs")
    parser.add_argument("--split", choices=("eval", "test"), default="eval", help="which problems")
    parser.add_argument("--data_dir", help="directory of the splits (default: the only one under scratch_dir)")
    parser.add_argument("--pack_dir", type=Path, help="packed C4 (default: that in scratch_dir, if it exists)")
    parser.add_argument("--tokenizer", help="hub id, directory or tokenizer.json (default: the checkpoint's)")
    parser.add_argument(
        "--seq_len", type=length, help="longest example, in tokens (default: the checkpoint's, or 2048)"
    )
    parser.add_argument("--num_examples", type=positive, help="size of a seeded subset of the examples (default: all)")
    parser.add_argument("--seed", type=any_seed, default=1337, help="seed of the subset (default 1337)")
    parser.add_argument(
        "--micro_batch",
        type=positive,
        default=8,
        help="full examples whose tokens fit into a forward (default 8)",
    )
    parser.add_argument(
        "--dtype", choices=("fp32", "bf16"), help="precision of the model (default: bf16 on GPUs, fp32 on CPUs)"
    )
    parser.add_argument("--output", type=Path, help="write the results of one checkpoint here as JSON")
    parser.add_argument("--csv", type=Path, help="add a row for each checkpoint here, and pass over those it has")
    parser.add_argument("--tasks", nargs="+", help="tasks of lm-evaluation-harness to run as well (one process)")
    parser.add_argument("--tasks_dir", type=Path, help="directory of more tasks, in the harness's YAML")
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
