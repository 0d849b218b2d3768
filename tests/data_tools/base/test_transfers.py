"""Lines of a long transfer: when there are any, and what they tell."""

import logging
import threading
from types import SimpleNamespace

import pytest

from data_tools.base import transfers
from data_tools.base.transfers import Transfer, bytes_transferred

GIB = 2**30


def _lines(seconds: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> list[str]:
    """The lines of a transfer of half a GiB a second."""
    now = 1000.0
    monkeypatch.setattr(transfers, "time", SimpleNamespace(monotonic=lambda: now))
    with caplog.at_level(logging.INFO), Transfer("verifying step_00000200", seconds * GIB // 2) as transfer:
        for _ in range(seconds):
            now += 1
            transfer.add(GIB // 2)
    return [record.message for record in caplog.records]


def test_a_short_transfer_has_no_line(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    assert _lines(9, monkeypatch, caplog) == []


def test_a_long_one_tells_how_far_it_is(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    first, second, end = _lines(60, monkeypatch, caplog)
    assert first == "verifying step_00000200: 5.00 of 30.00 GiB, 0.50 GiB/s, 0:00:50 left"
    assert second == "verifying step_00000200: 20.00 of 30.00 GiB, 0.50 GiB/s, 0:00:20 left"
    assert end == "verifying step_00000200: 30.00 GiB in 0:01:00, 0.50 GiB/s"


def test_bytes_of_all_threads_and_transfers_count() -> None:
    before = bytes_transferred()
    with Transfer("one", 0) as one, Transfer("other", 0) as other:
        threads = [threading.Thread(target=transfer.add, args=(1000,)) for transfer in (one, other) * 8]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert bytes_transferred() - before == 16_000
