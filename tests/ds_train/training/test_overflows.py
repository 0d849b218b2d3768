"""Candidates that are too long: the first few in full, then their number."""

import logging

import pytest

from data_tools.samples.readers import Overflow
from ds_train.training.overflows import OverflowReport


def test_the_first_five_are_shown_and_the_rest_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    report = OverflowReport(before=3)
    report.seen([Overflow(index, 0, 3000) for index in range(4)])
    report.seen([Overflow(index, 1, 3000) for index in range(4, 8)])
    assert [record.args[0] for record in caplog.records] == [0, 1, 2, 3, 4]
    caplog.clear()
    report.summary(11)
    assert caplog.messages == ["8 candidates were longer than seq_len and were replaced (11 in all)"]


def test_none_is_no_message(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    report = OverflowReport(before=3)
    report.seen([])
    report.summary(3)
    assert caplog.messages == []
