"""Print in short what runs achieved, from their logs and from evaluation files.

    python -m data_tools.summarize_run SCRATCH/pptrain SCRATCH/pretrain --evaluation pptrain.json pretrain.json

A RUN holds logs/train.jsonl and logs/eval.jsonl, of a finished run or one still going on; the files of --evaluation
are what ``ds_train/evaluate.py --output`` writes.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from data_tools.base.command_line import CommandParser
from data_tools.base.errors import UserError, run_command
from data_tools.base.text_table import aligned
from data_tools.runs.logs import Row, checkpoint_name, read_evaluation, read_logs, training_seconds

_ROWS_AVERAGED = 5  # a single step's loss is noise


def summarize_run(directory: Path) -> str:
    """What the logs of one run say: progress, losses first → last, and of pptrain the curriculum.

    Raises:
        UserError: the directory holds no logs, or no rows yet, or rows of another form.
    """
    train, evaluations = read_logs(directory)
    lines = [f"{directory.name}: {_progress(train)}", f"  training loss {_change(train, 'loss')}"]
    if "c4_loss" in train[-1]:
        lines.append(f"  of which C4 {_change(train, 'c4_loss')}, synthetic {_change(train, 'mixin_loss')}")
        lines.append(f"  synthetic share of tokens {_number(train[-1]['mixin_fraction'])}")
        lines.append(f"  held-out C4 loss {_first_and_last(evaluations, 'heldout_c4_loss')}")
    if "stage" in train[-1]:
        lines += _curriculum(train, evaluations)
    accuracy, loss = (_first_and_last(evaluations, f"heldout_{name}") for name in ("acc", "loss"))
    last = f" (last at step {evaluations[-1]['step']:,})" if evaluations else ""
    lines.append(f"  held-out problems of full difficulty{last}: accuracy {accuracy}, weighted loss {loss}")
    return "\n".join(lines)


def _progress(train: list[Row]) -> str:
    """Steps and tokens so far, and the time they took, without the pauses between launches."""
    steps = f"{train[-1]['step']:,} steps"
    if not all(row.get("tokens") and row.get("tokens_per_second") for row in train):
        return steps
    num_tokens = [row["tokens"] for row in train]
    seconds = training_seconds(num_tokens, [row["tokens_per_second"] for row in train])[-1]
    return f"{steps}, {num_tokens[-1]:,} tokens in {seconds:,.0f} s ({num_tokens[-1] / seconds:,.0f} tokens/s)"


def _curriculum(train: list[Row], evaluations: list[Row]) -> Iterator[str]:
    """A line for each mastered stage: pptrain evaluates at its start and after every advance, never otherwise."""
    window = {row["step"]: row["curr_acc"] for row in train}
    for before, after in pairwise(evaluations):
        yield (
            f"  stage {before['stage']} (alpha {before['alpha']:.3f}) mastered at step {after['step']:,}, "
            f"window accuracy {_number(window.get(after['step']))}"
        )
    last = train[-1]
    yield f"  last: stage {last['stage']} (alpha {last['alpha']:.3f}), window accuracy {_number(last['curr_acc'])}"


def _change(rows: list[Row], column: str) -> str:
    """First value → mean of the last ones."""
    values = [row[column] for row in rows if row.get(column) is not None]
    last = values[-_ROWS_AVERAGED:]
    return f"{values[0]:.3f} → {sum(last) / len(last):.3f}" if values else "–"


def _first_and_last(evaluations: list[Row], column: str) -> str:
    values = [row[column] for row in evaluations if row.get(column) is not None]
    return f"{values[0]:.3f} → {values[-1]:.3f}" if values else "–"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def tabulate_evaluations(reports: Sequence[Row]) -> str:
    """Evaluations side by side: a column each; rows for losses, accuracy, and accuracy by lookahead."""
    by_lookahead = [{row["lookahead"]: row for row in report["by_lookahead"]} for report in reports]
    table = [
        ["", *(checkpoint_name(report["checkpoint"]) for report in reports)],
        ["split", *(report["split"] for report in reports)],
        ["problems", *(f"{report['num_examples']:,}" for report in reports)],
        ["C4 validation loss", *(_number(report["c4_loss"]) for report in reports)],
        ["weighted loss", *(_number(report["loss"]) for report in reports)],
        ["accuracy, any valid answer", *(_number(report["accuracy_any"]) for report in reports)],
        ["accuracy, first answer", *(_number(report["accuracy_first"]) for report in reports)],
    ]
    for lookahead in sorted(set().union(*by_lookahead)):
        found = [rows.get(lookahead, {}).get("accuracy_any") for rows in by_lookahead]
        table.append([f"  any valid, lookahead {lookahead}", *map(_number, found)])
    return aligned(table)


def main(argv: Sequence[str] | None = None) -> None:
    """The command; see ``--help``."""
    parser = CommandParser(prog="summarize_run", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="directories of runs")
    parser.add_argument("--evaluation", nargs="+", type=Path, default=[], metavar="FILE", help="files of evaluate.py")
    args = parser.parse_args(argv)
    if not args.runs and not args.evaluation:
        raise UserError("nothing to summarize: give directories of runs, or --evaluation FILE.")
    parts = [summarize_run(run) for run in args.runs]
    if args.evaluation:
        parts.append(tabulate_evaluations([read_evaluation(path) for path in args.evaluation]))
    print("\n\n".join(parts))


if __name__ == "__main__":
    run_command(main)
