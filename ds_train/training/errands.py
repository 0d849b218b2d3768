"""Tasks beside training: another thread does them in order, and none can delay or end the run."""

import logging
import queue
import threading
import time
from collections.abc import Callable

from data_tools.base.errors import first_line

logger = logging.getLogger(__name__)

_MOST_WAITING = 10_000


class Errands:
    """A thread that does tasks, started by the first one.

    The first task that fails is a warning; later ones fail in silence, and all are tried.

    Args:
        what: they are, in the warning.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._tasks: queue.Queue[Callable[[], None]] = queue.Queue(_MOST_WAITING)
        self._thread: threading.Thread | None = None
        self._has_warned = False

    def add(self, task: Callable[[], None]) -> None:
        """Have a task done when those before it are. It is left out where too many wait."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._what, daemon=True)
            self._thread.start()
        try:
            self._tasks.put_nowait(task)
        except queue.Full:
            self._warn("too many wait")

    def wait(self, longest_s: float) -> None:
        """Wait until all are done, but not for longer than this."""
        deadline = time.monotonic() + longest_s
        while self._tasks.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.02)

    def _work(self) -> None:
        while True:
            task = self._tasks.get()
            try:
                task()
            except Exception as error:
                self._warn(first_line(error))
            finally:
                self._tasks.task_done()

    def _warn(self, problem: str) -> None:
        if not self._has_warned:
            logger.warning("%s: %s. Training continues; this is the only warning about it", self._what, problem)
        self._has_warned = True
