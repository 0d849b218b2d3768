"""Checkpoints of finished runs are deleted after a question, and no others."""

from pathlib import Path

import pytest

from data_tools.base.errors import UserError
from ds_train.checkpoints.manifest import step_directories, step_of
from ds_train.checkpoints.retention import KEPT
from ds_train.experiment.cleaning import clean
from ds_train.experiment.plan import Experiment
from tests.support.experiments import TRAINING, experiment, write


@pytest.fixture
def grid(tmp_path: Path) -> Experiment:
    """B is done, C is not; both have five checkpoints."""
    grid = experiment(write(tmp_path, training=TRAINING), tmp_path, conditions=["B", "C"])
    steps = {step.name: step for step in grid.steps()}
    for name in ("B", "C"):
        run = grid.trainers.run(name, 1337)
        for number in range(10, 60, 10):
            (run / "checkpoints" / f"step_{number:08d}").mkdir(parents=True)
            (run / "checkpoints" / f"step_{number:08d}" / "file").write_text("content")
        (run / "run.yaml").write_text("keep_every: 30\n")
    (grid.trainers.run("B", 1337) / "checkpoints" / "step_00000010" / KEPT).touch()
    for step in steps["B/seed_1337"].needs:
        step.product.mkdir(parents=True, exist_ok=True)
    grid.records.add(steps["B/seed_1337"], 1.0)
    return grid


def left(grid: Experiment, name: str) -> list[int]:
    return sorted(step_of(path) for path in step_directories(grid.trainers.run(name, 1337) / "checkpoints"))


def test_last_and_kept_checkpoints_stay(
    grid: Experiment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("builtins.input", lambda text: "y")
    clean(grid)
    assert left(grid, "B") == [10, 30, 50] and left(grid, "C") == [10, 20, 30, 40, 50]
    printed = capsys.readouterr().out
    assert "2 checkpoints " in printed and "deleted: 0.00 GiB" in printed
    clean(grid)
    assert "no finished run" in capsys.readouterr().out


def test_nothing_is_deleted_without_a_yes(grid: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    clean(grid, is_dry_run=True)
    monkeypatch.setattr("builtins.input", lambda text: "")
    clean(grid)

    def nobody(text: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", nobody)
    with pytest.raises(UserError, match="nothing was deleted"):
        clean(grid)
    assert left(grid, "B") == [10, 20, 30, 40, 50]
