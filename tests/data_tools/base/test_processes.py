"""A system that starts no processes is one message, whoever needs them."""

import errno
import multiprocessing.popen_fork
import multiprocessing.popen_spawn_posix
import multiprocessing.synchronize
import os
import threading
from typing import Any

import pytest
import torch

from data_tools.base.errors import UserError
from data_tools.base.processes import worker_processes
from ds_train.step.stream import Stream


def _refuse(number: int) -> Any:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


def _no_thread(*_: Any) -> None:
    raise RuntimeError("can't start new thread")


def _work() -> None:
    with worker_processes(2) as workers:
        workers.submit(int).result()


def _stream() -> None:
    with Stream(1, torch.device("cpu")):
        pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # torch's, of a half-made iterator
@pytest.mark.parametrize(("use", "flag"), [(_work, "--workers"), (_stream, "--num_workers")])
@pytest.mark.parametrize("refused", ["a read-only /dev/shm", "ulimit -u", "ulimit -u for threads"])
def test_what_the_system_refuses_is_said(use: Any, flag: str, refused: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if refused == "a read-only /dev/shm":
        monkeypatch.setattr(multiprocessing.synchronize.SemLock, "__init__", _refuse(errno.EROFS))
        reason = "Read-only file system"
    elif refused == "ulimit -u":
        for module in (multiprocessing.popen_fork.Popen, multiprocessing.popen_spawn_posix.Popen):
            monkeypatch.setattr(module, "_launch", _refuse(errno.EAGAIN))
        reason = "Resource temporarily unavailable"
    else:
        monkeypatch.setattr(threading.Thread, "start", _no_thread)
        reason = "can't start new thread"
    if use is _stream and refused == "ulimit -u for threads":
        pytest.skip("the stream starts no thread before its first batch")
    with pytest.raises(UserError, match=rf"cannot start worker processes \({reason}\).*/dev/shm.*{flag} says"):
        use()
