"""Show what runs are doing: a line for each.

    python -m data_tools.status SCRATCH
    python -m data_tools.status SCRATCH/pptrain SCRATCH/pretrain --markdown runs.md

A DIR is a run directory, or one that holds runs, at most three levels below it. Only the ends of logs are read. What a
run does not have, or what is damaged, is shown as –. Of an experiment that was submitted to Slurm, the jobs that are
waiting or running are shown, too.
"""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from data_tools.base.command_line import CommandParser
from data_tools.base.errors import UserError, file_problem, run_command
from data_tools.base.files import whole_file
from data_tools.base.text_table import aligned
from data_tools.runs.logs import distinct_names
from data_tools.runs.queue import queue_table
from data_tools.runs.status import RunFiles, runs_below, table_of


def status_table(directories: Sequence[Path], now: float, reference: Path | None = None) -> list[list[str]]:
    """A heading and a row for each run that is or is below one of the directories.

    Args:
        now: UNIX seconds.
        reference: a run of pptrain with which the compute of the others is compared.

    Raises:
        UserError: there is no run in a directory, or the reference does not log PFLOPs by stage.
    """
    runs: dict[Path, None] = {}
    for directory in directories:
        found = dict.fromkeys(path.resolve() for path in runs_below(directory))
        if not found:
            raise UserError(f"{directory} holds no run; give the directory of a run, or one with runs below it.")
        runs |= found
    compared = RunFiles(reference, now) if reference else None
    if compared and (compared.last("stage") is None or compared.last("pflops") is None):
        raise UserError(f"--reference {reference}: no log with stages and PFLOPs is there; give a run of pptrain.")
    return table_of([RunFiles(run, now) for run in runs], distinct_names([*runs]), compared)


def _as_markdown(table: Sequence[Sequence[str]], now: float) -> str:
    heading, *rows = [[cell.replace("|", "\\|") for cell in row] for row in table]
    lines = [heading, ["---", *["---:"] * (len(heading) - 1)], *rows]
    shown = "\n".join(f"| {' | '.join(row)} |" for row in lines)
    return f"{shown}\n\n{datetime.fromtimestamp(now, UTC):%Y-%m-%d %H:%M} UTC\n"


def main(argv: Sequence[str] | None = None) -> None:
    """The command; see ``--help``."""
    parser = CommandParser(description=__doc__)
    parser.add_argument("directories", nargs="+", type=Path, metavar="DIR", help="directories of runs, or above runs")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the table to this file, as Markdown")
    parser.add_argument("--reference", type=Path, metavar="RUN", help="run for the ratio of PFLOPs at the same stage")
    args = parser.parse_args(argv)
    now = time.time()
    queue = queue_table(args.directories)
    if queue:
        print(f"{aligned(queue)}\n")
        args.directories = [path for path in args.directories if any(runs_below(path))]
    if queue and not args.directories:
        return
    table = status_table(args.directories, now, args.reference)
    if args.markdown:
        try:
            with whole_file(args.markdown) as file:
                file.write(_as_markdown(table, now).encode())
        except OSError as error:
            raise UserError(f"--markdown {file_problem(error, args.markdown)}.") from None
    print(aligned(table))


if __name__ == "__main__":
    run_command(main)
