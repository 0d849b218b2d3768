"""Print what runs achieved, from their logs and from evaluation files.

    python -m data_tools.summarize_run SCRATCH/pptrain SCRATCH/pretrain --evaluation pptrain.json pretrain.json

A RUN holds logs/train.jsonl and logs/eval.jsonl, of a run that has ended or still trains; the files of --evaluation
are what ``ds_train/evaluate.py --output`` writes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from data_tools.base.command_line import CommandParser
from data_tools.base.errors import UserError, run_command
from data_tools.base.text_table import aligned
from data_tools.runs.facts import accuracy_by_lookahead, evaluation_facts, mastered_stages, run_facts
from data_tools.runs.logs import RunLogs, checkpoint_name, distinct_names, read_evaluation

_LONGEST = 60  # characters of a cell


def summarize_runs(directories: Sequence[Path]) -> str:
    """A table of the runs, and one of the stages that each has mastered, with what they took.

    Raises:
        UserError: a directory holds no logs, or no rows yet, or rows of another form.
    """
    names = distinct_names(directories)
    runs = [RunLogs.read(directory, name) for directory, name in zip(directories, names, strict=True)]
    parts = [_table(names, run_facts(runs))]
    for run in runs:
        headings, stages = mastered_stages(run)
        if stages:
            title = "stage mastered" if len(runs) == 1 else f"stage mastered, {run.name}"
            parts.append(aligned([[title, *headings], *([stage, *cells] for stage, cells in stages.items())]))
    return "\n\n".join(parts)


def summarize_evaluations(paths: Sequence[Path]) -> str:
    """A table with one column per evaluation, and rows for losses, accuracy, and accuracy by lookahead."""
    reports = [read_evaluation(path) for path in paths]
    by_lookahead = {f"  any valid, lookahead {n}": cells for n, cells in accuracy_by_lookahead(reports).items()}
    return _table(
        [checkpoint_name(report["checkpoint"]) for report in reports], evaluation_facts(reports) | by_lookahead
    )


def _table(columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """A table in which long cells, such as commands, are cut; the report of plot_run has them whole."""
    return aligned([["", *columns], *([label, *map(_cut, cells)] for label, cells in rows.items())])


def _cut(cell: str) -> str:
    return cell if len(cell) <= _LONGEST else f"{cell[:_LONGEST]} …"


def main(argv: Sequence[str] | None = None) -> None:
    """The command; see ``--help``."""
    parser = CommandParser(description=__doc__)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="directories of runs")
    parser.add_argument("--evaluation", nargs="+", type=Path, default=[], metavar="FILE", help="files of evaluate.py")
    args = parser.parse_args(argv)
    if not args.runs and not args.evaluation:
        raise UserError("nothing to summarize: give directories of runs, or --evaluation FILE.")
    parts = [summarize_runs(args.runs)] if args.runs else []
    if args.evaluation:
        parts.append(summarize_evaluations(args.evaluation))
    print("\n\n".join(parts))


if __name__ == "__main__":
    run_command(main)
