"""Reads single rows of a large log: the last ones, or those around a value of a rising column."""

import json
import os
from bisect import bisect_left
from math import inf
from pathlib import Path
from typing import Any, BinaryIO

from data_tools.base.errors import is_number

Row = dict[str, Any]
_TAIL_BYTES = 1 << 15  # some 80 rows
_TOO_LARGE = 10**18  # for a count of anything


def number_in(row: Row | None, column: str) -> float | None:
    """A column of a row, None if there is no such row, column or number."""
    value: Any = (row or {}).get(column)
    return float(value) if is_number(value) and abs(value) < _TOO_LARGE else None


def last_rows(path: Path, num_bytes: int = _TAIL_BYTES) -> list[Row]:
    """The rows in the last bytes of a JSON-lines file, in order, without damaged ones; none if it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - num_bytes))
            lines = file.read().split(b"\n")[:-1]  # the last one is empty, or still being written
    except OSError:
        return []
    return [row for line in lines if (row := _row(line))]


def rows_around(path: Path, column: str, value: float) -> tuple[Row | None, Row | None]:
    """The last row below a value of a column that never falls, and the first row that reaches it, by bisection.

    Each is None where there is no such row; both are if the file cannot be read.
    """
    try:
        with path.open("rb") as file:

            def value_from(offset: int) -> float:
                found = number_in(_row_from(file, offset, column), column)
                return inf if found is None else found

            end = file.seek(0, os.SEEK_END)
            reached = bisect_left(range(end), value, key=value_from)  # one byte after the start of the row below
            below = _row_from(file, reached - 1, column) if reached else None
            return below, _row_from(file, reached, column)
    except OSError:
        return None, None


def _row_from(file: BinaryIO, offset: int, column: str) -> Row | None:
    """The first row with a number in the column that starts at an offset or after it."""
    file.seek(max(offset - 1, 0))
    if offset:
        file.readline()
    while (line := file.readline()).endswith(b"\n"):
        if (row := _row(line)) and number_in(row, column) is not None:
            return row
    return None


def _row(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and number_in(row, "step") is not None else None
