"""What this process is doing, as its watchdog publishes it: collectives launched, bytes moved, place in the code."""

import gc
import mmap
import resource
import sys
import sysconfig
import threading
from pathlib import Path
from types import FrameType

import torch.distributed as dist
from torch.distributed.distributed_c10d import _world

_PYTHON = sysconfig.get_path("stdlib")


def collectives_launched() -> int:
    """How many collectives this process has launched, DeepSpeed's and those of other threads included.

    Ranks launch the same ones, so the rank with the fewest is the one that the others wait for. That holds wherever
    they wait: under gloo inside the collective, under NCCL when they next read a result from the device.
    """
    return sum(map(_launched_in, list(_world.pg_map)))


def _launched_in(group: dist.ProcessGroup) -> int:
    try:
        return group._get_sequence_number_for_group()  # type: ignore[attr-defined]
    except RuntimeError:  # a backend that does not count
        return 0


def main_thread_place() -> str:
    """File and line of the main thread's innermost frame outside torch and Python's library."""
    # CPython before 3.12 deadlocks when its garbage collector runs inside this call (python/cpython issue 106883).
    was_enabled = gc.isenabled()
    gc.disable()
    frame: FrameType | None = sys._current_frames().get(threading.main_thread().ident or 0)
    if was_enabled:
        gc.enable()
    while frame is not None and _is_foreign(frame.f_code.co_filename):
        frame = frame.f_back
    if frame is None:
        return "an unknown place"
    return f"{'/'.join(frame.f_code.co_filename.rsplit('/', 2)[-2:])}:{frame.f_lineno}"


def _is_foreign(file: str) -> bool:
    return "/torch/" in file or file.startswith((_PYTHON, "<"))  # "<frozen importlib"


def bytes_moved() -> int:
    """Bytes that this process has read and written so far, through mapped files as well.

    Not each file system reports what is read through mapped files, so the pages that were waited for count, too.
    """
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        lines = []
    counters = dict(line.split(": ") for line in lines)
    pages = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
    return pages * mmap.PAGESIZE + sum(int(counters.get(name, 0)) for name in ("rchar", "wchar", "read_bytes"))
