"""Logs hold every step once, and nothing that is no JSON."""

import errno
import json
import math
import os

import numpy as np
import pytest

from ds_train.training import metrics
from ds_train.training.metrics import JsonlLog


def rows_of(path) -> list[dict]:
    return [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]


def test_rows_are_written_as_given(tmp_path):
    log = JsonlLog(tmp_path / "logs" / "train.jsonl", is_writer=True)
    rows = [{"step": 1, "loss": 0.25, "curr_acc": None, "stage": 1}, {"step": 2, "ledger": "ab", "tokens": 10**14}]
    for row in rows:
        log.append(row)
    assert rows_of(tmp_path / "logs" / "train.jsonl") == rows
    assert list(rows_of(tmp_path / "logs" / "train.jsonl")[0]) == ["step", "loss", "curr_acc", "stage"]
    assert (tmp_path / "logs" / "train.jsonl").read_bytes().endswith(b"}\n")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float64("nan")])
def test_no_number_becomes_null(tmp_path, value):
    JsonlLog(tmp_path / "log.jsonl", is_writer=True).append({"step": 1, "loss": value, "lr": 0.5})
    assert rows_of(tmp_path / "log.jsonl") == [{"step": 1, "loss": None, "lr": 0.5}]


def test_only_the_writer_touches_the_file(tmp_path):
    log = JsonlLog(tmp_path / "logs" / "log.jsonl", is_writer=False)
    log.append({"step": 1})
    log.rewind(0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("step", "kept"), [(30, [10, 20, 30]), (29, [10, 20]), (10, [10]), (0, []), (99, [10, 20, 30])]
)
def test_rewind_drops_later_rows(tmp_path, step, kept):
    path = tmp_path / "log.jsonl"
    log = JsonlLog(path, is_writer=True)
    for number in (10, 20, 30):
        log.append({"step": number, "loss": 1.5})
    log.rewind(step)
    assert [row["step"] for row in rows_of(path)] == kept
    log.append({"step": step + 1})
    assert [row["step"] for row in rows_of(path)] == [*kept, step + 1]
    assert [entry.name for entry in tmp_path.iterdir()] == ["log.jsonl"]


TORN = [
    b'{"step": 3', b'{"step": 30, "lo', b"\0\0\0\0", b"[1, 2", b"7", b'{"loss": 1}', b'"step"', b'{"step": "3"}',
    b'{"step": null}', b'{"step": 3, "x": "\xff\xfe"}', b"\x80\x81\n\xff\n", b"[" * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("torn", TORN)
def test_rewind_drops_a_torn_line_and_says_so_once(tmp_path, torn, caplog):
    path = tmp_path / "log.jsonl"
    log = JsonlLog(path, is_writer=True)
    for number in (10, 20):
        log.append({"step": number})
    with path.open("ab") as file:
        file.write(torn)
    log.rewind(25)
    assert [record.message for record in caplog.records] == [
        f"{path}: dropped {torn.count(10) or 1} line{'s' * (torn.count(10) > 1)}, torn or damaged"
    ]
    log.append({"step": 30})
    assert [row["step"] for row in rows_of(path)] == [10, 20, 30]


def test_rewind_keeps_a_whole_last_line_without_its_newline(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 10}\n{"step": 20}')
    log = JsonlLog(path, is_writer=True)
    log.rewind(20)
    log.append({"step": 30})
    assert [row["step"] for row in rows_of(path)] == [10, 20, 30]


def test_rewind_without_a_file_does_nothing(tmp_path):
    JsonlLog(tmp_path / "log.jsonl", is_writer=True).rewind(10)
    assert not (tmp_path / "log.jsonl").exists()


def test_rows_wait_in_memory_while_the_disk_is_full(tmp_path, monkeypatch, caplog):
    path = tmp_path / "log.jsonl"
    log = JsonlLog(path, is_writer=True)
    log.append({"step": 1})
    with monkeypatch.context() as patch:
        patch.setattr(metrics, "append", full_disk)
        for step in (2, 3, 4):
            log.append({"step": step})
        assert [record.message.split(".jsonl: ")[1].split(".")[0] for record in caplog.records] == [
            "No space left on device"
        ]
        assert [row["step"] for row in rows_of(path)] == [1]
    log.append({"step": 5})
    log.close()
    assert [row["step"] for row in rows_of(path)] == [1, 2, 3, 4, 5]
    with monkeypatch.context() as patch:
        patch.setattr(metrics, "append", full_disk)
        log.append({"step": 6})
        log.close()
    assert "The log lacks its last 1 row" in caplog.text and len(caplog.records) == 3


def full_disk(path, data):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
