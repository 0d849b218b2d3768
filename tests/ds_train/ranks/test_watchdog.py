"""A rank that dies, hangs or fails ends the job on all ranks, with a message that names it."""

import os
import threading

import pytest

from ds_train.ranks import watchdog
from ds_train.ranks.signals import ExitCode
from ds_train.ranks.world import World
from tests.support.launching import launch, launch_unsupervised


def _run(fault: str, broken: int, backend: str = "asynchronous", num_ranks: int = 2) -> tuple[list[int], list[str]]:
    """Start ranks as a launcher would that only watches; returns the exit code and output of each."""
    killed_last = broken if fault in ("killed", "frozen") else None  # a frozen rank never ends
    script = "tests/system/watched_rank.py"
    return launch_unsupervised(script, fault, str(broken), backend, num_ranks=num_ranks, killed_last=killed_last)


@pytest.mark.launch
@pytest.mark.parametrize(
    ("fault", "broken", "backend"),
    [("killed", 1, "gloo"), ("killed", 0, "gloo"), ("killed", 1, "asynchronous"), ("frozen", 0, "asynchronous")],
)
def test_a_rank_that_is_gone_is_named(fault: str, broken: int, backend: str) -> None:
    codes, output = _run(fault, broken, backend)
    other = 1 - broken
    assert codes[other] == 87, output
    assert f"error: rank {other}: rank {broken} ({os.uname().nodename}) gives no sign of life" in output[other], output
    assert "a run continues from its last checkpoint" in output[other]


@pytest.mark.launch
@pytest.mark.parametrize(("broken", "backend"), [(1, "asynchronous"), (0, "gloo")])
def test_a_rank_that_is_stuck_is_named_with_its_place(broken: int, backend: str) -> None:
    codes, output = _run("stuck", broken, backend)
    assert codes == [87, 87], output
    place = "does not arrive: in step 6, at system/watched_rank.py"
    assert f"error: rank 0: no progress for 5 s: rank {broken} (" in output[0] and place in output[0], output
    assert "error" not in output[1], "one message is enough"


@pytest.mark.launch
def test_four_ranks_name_the_one() -> None:
    codes, output = _run("frozen", 2, num_ranks=4)
    assert [codes[rank] for rank in (0, 1, 3)] == [87, 87, 87], output
    assert "rank 0: rank 2 (" in output[0] and "rank 3 (" not in output[0]
    assert "error" not in output[1] + output[3], "one message is enough"


@pytest.mark.launch
def test_a_pause_of_all_ranks_is_no_hang() -> None:
    """A suspended job, Ctrl-Z, a paused virtual machine; the ranks wake up one after the other."""
    codes, output = _run("paused", 1)
    assert codes == [0, 0], output


@pytest.mark.launch
def test_announced_long_work_is_waited_for_while_it_reads() -> None:
    codes, output = _run("reading", 1)
    assert codes == [0, 0], output


@pytest.mark.launch
@pytest.mark.parametrize(("fault", "words"), [("error", "a mistake of this rank"), ("refused", "disk is full")])
@pytest.mark.parametrize("broken", [0, 1])
def test_an_error_of_one_rank_ends_all_with_code_1(fault: str, words: str, broken: int) -> None:
    done = launch("tests/system/watched_rank.py", fault, str(broken), "gloo", num_ranks=2)
    assert done.returncode == 1, done.stdout
    assert done.stdout.count(words) == 1 or fault == "error", done.stdout
    assert "sign of life" not in done.stdout, done.stdout


@pytest.mark.parametrize("is_own", [False, True])
def test_what_is_to_be_told_at_the_end_is_told_before_the_process_ends(
    is_own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of this rank's own is raised, and told of by whoever catches it."""
    told: list[object] = []
    watched = watchdog.Watchdog.__new__(watchdog.Watchdog)
    watched._world, watched._patience = World(0, 0, 1), watchdog.Patience()
    watched._beat = watchdog.Heartbeat(host="here")
    watched._beat.failure = watchdog.Failure(ExitCode.ERROR, "mine") if is_own else None
    watched._error_is_own = threading.Event()
    watched._publish = lambda: None  # type: ignore[method-assign]
    watched.at_end = lambda code, reason: told.append((code, reason))
    monkeypatch.setattr(watchdog.os, "_exit", told.append)
    monkeypatch.setattr(watchdog.os, "write", lambda *_: None)
    watched._end(watchdog.End(ExitCode.ERROR if is_own else ExitCode.RANK_LOST, "rank 3 died"))
    assert told == ([] if is_own else [(87, "rank 3 died"), 87])
