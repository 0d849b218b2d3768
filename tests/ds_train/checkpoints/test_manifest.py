"""Which directories are checkpoints, and which one a resume takes, whatever happened to them."""

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from data_tools.base import transfers
from data_tools.base.errors import UserError
from data_tools.base.files import size_on_disk
from ds_train.checkpoints.manifest import (
    LATEST,
    MANIFEST,
    choose_checkpoint,
    defect_of,
    saving_name,
    set_aside,
    step_directories,
    step_name,
)
from ds_train.run.record import LAUNCHES, set_foreign_logs_aside
from tests.support import foreign_files
from tests.support.checkpoints import FILES, write_checkpoint
from tests.support.file_systems import small_file_system


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "run" / "checkpoints"
    path.mkdir(parents=True)
    for step in (100, 200, 300):
        write_checkpoint(path, step)
    return path


def _first_file(checkpoint: Path) -> Path:
    return checkpoint / next(iter(FILES))


def _flip_a_bit(checkpoint: Path) -> None:
    content = bytearray(_first_file(checkpoint).read_bytes())
    content[17] ^= 4
    _first_file(checkpoint).write_bytes(content)


def _edit_manifest(checkpoint: Path, **changes: object) -> None:
    path = checkpoint / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _drop_entries(checkpoint: Path, *, is_old: bool) -> None:
    """Leave one entry; a manifest of version 0.1 has no hash of its own."""
    path = checkpoint / MANIFEST
    manifest = json.loads(path.read_text())
    (kept, entry), *_ = manifest["files"].items()
    _edit_manifest(checkpoint, files={kept: entry}, **{"xxh3_128": None} if is_old else {})


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda c: os.truncate(_first_file(c), 20), "has 20 bytes"),
    "empty": (lambda c: os.truncate(_first_file(c), 0), "has 0 bytes"),
    "longer": (lambda c: _first_file(c).write_bytes(_first_file(c).read_bytes() + b"x"), "bytes, its manifest"),
    "bit flipped": (_flip_a_bit, "is damaged"),
    "missing": (lambda c: _first_file(c).unlink(), "is missing"),
    "no manifest": (lambda c: (c / MANIFEST).unlink(), "has no manifest"),
    "empty manifest": (lambda c: (c / MANIFEST).write_text(""), "cannot be read"),
    "torn manifest": (lambda c: os.truncate(c / MANIFEST, 40), "cannot be read"),
    "strange manifest": (lambda c: (c / MANIFEST).write_text("[1]"), "cannot be read"),
    "entries lost": (lambda c: _drop_entries(c, is_old=False), "its entries are not those that were written"),
    "old one's entries lost": (lambda c: _drop_entries(c, is_old=True), "mp_rank_00_model_states.pt is not in its"),
    "renamed": (lambda c: _edit_manifest(c, step=200), "is that of step 200"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_newest_is_skipped_and_reported(name: str, directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    damage, reason = DAMAGES[name]
    for how in (("auto",), ("latest",), ("none", "latest")):
        assert choose_checkpoint(directory, *how) == directory / step_name(300)
    damage(directory / step_name(300))
    with caplog.at_level(logging.WARNING):
        assert choose_checkpoint(directory, "auto") == directory / step_name(200)
    assert reason in caplog.text and step_name(300) in caplog.text
    named = str(directory / step_name(300))
    for how in (("resume", named), ("resume_from", "auto", named)):
        with pytest.raises(UserError, match=f"--{how[0]} {named}: .*{reason}.*--resume auto or none"):
            choose_checkpoint(directory, *how[1:])


def test_a_long_verification_says_how_far_it_is(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(transfers, "_FIRST_LINE_S", 0.0)
    newest = directory / step_name(300)
    monkeypatch.setattr(transfers, "_gib", lambda num_bytes: f"{num_bytes:.0f}/2**30")
    with caplog.at_level(logging.INFO):
        assert defect_of(newest) is None
    total = size_on_disk(newest) - (newest / MANIFEST).stat().st_size
    first, end = (record.message for record in caplog.records)
    assert first.startswith(f"verifying {newest}: ") and f" of {total}/2**30 GiB, " in first
    assert end.startswith(f"verifying {newest}: {total}/2**30 GiB in ")


@pytest.mark.parametrize("name", DAMAGES)
def test_all_damaged_is_an_error_never_a_fresh_start(name: str, directory: Path) -> None:
    for path in step_directories(directory):
        DAMAGES[name][0](path)
    if name == "renamed":
        _edit_manifest(directory / step_name(200), step=1)
    with pytest.raises(UserError, match=r"3 checkpoints and none is usable.*--resume none"):
        choose_checkpoint(directory, "auto")


@pytest.mark.parametrize("content", [None, "", "step_00000100", "step_00000999", "garbage"])
def test_latest_is_not_trusted(content: str | None, directory: Path) -> None:
    (directory / LATEST).unlink()
    if content is not None:
        (directory / LATEST).write_text(content)
    assert choose_checkpoint(directory, "auto") == directory / step_name(300)


def test_checkpoints_of_other_programs_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs = foreign_files.write_checkpoint(tmp_path / "run" / "checkpoints" / step_name(200), "train_state.json")
    before = foreign_files.files_of(tmp_path)
    with pytest.raises(UserError, match=r"none is usable .*--run_name"):
        choose_checkpoint(theirs.parent, "auto")
    assert "a checkpoint of Accelerate's save_state. To use it" in caplog.text and "data_tools.adopt" in caplog.text
    with pytest.raises(UserError, match=r"--resume_from .*data_tools.adopt"):
        choose_checkpoint(theirs.parent, "auto", str(theirs))
    assert foreign_files.files_of(tmp_path) == before


def test_logs_of_other_programs_are_moved_aside(tmp_path: Path) -> None:
    for name in ("theirs", "ours"):
        (tmp_path / name / "logs").mkdir(parents=True)
        (tmp_path / name / "logs" / "train.jsonl").write_text('{"step": 10}')
    (tmp_path / "ours" / LAUNCHES).write_text("{}")
    for name in ("theirs", "ours", "theirs"):
        set_foreign_logs_aside(tmp_path / name)
    assert (tmp_path / "theirs" / "superseded_1" / "logs" / "train.jsonl").read_text() == '{"step": 10}'
    assert (tmp_path / "ours" / "logs").exists() and not list((tmp_path / "ours").glob("superseded_*"))


def test_nothing_there_is_a_fresh_start(tmp_path: Path) -> None:
    assert choose_checkpoint(tmp_path / "checkpoints", "auto") is None


def test_unfinished_first_save_is_a_fresh_start(tmp_path: Path) -> None:
    (tmp_path / saving_name(100)).mkdir()
    (tmp_path / saving_name(100) / MANIFEST).write_text("{}")
    assert choose_checkpoint(tmp_path, "auto") is None


def test_order_is_by_number_and_other_names_are_left_alone(directory: Path) -> None:
    write_checkpoint(directory, 123_456_789)
    for name in ("step_00000400_universal", "step_copy", "old"):
        (directory / name).mkdir()
    assert [path.name for path in step_directories(directory)] == [
        "step_123456789", "step_00000300", "step_00000200", "step_00000100",
    ]  # fmt: skip
    assert choose_checkpoint(directory, "auto") == directory / "step_123456789"


def test_abandoned_future_is_moved_aside_not_lost(directory: Path) -> None:
    run = directory.parent
    set_aside(run, after_step=100)
    assert [path.name for path in step_directories(directory)] == [step_name(100)]
    assert sorted(path.name for path in (run / "superseded_1").iterdir()) == [step_name(200), step_name(300)]
    set_aside(run, after_step=100)
    assert not (run / "superseded_2").exists()
    (run / "logs").mkdir()
    set_aside(run, after_step=-1)
    assert sorted(path.name for path in (run / "superseded_2").iterdir()) == ["logs", step_name(100)]
    assert choose_checkpoint(directory, "auto") is None


def test_the_next_free_number_is_taken(directory: Path) -> None:
    for name in ("superseded_2", "superseded_7", "superseded_old"):
        (directory.parent / name).mkdir()
    set_aside(directory.parent, after_step=200)
    assert [path.name for path in (directory.parent / "superseded_8").iterdir()] == [step_name(300)]


def test_checkpoints_on_another_disk_stay_on_it(directory: Path, tmp_path: Path) -> None:
    """``checkpoints/`` is a link to another disk, or one is mounted there."""
    run = tmp_path / "linked"
    with small_file_system(tmp_path / "disk", "size=1m"):
        shutil.copytree(directory, tmp_path / "disk" / "checkpoints")
        run.mkdir()
        (run / "checkpoints").symlink_to(tmp_path / "disk" / "checkpoints")
        set_aside(run, after_step=200)
        assert [path.name for path in run.iterdir()] == ["checkpoints"]
        (run / "logs").mkdir()
        set_aside(run, after_step=-1)
        aside = run / "checkpoints" / "superseded_2"
        assert sorted(path.name for path in aside.iterdir()) == [step_name(100), step_name(200)]
        assert [path.name for path in (run / "superseded_2").iterdir()] == ["logs"]
        assert choose_checkpoint(run / "checkpoints", "auto") is None
        assert (run / "checkpoints" / "superseded_1" / step_name(300)).exists()


def test_save_over_a_damaged_checkpoint_replaces_it(directory: Path) -> None:
    _flip_a_bit(directory / step_name(300))
    write_checkpoint(directory, 300)
    assert choose_checkpoint(directory, "auto") == directory / step_name(300)
