"""Single rows of a log are found without reading all of it."""

import json
from pathlib import Path

import pytest

from data_tools.runs import tails
from data_tools.runs.tails import last_rows, number_in, rows_around


def _write(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def _rows(count: int) -> list[str]:
    return [json.dumps({"step": 10 * n, "stage": n // 3, "pad": "x" * (n % 7)}) for n in range(1, count + 1)]


def test_the_last_rows_are_whole_and_in_order(tmp_path: Path) -> None:
    path = _write(tmp_path / "log", _rows(50))
    with path.open("a") as file:
        file.write('{"step": 9999, "stage": 1')  # being written
    found = last_rows(path, 200)
    assert [row["step"] for row in found] == list(range(510 - 10 * len(found), 510, 10)) and 2 < len(found) < 8
    assert len(last_rows(path)) == 50
    assert last_rows(tmp_path / "missing") == last_rows(tmp_path) == []


@pytest.mark.parametrize("damaged", [[], ["no json", "[1]", '{"step": "x"}', "[" * 100_000, '{"step": 1e999}']])
def test_the_rows_around_a_value_are_those_of_a_search_through_all(tmp_path: Path, damaged: list[str]) -> None:
    lines = _rows(40)
    path = _write(tmp_path / "log", [*lines[:11], *damaged, *lines[11:]])
    rows = [json.loads(line) for line in lines]
    for column, values in (("step", range(0, 420, 5)), ("stage", range(-1, 16))):
        for value in values:
            below = [row for row in rows if row[column] < value]
            reached = [row for row in rows if row[column] >= value]
            assert rows_around(path, column, value) == ((below or [None])[-1], (reached or [None])[0])
    assert rows_around(path, "absent", 3) == (None, None) == rows_around(tmp_path / "missing", "step", 3)


def test_a_large_log_is_read_in_few_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, num_parsed = _write(tmp_path / "log", _rows(20_000)), 0

    def counted(line: bytes) -> dict:
        nonlocal num_parsed
        num_parsed += 1
        return json.loads(line)

    monkeypatch.setattr(tails, "_row", counted)
    below, reached = rows_around(path, "step", 123_456)
    assert below and reached and (below["step"], reached["step"]) == (123_450, 123_460)
    assert num_parsed < 30


def test_what_is_no_number_is_none() -> None:
    row = {"text": "1", "huge": 10**400, "nan": float("nan"), "true": True, "half": 0.5}
    assert [number_in(row, column) for column in (*row, "absent")] == [None, None, None, None, 0.5, None]
    assert number_in(None, "step") is None
