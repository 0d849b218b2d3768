"""A rank that dies, hangs or fails ends the job on all ranks, with a message that names it."""

import os
import subprocess
import sys

import pytest

from tests.support.launching import REPOSITORY, launch, launch_unsupervised

TIMEOUT_S = 3


def _run(fault: str, broken: int, num_ranks: int = 2) -> tuple[list[int], list[str]]:
    """Start ranks as a launcher would that only watches; returns the exit code and output of each."""
    arguments = (fault, str(broken), str(TIMEOUT_S))
    killed_last = None if fault in ("paused", "slow") else broken  # a frozen or stuck rank runs forever
    return launch_unsupervised("tests/system/watched_rank.py", *arguments, num_ranks=num_ranks, killed_last=killed_last)


@pytest.mark.launch
@pytest.mark.parametrize(("fault", "broken"), [("killed", 1), ("killed", 0), ("frozen", 1), ("frozen", 0)])
def test_a_rank_that_is_gone_is_named(fault: str, broken: int) -> None:
    codes, output = _run(fault, broken)
    other = 1 - broken
    assert codes[other] == 87, output
    host = os.uname().nodename
    expected = f"rank 1 ({host}) gives no sign of life" if broken == 1 else "rank 0 "  # rank 0 holds the store
    assert expected in output[other] and "Finished checkpoints are whole" in output[other], output


@pytest.mark.launch
def test_a_rank_that_is_stuck_is_named_with_its_place() -> None:
    codes, output = _run("stuck", 1)
    assert codes[0] == 87, output
    assert "rank 1" in output[0] and "does not arrive: step 6, at system/watched_rank.py" in output[0], output


@pytest.mark.launch
def test_four_ranks_name_the_one() -> None:
    codes, output = _run("frozen", 2, num_ranks=4)
    for rank in (0, 1, 3):
        assert codes[rank] == 87 and "rank 2 (" in output[rank] and "rank 3 (" not in output[rank], output


@pytest.mark.launch
@pytest.mark.parametrize("broken", [0, 1])
def test_a_pause_of_all_ranks_is_no_hang(broken: int) -> None:
    """A suspended job, Ctrl-Z, a paused virtual machine: longer than the limit and all time-outs of collectives."""
    codes, output = _run("paused", broken)
    assert codes == [0, 0], output


@pytest.mark.launch
def test_announced_long_work_is_waited_for() -> None:
    codes, output = _run("slow", 1)
    assert codes == [0, 0], output


@pytest.mark.launch
@pytest.mark.parametrize(("fault", "words"), [("error", "a mistake of this rank"), ("refused", "disk is full")])
@pytest.mark.parametrize("broken", [0, 1])
def test_an_error_of_one_rank_ends_all_with_code_1(fault: str, words: str, broken: int) -> None:
    arguments = (fault, str(broken), str(TIMEOUT_S))
    done = launch("tests/system/watched_rank.py", *arguments, num_ranks=2, through_launcher=True)
    assert done.returncode == 1, done.stdout
    assert done.stdout.count(words) == 1 or fault == "error", done.stdout
    assert "sign of life" not in done.stdout and "not reachable" not in done.stdout, done.stdout


_MANY_THREADS = """
import gc, itertools, os, threading, time
from ds_train.ranks.watchdog import _position_of_main_thread

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
            _position_of_main_thread()

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
