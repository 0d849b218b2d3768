"""Ends the job when a rank is dead, makes no progress or has failed, and reports which rank.

Threads on every rank publish each second, in the store where the ranks met, what the process is doing. Rank 0 hears all
of them and decides for all; the others hear rank 0, whose heartbeat carries the decision.
"""

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import torch.distributed as dist

from data_tools.base.errors import first_line, user_message
from ds_train.ranks.activity import bytes_moved, collectives_launched, main_thread_place
from ds_train.ranks.collectives import join_process_group, meet_all
from ds_train.ranks.judge import End, Failure, Heartbeat, Judge, Patience
from ds_train.ranks.meeting import Meeting
from ds_train.ranks.signals import ExitCode, received_signal
from ds_train.ranks.world import World

_STORE_TIMEOUT = timedelta(seconds=10)
_BEATS_TO_SPREAD = 3  # a decision reaches every rank in this time
_COARSE = 1 << 24  # bytes moved count in this unit, so that the watchdog's own traffic is no progress
_watchdogs = itertools.count()  # of this process: each has its own keys in the store


class RankLostError(Exception):
    """This rank cannot continue because a process is gone; started again, it can."""


class Watchdog:
    """Watches over one rank; see the module.

    Args:
        meeting: of all ranks.

    Attributes:
        at_end: is called with the exit code and the reason before this process ends because of another; it must return
            soon.
    """

    def __init__(self, world: World, meeting: Meeting, patience: Patience) -> None:
        self._world, self._patience = world, patience
        self.at_end: Callable[[int, str], None] = lambda code, reason: None
        self._judge = Judge(world.rank, world.size, patience)
        self._beat = Heartbeat(host=meeting.hosts[world.rank])
        self._heard = {rank: Heartbeat(host=meeting.hosts[rank]) for rank in self._judge.observed}
        self._stopped, self._error_is_own = threading.Event(), threading.Event()
        self._store = dist.PrefixStore(f"watchdog {next(_watchdogs)}", meeting.store)
        self._store.set_timeout(_STORE_TIMEOUT)
        for work in (self._exchange, self._watch):
            threading.Thread(target=work, name=f"watchdog {work.__name__}", daemon=True).start()

    def progress(self, doing: str, *, is_long: bool = False) -> None:
        """Report progress of the main thread. Its next activity may exceed the time-out only if ``is_long``."""
        self._beat.doing, self._beat.is_long = doing, is_long
        self._beat.num_reports += 1

    def stop(self) -> None:
        """End the watch."""
        self._stopped.set()

    def fail(self, error: Exception) -> None:
        """Report an error that ends this rank. Returns if it is for this rank to raise; else the process ends here."""
        if isinstance(error, RankLostError):
            failure = Failure(ExitCode.RANK_LOST, str(error))
        elif message := user_message(error):
            failure = Failure(ExitCode.ERROR, message)
        else:
            failure = Failure(None, first_line(error))
        if self._world.size > 1 or failure.code == ExitCode.RANK_LOST:
            self._beat.failure = failure
            self._error_is_own.wait()

    def _exchange(self) -> None:
        """Publish this rank's heartbeats and hear others'. A store that is cut off may never answer."""
        while not self._stopped.wait(self._patience.beat_s):
            self._beat.number += 1
            self._beat.place = main_thread_place()
            self._beat.num_launched = collectives_launched()
            self._beat.moved = bytes_moved() // _COARSE
            try:
                self._publish()
                self._hear()
            except dist.DistNetworkError:
                return  # rank 0 is gone, and torch would print a stack for each attempt
            except RuntimeError:
                continue  # rank 0 has yet to wake up

    def _publish(self) -> None:
        self._store.set(str(self._world.rank), self._beat.to_json())

    def _hear(self) -> None:
        ranks = [rank for rank, beat in self._heard.items() if beat.number or self._store.check([str(rank)])]
        if ranks:
            texts = self._store.multi_get([str(rank) for rank in ranks])
            self._heard |= {rank: Heartbeat.from_json(text) for rank, text in zip(ranks, texts, strict=True)}

    def _watch(self) -> None:
        """Judge every second. Does no input or output, so nothing can hold it up."""
        last_look = time.monotonic()
        while not self._stopped.wait(self._patience.beat_s):
            now = time.monotonic()
            is_signalled = received_signal() is not None
            end = self._judge.look(now - last_look, self._beat, self._heard, is_signalled=is_signalled)
            last_look = now
            if end:
                self._end(end)
                return

    def _end(self, end: End) -> None:
        """End this process, and on rank 0 first all others; but a rank that has an error raises it itself."""
        is_own = end.code == ExitCode.ERROR and self._beat.failure is not None
        was_told = not self._world.is_main and self._heard[0].verdict == end
        if self._world.is_main:
            self._beat.verdict = end
            with contextlib.suppress(RuntimeError):
                self._publish()
        if not is_own and not was_told:
            again = ". Start the same command again: a run continues from its last checkpoint."
            text = end.reason + (again if end.code == ExitCode.RANK_LOST else "")
            with contextlib.suppress(OSError):  # nobody reads any more
                os.write(2, f"error: {text}\n".encode())
        if not is_own:
            self.at_end(end.code, end.reason)
        if self._world.is_main and self._world.size > 1:
            time.sleep(_BEATS_TO_SPREAD * self._patience.beat_s)
        if is_own:
            self._error_is_own.set()
        else:
            os._exit(end.code)


@contextlib.contextmanager
def supervision(world: World, patience: Patience) -> Iterator[Watchdog]:
    """Join the other ranks in a process group, under a watchdog, for the time of the block. Collective.

    An error that arose on this rank ends all ranks with exit code 1. If a collective failed because another rank is
    gone, all end with 87, and the message names that rank.
    """
    watchdog = Watchdog(world, meet_all(world), patience)
    try:
        join_process_group(world)
        yield watchdog
        watchdog.progress("waiting for the others at the end")
        dist.barrier()
    except Exception as error:
        watchdog.fail(error)
        raise
    finally:
        watchdog.stop()
