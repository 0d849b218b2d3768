"""A CSV file of evaluations, with a row for each checkpoint; a command that is repeated adds those it lacks."""

import csv
import json
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

from data_tools.base.errors import UserError
from data_tools.base.files import text_of, whole_file
from ds_train.checkpoints.save import read_state
from ds_train.checkpoints.state import PFLOP
from ds_train.checkpoints.weights import Weights, record_of

_SETTINGS, _KEY = "settings", ("path", "hash")


class ScoreTable:
    """The rows of one file, whose evaluations all have the same settings.

    Args:
        path: of the file, which may not exist yet.
        settings: what decides the results besides the checkpoint.

    Raises:
        UserError: the file is another table, or has results of other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self._path = path
        self._settings = json.dumps({name: value for name, value in settings.items() if value is not None})
        text = text_of(path, f"--csv {path}") if path.exists() else ""
        self._rows: list[dict[str, Any]] = list(csv.DictReader(StringIO(text)))
        for row in self._rows:
            if any(not row.get(name) for name in (*_KEY, _SETTINGS)):
                raise UserError(
                    f"--csv {path} is no table of evaluate, with path, hash and settings; give another file."
                )
            if row[_SETTINGS] != self._settings:
                differing = " and ".join(_differences(row[_SETTINGS], self._settings))
                raise UserError(f"--csv {path} has results with {differing}; give another file.")

    def has(self, weights: Weights) -> bool:
        """Whether there is a row of these weights; a checkpoint that was replaced since has none."""
        if all(row["path"] != str(weights.path.absolute()) for row in self._rows):
            return False
        origin = record_of(weights)
        return (origin.path, origin.hash) in [tuple(row[name] for name in _KEY) for row in self._rows]

    def add(self, weights: Weights, report: dict[str, Any]) -> None:
        """Add a row, in place of a former one of the same path."""
        origin = record_of(weights)
        self._rows = [row for row in self._rows if row["path"] != origin.path]
        self._rows.append({**asdict(origin), **_counts(weights), **_in_columns(report), _SETTINGS: self._settings})
        names = list(dict.fromkeys(name for row in self._rows for name in row if name != _SETTINGS))
        text = StringIO()
        writer = csv.DictWriter(text, [*names, _SETTINGS], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        with whole_file(self._path) as file:
            file.write(text.getvalue().encode())


def _differences(there: str, here: str) -> list[str]:
    """How recorded settings differ from these, setting by setting."""
    try:
        one, other = json.loads(there), json.loads(here)
        differing = [name for name in {**other, **one} if one.get(name) != other.get(name)]
    except (ValueError, AttributeError):
        return ["settings that cannot be read"]
    return [f"{name} {one.get(name, 'not given')} ({other.get(name, 'not given')} here)" for name in differing]


def _counts(weights: Weights) -> dict[str, Any]:
    """What a checkpoint's run had trained on; nothing for a Hugging Face directory."""
    state = read_state(weights.path) if weights.is_checkpoint else None
    return {"tokens": state and state.tokens, "pflops": state and state.flops / PFLOP}


def _in_columns(report: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a report, those by lookahead and of tasks in columns of their names."""
    columns = {name: value for name, value in report.items() if isinstance(value, int | float)}
    for row in report["by_lookahead"]:
        columns[f"accuracy_any_lookahead_{row['lookahead']}"] = row["accuracy_any"]
    for task, metrics in report.get("tasks", {}).items():
        columns |= {f"{task}_{name}": value for name, value in metrics.items()}
    return columns
