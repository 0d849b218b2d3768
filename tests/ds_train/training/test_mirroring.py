"""A run continues from its mirror on an empty machine, to the last bit; a bad mirror is refused or does no harm."""

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from data_tools.base.errors import UserError
from ds_train.checkpoints.mirror import Mirror
from ds_train.training.mirroring import Mirroring
from tests.support import tiny
from tests.support.checkpoints import write_checkpoint
from tests.support.comparing import assert_same_checkpoint, comparable
from tests.support.launching import read_log, run_all

PATIENCE_S = 60.0


@pytest.mark.launch
def test_a_deleted_run_continues_from_its_mirror_bit_by_bit(tiny_scratch: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"

    def run(name: str, *more: str, **expected: Any) -> dict[str, Any]:
        flags = f"--run_name {name} --max_steps 6 --save_every 2 --keep_last 1 --global_batch 8 --micro_batch 4".split()
        return {"phase": "pptrain", "argv": [*tiny.flags(tiny_scratch), *flags, "--lr", "2e-3", *more], **expected}

    mirrored = ["--mirror", str(copy)]
    run_all([run("whole"), run("moved", *mirrored, "--stop_step", "4", code=86)], tmp_path, 2)
    assert [path.name for path in (copy / "moved" / "checkpoints").iterdir()] == ["step_00000004"]
    assert (copy / "moved" / "run.yaml").exists()
    shutil.rmtree(tiny_scratch / "moved")
    output = run_all([run("moved", *mirrored)], tmp_path, 2)
    assert f"fetched {tiny_scratch}/moved/checkpoints/step_00000004 from {copy}/moved" in output
    assert "at step 4" in output
    assert comparable(read_log(tiny_scratch / "moved")) == comparable(read_log(tiny_scratch / "whole"))
    assert_same_checkpoint(tiny_scratch / "moved", tiny_scratch / "whole", 6)
    assert [path.name for path in (copy / "moved" / "checkpoints").iterdir()] == ["step_00000006"]

    other = run("moved", *mirrored, "--resume", "none", error="--resume none would not continue")
    run_all([other, run("other", "--mirror", "nowhere://x", error="--mirror nowhere://x/other")], tmp_path, 1)


def machine(tmp_path: Path, name: str, *steps: int) -> Path:
    for step in steps:
        write_checkpoint(tmp_path / name / "checkpoints", step)
    return tmp_path / name


def mirroring(tmp_path: Path, directory: Path, **more: int) -> Mirroring:
    return Mirroring(Mirror(str(tmp_path / "mirror" / "run")), directory, **more)


def there(tmp_path: Path) -> list[str]:
    return [name[-2:] for name in Mirror(str(tmp_path / "mirror" / "run")).step_names()]


def test_what_was_not_uploaded_before_the_end_is_then(tmp_path: Path) -> None:
    one = mirroring(tmp_path, machine(tmp_path, "a", 2), every=4)
    one.fetch("auto")
    one.end(PATIENCE_S)
    assert there(tmp_path) == ["02"]
    machine(tmp_path, "a", 3)
    one.committed()
    one._errands.wait(PATIENCE_S)
    assert there(tmp_path) == ["02"], "3 is not divisible by 4"
    machine(tmp_path, "a", 4)
    one.committed()
    one._errands.wait(PATIENCE_S)
    assert there(tmp_path) == ["04", "02"], "the machine has both"


def test_the_last_launchs_end_stays_until_a_later_step_is_uploaded(tmp_path: Path) -> None:
    one = mirroring(tmp_path, machine(tmp_path, "a", 4, 6), every=4)
    one.fetch("auto")
    one.end(PATIENCE_S)
    shutil.rmtree(machine(tmp_path, "a", 7) / "checkpoints" / "step_00000006")
    one.committed()
    one._errands.wait(PATIENCE_S)
    assert there(tmp_path) == ["06", "04"], "step 4 is the newest that is due, 6 the newest of the mirror"
    machine(tmp_path, "a", 8)
    one.committed()
    one._errands.wait(PATIENCE_S)
    assert there(tmp_path) == ["08", "04"]


def test_two_machines_do_not_write_to_one_mirror(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = mirroring(tmp_path, machine(tmp_path, "a", 2))
    first.fetch("auto")
    first.end(PATIENCE_S)
    second = mirroring(tmp_path, machine(tmp_path, "b"))
    second.fetch("auto")
    machine(tmp_path, "b", 4)
    second.end(PATIENCE_S)
    machine(tmp_path, "a", 4, 6)
    with caplog.at_level(logging.ERROR):
        first.end(PATIENCE_S)
    assert "another process writes to --mirror" in caplog.text
    assert there(tmp_path) == ["04", "02"]
    with pytest.raises(UserError, match=r"newer than step_00000002 here: the run continued elsewhere"):
        mirroring(tmp_path, machine(tmp_path, "c", 2)).fetch("auto")


def test_another_run_is_refused(tmp_path: Path) -> None:
    first = mirroring(tmp_path, machine(tmp_path, "a", 2))
    first.fetch("auto")
    first.end(PATIENCE_S)
    other = machine(tmp_path, "b", 2) / "checkpoints" / "step_00000002" / "manifest.json"
    other.write_text(other.read_text() + "\n")
    with pytest.raises(UserError, match="have different checkpoints step_00000002: they are of two runs"):
        mirroring(tmp_path, tmp_path / "b").fetch("auto")
    for resume in ("none", "/elsewhere/step_00000009"):
        with pytest.raises(UserError, match=f"--resume {resume} would not continue"):
            mirroring(tmp_path, tmp_path / "empty").fetch(resume)


def test_an_older_checkpoint_of_its_own_makes_later_ones_of_the_mirror_go(tmp_path: Path) -> None:
    one = mirroring(tmp_path, machine(tmp_path, "a", 2))
    for step in (4, 6):
        one.fetch("auto")
        machine(tmp_path, "a", step)
        one.end(PATIENCE_S)
    for step in (4, 6):
        shutil.rmtree(tmp_path / "a" / "checkpoints" / f"step_{step:08d}")
    branch = mirroring(tmp_path, tmp_path / "a")
    branch.fetch(str(tmp_path / "a" / "checkpoints" / "step_00000002"))
    machine(tmp_path, "a", 3)
    branch.end(PATIENCE_S)
    assert there(tmp_path) == ["03", "02"]


def test_a_mirror_that_fails_is_one_warning_and_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ConnectionError("no route")

    one = mirroring(tmp_path, machine(tmp_path, "a", 2))
    one.fetch("auto")
    with monkeypatch.context() as patch:
        patch.setattr(Mirror, "upload", fail)
        one.end(PATIENCE_S)
        one.end(PATIENCE_S)
    assert caplog.text.count("no route") == 1
    one.end(PATIENCE_S)
    assert there(tmp_path) == ["02"], "it is tried again"
    monkeypatch.setattr(Mirror, "step_names", fail)
    with pytest.raises(UserError, match=r"--mirror .*/mirror/run cannot be read \(ConnectionError: no route\)"):
        mirroring(tmp_path, tmp_path / "a").fetch("auto")


def test_without_a_mirror_nothing_happens(tmp_path: Path) -> None:
    none = Mirroring(None, machine(tmp_path, "a", 2))
    none.fetch("none")
    none.committed()
    none.end(PATIENCE_S)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
