"""What a command is told about a run, and that no command can harm the run."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from data_tools.base.errors import UserError
from ds_train.ranks.signals import ExitCode
from ds_train.training import notices
from ds_train.training.notices import Notices
from tests.support import tiny
from tests.support.launching import launch
from tests.support.pretended_training import pretended_launch


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _notices(tmp_path: Path, command: str = "") -> Notices:
    return Notices.of(command or f"cat >> '{tmp_path}/lines'", "pptrain", tmp_path, "A/seed_1")


def test_a_command_gets_a_line_for_each_event(tmp_path: Path) -> None:
    sent = _notices(tmp_path)
    sent.started(0, 8)
    sent.promoted(300, 1, 2)
    sent.promoted(900, 2, None)
    sent.ended(900, ExitCode.FINISHED, None)
    lines = _lines(tmp_path / "lines")
    assert [(line["event"], line.get("step")) for line in lines] == [
        ("start", 0), ("promotion", 300), ("promotion", 900), ("end", 900)
    ]  # fmt: skip
    assert [line["text"] for line in lines] == [
        "A/seed_1 started on 8 ranks",
        "A/seed_1 stage 1 is mastered at step 300; stage 2 begins",
        "A/seed_1 stage 2 is mastered at step 900; the curriculum is finished",
        "A/seed_1 finished at step 900",
    ]
    assert all(line["directory"] == str(tmp_path) and line["phase"] == "pptrain" and line["host"] for line in lines)


@pytest.mark.parametrize(
    ("code", "error", "event", "text"),
    [
        (ExitCode.PREEMPTED, None, "end", "A/seed_1 preempted at step 7 (exit code 85)"),
        (ExitCode.ERROR, UserError("the loss is not finite"), "failure", "A/seed_1 failed: the loss is not finite"),
        (ExitCode.ERROR, KeyError("x"), "failure", "A/seed_1 failed: KeyError: 'x'"),
    ],
)
def test_how_a_run_ended(code: ExitCode, error: Exception | None, event: str, text: str, tmp_path: Path) -> None:
    sent = _notices(tmp_path)
    sent.ended(7, code, error)
    (line,) = _lines(tmp_path / "lines")
    assert (line["event"], line["text"], line["exit_code"], line["step"]) == (event, text, code, 7)


def test_a_lost_rank_is_a_failure(tmp_path: Path) -> None:
    _notices(tmp_path).lost(87, "rank 3 on node-2 died")
    (line,) = _lines(tmp_path / "lines")
    assert (line["event"], line["message"], line["exit_code"]) == ("failure", "rank 3 on node-2 died", 87)


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("echo no such host >&2; exit 6", "the command ended with code 6: no such host"),
        ("nonexistent-program", "the command ended with code 127: "),
        ("sleep 1000", "the command took longer than 0.2 s and was killed"),
    ],
)
def test_a_command_that_fails_or_hangs_is_one_warning(
    command: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(notices, "_LONGEST_S", 0.2 if "sleep" in command else 60.0)
    sent = _notices(tmp_path, command)
    before = time.monotonic()
    sent.started(0, 1)
    sent.promoted(3, 1, 2)
    assert time.monotonic() - before < 60, "nobody waits for it"
    sent.ended(4, ExitCode.FINISHED, None)
    (message,) = caplog.messages
    assert problem in message and message.startswith("--notify: ") and "Training continues" in message


def test_without_a_command_nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "_run", None)
    sent = Notices()
    sent.started(0, 1)
    sent.ended(1, ExitCode.ERROR, ValueError())
    assert sent._errands._thread is None


def test_the_loop_tells_of_its_start_and_each_promotion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple] = []
    monkeypatch.setattr(Notices, "started", lambda self, *given: told.append(given))
    monkeypatch.setattr(Notices, "promoted", lambda self, *given: told.append(given))
    pretended_launch(tmp_path, monkeypatch)()
    assert told == [(0, 1), (3, 1, 3), (6, 3, 4), (9, 4, None)]


@pytest.mark.launch
def test_a_run_tells_of_itself(tiny_scratch: Path, tmp_path: Path) -> None:
    flags = [*tiny.flags(tiny_scratch), *"--global_batch 8 --micro_batch 4 --run_name told".split()]
    flags += ["--notify", f"cat >> '{tmp_path}/lines'"]
    done = launch("ds_train/pptrain.py", *flags, "--max_steps", "2", num_ranks=1)
    assert done.returncode == 0, done.stdout[-4000:]
    failed = launch("ds_train/pptrain.py", *flags, *"--max_steps 9 --seed 7".split(), num_ranks=1)
    assert failed.returncode == 1
    lines = _lines(tmp_path / "lines")
    assert [line["event"] for line in lines] == ["start", "end", "failure"]
    assert lines[1]["step"] == 2 and "seed" in lines[2]["message"]
    assert "\nnotify: cat" in (tiny_scratch / "told" / "run.yaml").read_text()
