"""Candidates that were longer than seq_len, as the log reports them."""

import logging

from data_tools.samples.readers import Overflow

logger = logging.getLogger(__name__)

_NUM_IN_FULL = 5


class OverflowReport:
    """Warns about candidates longer than seq_len: the first few in full, then a count.

    Args:
        before: how many there were before this launch.
    """

    def __init__(self, before: int) -> None:
        self._before = before
        self._num_shown = 0

    def seen(self, overflows: list[Overflow]) -> None:
        for overflow in overflows[: _NUM_IN_FULL - self._num_shown]:
            self._num_shown += 1
            logger.warning(
                "sample %d attempt %d has %d tokens, more than seq_len; the next attempt takes its place",
                overflow.index, overflow.attempt, overflow.num_tokens,
            )  # fmt: skip

    def summary(self, total: int) -> None:
        if total > self._before:
            logger.warning(
                "%d candidates were longer than seq_len and were replaced (%d in all)", total - self._before, total
            )
