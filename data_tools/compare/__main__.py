"""Compare runs with a baseline, over seeds: what each needs to reach a loss, where curves cross, and how it ends.

    python -m data_tools.compare --base B/seed_1 B/seed_2 B/seed_3 --run A=A/seed_1 A/seed_2 A/seed_3
    python -m data_tools.compare --base fresh --run warm --axis tokens --charge_pptrain
    python -m data_tools.compare --experiment DIR
    python -m data_tools.compare --scaling --run pptrain/seed_1 pptrain/seed_2 --axis pflops

Several directories are seeds of one condition; they are paired with the baseline's by the seed in run.yaml. Targets are
the baseline's own levels after 25, 50, 75 and 100 % of its run. Runs may still be training. Of an
experiment that varies a flag, each condition's best value at the end is compared.
"""

import argparse
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from data_tools.base.command_line import CommandParser
from data_tools.base.errors import UserError, reason_of, run_command
from data_tools.base.files import whole_file
from data_tools.compare.axes import AXES, CHARGEABLE
from data_tools.compare.grid import pptrain_runs, runs_with_curves, sharing_a_seed
from data_tools.compare.picks import METRIC, Pick, pick_best, picks_text

_MAX_CONDITIONS = 8  # colours of a picture


def main(argv: Sequence[str] | None = None) -> None:
    """The command; see ``--help``."""
    args = _parse(argv)
    texts, files = _scaling(args) if args.scaling else _comparison(args)
    _write(args.out, files)
    print("\n\n".join([*texts, f"{args.out}: {', '.join(files)}"]))


_Results = tuple[list[str], dict[str, bytes]]  # to print, and to write


def _comparison(args: argparse.Namespace) -> _Results:
    # SciPy and Matplotlib take a second to import.
    from data_tools.compare.comparison import compare
    from data_tools.compare.conditions import read_condition
    from data_tools.compare.drawing import draw_comparison
    from data_tools.compare.results import as_csv, as_json
    from data_tools.compare.verdict import needs_table, verdict
    from data_tools.runs.pictures import as_png

    metric, axis = args.metric or METRIC, args.axis
    conditions = [read_condition(name, runs, metric, axis, args.charge_pptrain) for name, runs in args.runs]
    found = [compare(conditions[0], other, args.target, axis == "c4_tokens") for other in conditions[1:]]
    texts = [picks_text(args.picks, metric)] if args.picks else []
    texts += [
        "\n".join([needs_table(one, axis), *(f"Note: {note}" for note in one.notes), verdict(one, metric, axis)])
        for one in found
    ]
    texts += [f"Note: {name} has no run of a seed of {conditions[0].name}'s and is left out." for name in args.left_out]
    return texts, {
        "comparison.png": as_png(draw_comparison(conditions, found, metric, axis)),
        "comparison.csv": as_csv(found, metric, axis).encode(),
        "comparison.json": as_json(found, metric, axis, args.charge_pptrain, args.picks).encode(),
    }


def _scaling(args: argparse.Namespace) -> _Results:
    from data_tools.compare.promotions import read_promotions
    from data_tools.compare.scaling_report import draw_scaling, scaling_csv, scaling_json, scaling_text
    from data_tools.compare.stage_costs import stage_cost_notes, stage_costs
    from data_tools.runs.pictures import as_png

    every = [read_promotions(name, runs, args.axis) for name, runs in args.runs]
    stages = [costs for found in every if (costs := stage_costs(found))]
    return [*(scaling_text(found, args.axis) for found in every), *stage_cost_notes(stages, args.axis)], {
        "scaling.png": as_png(draw_scaling(every, args.axis)),
        "scaling.csv": scaling_csv(every, args.axis).encode(),
        "scaling.json": scaling_json(every, args.axis).encode(),
    }


def _write(out: Path, files: dict[str, bytes]) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            with whole_file(out / name) as file:
                file.write(content)
    except OSError as error:
        raise UserError(f"--out {out}: cannot write {error.filename or 'there'} ({reason_of(error)}).") from None


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    seeds: dict[str, Any] = {"nargs": "+", "metavar": ("[NAME=]DIR", "DIR")}
    parser.add_argument("--base", help="run directories of the baseline, one a seed; without --scaling needed", **seeds)
    text = "run directories that are compared with it; may be repeated"
    parser.add_argument("--run", action="append", default=[], help=text, **seeds)
    text = "directory of ds_train.experiment: all its conditions are compared with B, or with the one that --base names"
    parser.add_argument("--experiment", type=Path, metavar="DIR", help=text)
    text = "with --experiment: only these of its conditions, and the baseline"
    parser.add_argument("--conditions", nargs="+", metavar="NAME", help=text)
    text = f"column of the logs (default: {METRIC}); of accuracies more is better"
    parser.add_argument("--metric", help=text)
    parser.add_argument("--axis", choices=AXES, help="what is spent (default: c4_tokens; with --scaling pflops)")
    text = "add what the pre-pretraining of each run has spent to its axis (tokens, pflops, gpu_hours)"
    parser.add_argument("--charge_pptrain", action="store_true", help=text)
    text = "further levels of the metric to reach"
    parser.add_argument("--target", type=float, nargs="+", default=[], metavar="LEVEL", help=text)
    text = "fit the lookahead that runs of pptrain have mastered to what they had spent, instead of comparing curves"
    parser.add_argument("--scaling", action="store_true", help=text)
    parser.add_argument("--out", type=Path, default=Path("comparison"), help="directory for PNG, CSV and JSON")
    args = parser.parse_args(argv)
    args.left_out, args.picks = [], []
    args.axis = args.axis or ("pflops" if args.scaling else "c4_tokens")
    if args.conditions and not args.experiment:
        raise UserError("--conditions chooses among those of --experiment DIR, which is missing.")
    if args.experiment:
        args.runs = _of_experiment(args)
    elif not args.run or not (args.base or args.scaling):
        missing = "--run" if args.base or args.scaling else "--base"
        raise UserError(f"{missing} is missing: give run directories, or --experiment DIR.")
    else:
        args.runs = [_named(given) for given in ([args.base] if args.base else []) + args.run]
    _check(args)
    return args


def _check(args: argparse.Namespace) -> None:
    names = [name for name, _ in args.runs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"two conditions are called {twice}; name each, as in --run NAME=DIR.")
    if len(names) > _MAX_CONDITIONS:
        raise UserError(
            f"{len(names)} conditions are too many for one picture; choose at most {_MAX_CONDITIONS} (--conditions)."
        )
    for_curves = {"--charge_pptrain": args.charge_pptrain, "--target": args.target, "--metric": args.metric}
    if args.scaling and (given := [flag for flag, value in for_curves.items() if value]):
        raise UserError(f"{given[0]} is for curves of pretraining; leave it out with --scaling.")
    if args.charge_pptrain and args.axis not in CHARGEABLE:
        raise UserError(
            f"--charge_pptrain adds nothing to --axis {args.axis}; give --axis {' or '.join(CHARGEABLE)}, or leave it "
            "out."
        )
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f"--out {args.out} is a file; give a directory, which is made where it is missing.")
    if unreachable := [level for level in args.target if not isfinite(level)]:
        raise UserError(f"--target {unreachable[0]} is no level of a metric; give numbers.")


def _of_experiment(args: argparse.Namespace) -> list[tuple[str, list[Path]]]:
    """The conditions of an experiment, the baseline first; with --scaling its pre-pretrainings."""
    if args.run or len(args.base or []) > 1:
        raise UserError("--experiment takes all conditions; beside it --base names one of them, and there is no --run.")
    base = "" if args.scaling else args.base[0] if args.base else "B"
    picks: list[Pick] = []
    if args.scaling:
        found = pptrain_runs(args.experiment)
    else:
        only = [base, *args.conditions] if args.conditions else None
        found, picks = pick_best(runs_with_curves(args.experiment), args.metric or METRIC, only)
    if not found or (base and base not in found):
        there = ", ".join(found) or "none"
        raise UserError(
            f"--experiment {args.experiment} has no runs of {base or 'pptrain'} in {base or 'pptrain'}/seed_N, but of: "
            f"{there}."
        )
    names = [base, *sharing_a_seed(found, base)] if base else [*found]
    args.left_out = [name for name in found if name not in names]
    if base and len(names) == 1:
        raise UserError(f"--experiment {args.experiment}: no other condition has a seed of {base}'s yet.")
    if unknown := [name for name in args.conditions or () if name not in names]:
        raise UserError(f"--conditions {unknown[0]}: there is no run to compare of it; there are {', '.join(names)}.")
    wanted = [name for name in names if name == base or not args.conditions or name in args.conditions]
    args.picks = [pick for pick in picks if pick.condition in wanted]
    return [(name, found[name]) for name in wanted]


def _named(given: Sequence[str]) -> tuple[str, list[Path]]:
    """A condition's name and directories; without a name that of its directory, above a seed's."""
    name, separator, first = given[0].partition("=")
    if not separator or Path(given[0]).exists():
        name, first = "", given[0]
    directories = [Path(path).expanduser() for path in (first, *given[1:])]
    own = directories[0].resolve()
    return name or (own.parent.name if own.name.startswith("seed_") else own.name), directories


if __name__ == "__main__":
    run_command(main)
