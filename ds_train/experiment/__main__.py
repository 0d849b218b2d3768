"""The experiment: does pre-pretraining on graph search, with a curriculum, make pretraining more sample-efficient?

    bash launch/experiment.sh CONFIG DIR [--conditions A B D] [--seeds 1 2 3]

It trains a model for each condition and seed. Conditions differ only in what is compared:

    A   pre-pretrained weights, C4 with synthetic blocks
    B   random weights,         C4 only
    C   random weights,         C4 with synthetic blocks
    D   pre-pretrained weights, C4 only
    B+  random weights,         C4 only, for the compute of both phases of A
    N   as A, but the first phase reads as many tokens of C4, from documents that no other condition reads

All share steps, global batch, schedule, tokenizer, pack and held-out data. A seed decides initial weights and data
order of both phases: with it, all conditions read C4 in one order, those that mix read synthetic blocks at the same
positions of the same steps, where the others read further C4 blocks, and all random weights are the same ones.

CONFIG is a YAML file with sections of flags:

    splits      for data_tools/build_data_splits.py
    corpus      for data_tools/fetch_assets.py corpus, whose documents then replace C4
    tokenizer   for data_tools/train_tokenizer.py; or a hub id, directory or tokenizer.json
    pack        for data_tools/build_pretrain.py; its size follows from the training
    training    for both pptrain.py and pretrain.py
    pptrain, pretrain   for one of them
    evaluate    for evaluate.py
    seeds       such as [1, 2, 3] (default: the seed under training)
    conditions  such as [A, B, D] (default: A B C), or names of your own with "like: A", a "title", and flags under
                "pptrain" and "pretrain" that differ from A's. "replay_run: A" under "pptrain", with "curriculum:
                replay", replays A's pre-pretraining of the same seed

Runs are in DIR/CONDITION/seed_N and DIR/pptrain/seed_N. Finished steps are recorded in DIR/steps and not run again.
After a signal (exit code 85), STOP (86) or an error, the same command continues, also with another launcher or number
of ranks. Conditions and seeds may be added at any time, and processes may share the work by --conditions or --seeds.
"""

import shlex
import sys
from pathlib import Path

from data_tools.base.command_line import CommandParser, any_seed
from data_tools.base.errors import UserError, run_command
from ds_train.experiment.conditions import chosen
from ds_train.experiment.file import ExperimentFile
from ds_train.experiment.steps import run_steps


def main(argv: list[str] | None = None) -> int:
    parser = CommandParser(description=__doc__)
    parser.add_argument("config", type=Path, metavar="CONFIG", help="YAML file; see ds_configs/experiments")
    parser.add_argument("directory", type=Path, metavar="DIR", help="directory of all data and runs")
    parser.add_argument("--conditions", nargs="+", metavar="NAME", help="only these, or others that are built in")
    parser.add_argument("--seeds", nargs="+", type=any_seed, metavar="N", help="these instead of CONFIG's")
    parser.add_argument(
        "--launcher",
        default=f"{shlex.quote(sys.executable)} -m ds_train.{{}}",
        help="starts pptrain, pretrain and evaluate, whose name replaces {}; flags follow (default: one process)",
    )
    text = "check all settings, show each step and the grid: what is done, and what the rest takes; start nothing"
    parser.add_argument("--dry_run", action="store_true", help=text)
    text = "ask, then delete the checkpoints of finished runs, except the last ones and those that are kept forever"
    parser.add_argument("--clean", action="store_true", help=text)
    args = parser.parse_args(argv)
    if "{}" not in args.launcher:
        raise UserError(f"--launcher {args.launcher!r} has no {{}}; put {{}} where the name of the program belongs.")
    directory = args.directory.resolve()
    _refuse_former_layout(directory)
    file = ExperimentFile(args.config, directory)
    conditions = chosen(file.conditions, args.conditions)
    seeds = list(dict.fromkeys(args.seeds or file.seeds))
    from ds_train.experiment.cleaning import clean
    from ds_train.experiment.forecast import check_and_forecast, grid_table  # these take seconds
    from ds_train.experiment.plan import Experiment
    from ds_train.experiment.results import result_table

    experiment = Experiment(file, directory, shlex.split(args.launcher), conditions, seeds)
    if args.clean:
        clean(experiment, is_dry_run=args.dry_run)
        return 0
    experiment.check_data()
    forecasts = check_and_forecast(experiment)
    if args.dry_run:
        for step in experiment.steps():
            done = " (done)" if experiment.records.is_done(step) and not step.always_run else ""
            print(f"\n# {step.title}{done}\n{shlex.join(step.command)}")
        print(f"\n{grid_table(forecasts)}")
        return 0
    (directory / "evaluations").mkdir(parents=True, exist_ok=True)
    if code := run_steps(experiment.steps, experiment.records):
        return code
    print(f"\n{result_table(experiment.trainers, conditions, seeds)}")
    return 0


def _refuse_former_layout(directory: Path) -> None:
    """Refuse the directory of an experiment of version 0.1, whose runs had other names and one seed."""
    if (directory / "experiment.json").exists():
        raise UserError(
            f"{directory} holds an experiment of version 0.1, with one seed, which this version does not continue. "
            "Give a new directory. Its runs stay comparable: python -m data_tools.compare "
            f"--base {directory}/B_fresh_c4 --run {directory}/A_pptrained_mix --run {directory}/C_fresh_mix"
        )


if __name__ == "__main__":
    run_command(main)
