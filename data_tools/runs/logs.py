"""Reads what runs leave behind: logs as columns, launches, evaluation files; and maps steps to positions on an axis."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Interval

from data_tools.base.errors import UserError, reason_of
from data_tools.base.kinds import is_of_kind
from data_tools.base.records import Natural, as_record, read_record
from data_tools.base.text_table import pluralize

Row = dict[str, Any]
_STEP, _NUMBER = "whole number in [0, 1e15]", "number in [-1e30, 1e30] | true or false"
LONGEST_S = 10**11  # 3,000 years; calendars have an end
LAUNCHES = "launches.jsonl"
AXES = ("step", "tokens", "c4_tokens", "pflops", "time")


@dataclass(frozen=True, kw_only=True)
class _Accuracies:
    num_examples: Natural
    accuracy_any: float
    accuracy_first: float
    accuracy_any_low: float | None = None
    accuracy_any_high: float | None = None
    accuracy_first_low: float | None = None
    accuracy_first_high: float | None = None


@dataclass(frozen=True, kw_only=True)
class _OfLookahead(_Accuracies):
    lookahead: Natural


@dataclass(frozen=True, kw_only=True)
class _Evaluation(_Accuracies):
    """What ``ds_train/evaluate.py --output`` writes."""

    checkpoint: str
    split: str
    loss: float | None
    c4_loss: float | None
    by_lookahead: list[_OfLookahead]


@dataclass(frozen=True)
class _Launch:
    """What is read of a row of launches.jsonl."""

    timestamp: Annotated[float, Interval(ge=0, le=LONGEST_S)]
    ranks: Natural | None = None
    git: str = ""
    parameters: Natural | None = None
    initial_weights: dict[str, Any] | None = None
    versions: dict[str, str] = field(default_factory=dict)


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSON-lines file, in order, without a last line that is still being written.

    Raises:
        UserError: there is no such file, or a line is not a row with a step.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({reason_of(error)}); {_runs_below(path.parents[1])}.") from None
    return [_row(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]


def _row(line: bytes, where: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({error}); remove the line.") from None
    if not isinstance(row, dict) or not is_of_kind(row.get("step"), _STEP) or isinstance(row["step"], float):
        raise UserError(f"{where}: expected an object with a whole number 'step'; is this a log?")
    return row


def _runs_below(directory: Path) -> str:
    """Suggests run directories in place of a directory that is not a run."""
    runs = sorted(str(log.parents[1]) for log in directory.glob("*/logs/train.jsonl"))
    return f"give the directory of a run, here {' or '.join(runs)}" if runs else "give the directory of a run"


def read_logs(directory: Path) -> tuple[list[Row], list[Row]]:
    """The rows of a run's train.jsonl, one at least, and of its eval.jsonl.

    Raises:
        UserError: the directory holds no logs, no row yet, or files of another form.
    """
    path = directory / "logs" / "train.jsonl"
    evaluations = path.with_name("eval.jsonl")
    was_stopped_early = not path.exists() and (directory / LAUNCHES).exists()
    train = [] if was_stopped_early else read_rows(path)
    if not train:
        raise UserError(f"{path} has no rows yet; the first comes after --log_every steps.{_what_is_there(directory)}")
    return train, read_rows(evaluations) if evaluations.exists() else []


def _what_is_there(directory: Path) -> str:
    """What a run without rows has left, as a sentence; empty if that is nothing."""
    paths = (directory / LAUNCHES, directory / "logs" / "eval.jsonl")
    counts = {path.name: path.read_bytes().count(b"\n") for path in paths if path.exists()}
    found = [f"{name} with {pluralize(count, 'row')}" for name, count in counts.items()]
    found += sorted(f"checkpoint {path.name}" for path in (directory / "checkpoints").glob("step_*"))[-1:]
    return f" There is {', '.join(found)}." if found else ""


def read_evaluation(path: Path) -> Row:
    """Read a file that ``ds_train/evaluate.py --output`` wrote.

    Raises:
        UserError: the file is missing or has another form.
    """
    try:
        return asdict(read_record(_Evaluation, path.read_bytes()))
    except (OSError, ValueError) as error:
        raise UserError(f"--evaluation {path}: expected a file of evaluate.py --output ({error}).") from None


def checkpoint_name(path: str) -> str:
    """``RUN/step`` of a step directory, else the last part."""
    parts = [part for part in Path(path).parts if part != "checkpoints"]
    return "/".join(parts[-2:] if parts[-1].startswith("step_") else parts[-1:])


def training_seconds(tokens: Sequence[float] | np.ndarray, tokens_per_second: Sequence[float] | np.ndarray) -> Any:
    """Seconds of training up to each row, (rows,) float64, without the pauses between launches.

    A row's tokens_per_second is that of the steps since the row before, evaluations and saves included.
    """
    return np.cumsum(np.diff(tokens, prepend=0) / np.asarray(tokens_per_second))


@dataclass(frozen=True)
class RunLogs:
    """One run, finished or still training.

    Attributes:
        name: its name in legends.
        directory: the run directory.
        train, evaluations: column → (rows,) float64, NaN where a row has no number; by rising step.
        launches: rows of launches.jsonl since the run began at step 0.
    """

    name: str
    directory: Path
    train: dict[str, np.ndarray]
    evaluations: dict[str, np.ndarray]
    launches: list[Row]

    @classmethod
    def read(cls, directory: Path, name: str) -> "RunLogs":
        """Read a run directory.

        Raises:
            UserError: see `read_logs`.
        """
        train, evaluations = map(_columns, read_logs(directory))
        path = directory / LAUNCHES
        launches = read_rows(path) if path.exists() else []
        for number, launch in enumerate(launches, 1):
            try:
                as_record(_Launch, launch)
            except ValueError as error:
                raise UserError(f"{path}, line {number}: {error}; remove the line.") from None
        first = max((n for n, launch in enumerate(launches) if launch["step"] == 0), default=0)
        return cls(name, directory, train, evaluations, launches[first:])

    @property
    def last_step(self) -> int:
        return int(self.train["step"][-1])

    @property
    def resumed_at(self) -> np.ndarray:
        """(resumes,) steps after which a later launch continued, without those that an earlier resume undid."""
        steps = [launch["step"] for launch in self.launches]
        kept = {step for n, step in enumerate(steps) if n and all(step < later for later in steps[n + 1 :])}
        return np.array(sorted(step for step in kept if 0 < step <= self.last_step), float)

    @property
    def mastered(self) -> np.ndarray:
        """(stages, 3) stages of the curriculum that were mastered: stage, alpha, step. An evaluation follows each.

        Rows of former versions have no ``mastered``. They evaluated at step 0 and after a promotion only, which left
        the stage as it was where that was the last.
        """
        rows = self.evaluations
        if not {"stage", "alpha"} <= set(rows):
            return np.empty((0, 3))
        stages, alphas, steps = rows["stage"], rows["alpha"], rows["step"]
        is_last = (alphas == 1) & (steps == steps[-1])
        is_mastered = np.append(False, np.diff(stages) != 0) | (is_last & (steps > 0))
        if "mastered" in rows:
            is_mastered = np.where(np.isnan(rows["mastered"]), is_mastered, rows["mastered"] == 1)
        at = np.flatnonzero(is_mastered[1:])
        return np.stack([stages[at], alphas[at], steps[at + 1]], axis=1)

    @property
    def mastered_at(self) -> np.ndarray:
        """(stages,) steps at which a stage of the curriculum was mastered."""
        return self.mastered[:, 2]

    @cached_property
    def _tokens(self) -> np.ndarray:
        """(rows,) tokens up to each train row, NaN if no row records them."""
        return _interpolate(
            self.train["step"], self.train.get("tokens", self.train["step"] * np.nan), self.train["step"]
        )

    @cached_property
    def _seconds(self) -> np.ndarray:
        """(rows,) seconds of training up to each train row; NaN if no row has a speed. One without gets the median."""
        speed = self.train.get("tokens_per_second", np.empty(0))
        if not (speed > 0).any():
            return np.full(len(self._tokens), np.nan)
        return training_seconds(self._tokens, np.where(speed > 0, speed, np.median(speed[speed > 0])))

    def _amounts(self, axis: str) -> np.ndarray:
        """(rows,) what was spent up to each train row, on one of `AXES` but steps."""
        unknown = np.full(len(self.train["step"]), np.nan)
        if axis == "c4_tokens":
            return self._tokens * (1 - self.train.get("mixin_fraction", unknown))
        if axis == "pflops":
            pflops = self.train.get(axis, unknown)
            return pflops if np.isfinite(pflops[0]) else unknown  # a run of version 0.1 counts from its resume on
        return self._tokens if axis == "tokens" else self._seconds

    def column(self, name: str, axis: str) -> tuple[np.ndarray, np.ndarray]:
        """A column of the train rows, or else of the evaluations, without rows that lack a value or a position.

        Returns:
            (values,) positions on an axis, and (values,) values.
        """
        rows = self.train if name in self.train else self.evaluations
        if name not in rows:
            return np.empty(0), np.empty(0)
        positions, values = self.positions(rows["step"], axis), rows[name]
        kept = np.isfinite(positions) & np.isfinite(values)
        return positions[kept], values[kept]

    def last_position(self, axis: str) -> float:
        """The position of the last row on one of `AXES`."""
        return float(self.positions(self.train["step"][-1:], axis)[0])

    def positions(self, steps: np.ndarray, axis: str) -> np.ndarray:
        """Positions of steps on one of `AXES` (time in seconds), interpolated between rows; NaN where unknown."""
        if axis == "step":
            return steps
        return _interpolate(self.train["step"], self._amounts(axis), steps)


def _interpolate(rows: np.ndarray, values: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Values at ``steps`` of a quantity that grows from 0: interpolated between rows with a value; NaN without any."""
    known = np.isfinite(values)
    if not known.any():
        return np.full(len(steps), np.nan)
    return np.interp(steps, np.append(0, rows[known]), np.append(0, values[known]))


def _columns(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    numbers = [{name: float(value) for name, value in row.items() if is_of_kind(value, _NUMBER)} for row in rows]
    for row in numbers:
        if abs(row.get("timestamp", 0)) > LONGEST_S:
            del row["timestamp"]
    names = dict.fromkeys(name for row in numbers for name in row)
    return {name: np.array([row.get(name, np.nan) for row in numbers]) for name in names}


def distinct_names(directories: Sequence[Path]) -> list[str]:
    """A name for each directory: its last part, with as many parents as distinguish it from the others.

    Raises:
        UserError: a directory is given twice.
    """
    paths = [directory.resolve().parts for directory in directories]
    for one, other in pairwise(sorted(paths)):
        if one == other:
            raise UserError(f"{Path(*one)} is given twice; give each run once.")

    def is_distinct(path: tuple[str, ...], length: int) -> bool:
        return sum(other[-length:] == path[-length:] for other in paths) == 1

    lengths = [next(n for n in range(1, len(path) + 1) if is_distinct(path, n)) for path in paths]
    return ["/".join(path[-length:]) for path, length in zip(paths, lengths, strict=True)]
