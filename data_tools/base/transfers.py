"""Long transfers of bytes: lines in the log tell how far they have come."""

import logging
import threading
import time
from datetime import timedelta

logger = logging.getLogger(__name__)

_FIRST_LINE_S, _LINE_EVERY_S = 10.0, 30.0  # a short transfer has no line
_under_way: list["Transfer"] = []  # at most one
_counting = threading.Lock()


class Transfer:
    """A context manager for a transfer, of which there is one at a time. Whatever thread moves its bytes calls `count`.

    Args:
        what: is done, for the log: "verifying step_00000200".
        num_bytes: in all, or about.
    """

    def __init__(self, what: str, num_bytes: int) -> None:
        self._what, self._num_bytes = what, num_bytes
        self._num_done = 0
        self._next_line_s = _FIRST_LINE_S

    def __enter__(self) -> None:
        self._start = time.monotonic()
        _under_way[:] = [self]

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        _under_way.clear()
        if self._next_line_s > _FIRST_LINE_S and error_type is None:
            seconds = time.monotonic() - self._start
            size, rate = _gib(self._num_done), _gib(self._num_done / seconds)
            logger.info("%s: %s GiB in %s, %s GiB/s", self._what, size, _clock(seconds), rate)

    def advance(self, num_bytes: int) -> None:
        """Add bytes, and log a line if it is time for one."""
        self._num_done += num_bytes
        seconds = time.monotonic() - self._start
        if seconds < self._next_line_s:
            return
        self._next_line_s = seconds + _LINE_EVERY_S
        rate = self._num_done / seconds
        left_s = max(self._num_bytes - self._num_done, 0) / max(rate, 1)
        done, total = _gib(self._num_done), _gib(self._num_bytes)
        logger.info("%s: %s of %s GiB, %s GiB/s, %s left", self._what, done, total, _gib(rate), _clock(left_s))


def count(num_bytes: int) -> None:
    """Count bytes that were read or written, for the transfer under way if there is one."""
    with _counting:
        for transfer in _under_way:
            transfer.advance(num_bytes)


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:,.2f}"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
