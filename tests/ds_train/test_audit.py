"""The audit finds where two runs part, in what, and which settings they do not share."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data_tools.base.errors import UserError
from ds_train import audit
from tests.support.launching import REPOSITORY


def _rows(count: int = 10, every: int = 1) -> list[dict[str, Any]]:
    return [
        {"step": step, "loss": 4 - step / 10, "lr": step * 1e-5, "stage": 1 + step // 6, "ledger": f"{step:032x}",
         "tokens_per_second": 100.0 + step}
        for step in range(every, count + 1, every)
    ]  # fmt: skip


def _write(run: Path, rows: list[dict[str, Any]], **settings: Any) -> Path:
    (run / "logs").mkdir(parents=True)
    (run / "logs" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = {"seed": settings.pop("seed", 1), "lr": 0.1, "run_name": run.name, "num_workers": 1}
    engine = {
        "train_batch_size": 8, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 4,
        "optimizer": {"params": {"lr": 0.1}}, "zero_optimization": {"stage": 1}, **settings,
    }  # fmt: skip
    (run / "run.yaml").write_text(json.dumps(flags))
    (run / "deepspeed.json").write_text(json.dumps(engine))
    (run / "launches.jsonl").write_text('{"step": 0, "ranks": 1}\n{"step": 5, "ranks": 2}\n')
    return run


@pytest.fixture
def audited(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Compare a run of default rows with one of changed rows: exit code and what was printed."""

    def run(others: list[dict[str, Any]], *flags: str, rows: list[dict] | None = None, **settings: Any):
        first = _write(tmp_path / "a", rows or _rows())
        second = _write(tmp_path / "b", others, **settings)
        code = audit.main([str(first), str(second), *flags])
        return code, capsys.readouterr().out

    return run


def test_equal_runs(audited) -> None:
    code, output = audited([row | {"tokens_per_second": 1.0} for row in _rows()])
    assert code == 0 and output.endswith("The runs are equal at all common steps.\n")
    assert "settings that differ: none" in output and "; 2 ranks, micro batch 2, ZeRO 1" in output


@pytest.mark.parametrize(
    ("column", "what", "value"),
    [("ledger", "samples", "f" * 32), ("stage", "stage", 9), ("lr", "learning rate", 1.0), ("loss", "loss", 3.25)],
)
def test_each_column_is_compared(audited, column: str, what: str, value: Any) -> None:
    rows = _rows()
    rows[6][column] = value
    code, output = audited(rows)
    assert code == 1 and f"\nThe runs first differ in step 7: {what}.\n" in output
    assert ("--loss_tolerance" in output) == (column == "loss")
    assert output.count("first differs at step 7") == 1 and output.count("equal") == 3


def test_interval_and_earliest_difference(audited) -> None:
    rows = _rows(40, every=4)
    for row in rows:
        row["ledger"] = row["ledger"] if row["step"] < 20 else "f" * 32
        row["loss"] += 0.5 * (row["step"] >= 20) + 0.5 * (row["step"] >= 32)
    code, output = audited(rows, rows=_rows(60))
    assert code == 1 and output.endswith("The runs first differ in steps 17 to 20: samples, loss.\n")
    assert "common steps: 10 (4 to 40)" in output
    assert "first differs at step 20 (2.0 | 2.5); largest difference 1, at step 32" in output


def test_loss_tolerance(audited) -> None:
    rows = _rows()
    rows[2]["loss"] += 1e-7
    code, output = audited(rows, "--loss_tolerance", "1e-6")
    assert code == 0 and "equal within 1e-06; largest difference 1e-07, at step 3" in output


def test_rounding_is_no_difference_unless_it_is_asked_for(audited, tmp_path: Path) -> None:
    rows = _rows()
    rows[2]["loss"] += 7e-8
    code, output = audited(rows)
    assert code == 0 and "equal within 1e-06; largest difference 7e-08, at step 3" in output
    assert audit.main([str(tmp_path / name) for name in "ab"] + ["--loss_tolerance", "0"]) == 1


def test_losses_alone_that_differ_are_told_of_the_tolerance(audited) -> None:
    rows = _rows()
    rows[2]["loss"] += 1e-4
    code, output = audited(rows)
    assert code == 1 and "The runs first differ in step 3: loss.\n" in output
    assert output.endswith("--loss_tolerance allows more than 1e-06.\n")


def test_tolerance_is_for_losses_alone(audited) -> None:
    rows = _rows()
    rows[0]["lr"] += 1e-12
    code, output = audited(rows, "--loss_tolerance", "1")
    assert code == 1 and output.endswith("The runs first differ in step 1: learning rate.\n")


@pytest.mark.parametrize("value", [None, math.nan])
def test_losses_that_are_no_numbers(audited, value: float | None) -> None:
    rows, others = _rows(), _rows()
    rows[3]["loss"] = others[3]["loss"] = others[5]["loss"] = value
    code, output = audited(others, "--loss_tolerance", "100", rows=rows)
    expected = f"first differs at step 6 (3.4 | {json.dumps(value)}); largest difference inf, at step 6"
    assert code == 1 and expected in output


def test_other_settings_are_reported(audited) -> None:
    changed = {"train_batch_size": 16, "optimizer": {"params": {"lr": 0.2}}, "zero_optimization": {"stage": 3}}
    code, output = audited(_rows(), seed=2, **changed)
    assert code == 0
    assert "settings that differ: train_batch_size 8 | 16; optimizer.params.lr 0.1 | 0.2; seed 1 | 2\n" in output
    assert "; 2 ranks, micro batch 2, ZeRO 3" in output


def test_settings_may_be_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [_write(tmp_path / name, _rows()) for name in "ab"]
    for name in ("run.yaml", "deepspeed.json"):
        (runs[1] / name).unlink()
    assert audit.main([str(run) for run in runs]) == 0
    assert "settings that differ: unknown" in capsys.readouterr().out


def test_line_still_being_written_is_left_out(tmp_path: Path) -> None:
    runs = [_write(tmp_path / name, _rows()) for name in "ab"]
    with (runs[1] / "logs" / "train.jsonl").open("a") as file:
        file.write('{"step": 11, "lo')
    assert audit.main([str(run) for run in runs]) == 0


def _refused(tmp_path: Path, rows: list[dict[str, Any]], match: str, *flags: str) -> None:
    runs = [_write(tmp_path / "a", _rows()), _write(tmp_path / "b", rows)]
    with pytest.raises(UserError, match=match):
        audit.main([*map(str, runs), *flags])


def test_runs_without_common_steps(tmp_path: Path) -> None:
    _refused(tmp_path, [row | {"step": row["step"] + 100} for row in _rows()], "no common step")


def test_runs_of_other_phases(tmp_path: Path) -> None:
    _refused(tmp_path, [{k: v for k, v in row.items() if k != "stage"} for row in _rows()], "cannot be compared")


def test_empty_log(tmp_path: Path) -> None:
    _refused(tmp_path, [], "no rows yet")


@pytest.mark.parametrize("tolerance", ["-1", "nan"])
def test_bad_tolerance(tmp_path: Path, tolerance: str) -> None:
    _refused(tmp_path, _rows(), "loss_tolerance", f"--loss_tolerance={tolerance}")


def test_no_log(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give the directory of a run"):
        audit.main([str(tmp_path), str(tmp_path)])


def test_line_that_is_no_row(tmp_path: Path) -> None:
    run = _write(tmp_path / "a", _rows())
    with (run / "logs" / "train.jsonl").open("a") as file:
        file.write("not a row\n")
    with pytest.raises(UserError, match="line 11: not JSON"):
        audit.main([str(run), str(run)])


def test_command_needs_no_torch(tmp_path: Path) -> None:
    runs = [_write(tmp_path / "a", _rows()), _write(tmp_path / "b", [*_rows(5)[1:], _rows()[9] | {"loss": 0}])]
    code = "import sys, runpy; sys.modules['torch'] = None; runpy.run_module('ds_train.audit', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, runs)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert done.returncode == 1
    assert "The runs first differ in steps 6 to 10: loss.\n" in done.stdout
