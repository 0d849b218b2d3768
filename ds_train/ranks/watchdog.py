"""Ends the job when a rank is dead, makes no progress or has failed, and reports which rank.

Threads on every rank publish each second, in a small store, what the main thread is doing. A rank that fails in a
collective, or waits too long, looks there for the missing rank.
"""

import contextlib
import gc
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from types import FrameType

import torch.distributed as dist
from torch.distributed.distributed_c10d import _set_pg_timeout

from data_tools.base.errors import UserError
from ds_train.ranks.collectives import broadcast_object
from ds_train.ranks.signals import ExitCode
from ds_train.ranks.world import World

LONG_S = 1800.0  # patience with start-up and checkpoints, which take as long as files take
_BEAT_S = 1.0
_SILENT_S = 5.0  # a rank without a heartbeat for this long is dead, stopped or cut off
_STORE_TIMEOUT_S = 10.0
_PAUSE_S = 5 * _BEAT_S  # a watching thread that did not run for this long was paused, with its process
NEVER = timedelta(days=365)
_looking = threading.Lock()
_FAILED = "failed"  # key that a rank sets when it ends with an error that arose on it


@dataclass
class Heartbeat:
    """What a rank publishes for the others.

    Attributes:
        number: counts up each second while the process lives.
        doing: the main thread's last `Watchdog.progress`.
        place: file and line of the main thread's innermost frame outside torch.
        waits: whether it is inside a collective.
        host: the node.
    """

    number: int
    doing: str
    place: str
    waits: bool
    host: str


class Watchdog:
    """Watches over one rank; see the module. Construction is collective.

    Args:
        timeout_s: longest time without progress, except in start-up and saves.
    """

    def __init__(self, world: World, timeout_s: float) -> None:
        self._world = world
        self._timeout_s = timeout_s
        self._beat = Heartbeat(0, "starting", "", False, socket.gethostname())
        self._num_reports, self._limit_s = 0, max(timeout_s, LONG_S)  # reports of progress
        self._stopped = threading.Event()
        self.explaining = threading.Lock()  # main thread or watch: the first to hold it reports the error
        address = os.environ["MASTER_ADDR"]
        self._server = dist.TCPStore(address, 0, is_master=True, wait_for_workers=False) if world.is_main else None
        port = broadcast_object(self._server.port if self._server else None)
        self._store = dist.TCPStore(
            address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=_STORE_TIMEOUT_S)
        )
        self._publish()
        # From here on this watch ends a wait that is too long. Collectives would also count time in which they slept.
        _set_pg_timeout(NEVER)
        for work in (self._publish_loop, self._watch):
            threading.Thread(target=work, name=f"watchdog {work.__name__}", daemon=True).start()

    def progress(self, doing: str, *, is_long: bool = False) -> None:
        """Report progress of the main thread. Its next activity may exceed the time-out only if ``is_long``."""
        self._beat.doing = doing
        self._limit_s = max(self._timeout_s, LONG_S) if is_long else self._timeout_s
        self._num_reports += 1

    def stop(self) -> None:
        """End the watch: the work is done, and other ranks may exit before this one."""
        self._stopped.set()

    def fail(self, error: Exception) -> None:
        """Tell the other ranks, which may be waiting for this one in a collective, that it ends with an error."""
        self.stop()
        with contextlib.suppress(RuntimeError):
            self._store.set(_FAILED, f"rank {self._world.rank}: {error}")
        if self._world.size > 1:
            time.sleep(3 * _BEAT_S)  # they look each second; an earlier exit would look like a lost rank

    def missing(self) -> str | None:
        """Describe the ranks that this one waits for; None where all seem well. Takes some seconds."""
        before = self._read_all()
        time.sleep(_SILENT_S if before else 0)
        after = self._read_all() if before else None
        if before is None or after is None:
            return "rank 0 is not reachable"  # it holds the store
        del after[self._world.rank]
        silent = [r for r, beat in after.items() if beat is None or beat.number == getattr(before[r], "number", None)]
        if silent:
            return "; ".join(f"rank {r} ({_host(after[r])}) gives no sign of life" for r in silent)
        busy = {rank: beat for rank, beat in after.items() if beat is not None and not beat.waits}
        if busy and self._beat.waits:
            return "; ".join(f"rank {r} ({b.host}) does not arrive: {b.doing}, at {b.place}" for r, b in busy.items())
        return None

    def _read_all(self) -> dict[int, Heartbeat | None] | None:
        """Every rank's last heartbeat; None if rank 0's store does not answer."""
        found: dict[int, Heartbeat | None] = {}

        def read() -> None:
            with contextlib.suppress(RuntimeError):
                for rank in range(self._world.size):
                    key = str(rank)
                    found[rank] = Heartbeat(**json.loads(self._store.get(key))) if self._store.check([key]) else None

        reader = threading.Thread(target=read, daemon=True)  # a store that is cut off may never answer
        reader.start()
        reader.join(_STORE_TIMEOUT_S)
        return found if len(found) == self._world.size else None

    def _publish(self) -> None:
        self._store.set(str(self._world.rank), json.dumps(asdict(self._beat)))

    def _publish_loop(self) -> None:
        """Publish heartbeats, and exit when another rank has failed."""
        while not self._stopped.wait(_BEAT_S):
            self._beat.number += 1
            self._beat.place, self._beat.waits = _position_of_main_thread()
            # Rank 0 may be gone: then the main thread fails, or the watch ends its wait. Or it has yet to wake up.
            with contextlib.suppress(RuntimeError):
                self._publish()
                if self._store.check([_FAILED]) and not self._stopped.wait(_BEAT_S):
                    if self._world.is_main:  # the rank that failed may be killed before it reports its error
                        os.write(2, b"error: " + self._store.get(_FAILED) + b"\n")
                    os._exit(ExitCode.ERROR)

    def _watch(self) -> None:
        """End the job when the main thread reports no progress for too long.

        Only time in which this thread runs counts. After a pause of the process (a suspended job, Ctrl-Z, a paused
        virtual machine) the count starts again, because other nodes may wake later.
        """
        num_reports, waited_s, last_look = self._num_reports, 0.0, time.monotonic()
        while not self._stopped.wait(_BEAT_S):
            since_look, last_look = time.monotonic() - last_look, time.monotonic()
            waited_s += since_look
            if num_reports != self._num_reports or since_look > _PAUSE_S:
                num_reports, waited_s = self._num_reports, 0.0
            if waited_s > self._limit_s:
                place, _ = _position_of_main_thread()
                with self.explaining:
                    missing = self.missing() or f"no rank is missing; this one is at {place}"
                    exit_rank_lost(self._world, f"no progress for {waited_s:.0f} s in {self._beat.doing}: {missing}")


@contextlib.contextmanager
def supervision(world: World, timeout_s: float) -> Iterator[Watchdog]:
    """Run a watchdog inside the block. An error there ends the whole job and is traced to the rank that caused it.

    An error that arose on this rank ends all ranks with exit code 1. A collective that failed because another rank is
    gone ends them with 87, and the message names that rank. Collective.
    """
    watchdog = Watchdog(world, timeout_s)
    try:
        yield watchdog
    except UserError as error:
        watchdog.fail(error)
        raise
    except Exception as error:
        with watchdog.explaining:
            if missing := watchdog.missing():
                exit_rank_lost(world, f"{missing} ({type(error).__name__}: {str(error).splitlines()[0]})")
        watchdog.fail(error)
        raise
    watchdog.stop()


def exit_rank_lost(world: World, message: str) -> None:
    """Exit at once with code 87, without any collective."""
    text = f"error: rank {world.rank}: {message}. Finished checkpoints are whole; started again, the run resumes.\n"
    os.write(2, text.encode())
    if world.is_main and world.size > 1:
        time.sleep(2 * _SILENT_S)  # rank 0 holds the store in which the others look for the missing rank
    os._exit(ExitCode.RANK_LOST)


def _host(beat: Heartbeat | None) -> str:
    return beat.host if beat else "no heartbeat yet"


def _position_of_main_thread() -> tuple[str, bool]:
    """The main thread's innermost frame outside torch, as file:line, and whether it is inside a collective."""
    # CPython before 3.12 deadlocks when its garbage collector runs inside this call (python/cpython issue 106883).
    with _looking:  # one thread at a time, or one would enable the collector during another's call
        was_enabled = gc.isenabled()
        gc.disable()
        frame: FrameType | None = sys._current_frames().get(threading.main_thread().ident or 0)
        if was_enabled:
            gc.enable()
    waits = False
    while frame is not None and "/torch/" in frame.f_code.co_filename:
        waits |= "/torch/distributed/" in frame.f_code.co_filename
        frame = frame.f_back
    if frame is None:
        return "an unknown place", waits
    return f"{'/'.join(frame.f_code.co_filename.rsplit('/', 2)[-2:])}:{frame.f_lineno}", waits
