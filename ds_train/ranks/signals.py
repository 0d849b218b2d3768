"""Stops a run on request: a signal or a STOP file, agreed over ranks, so that all exit after the same optimizer step.

Imports nothing heavy: entry points install the handlers first of all, because a signal kills a process without one.
"""

import logging
import math
import os
import signal
import threading
import time
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING

from data_tools.base.errors import file_problem

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
STOP_FILE = "STOP"
_LOOK_S = 1.0  # a shared file system is asked for STOP no more often
BURST_S = 2.0  # pdsh sends INT and TERM together, and a launcher repeats the terminal's signal: one request


class ExitCode(IntEnum):
    """A trainer's exit code, which tells a job script what to do."""

    FINISHED = 0
    ERROR = 1
    PREEMPTED = 85  # by a signal: start again
    STOPPED = 86  # by STOP, --stop_step or --max_hours: do not start again
    RANK_LOST = 87  # a rank died or hangs


class StopTraining(Exception):  # noqa: N818  a request, not an error
    """Raised on all ranks at the point where they have agreed to stop.

    Args:
        repeat: which command continues the run, for the message.
    """

    def __init__(self, exit_code: ExitCode, reason: str, repeat: str = "the same command") -> None:
        super().__init__(reason)
        self.exit_code = exit_code
        self.repeat = repeat


class _Received:
    """The signal that this process received, if any."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._time = 0.0

    def take(self, number: int) -> None:
        if self.number is None:
            self.number, self._time = number, time.monotonic()
        elif time.monotonic() - self._time > BURST_S:
            os.write(2, f"\nsecond signal ({signal.Signals(number).name}): leaving at once\n".encode())
            os._exit(ExitCode.PREEMPTED)


_received = _Received()


def received_signal() -> str | None:
    """Name of the signal that this process was sent, None if it was not."""
    return None if _received.number is None else signal.Signals(_received.number).name


def install_handlers() -> None:
    """Treat SIGUSR1, SIGTERM and SIGINT as requests to stop. A second one, two seconds later or more, exits at once.

    A thread receives them: a Python handler would wait until the main thread returns from a collective, perhaps never.
    """
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    for number in SIGNALS:
        signal.signal(number, lambda *_: None)

    def listen() -> None:
        while numbers := os.read(read_end, 64):
            for number in numbers:
                if number in SIGNALS:
                    _received.take(number)

    threading.Thread(target=listen, name="signals", daemon=True).start()


def ignore_signals() -> None:
    """Ignore all signals but SIGKILL from here on: this process is about to exit by itself."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def end_on_signal() -> None:
    """Exit silently on any signal from here on; at once if one has already arrived."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    if _received.number is not None:
        os._exit(ExitCode.ERROR)


class StopRequests:
    """Agrees over all ranks on whether to stop.

    Args:
        run_directory: where a file named STOP requests it.
        is_main: whether this rank looks for the file.
        device: device of the collectives.
        max_hours: that may pass from now on; None for no end.
    """

    def __init__(
        self, run_directory: Path, is_main: bool, device: "torch.device", max_hours: float | None = None
    ) -> None:
        self._file = run_directory / STOP_FILE
        self._is_main = is_main
        self._device = device
        self._max_hours, self._start = max_hours, time.monotonic()
        self._by_file, self._looked = False, -math.inf

    def own(self) -> list[int]:
        """This rank's requests, each 0 without one: whether STOP exists, the signal, whether time is up."""
        now = time.monotonic()
        if self._is_main and now - self._looked >= _LOOK_S:
            self._by_file, self._looked = self._file.exists(), now
        is_late = self._max_hours is not None and (now - self._start) / 3600 >= self._max_hours
        return [self._by_file, _received.number or 0, is_late]

    def agree(self) -> list[int]:
        """The largest of all ranks' requests. Collective."""
        import torch
        import torch.distributed as dist

        requests = torch.tensor(self.own(), device=self._device)
        dist.all_reduce(requests, dist.ReduceOp.MAX)
        return requests.tolist()

    def obey(self, requests: Sequence[int]) -> None:
        """Stop if there is a request among those that all ranks have agreed on.

        Raises:
            StopTraining: on every rank.
        """
        stop_file, number, time_is_up = requests
        if stop_file:  # it goes first: its author does not want a requeue
            raise StopTraining(ExitCode.STOPPED, f"found {self._file}")
        if number:
            raise StopTraining(ExitCode.PREEMPTED, f"received {signal.Signals(number).name}")
        if time_is_up:
            raise StopTraining(ExitCode.STOPPED, f"--max_hours {self._max_hours:g}")

    def check(self) -> None:
        """Stop if any rank has a request. Collective.

        Raises:
            StopTraining: on every rank.
        """
        self.obey(self.agree())

    def consume(self) -> None:
        """Remove the STOP file, so that it stops one run and not the next."""
        if self._is_main:
            try:
                self._file.unlink(missing_ok=True)
            except OSError as error:
                logger.warning("cannot remove %s; remove it, or it stops the next run too", file_problem(error))
