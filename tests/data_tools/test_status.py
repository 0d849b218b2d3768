"""A line for each run, whatever state its files are in."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from data_tools import status
from data_tools.base.errors import UserError
from data_tools.runs.status import RunFiles, is_going
from tests.support.holding import holder_of
from tests.support.runs import pptrain_rows, pretrain_rows, write_run

NOW = 1e9 + 1000
LAUNCHED = 1e9  # by write_run


def line_of(run: Path, **kwargs: Any) -> dict[str, str]:
    """Title → cell of one run."""
    heading, row = status.status_table([run], NOW, **kwargs)
    return dict(zip(heading, row, strict=True))


def write_exit(run: Path, at: float, code: int = 86, meaning: str = "stopped") -> None:
    row = {"timestamp": at, "step": 20, "exit_code": code, "meaning": meaning}
    (run / "exits.jsonl").write_text(json.dumps(row) + "\n")


def write_checkpoint(run: Path, step: int, age: float) -> None:
    manifest = run / f"checkpoints/step_{step:08d}/manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{}")
    os.utime(manifest, (NOW - age, NOW - age))


def test_a_run_of_pptrain(tmp_path: Path) -> None:
    rows = pptrain_rows([9, 5, 4, 3, 2, 1], stages=[1, 1, 2, 2, 3, 3])
    rows = [row | {"timestamp": LAUNCHED + 60 * n, "pflops": n / 4, "lookahead": 3} for n, row in enumerate(rows, 1)]
    run = write_run(tmp_path / "run", rows, settings="max_steps: 100\n")
    write_checkpoint(run, 40, age=7200)
    write_checkpoint(run, 50, age=90)
    assert line_of(run) == {
        "run": "run", "phase": "pptrain", "step": "60/100", "stage": "3/8", "L": "3", "accuracy": "0.500",
        "loss": "3.000", "tokens": "6,000", "PFLOPs": "1.5", "tokens/s": "100", "hours": "0.10", "left": "4.0 min",
        "checkpoint": "50, 1.5 min", "alive": "no",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("limits", "left"),
    [("max_tokens: 9000", "3.0 min"), ("max_pflops: 2", "2.0 min"), ("max_tokens: 9000\nmax_steps: 70", "1.0 min"),
     ("max_tokens: 6000", None), ("max_pflops: many", None)],
)  # fmt: skip
def test_the_time_left_is_that_to_the_first_limit(tmp_path: Path, limits: str, left: str | None) -> None:
    rows = [row | {"timestamp": LAUNCHED + 60 * n, "pflops": n / 4} for n, row in enumerate(pptrain_rows([9] * 6), 1)]
    assert line_of(write_run(tmp_path / "run", rows, settings=f"{limits}\n")).get("left") == left


def test_a_run_of_pretrain_has_no_columns_of_pptrain(tmp_path: Path) -> None:
    line = line_of(write_run(tmp_path / "run", pretrain_rows([5, 4]), settings="total_steps: 20\n"))
    assert line["phase"] == "pretrain" and line["step"] == "20/20"
    assert not line.keys() & {"stage", "L", "accuracy", "PFLOPs", "left", "checkpoint", "exit"}


def test_hours_leave_out_pauses_and_what_was_undone(tmp_path: Path) -> None:
    """Launches at 0, 100 and 200 s; rows until 36 s, then until 172 s, none yet of the third."""
    times = [12, 24, 36, 136, 172]
    rows = [row | {"timestamp": LAUNCHED + at} for row, at in zip(pptrain_rows([1] * 5), times, strict=True)]
    run = write_run(tmp_path / "run", rows, launches=(0, 30, 50))
    assert line_of(run)["hours"] == "0.03"  # 36 + 72 s
    assert "left" not in line_of(run)


def test_a_run_that_has_ended_at_a_limit_has_no_time_left(tmp_path: Path) -> None:
    rows = [row | {"timestamp": LAUNCHED + 60 * n} for n, row in enumerate(pptrain_rows([9] * 6), 1)]
    run = write_run(tmp_path / "run", rows, settings="max_tokens: 9000\n")
    assert "left" in line_of(run)
    write_exit(run, LAUNCHED + 999, 0, "finished")
    assert "left" not in line_of(run)


def test_the_time_left_is_that_of_the_last_launch(tmp_path: Path) -> None:
    times = [10, 20, 30, 140, 142]
    rows = [row | {"timestamp": LAUNCHED + at} for row, at in zip(pptrain_rows([1] * 5), times, strict=True)]
    run = write_run(tmp_path / "run", rows, launches=(0, 30), settings="max_steps: 100\n")
    assert line_of(run)["left"] == "10 s"


def test_the_exit_code_is_that_of_the_last_launch(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", pptrain_rows([1, 1]), launches=(0, 10))  # at 0 and 100 s
    write_exit(run, LAUNCHED + 50)
    assert "exit" not in line_of(run), "the second launch was killed"
    write_exit(run, LAUNCHED + 150)
    assert line_of(run)["exit"] == "86 stopped"


def test_alive_or_not(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", pptrain_rows([1, 1]))
    assert line_of(run)["alive"] == "no"
    write_exit(run, LAUNCHED + 50)
    holder = holder_of(run)
    try:
        line = line_of(run)
        assert line["alive"] == f"{socket.gethostname()} {holder.pid}" and "exit" not in line
    finally:
        holder.communicate()
    assert line_of(run)["alive"] == "no" and line_of(run)["exit"] == "86 stopped"


def test_of_another_host_only_an_exit_is_certain(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", pptrain_rows([1, 1]))
    (run / ".lock").write_text("process 77 on node-17\n")
    assert line_of(run)["alive"] == "node-17 77?"
    write_exit(run, LAUNCHED + 50)
    assert line_of(run)["alive"] == "no"


def test_a_run_without_rows(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [])
    assert line_of(run) == {"run": "run", "phase": "pptrain", "alive": "no"}
    (run / "logs" / "train.jsonl").unlink()
    (run / "run.yaml").unlink()
    assert line_of(run) == {"run": "run", "alive": "no"}


DAMAGE = [
    "",
    "\0" * 50,
    "[1]\n",
    '{"step": null}\n',
    '{"step": ' + "9" * 400 + "}\n",
    "a: [\n",
    "{" * 2000 + "\n",
    '{"step": 3, "loss": [1], "stage": "x", "alpha": 0, "timestamp": {}, "exit_code": [], "lr": NaN}\n',
    '{"step": 3, "loss": 1e999, "stage": 1, "alpha": 0, "timestamp": -1e300, "tokens": true, "pflops": {}}\n',
]


@pytest.mark.parametrize("content", DAMAGE, ids=range(len(DAMAGE)))
@pytest.mark.parametrize("name", ["logs/train.jsonl", "launches.jsonl", "exits.jsonl", "run.yaml", ".lock"])
def test_damaged_files_are_dashes(tmp_path: Path, name: str, content: str) -> None:
    run = write_run(tmp_path / "run", pptrain_rows([1, 1]), settings="max_steps: 90\n")
    write_exit(run, LAUNCHED + 50)
    (run / name).write_text(content)
    assert line_of(run)["phase"] in ("pptrain", "pretrain")
    (run / name).unlink()
    (run / name).mkdir()
    assert line_of(run)["phase"] == "pptrain"


def test_strange_checkpoints_are_dashes(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", pptrain_rows([1, 1]))
    (run / "checkpoints/step_x").mkdir(parents=True)
    (run / "checkpoints/step_x/manifest.json").touch()
    assert "checkpoint" not in line_of(run)


def test_runs_below_a_directory(tmp_path: Path) -> None:
    for place in ("A/seed_1", "A/seed_2", "B/seed_1", "B/seed_1/superseded_1", "superseded_2"):
        write_run(tmp_path / place, pptrain_rows([1]))
    (tmp_path / "data").mkdir()
    table = status.status_table([tmp_path, tmp_path / "B"], NOW)
    assert [row[0] for row in table] == ["run", "A/seed_1", "seed_2", "B/seed_1"]
    for place in ("data", "missing"):
        with pytest.raises(UserError, match=f"{place} holds no run"):
            status.status_table([tmp_path, tmp_path / place], NOW)


def test_compute_is_compared_at_the_same_stage(tmp_path: Path) -> None:
    def write(name: str, stages: list[int], pflops_per_row: float) -> Path:
        rows = pptrain_rows([1] * len(stages), stages)
        return write_run(tmp_path / name, [row | {"pflops": n * pflops_per_row} for n, row in enumerate(rows, 1)])

    reference = write("reference", [1, 1, 2, 2, 3, 3], 2.0)  # stage 3 after 10
    assert line_of(write("dear", [1, 2, 3, 3], 5.0), reference=reference)["PFLOPs / reference"] == "1.50"
    assert "PFLOPs / reference" not in line_of(write("ahead", [1, 4], 5.0), reference=reference)
    with pytest.raises(UserError, match="no log with stages and PFLOPs is there"):
        line_of(reference, reference=write_run(tmp_path / "other", pretrain_rows([1])))


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = write_run(tmp_path / "a|b", pptrain_rows([1, 1]))
    status.main([str(run), "--markdown", str(tmp_path / "runs.md")])
    assert capsys.readouterr().out.splitlines()[1].startswith("a|b  pptrain")
    heading, rule, row, *_ = (tmp_path / "runs.md").read_text().splitlines()
    assert heading.startswith("| run | phase | step |") and rule.startswith("| --- | ---: |")
    assert row.startswith(r"| a\|b | pptrain | 20 |")
    with pytest.raises(UserError, match=r"^--markdown .*missing"):
        status.main([str(run), "--markdown", str(tmp_path / "missing/runs.md")])


def test_twenty_runs_with_large_logs_take_little_time(tmp_path: Path) -> None:
    rows = pptrain_rows([1.0] * 5000)
    first = write_run(tmp_path / "run_0", rows, launches=(0, 10, 20))
    for n in range(1, 20):
        run = write_run(tmp_path / f"run_{n}", [], launches=(0, 10, 20))
        (run / "logs/train.jsonl").unlink()
        (run / "logs/train.jsonl").hardlink_to(first / "logs/train.jsonl")
    started = time.process_time()
    assert len(status.status_table([tmp_path], NOW)) == 21
    assert time.process_time() - started < 0.3


def test_needs_neither_torch_nor_transformers() -> None:
    code = "import data_tools.status, sys; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("holder", "age_s", "has_ended", "expected"),
    [
        ("process 77 on node-17", 60, False, True),
        ("process 77 on node-17", 7200, False, False),
        ("process 77 on node-17", 60, True, False),
        (f"process 77 on {socket.gethostname()}", 60, False, False),  # its lock would be seen
        ("", 60, False, False),
    ],
)
def test_a_run_of_another_host_goes_on_while_its_log_grows(
    holder: str, age_s: float, has_ended: bool, expected: bool, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", pptrain_rows([1.0], [1]))
    (run / ".lock").write_text(f"{holder}\n")
    if has_ended:
        write_exit(run, LAUNCHED + 10)
    now = (run / "logs" / "train.jsonl").stat().st_mtime + age_s
    assert is_going(RunFiles(run, now)) == expected
