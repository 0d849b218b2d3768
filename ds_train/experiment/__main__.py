"""The experiment: does pre-pretraining on graph search, with a curriculum, make pretraining more sample-efficient?

    bash launch/experiment.sh CONFIG SCRATCH_DIR

Three runs that differ in nothing but what is compared:

    A  pre-pretrained weights, C4 with synthetic blocks
    B  random weights,         C4 only
    C  random weights,         C4 with synthetic blocks

They share seed, steps, global batch, schedule, tokenizer, pack and held-out data. C4 is read in one order: the n-th C4
block of a run is that of every run. A and C draw their synthetic blocks at the same places of the same steps; B reads
further C4 blocks there. B and C start from equal weights, and so did the pre-pretraining of A.

CONFIG is a YAML file with sections of flags:

    splits      of data_tools/build_data_splits.py
    corpus      of data_tools/fetch_assets.py corpus; if it is there, its documents take the place of C4
    tokenizer   of data_tools/train_tokenizer.py; or a hub id, directory or tokenizer.json
    pack        of data_tools/build_pretrain.py; what follows from the training is not said again
    training    of pptrain.py and pretrain.py alike
    pptrain, pretrain   of one of them
    evaluate    of evaluate.py

What ended well is recorded in SCRATCH_DIR/experiment.json and not run again. Ended by a signal (exit code 85), by STOP
(86) or by an error, the same command goes on, also with another launcher or number of ranks.
"""

import shlex
from pathlib import Path

from data_tools.base.command_line import CommandParser
from data_tools.base.errors import UserError, run_command
from ds_train.experiment.conditions import PPTRAIN, evaluation_file, result_table
from ds_train.experiment.plan import Experiment
from ds_train.experiment.steps import num_done, run_steps


def main(argv: list[str] | None = None) -> int:
    parser = CommandParser(description=__doc__)
    parser.add_argument("config", type=Path, metavar="CONFIG", help="YAML file; see ds_configs/experiments")
    parser.add_argument("scratch_dir", type=Path, metavar="SCRATCH_DIR", help="directory of all data and runs")
    parser.add_argument(
        "--launcher",
        default="python ds_train/{}.py",
        help="starts pptrain, pretrain and evaluate, each in the place of {}; flags follow",
    )
    parser.add_argument("--dry_run", action="store_true", help="show each step, and whether it is done; start nothing")
    args = parser.parse_args(argv)
    if "{}" not in args.launcher:
        raise UserError(f"--launcher {args.launcher!r} does not say with {{}} where pptrain, pretrain, … is to stand.")
    scratch = args.scratch_dir.resolve()
    steps, record = Experiment(args.config, scratch, shlex.split(args.launcher)).steps(), scratch / "experiment.json"
    if args.dry_run:
        first = num_done(steps, record)
        for number, step in enumerate(steps):
            print(f"\n# {step.title}{' (done)' if number < first else ''}\n{shlex.join(step.command)}")
        return 0
    evaluation_file(scratch, PPTRAIN).parent.mkdir(parents=True, exist_ok=True)
    if code := run_steps(steps, record):
        return code
    print(f"\n{result_table(scratch)}")
    return 0


if __name__ == "__main__":
    run_command(main)
