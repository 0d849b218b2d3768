"""What a process does, as others get to see it: collectives, bytes, its place; no look may disturb it."""

import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from ds_train.ranks import activity
from ds_train.ranks.activity import bytes_moved, collectives_launched, main_thread_place
from ds_train.ranks.collectives import gather_objects, sum_over_ranks
from tests.support.paths import REPOSITORY
from tests.support.process_group import one_rank


def test_collectives_of_all_groups_count_when_they_are_launched() -> None:
    assert collectives_launched() == 0
    with one_rank():
        group = dist.new_group(backend="gloo")
        before = collectives_launched()
        sum_over_ranks(torch.ones(1))
        assert collectives_launched() == before + 1
        work = dist.all_reduce(torch.ones(1), group=group, async_op=True)
        assert collectives_launched() == before + 2
        work.wait()
        gather_objects("something", group)
        assert collectives_launched() > before + 2


def test_bytes_of_reads_and_writes_count(tmp_path: Path) -> None:
    before = bytes_moved()
    (tmp_path / "file").write_bytes(bytes(1 << 20))
    assert bytes_moved() - before >= 1 << 20
    (tmp_path / "file").read_bytes()
    assert bytes_moved() - before >= 2 << 20


def test_pages_of_mapped_files_count_where_the_system_reports_no_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activity, "Path", lambda name: Path("/does/not/exist"))
    monkeypatch.setattr(activity.resource, "getrusage", lambda who: SimpleNamespace(ru_majflt=5))
    assert bytes_moved() == 5 * mmap.PAGESIZE


def test_the_place_is_outside_torch_and_python() -> None:
    """The main thread waits in a file of torch, which has called Python's library; another one looks."""
    torchs: dict[str, Callable[..., None]] = {}
    code = "def wait(waits, looked): waits.set(); looked.wait()"
    exec(compile(code, "/anywhere/torch/distributed/waiting.py", "exec"), torchs)
    waits, looked, places = threading.Event(), threading.Event(), []

    def look() -> None:
        waits.wait()
        places.append(main_thread_place())
        looked.set()

    threading.Thread(target=look).start()
    torchs["wait"](waits, looked)
    assert places[0].startswith("ranks/test_activity.py:")


_MANY_THREADS = """
import gc, itertools, os, threading, time
from ds_train.ranks.activity import main_thread_place

class Cycle:
    def __init__(self):
        self.me = self
    def __del__(self):
        time.sleep(0)  # gives up the GIL, as any finalizer may

def look():
    for threshold in itertools.cycle(range(2, 20)):  # the collection has to fall into the call
        gc.set_threshold(threshold)
        for _ in range(500):
            Cycle()
            main_thread_place()

threading.Thread(target=look, daemon=True).start()
for _ in range(20_000):
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
os._exit(0)  # the other thread makes garbage faster than the interpreter's exit collects it
"""


def test_looking_at_the_main_thread_does_not_stop_the_process() -> None:
    """Without care it does, within seconds, where the interpreter collects garbage meanwhile."""
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-c", _MANY_THREADS], cwd=REPOSITORY, env=variables, check=True, timeout=60)
