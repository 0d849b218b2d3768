"""Tasks beside training: in order, in another thread, and no failure of theirs is one of the run."""

import threading

import pytest

from ds_train.training import errands
from ds_train.training.errands import Errands


def test_tasks_are_done_in_order_by_another_thread() -> None:
    done: list[tuple[int, int]] = []
    work = Errands("counting")
    for number in range(20):
        work.add(lambda number=number: done.append((number, threading.get_ident())))
    work.wait(60)
    assert [number for number, _ in done] == [*range(20)] and {thread for _, thread in done} != {threading.get_ident()}


def test_one_that_fails_is_one_warning_and_the_others_are_done(caplog: pytest.LogCaptureFixture) -> None:
    done: list[int] = []
    work = Errands("counting")
    for divisor in (0, 1, 0, 2):
        work.add(lambda divisor=divisor: done.append(2 // divisor))
    work.wait(60)
    assert done == [2, 1]
    assert caplog.messages == [
        "counting: ZeroDivisionError: integer division or modulo by zero. Training continues; "
        "this is the only warning about it"
    ]


def test_one_that_hangs_holds_up_neither_adding_nor_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(errands, "_MOST_WAITING", 3)
    hangs = threading.Event()
    work = Errands("counting")
    for _ in range(6):
        work.add(hangs.wait)
    work.wait(0.05)
    assert not hangs.is_set() and "too many wait" in caplog.messages[0]
    hangs.set()
    work.wait(60)


def test_without_tasks_there_is_no_thread() -> None:
    before = threading.active_count()
    Errands("nothing").wait(60)
    assert threading.active_count() == before
