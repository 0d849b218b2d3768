"""Draw runs: pictures (PNG) and one page (HTML) that holds them all, against steps, tokens, FLOPs and training time.

    python -m data_tools.plot_run SCRATCH/pptrain SCRATCH/pretrain --out report
    python -m data_tools.plot_run SCRATCH/pptrain --out report --watch
    python -m data_tools.plot_run A B C --names first second third --evaluation a.json b.json c.json

A RUN is a run directory; the run may be finished or still training. ``ds_train/evaluate.py --output`` writes the files
for --evaluation.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_tools.base.command_line import CommandParser, of_kind
from data_tools.base.errors import UserError, reason_of, run_command
from data_tools.base.files import whole_file
from data_tools.base.text_table import pluralize
from data_tools.runs.facts import further_packs
from data_tools.runs.logs import AXES, Row, RunLogs, checkpoint_name, distinct_names, read_evaluation
from data_tools.runs.panels import LOOKAHEAD, PANELS, Panel, pack_panel
from data_tools.runs.pictures import COLOURS, as_png, draw, draw_lookahead
from data_tools.runs.report import Picture, report_page
from data_tools.runs.settings import Settings, differing, read_settings
from data_tools.runs.status import RunFiles, is_going

_WATCH_S = 30.0


def main(argv: Sequence[str] | None = None) -> None:
    """The command; see ``--help``."""
    args = _parse(argv)
    while args.watch and any(is_going(RunFiles(run, time.time())) for run in args.runs):
        _draw(args, refresh_s=args.watch)
        time.sleep(args.watch)
    _draw(args)  # also what came since the last look


def _draw(args: argparse.Namespace, refresh_s: float | None = None) -> None:
    """Draw the runs as they are now.

    Args:
        refresh_s: seconds after which the page loads itself again.
    """
    runs = [RunLogs.read(run, name) for run, name in zip(args.runs, args.names, strict=True)]
    settings = [read_settings(run.directory, run.launches) for run in runs]
    evaluations = _named([(path, read_evaluation(path)) for path in args.evaluation])
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        pictures = []
        for picture in _pictures(runs, settings, evaluations):
            _write(args.out / f"{picture.name}.png", picture.png)
            pictures.append(picture)
        page = report_page(runs, COLOURS[: len(runs)], differing(settings), evaluations, pictures, refresh_s)
        _write(args.out / "report.html", page.encode())
    except OSError as error:
        raise UserError(f"--out {args.out}: cannot write {error.filename or 'there'} ({reason_of(error)}).") from None
    again = f", again in {refresh_s:g} s" if refresh_s else ""
    print(f"{args.out / 'report.html'}: {len(pictures)} pictures of {', '.join(args.names)}{again}", flush=True)


def _write(path: Path, content: bytes) -> None:
    with whole_file(path) as file:
        file.write(content)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help=f"run directories, at most {len(COLOURS)}")
    parser.add_argument("--out", type=Path, default=Path("report"), help="directory for the pictures (default: report)")
    parser.add_argument("--names", nargs="+", help="names of the runs in legends (default: their directories')")
    parser.add_argument("--evaluation", nargs="+", type=Path, default=[], metavar="FILE", help="files of evaluate.py")
    text = f"draw again every SECONDS (default {_WATCH_S:g}) while a run is going; the open page follows"
    parser.add_argument(
        "--watch", nargs="?", type=of_kind("number in [1, 86400]"), const=_WATCH_S, metavar="SECONDS", help=text
    )
    args = parser.parse_args(argv)
    for words, given in (("runs", args.runs), ("evaluations", args.evaluation)):
        if len(given) > len(COLOURS):
            raise UserError(f"{len(given)} {words} are too many for one picture; give at most {len(COLOURS)}.")
    args.names = args.names or distinct_names(args.runs)
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f"--out {args.out} is a file; give a directory, which is made where it is missing.")
    if len(args.names) != len(args.runs):
        raise UserError(f"{len(args.names)} --names for {pluralize(len(args.runs), 'run')}; give one for each.")
    if len(set(args.names)) < len(args.names):
        raise UserError(f"--names {' '.join(args.names)}: a name is given twice; give each run a different one.")
    return args


def _pictures(
    runs: Sequence[RunLogs], settings: Sequence[Settings], evaluations: Sequence[tuple[str, Row]]
) -> Iterator[Picture]:
    if evaluations:
        figure = draw_lookahead(_coloured(evaluations, runs))
        yield Picture(LOOKAHEAD.name, LOOKAHEAD.title, LOOKAHEAD.caption, "", as_png(figure))
    for panel in (*PANELS, *map(pack_panel, further_packs(runs))):
        thresholds = _thresholds(panel, settings)
        for axis in AXES:
            if drawn := draw(panel, runs, axis, thresholds):
                yield Picture(f"{panel.name}_by_{axis}", panel.title, panel.caption, axis, as_png(drawn))


def _thresholds(panel: Panel, settings: Sequence[Settings]) -> list[float]:
    return sorted({float(of_run[panel.threshold]) for of_run in settings if panel.threshold in of_run})


def _named(reports: Sequence[tuple[Path, Row]]) -> list[tuple[str, Row]]:
    """Name evaluations by checkpoint and split, and by file where these repeat."""
    names = [f"{checkpoint_name(report['checkpoint'])}, {report['split']}" for _, report in reports]
    return [
        (f"{name} ({path})" if names.count(name) > 1 else name, report)
        for name, (path, report) in zip(names, reports, strict=True)
    ]


def _coloured(evaluations: Sequence[tuple[str, Row]], runs: Sequence[RunLogs]) -> list[tuple[str, str, Row]]:
    """Give each evaluation a colour: that of its run for the first evaluation of a run, else one that is left."""
    directories = [run.directory.resolve() for run in runs]
    colours: list[str | None] = []
    for _, report in evaluations:
        parents = (checkpoint := Path(report["checkpoint"]).resolve(), *checkpoint.parents)
        of_run = next((colour for colour, run in zip(COLOURS, directories, strict=False) if run in parents), None)
        colours.append(of_run if of_run not in colours else None)
    left = iter(dict.fromkeys(colour for colour in (*COLOURS[len(runs) :], *COLOURS) if colour not in colours))
    return [(name, colour or next(left), report) for (name, report), colour in zip(evaluations, colours, strict=True)]


if __name__ == "__main__":
    run_command(main)
