"""What runs are doing now, from the ends of their files. What is missing or damaged is unknown, never an error."""

import re
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

from data_tools.base.errors import UserError, is_number
from data_tools.base.files import lock_holder
from data_tools.runs.settings import load_settings
from data_tools.runs.tails import Row, last_rows, number_in, rows_around

ABSENT = "–"
_ALL_LAUNCHES_BYTES = 1 << 20
_DEPTH = 3  # of a run below a given directory: SCRATCH/experiment/condition/seed_1
_ROWS_AVERAGED = 5  # a single step's loss is noise
_ROWS_TIMED = 11  # ten intervals, as in the progress line
_HOLDER = re.compile(r"process (\d+) on (\S+)")
_SILENCE_S = 3600  # a log that is older is of a process that is gone
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"))


def runs_below(directory: Path, depth: int = _DEPTH) -> Iterator[Path]:
    """The directory itself if it is a run, else the runs below it, by name; none that were set aside."""
    logs = directory / "logs" / "train.jsonl"
    if logs.exists() or (directory / "launches.jsonl").exists():
        yield directory
    elif depth and directory.is_dir():
        for path in sorted(directory.iterdir()):
            if path.is_dir() and not path.name.startswith((".", "superseded_")):
                yield from runs_below(path, depth - 1)


@dataclass(frozen=True)
class RunFiles:
    """What is read of a run, each file once.

    Attributes:
        now: UNIX seconds.
    """

    directory: Path
    now: float

    @property
    def log(self) -> Path:
        return self.directory / "logs" / "train.jsonl"

    @cached_property
    def rows(self) -> list[Row]:
        """The last rows of train.jsonl."""
        return last_rows(self.log)

    def last(self, column: str) -> float | None:
        """A column of the last row, if that is a number."""
        return number_in(self.rows[-1], column) if self.rows else None

    def at_stage(self, stage: float, column: str) -> float | None:
        """A column of the first row at a stage of the curriculum or beyond it."""
        return number_in(rows_around(self.log, "stage", stage)[1], column)

    @cached_property
    def launches(self) -> list[float]:
        """Times of the launches since the run began at step 0."""
        rows = last_rows(self.directory / "launches.jsonl", _ALL_LAUNCHES_BYTES)
        first = max((number for number, row in enumerate(rows) if row["step"] == 0), default=0)
        return [at for row in rows[first:] if (at := number_in(row, "timestamp")) is not None]

    @cached_property
    def exit(self) -> Row | None:
        """How the last launch ended, if it recorded that."""
        exits = last_rows(self.directory / "exits.jsonl")
        written = number_in(exits[-1], "timestamp") if exits else None
        return exits[-1] if written is not None and written >= max(self.launches, default=0) else None

    @cached_property
    def flags(self) -> dict[str, Any]:
        try:
            return load_settings(self.directory / "run.yaml")
        except UserError:
            return {}

    @property
    def last_step(self) -> float | None:
        """The step at which the run ends at the latest."""
        return number_in(self.flags, "total_steps") or number_in(self.flags, "max_steps")

    @cached_property
    def lock(self) -> tuple[bool, str]:
        """Whether a process holds the run, and its name, or that of the last one that did; "" if unknown."""
        try:
            return lock_holder(self.directory)
        except OSError:
            return False, ""


def table_of(runs: Sequence[RunFiles], names: Sequence[str], reference: RunFiles | None = None) -> list[list[str]]:
    """A heading, and a row of cells for each run, without columns that no run has."""
    cells = {"run": list(names)} | {title: [of(run) for run in runs] for title, of in _COLUMNS.items()}
    if reference:
        cells["PFLOPs / reference"] = [_ratio(run, reference) for run in runs]
    known = {title: column for title, column in cells.items() if set(column) != {ABSENT}}
    return [list(known), *(list(row) for row in zip(*known.values(), strict=True))]


def _phase(run: RunFiles) -> str:
    if run.rows:
        return "pptrain" if "stage" in run.rows[-1] else "pretrain"
    return ("pretrain" if "total_steps" in run.flags else "pptrain") if run.flags else ABSENT


def _step(run: RunFiles) -> str:
    step, end = run.last("step"), run.last_step
    return ABSENT if step is None else f"{step:,.0f}" + (f"/{end:,.0f}" if end else "")


def _stage(run: RunFiles) -> str:
    stage, alpha = run.last("stage"), run.last("alpha")
    return f"{stage:.0f}/{stage / alpha:.0f}" if stage and alpha else ABSENT


def _loss(run: RunFiles) -> str:
    losses = [loss for row in run.rows[-_ROWS_AVERAGED:] if (loss := number_in(row, "loss")) is not None]
    return f"{sum(losses) / len(losses):.3f}" if losses else ABSENT


def _hours(run: RunFiles) -> str:
    """From each launch to its last row that still counts: no pauses, no steps that a kill undid."""
    if run.last("timestamp") is None:
        return ABSENT
    seconds = 0.0
    for start, end in pairwise([*run.launches, inf]):
        written = number_in(rows_around(run.log, "timestamp", end)[0], "timestamp")
        seconds += max(0.0, (written or start) - start)
    return f"{seconds / 3600:.2f}" if seconds else ABSENT


def _time_left(run: RunFiles) -> str:
    """To the first of the limits, at the pace of the latest rows; none where the run has ended by itself."""
    if number_in(run.exit, "exit_code") == 0:
        return ABSENT
    limits = {"step": run.last_step, "tokens": run.flags.get("max_tokens"), "pflops": run.flags.get("max_pflops")}
    left = [seconds for column, limit in limits.items() if (seconds := _seconds_to(run, column, limit)) is not None]
    return _duration(min(left)) if left else ABSENT


def _seconds_to(run: RunFiles, column: str, limit: Any) -> float | None:
    """Seconds until a column that rises reaches its limit; None if it has none, has reached it, or does not rise."""
    started = max(run.launches, default=0)
    written = [(number_in(row, column), number_in(row, "timestamp")) for row in run.rows[-_ROWS_TIMED:]]
    timed = [(value, at) for value, at in written if value is not None and at is not None and at >= started]
    if not timed or not is_number(limit):
        return None
    (first, first_time), (value, now) = timed[0], timed[-1]
    return (now - first_time) / (value - first) * (limit - value) if first < value < limit else None


def _checkpoint(run: RunFiles) -> str:
    """Step and age of the newest checkpoint; its manifest is written last."""
    newest = max(
        run.directory.glob("checkpoints/step_*/manifest.json"), key=lambda path: path.parent.name, default=None
    )
    try:
        return f"{int(newest.parent.name[5:]):,}, {_duration(run.now - newest.stat().st_mtime)}" if newest else ABSENT
    except (OSError, ValueError):  # just deleted, or no step
        return ABSENT


def _alive(run: RunFiles) -> str:
    is_held, name = run.lock
    found = _HOLDER.search(name)
    who = f"{found[2]} {found[1]}" if found else "held"
    if is_held:
        return who
    # A lock on another host may be invisible here.
    is_elsewhere = found is not None and found[2] != socket.gethostname()
    return f"{who}?" if is_elsewhere and run.exit is None else "no"


def is_going(run: RunFiles) -> bool:
    """Whether a process trains the run: one holds it, or one on another host, whose lock may be invisible, seems to."""
    if run.lock[0] or not _alive(run).endswith("?"):
        return run.lock[0]
    try:
        return run.now - run.log.stat().st_mtime < _SILENCE_S
    except OSError:
        return False


def _exit(run: RunFiles) -> str:
    row = None if run.lock[0] else run.exit
    code = number_in(row, "exit_code")
    return ABSENT if row is None or code is None else f"{code:.0f} {row.get('meaning', '')}".strip()


def _ratio(run: RunFiles, reference: RunFiles) -> str:
    """PFLOPs at which a run came to its stage, to those of the reference at this stage."""
    stage = run.last("stage")
    ours, theirs = (stage and other.at_stage(stage, "pflops") for other in (run, reference))
    return f"{ours / theirs:.2f}" if ours and theirs else ABSENT


def _number(column: str, form: str) -> Any:
    def of(run: RunFiles) -> str:
        value = run.last(column)
        return ABSENT if value is None else format(value, form)

    return of


def _duration(seconds: float) -> str:
    seconds = max(0.0, seconds)
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


_COLUMNS = {
    "phase": _phase,
    "step": _step,
    "stage": _stage,
    "L": _number("lookahead", ".0f"),
    "accuracy": _number("curr_acc", ".3f"),
    "loss": _loss,
    "tokens": _number("tokens", ",.0f"),
    "PFLOPs": _number("pflops", ",.4g"),
    "tokens/s": _number("tokens_per_second", ",.0f"),
    "hours": _hours,
    "left": _time_left,
    "checkpoint": _checkpoint,
    "alive": _alive,
    "exit": _exit,
}
