"""Long transfers of bytes: lines in the log tell how far they have come."""

import logging
import threading
import time
from datetime import timedelta

logger = logging.getLogger(__name__)

_FIRST_LINE_S, _LINE_EVERY_S = 10.0, 30.0  # a short transfer has no line
_counting = threading.Lock()
_num_transferred = 0


def bytes_transferred() -> int:
    """Bytes of all transfers of this process so far."""
    return _num_transferred


class Transfer:
    """A transfer under way: a context manager, to which any thread may `add` bytes.

    Args:
        what: is done, for the log: "verifying step_00000200".
        num_bytes: in all.
    """

    def __init__(self, what: str, num_bytes: int) -> None:
        self._what, self._num_bytes = what, num_bytes
        self._num_done = 0
        self._start = time.monotonic()
        self._next_line_s = _FIRST_LINE_S

    def __enter__(self) -> "Transfer":
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        if self._next_line_s > _FIRST_LINE_S and error_type is None:
            seconds = time.monotonic() - self._start
            size, rate = _gib(self._num_done), _gib(self._num_done / seconds)
            logger.info("%s: %s GiB in %s, %s GiB/s", self._what, size, _clock(seconds), rate)

    def add(self, num_bytes: int) -> None:
        """Count bytes that have been transferred."""
        global _num_transferred
        with _counting:
            _num_transferred += num_bytes
            self._num_done += num_bytes
            seconds = time.monotonic() - self._start
            is_due = seconds >= self._next_line_s
            if is_due:
                self._next_line_s = seconds + _LINE_EVERY_S
        if is_due:
            rate = self._num_done / seconds
            left_s = max(self._num_bytes - self._num_done, 0) / max(rate, 1)
            logger.info(
                "%s: %s of %s GiB, %s GiB/s, %s left",
                self._what, _gib(self._num_done), _gib(self._num_bytes), _gib(rate), _clock(left_s),
            )  # fmt: skip


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:,.2f}"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
