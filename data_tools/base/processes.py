"""Worker processes of commands that build data. They are spawned, not forked, and end with the command."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial

from data_tools.base.errors import UserError, file_problem

_LOOK_FOR_PARENT_S = 1.0


def num_cores() -> int:
    """Cores that this process may use; inside a Slurm allocation fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def starting(flag: str) -> Iterator[None]:
    """Explain a refusal of the system to start processes, or threads, inside the block.

    Args:
        flag: how many there are to be.

    Raises:
        UserError: it refuses.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # threads give the latter
        if isinstance(error, RuntimeError) and "can't start new thread" not in str(error):
            raise
        reason = file_problem(error) if isinstance(error, OSError) else str(error)
        raise UserError(
            f"cannot start worker processes ({reason}). They need a writable /dev/shm, and as many processes and "
            f"threads as ulimit -u and the job allow; {flag} says how many there are."
        ) from error


@contextmanager
def worker_processes(
    num_workers: int, prepare: Callable[..., None] | None = None, arguments: tuple[object, ...] = ()
) -> Iterator[ProcessPoolExecutor]:
    """Spawn worker processes, in which code may start threads and reseed global generators.

    They end with the block, and also if the parent is killed. They ignore Ctrl-C, which the parent handles.

    Args:
        prepare: called once in each process before its work, with ``arguments``.

    Raises:
        UserError: the system starts none, or a worker died during the block.
    """
    begin = partial(_begin, prepare, arguments)
    with starting("--workers"):
        executor = ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn"), initializer=begin)
        try:
            executor.submit(_do_nothing)  # or the first piece of work would meet the refusal
        except BaseException:
            for process in executor._processes.values():  # no thread ends them yet, and exit would wait for them
                process.kill()
                process.join()
            raise
    try:
        yield executor
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process died: killed, out of memory, or a crash of the code it ran; try fewer --workers"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _do_nothing() -> None: ...


def _begin(prepare: Callable[..., None] | None, arguments: tuple[object, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    if prepare is not None:
        prepare(*arguments)


def end_with_parent() -> None:
    """Let a thread end this process soon after its parent has died, which a kill leaves no other way to notice."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        while os.getppid() == parent.pid:
            time.sleep(_LOOK_FOR_PARENT_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
