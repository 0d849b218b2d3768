"""What is deleted of a run's checkpoints, and that what cannot be deleted costs training nothing."""

import logging
import re
import shutil
from collections import namedtuple
from contextlib import ExitStack
from pathlib import Path

import pytest

from data_tools.base.files import size_on_disk
from ds_train.checkpoints import manifest
from ds_train.checkpoints.manifest import defect_of, saving_name, step_directories, step_name
from ds_train.checkpoints.retention import Retention
from tests.support import foreign_files
from tests.support.checkpoints import write_checkpoint
from tests.support.file_systems import undeletable


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoints"
    path.mkdir()
    for step in (100, 200, 300):
        write_checkpoint(path, step)
    return path


def _steps(directory: Path) -> list[int]:
    assert [path for path in step_directories(directory) if defect_of(path)] == []
    return [int(path.name.removeprefix("step_")) for path in step_directories(directory)]


def test_those_of_other_programs_stay(directory: Path) -> None:
    theirs = foreign_files.write_checkpoint(directory / step_name(50), "train_state.json")
    before = foreign_files.files_of(theirs)
    retention = Retention(directory, keep_last=1, keep_every=0)
    retention.tidy()
    retention.make_room(2**62, at_least_one=True)
    assert [path.name for path in step_directories(directory)] == [step_name(300), step_name(50)]
    assert foreign_files.files_of(theirs) == before


def test_newest_and_multiples_stay(directory: Path) -> None:
    retention = Retention(directory, keep_last=2, keep_every=500)
    for step in range(400, 1100, 100):
        write_checkpoint(directory, step)
        retention.tidy()
    assert _steps(directory) == [1000, 900, 500]
    Retention(directory, keep_last=0, keep_every=0).tidy()
    assert _steps(directory) == [1000, 900, 500]


def test_leftovers_of_killed_saves_and_deletions_go(directory: Path) -> None:
    for name in (saving_name(400), ".deleting_step_00000050"):
        (directory / name).mkdir()
        (directory / name / "file").write_text("")
    Retention(directory, keep_last=0, keep_every=0).tidy()
    assert not list(directory.glob(".*")) and _steps(directory) == [300, 200, 100]


@pytest.mark.parametrize("where", ["directory", "file", "deeper"])
def test_what_cannot_be_deleted_is_one_warning_and_goes_later(
    directory: Path, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    """A busy or protected file. The directory is out of the way where it can be, and training's saves do not notice."""
    oldest = directory / step_name(100)
    held = {"directory": oldest, "file": oldest / "manifest.json", "deeper": oldest / "huggingface" / "config.json"}
    retention = Retention(directory, keep_last=2, keep_every=0)
    with undeletable(held[where]):
        for step in (400, 500):
            write_checkpoint(directory, step)
            retention.tidy()
            assert _steps(directory)[:2] == [step, step - 100]
        (message,) = (record.message for record in caplog.records)
        assert re.search(
            f"cannot delete .*{step_name(100)} \\((Operation not permitted|it is write-protected)", message
        )
    retention.tidy()
    assert _steps(directory) == [500, 400] and not list(directory.glob(".*"))


def test_a_step_that_is_saved_again_while_its_leftover_stays(directory: Path) -> None:
    oldest, retention = directory / step_name(100), Retention(directory, keep_last=2, keep_every=0)
    with ExitStack() as stack:
        for number in range(3):
            (oldest / "own").write_text("")
            stack.enter_context(undeletable(oldest / "own"))
            manifest.retire(oldest)
            retention.tidy()
            assert len(list(directory.glob(".deleting_*"))) == number + 1
            write_checkpoint(directory, 100)
    retention.tidy()
    assert _steps(directory) == [300, 200] and not list(directory.glob(".*"))


def test_links_are_unlinked_and_never_followed(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    archive = directory.parent / "archive"
    (directory / step_name(100)).rename(archive)
    (directory / step_name(100)).symlink_to(archive)
    (directory / ".deleting_step_00000050").symlink_to(archive)
    (directory / saving_name(20)).symlink_to(directory.parent / "nowhere")
    Retention(directory, keep_last=2, keep_every=0).tidy()
    assert _steps(directory) == [300, 200] and not list(directory.glob(".*"))
    assert defect_of(archive) == "its manifest.json is that of step 100" or defect_of(archive) is None
    assert (archive / "manifest.json").exists() and caplog.records == []


def test_a_write_protected_checkpoint_stays_whole(
    directory: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``chmod a-w`` on it: its sub-directories could be emptied, and half a checkpoint would be left."""
    with monkeypatch.context() as patch:
        patch.setattr(manifest.os, "access", lambda path, mode: path.name != step_name(100))  # root may do all
        retention = Retention(directory, keep_last=1, keep_every=0)
        retention.tidy()
        retention.tidy()
    assert _steps(directory) == [300, 100]
    (message,) = (record.message for record in caplog.records)
    assert f"cannot delete {directory / step_name(100)} (it is write-protected)" in message
    retention.tidy()
    assert _steps(directory) == [300]


def test_a_damaged_checkpoint_that_cannot_be_deleted_gives_way(directory: Path) -> None:
    """A save of the same step needs its name only."""
    target = directory / step_name(300)
    (target / "damage").write_text("")
    with undeletable(target / "damage"):
        write_checkpoint(directory, 300)
        assert not (target / "damage").exists()
    Retention(directory, keep_last=3, keep_every=0).tidy()
    assert _steps(directory) == [300, 200, 100] and not list(directory.glob(".*"))


def test_a_checkpoint_counts_although_what_follows_its_rename_fails(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (directory / "latest").unlink()
    (directory / "latest").mkdir()
    (directory / "latest" / "foreign").write_text("")
    assert write_checkpoint(directory, 400) == directory / step_name(400)
    assert _steps(directory)[0] == 400
    assert caplog.records[0].levelno == logging.WARNING and str(directory / "latest") in caplog.text


class _Disk:
    """A disk of a fixed size on which nothing is but the checkpoints."""

    Usage = namedtuple("Usage", "free")

    def __init__(self, directory: Path, size: int) -> None:
        self._directory, self._size = directory, size

    def usage(self, path: Path) -> Usage:
        return self.Usage(self._size - size_on_disk(self._directory))


@pytest.mark.parametrize(
    ("room", "keep_last", "keep_every", "kept"),
    [
        (4.1, 3, 0, [300, 200, 100]),  # there is room
        (3.1, 3, 0, [300, 200]),
        (2.1, 3, 0, [300]),
        (1.9, 3, 0, [300, 200, 100]),  # not even the newest alone leaves enough: nothing is lost for nothing
        (3.1, 0, 0, [300, 200, 100]),  # all are to be kept
        (3.1, 3, 100, [300, 200, 100]),
        (3.1, 3, 200, [300, 200]),
        (2.1, 3, 200, [300, 200, 100]),
    ],
)
def test_room_is_made_by_the_oldest_that_may_go_and_never_the_newest(
    directory: Path, monkeypatch: pytest.MonkeyPatch, room: float, keep_last: int, keep_every: int, kept: list[int]
) -> None:
    one = size_on_disk(directory / step_name(300))
    monkeypatch.setattr(shutil, "disk_usage", _Disk(directory, round(room * one)).usage)
    free = Retention(directory, keep_last, keep_every).make_room(one, at_least_one=False)
    assert _steps(directory) == kept
    assert (free >= one) == (room * one - len(kept) * one >= one)


def test_where_a_quota_hides_the_lack_of_room_one_goes(directory: Path) -> None:
    for kept in ([300, 200], [300], [300]):
        Retention(directory, keep_last=3, keep_every=0).make_room(1, at_least_one=True)
        assert _steps(directory) == kept


def test_links_make_no_room(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = directory.parent / "archive"
    (directory / step_name(100)).rename(archive)
    (directory / step_name(100)).symlink_to(archive)
    Retention(directory, keep_last=3, keep_every=0).make_room(1, at_least_one=True)
    assert [path.name for path in step_directories(directory)] == [step_name(300), step_name(100)]
