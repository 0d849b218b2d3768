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
    vary        flags of pretrain with several values, such as {lr: [1e-4, 5e-4]}: every condition trains with each, in
                DIR/CONDITION/lr=1e-4/seed_N, and compare takes the value of each condition that ends best

Runs are in DIR/CONDITION/seed_N and DIR/pptrain/seed_N. Finished steps are recorded in DIR/steps and not run again.
After a signal (exit code 85), STOP (86) or an error, the same command continues, also with another launcher or number
of ranks. Conditions and seeds may be added at any time, and processes may share the work by --conditions or --seeds.

--submit makes Slurm jobs of the grid: the data, then an array of pre-pretrainings, then one of conditions × seeds, then
evaluations, report and comparison. A job that is preempted requeues itself; what waits for a failed one is cancelled.
--submit again submits what is neither done nor in the queue. With --dry_run it shows the jobs.
"""

import argparse
import shlex
import sys
from pathlib import Path

from data_tools.base.command_line import CommandParser, any_seed, positive
from data_tools.base.errors import UserError, run_command
from ds_train.experiment.file import ExperimentFile
from ds_train.experiment.steps import Step, run_steps, with_needs


def main(argv: list[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    _check_flags(args)
    directory = args.directory.resolve()
    _refuse_former_layout(directory)
    file = ExperimentFile(args.config, directory)
    conditions = file.chosen(args.conditions)
    seeds = list(dict.fromkeys(args.seeds or file.seeds))
    from ds_train.experiment.cleaning import clean
    from ds_train.experiment.forecast import check_and_forecast, grid_table  # these take seconds
    from ds_train.experiment.jobs import Submission, show, submit
    from ds_train.experiment.plan import Experiment
    from ds_train.experiment.results import result_table

    experiment = Experiment(file, directory, shlex.split(args.launcher), conditions, seeds)
    if args.clean:
        clean(experiment, is_dry_run=args.dry_run)
        return 0
    experiment.check_data()
    forecasts = check_and_forecast(experiment)

    def steps() -> list[Step]:
        return with_needs(experiment.steps(), args.steps) if args.steps else experiment.steps()

    if args.submit:
        arguments = [str(args.config.resolve()), str(directory)]
        arguments += ["--conditions", *dict.fromkeys(one.origin for one in conditions), "--seeds", *map(str, seeds)]
        if args.launcher != parser.get_default("launcher"):
            arguments += ["--launcher", args.launcher]
        options, data_options = shlex.split(args.sbatch), shlex.split(args.sbatch_data)
        (show if args.dry_run else submit)(experiment, Submission(arguments, args.parallel, options, data_options))
    elif args.dry_run:
        for step in steps():
            done = " (done)" if experiment.records.is_done(step) and not step.always_run else ""
            print(f"\n# {step.title}{done}\n{shlex.join(step.command)}")
    if args.dry_run:
        print(f"\n{grid_table(forecasts)}")
    if args.dry_run or args.submit:
        return 0
    (directory / "evaluations").mkdir(parents=True, exist_ok=True)
    code = run_steps(steps, experiment.records)
    if not code and not args.steps:
        print(f"\n{result_table(experiment.trainers, conditions, seeds)}")
    return code


def _parser() -> CommandParser:
    parser = CommandParser(description=__doc__)
    parser.add_argument("config", type=Path, metavar="CONFIG", help="YAML file; see ds_configs/experiments")
    parser.add_argument("directory", type=Path, metavar="DIR", help="directory of all data and runs")
    parser.add_argument("--conditions", nargs="+", metavar="NAME", help="only these, or others that are built in")
    parser.add_argument("--seeds", nargs="+", type=any_seed, metavar="N", help="these instead of CONFIG's")
    text = "only these steps, and what they need, by their names in DIR/steps, such as A/seed_1"
    parser.add_argument("--steps", nargs="+", metavar="NAME", help=text)
    parser.add_argument(
        "--launcher",
        default=f"{shlex.quote(sys.executable)} -m ds_train.{{}}",
        help="starts pptrain, pretrain and evaluate, whose name replaces {}; flags follow (default: one process; with "
        "--submit: srun)",
    )
    text = "check all settings, show each step and the grid: what is done, and what the rest takes; start nothing"
    parser.add_argument("--dry_run", action="store_true", help=text)
    text = "ask, then delete the checkpoints of finished runs, except the last ones and those that are kept forever"
    parser.add_argument("--clean", action="store_true", help=text)
    queue = parser.add_argument_group("in a Slurm queue")
    text = (
        "submit what is neither done nor in the queue, as jobs that wait for each other; see launch/experiment_job.sh"
    )
    queue.add_argument("--submit", action="store_true", help=text)
    text = "tasks of an array that run at the same time (default: all)"
    queue.add_argument("--parallel", type=positive, metavar="K", help=text)
    text = (
        "options of sbatch for all jobs, instead of those in launch/experiment_job.sh: --sbatch='--nodes=2 --time=9:00'"
    )
    queue.add_argument("--sbatch", default="", metavar="OPTIONS", help=text)
    text = "more options for the job that makes the data, such as --sbatch_data=--partition=cpu"
    queue.add_argument("--sbatch_data", default="", metavar="OPTIONS", help=text)
    return parser


def _check_flags(args: argparse.Namespace) -> None:
    """Refuse flags that do not go together."""
    if "{}" not in args.launcher:
        raise UserError(f"--launcher {args.launcher!r} has no {{}}; put {{}} where the name of the program belongs.")
    for_jobs = [f"--{name}" for name in ("parallel", "sbatch", "sbatch_data") if getattr(args, name)]
    if for_jobs and not args.submit:
        raise UserError(f"{for_jobs[0]} is for --submit, which is missing.")
    others = [f"--{name}" for name in ("clean", "steps") if getattr(args, name)]
    if args.submit and others:
        raise UserError(f"--submit submits all that is missing; leave {others[0]} out.")


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
