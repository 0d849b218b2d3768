"""Ranks meet, or say within seconds for whom they wait; a signal and a limit end the wait."""

import logging
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from data_tools.base.errors import UserError
from ds_train.ranks import meeting
from ds_train.ranks.meeting import meet
from ds_train.ranks.world import World
from tests.support.launching import free_port

_VARIABLES = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


def _meet(rank: int, size: int, port: int, timeout_s: float = 30.0) -> Any:
    return meet(World(rank, rank, size, "srun"), "127.0.0.1", port, timeout_s)


def test_all_meet_whoever_comes_first() -> None:
    port = free_port()
    with ThreadPoolExecutor(3) as threads:
        meetings = list(threads.map(lambda rank: _meet(rank, 3, port), (2, 1, 0)))
    assert [meeting.hosts for meeting in meetings] == [[os.uname().nodename] * 3] * 3


@pytest.mark.parametrize("rank", [0, 1])
def test_a_lonely_rank_says_for_whom_it_waits_and_leaves_on_a_signal(
    rank: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Python started by mistake in a shell inside a step of two tasks."""
    for name, value in _VARIABLES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(meeting, "_FIRST_REPORT_S", 0.0)
    monkeypatch.setattr(meeting, "received_signal", lambda: "SIGTERM" if "is waiting for" in caplog.text else None)
    port = free_port()
    with pytest.raises(SystemExit) as end:
        _meet(rank, 2, port)
    assert end.value.code == 85
    waiting, stopped = (record.message for record in caplog.records)
    awaited = "1 of 2 ranks (1)" if rank == 0 else f"rank 0 at 127.0.0.1:{port}"
    assert waiting.startswith(f"rank {rank} is waiting for {awaited}; srun set SLURM_PROCID=0, SLURM_LOCALID=0")
    assert f"waiting for {awaited}: received SIGTERM" in stopped
    assert caplog.records[0].levelno == (logging.ERROR if rank else logging.WARNING), "others show errors only"


def test_the_first_report_comes_within_seconds() -> None:
    assert meeting._FIRST_REPORT_S <= 5


def test_ranks_that_never_come_end_the_wait_as_lost(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        _meet(0, 12, free_port(), timeout_s=0.1)
    assert end.value.code == 87
    assert "for 11 of 12 ranks (1, 2, 3, 4, 5, 6, 7, 8 …)" in caplog.text


def test_a_taken_port_is_one_message() -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        expected = f"at port {port} of this node .address already in use.*--master_port NUMBER, or MASTER_PORT=NUMBER"
        with pytest.raises(UserError, match=expected):
            _meet(0, 2, port)
