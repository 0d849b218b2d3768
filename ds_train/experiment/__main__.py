"""The experiment: does pre-pretraining on graph search, with a curriculum, make pretraining more sample-efficient?

    bash launch/experiment.sh CONFIG SCRATCH_DIR

It trains three models that differ only in what is compared:

    A  pre-pretrained weights, C4 with synthetic blocks
    B  random weights,         C4 only
    C  random weights,         C4 with synthetic blocks

They share seed, steps, global batch, schedule, tokenizer, pack and held-out data. All read C4 in one order. A and C
read synthetic blocks at the same positions of the same steps, where B reads further C4 blocks. B, C and the
pre-pretraining of A start from the same random weights.

CONFIG is a YAML file with sections of flags:

    splits      for data_tools/build_data_splits.py
    corpus      for data_tools/fetch_assets.py corpus, whose documents then replace C4
    tokenizer   for data_tools/train_tokenizer.py; or a hub id, directory or tokenizer.json
    pack        for data_tools/build_pretrain.py; its size follows from the training
    training    for both pptrain.py and pretrain.py
    pptrain, pretrain   for one of them
    evaluate    for evaluate.py

Finished steps are recorded in SCRATCH_DIR/experiment.json and not run again. After a signal (exit code 85), STOP (86)
or an error, the same command continues, also with another launcher or number of ranks.
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
        help="starts pptrain, pretrain and evaluate, whose name replaces {}; flags follow",
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="check all settings, show each step and whether it is done; start nothing",
    )
    args = parser.parse_args(argv)
    if "{}" not in args.launcher:
        raise UserError(f"--launcher {args.launcher!r} has no {{}}; put {{}} where the name of the program belongs.")
    scratch = args.scratch_dir.resolve()
    experiment, record = Experiment(args.config, scratch, shlex.split(args.launcher)), scratch / "experiment.json"
    steps = experiment.steps()
    experiment.check()
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
