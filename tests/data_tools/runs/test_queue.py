"""The queue of an experiment: what is known without Slurm, and that nothing fails or waits where it does not answer."""

import os
import time
from pathlib import Path

import pytest

from data_tools import status
from data_tools.base.errors import UserError
from data_tools.runs import queue
from data_tools.runs.queue import JOBS_FILE, QUEUE, SubmittedJob, add_job, queue_table, squeue, submitted_jobs
from tests.support.runs import pptrain_rows, write_run

JOBS = [
    SubmittedJob("7", "data", ["splits", "pack"], False),
    SubmittedJob("8", "pretrain", ["A/seed_1", "B/seed_1"], True),
]


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    (tmp_path / "grid" / QUEUE).mkdir(parents=True)
    for job in JOBS:
        add_job(tmp_path / "grid", job)
    return tmp_path / "grid"


def answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a squeue on PATH."""
    (tmp_path / "bin").mkdir(exist_ok=True)
    (tmp_path / "bin" / "squeue").write_text(f"#!/bin/bash\n{script}\n")
    (tmp_path / "bin" / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")


def test_jobs_are_read_as_they_were_recorded(grid: Path) -> None:
    with (grid / QUEUE / JOBS_FILE).open("a") as file:
        file.write('[]\n{"job": 3}\n\0\n')
    assert submitted_jobs(grid) == JOBS and submitted_jobs(grid / "none") == []
    assert JOBS[1].tasks == {"8_0": ["A/seed_1"], "8_1": ["B/seed_1"]}


def test_the_screen_shows_jobs_and_then_runs(
    grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "7|grid-data|RUNNING|0:21|n1\n8_0|grid-pretrain|PENDING|0:00|(Dependency)\n8_1|of-others|RUNNING|0:00|n2\n"
    answer(tmp_path, monkeypatch, f'[[ "$*" == *--jobs=7,8\\ * ]] && printf "{rows}"')
    heading = ["job", "part", "steps", "state", "time", "nodes or reason"]
    table = [heading, ["7", "data", "splits … pack", "RUNNING", "0:21", "n1"],
             ["8_0", "pretrain", "A/seed_1", "PENDING", "0:00", "(Dependency)"]]  # fmt: skip
    assert queue_table([grid]) == queue_table([tmp_path]) == table
    status.main([str(grid)])
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["7", "data"]
    write_run(grid / "A" / "seed_1", pptrain_rows([1.0]))
    status.main([str(grid)])
    assert "\n\nrun " in capsys.readouterr().out


@pytest.mark.parametrize("script", ["sleep 60", "exit 1", "echo nonsense"])
def test_a_queue_that_does_not_answer_is_left_out(
    script: str, grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "_TIMEOUT_S", 0.2)
    answer(tmp_path, monkeypatch, script.replace("sleep", "exec sleep"))
    began = time.monotonic()
    assert queue_table([grid]) == [] and time.monotonic() - began < 30
    if script != "echo nonsense":
        with pytest.raises(UserError, match="squeue"):
            squeue({"7": "grid-data"})


def test_without_slurm_or_jobs_squeue_is_not_called(
    grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue.subprocess, "run", lambda *_, **__: pytest.fail("it was"))
    assert squeue({}) == {} and queue_table([tmp_path / "bin"]) == []
    monkeypatch.setenv("PATH", str(tmp_path))
    assert queue_table([grid]) == []


def test_jobs_that_are_long_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(tmp_path, monkeypatch, 'echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1')
    assert squeue({"7": "grid-data"}) == {}
