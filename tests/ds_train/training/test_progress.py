"""Progress while training: lines where the output is a file, one live line on a terminal, nothing on other ranks."""

import io
import logging
import sys
from weakref import WeakSet

import pytest

from ds_train.training import progress as module
from ds_train.training.progress import Progress

ROW = {"step": 10, "loss": 2.34567, "lr": 3e-4, "tokens_per_second": 12345.6}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_in_a_file_tell_what_is_left(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([100.0, 130.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(seconds))
    progress = Progress("pretrain", 0, 1000, is_main=True)
    with caplog.at_level(logging.INFO):
        progress.row(ROW, "C4 2.5")
        progress.row({**ROW, "step": 20, "mfu": 0.412}, "C4 2.4")
    assert caplog.messages == [
        "pretrain 10/1000  loss 2.346  lr 0.0003  C4 2.5  12,346 tokens/s",
        "pretrain 20/1000  loss 2.346  lr 0.0003  C4 2.4  12,346 tokens/s  MFU 41.2%  0:49:00 left",
    ]


def test_without_an_end_nothing_is_left_to_tell(caplog: pytest.LogCaptureFixture) -> None:
    progress = Progress("pptrain", 0, None, is_main=True)
    with caplog.at_level(logging.INFO):
        for step in (10, 20):
            progress.row({**ROW, "step": step, "loss": float("nan")}, "stage 1/64")
        progress.evaluation({"step": 20, "heldout_acc": 0.5, "stage": 2, "timestamp": 1.0})
    assert "pptrain 20  loss nan" in caplog.messages[1] and "left" not in caplog.text
    assert caplog.messages[2] == "evaluation at step 20  heldout_acc 0.5  stage 2"


def test_other_ranks_are_silent(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = Progress("pretrain", 0, 10, is_main=False)
    with caplog.at_level(logging.INFO):
        progress.step_done()
        progress.row(ROW, "")
        progress.evaluation(ROW)
        progress.close()
    assert not caplog.messages and not terminal.getvalue()


@pytest.mark.parametrize("last_step", [40, None])
def test_a_terminal_has_one_live_line(monkeypatch: pytest.MonkeyPatch, last_step: int | None) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setattr(module.tqdm, "_instances", WeakSet())  # bars that other tests left
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.StreamHandler(terminal)])  # as in a trainer
    progress = Progress("pptrain", 8, last_step, is_main=True)
    for _ in range(2):
        progress.step_done()
    progress.row(ROW, "stage 3/64  accuracy 0.9 of 0.98")
    logging.getLogger("ds_train").warning("something else")
    progress.close()
    shown = terminal.getvalue()
    line = shown.replace("\n", "\r").split("\r")[-2].strip()
    assert line.startswith(f"pptrain: {'10/40' if last_step else '10'} [")
    assert "loss 2.346  lr 0.0003  stage 3/64  accuracy 0.9 of 0.98  12,346 tokens/s]" in line
    assert "\nsomething else\n" in shown.replace("\r", "\n") and shown.count("\n") == 2, "the line itself never scrolls"
