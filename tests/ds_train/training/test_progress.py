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
        progress.row(ROW, lambda row: "C4 2.5")
        progress.row({**ROW, "step": 20, "mfu": 0.412}, lambda row: "C4 2.4")
    assert caplog.messages == [
        "pretrain 10/1000  loss 2.346  lr 0.0003  C4 2.5  12,346 tokens/s",
        "pretrain 20/1000  loss 2.346  lr 0.0003  C4 2.4  12,346 tokens/s  MFU 41.2%  0:49:00 left",
    ]


def test_without_an_end_nothing_is_left_to_tell(caplog: pytest.LogCaptureFixture) -> None:
    progress = Progress("pptrain", 0, None, is_main=True)
    with caplog.at_level(logging.INFO):
        for step in (10, 20):
            progress.row({**ROW, "step": step, "loss": float("nan")}, lambda row: "stage 1/64")
        progress.evaluation({"step": 20, "heldout_acc": 0.5, "stage": 2, "timestamp": 1.0})
    assert "pptrain 20  loss nan" in caplog.messages[1] and "left" not in caplog.text
    assert caplog.messages[2] == "evaluation at step 20  heldout_acc 0.5  stage 2"


def test_other_ranks_are_silent(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = Progress("pretrain", 0, 10, is_main=False)
    with caplog.at_level(logging.INFO):
        progress.step_done({"loss": 2.34567})
        progress.row(ROW, lambda row: "")
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
        progress.step_done({"loss": 2.34567})
    progress.row(ROW, lambda row: "stage 3/64  accuracy 0.9 of 0.98")
    logging.getLogger("ds_train").warning("something else")
    progress.close()
    shown = terminal.getvalue()
    line = shown.replace("\n", "\r").split("\r")[-2].strip()
    assert line.startswith(f"pptrain: {'10/40' if last_step else '10'} [")
    assert "loss 2.346 (mean of 2 steps)  lr 0.0003  stage 3/64  accuracy 0.9 of 0.98  12,346 tokens/s]" in line
    assert "\nsomething else\n" in shown.replace("\r", "\n") and shown.count("\n") == 2, "the line itself never scrolls"


def test_time_left_follows_the_recent_speed(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([*range(0, 100, 10), *range(100, 1400, 100)])  # ten times slower from step 100 on
    monkeypatch.setattr(module.time, "monotonic", lambda: next(seconds))
    progress = Progress("pptrain", 0, 300, is_main=True)
    with caplog.at_level(logging.INFO):
        for step in range(10, 240, 10):
            progress.row({**ROW, "step": step}, lambda row: "")
    assert caplog.messages[9].endswith("0:03:20 left"), "20 steps at 1 s a step so far"
    assert caplog.messages[-1].endswith("0:11:40 left"), "70 steps at 10 s a step"


def test_losses_shown_are_means_over_the_steps_since_the_last_row(caplog: pytest.LogCaptureFixture) -> None:
    progress = Progress("pretrain", 0, 1000, is_main=True)
    with caplog.at_level(logging.INFO):
        for losses in ((1.0, None), (2.0, 0.5), (6.0, None)):
            progress.step_done(dict(zip(("loss", "mixin_loss"), losses, strict=True)))
        progress.row({**ROW, "mixin_loss": None}, lambda row: f"mixin {row['mixin_loss']}")
        progress.step_done({"loss": 4.0})
        progress.row({**ROW, "mixin_loss": None}, lambda row: f"mixin {row['mixin_loss']}")
    assert "  loss 3 (mean of 3 steps)  lr 0.0003  mixin 0.5  " in caplog.messages[0]
    assert "  loss 4  lr 0.0003  mixin None  " in caplog.messages[1]
