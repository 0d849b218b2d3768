"""Lines of a long transfer: when there are any, and what they tell."""

import logging
import threading
from types import SimpleNamespace

import pytest

from data_tools.base import transfers
from data_tools.base.transfers import Transfer, count

GIB = 2**30


def _lines(seconds: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> list[str]:
    """The lines of a transfer of half a GiB a second."""
    now = 1000.0
    monkeypatch.setattr(transfers, "time", SimpleNamespace(monotonic=lambda: now))
    with caplog.at_level(logging.INFO), Transfer("verifying step_00000200", seconds * GIB // 2):
        for _ in range(seconds):
            now += 1
            count(GIB // 2)
    count(GIB)  # of no transfer
    return [record.message for record in caplog.records]


def test_a_short_transfer_has_no_line(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    assert _lines(9, monkeypatch, caplog) == []


def test_a_long_one_tells_how_far_it_is(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    first, second, end = _lines(60, monkeypatch, caplog)
    assert first == "verifying step_00000200: 5.00 of 30.00 GiB, 0.50 GiB/s, 0:00:50 left"
    assert second == "verifying step_00000200: 20.00 of 30.00 GiB, 0.50 GiB/s, 0:00:20 left"
    assert end == "verifying step_00000200: 30.00 GiB in 0:01:00, 0.50 GiB/s"


def test_bytes_of_all_threads_count(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(transfers, "_FIRST_LINE_S", 0.0)
    threads = [threading.Thread(target=count, args=(GIB,)) for _ in range(16)]
    with caplog.at_level(logging.INFO), Transfer("loading", 16 * GIB):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert caplog.records[-1].message.startswith("loading: 16.00 GiB in ")


def test_a_transfer_that_fails_has_no_end(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(transfers, "_FIRST_LINE_S", 0.0)
    with caplog.at_level(logging.INFO), pytest.raises(OSError), Transfer("loading", GIB):
        count(GIB // 2)
        raise OSError("the disk is gone")
    (only,) = (record.message for record in caplog.records)
    assert only.startswith("loading: 0.50 of 1.00 GiB, ")
