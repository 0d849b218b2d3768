"""Saves whose files cannot all be written: what is reported, what stays, and what the next attempt finds."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from ds_train.checkpoints import background, hashing_file, save
from ds_train.checkpoints.manifest import FileEntry, defect_of, step_directories, step_name
from ds_train.checkpoints.retention import KEPT, Retention
from ds_train.checkpoints.save import Checkpoints
from ds_train.checkpoints.state import STATE_FILE
from ds_train.ranks.world import World
from tests.support.checkpoints import full_state
from tests.support.file_systems import undeletable


class _Engine:
    """Hands one file over, as DeepSpeed's engine does."""

    checkpoint_engine: Any = None
    module = torch.nn.Linear(2, 2)

    def save_checkpoint(self, directory: str, tag: str, client_state: dict, save_latest: bool) -> None:
        self.checkpoint_engine.makedirs(f"{directory}/{tag}", exist_ok=True)
        self.checkpoint_engine.save({"weights": bytes(10_000)}, f"{directory}/{tag}/model.pt")
        (Path(directory) / tag / "offloaded_tensors").mkdir()  # as with an optimizer on NVMe
        (Path(directory) / tag / "offloaded_tensors" / "0.swp").write_bytes(bytes(100))


def _describe(directory: Path) -> None:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text("{}")


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoints:
    monkeypatch.setattr(save, "gather_objects", lambda value, group=None: [value])
    monkeypatch.setattr(background, "gather_objects", lambda value: [value])
    directory = tmp_path / "checkpoints"
    return Checkpoints(directory, World(0, 0, 1), _describe, Retention(directory, keep_last=3, keep_every=0))


def _save(checkpoints: Checkpoints, step: int, *milestones: str) -> bool:
    state = full_state()
    state.step = step
    checkpoints.save(_Engine(), state, milestones)  # type: ignore[arg-type]
    return checkpoints.wait()


def _steps(checkpoints: Checkpoints) -> list[int]:
    assert [path for path in step_directories(checkpoints.directory) if defect_of(path)] == []
    assert not list(checkpoints.directory.glob(".*"))
    return [int(path.name.removeprefix("step_")) for path in step_directories(checkpoints.directory)]


def test_those_of_milestones_stay_whatever_the_flags(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    """The milestone of a save that failed passes on to the next one."""
    assert _save(checkpoints, 1, "step 1") and _save(checkpoints, 2)
    with monkeypatch.context() as full:
        full.setattr(save, "write_file", _refuse)
        assert not _save(checkpoints, 3, "5 PFLOPs")
    for step in range(4, 10):
        assert _save(checkpoints, step)
    assert _steps(checkpoints) == [9, 8, 7, 4, 1]
    assert (checkpoints.directory / "step_00000004" / KEPT).read_text() == "5 PFLOPs\n"
    checkpoints.retention.make_room(2**62, at_least_one=True)
    Retention(checkpoints.directory, keep_last=1, keep_every=0).tidy()
    assert _steps(checkpoints) == [9, 4, 1]
    (checkpoints.directory / "step_00000004" / KEPT).unlink()
    Retention(checkpoints.directory, keep_last=1, keep_every=0).tidy()
    assert _steps(checkpoints) == [9, 1]


def _refuse(path: Path, value: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def test_the_last_save_finds_room_below_a_quota(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file system reports room, and refuses the write: the second attempt has deleted the oldest before it."""
    write_file = save.write_file

    def limited_write(path: Path, value: Any) -> FileEntry:
        if len(step_directories(checkpoints.directory)) >= 2:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        return write_file(path, value)

    assert _save(checkpoints, 2) and _save(checkpoints, 4)
    monkeypatch.setattr(save, "write_file", limited_write)
    assert not _save(checkpoints, 6)
    assert _steps(checkpoints) == [4, 2]
    assert _save(checkpoints, 6)
    assert _steps(checkpoints) == [6, 4]


def test_an_error_of_another_kind_deletes_nothing(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _save(checkpoints, 2) and _save(checkpoints, 4)

    def fail(path: Path, value: Any) -> FileEntry:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(save, "write_file", fail)
    assert not _save(checkpoints, 6) and not _save(checkpoints, 6)
    assert _steps(checkpoints) == [4, 2]


@pytest.mark.parametrize("fails_in", ["write", "describe", "sync"])
def test_a_failed_save_names_file_and_reason(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fails_in: str
) -> None:
    """Also where the error itself has no path: a failed write through torch, a failed sync."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail(*_: Any) -> None:
        raise full

    if fails_in == "write":
        monkeypatch.setattr(hashing_file.HashingFile, "_write", fail)
    elif fails_in == "sync":
        monkeypatch.setattr(hashing_file.os, "fsync", fail)
    else:
        checkpoints.describe = fail
    assert not _save(checkpoints, 2)
    named = checkpoints.directory / ".saving_step_00000002" / ("" if fails_in == "describe" else "model.pt")
    assert f"no checkpoint of step 2: {named}: No space left on device. Older ones stay" in caplog.text
    assert _steps(checkpoints) == []


def test_the_state_can_be_read_without_torch_and_is_hashed_with_the_rest(checkpoints: Checkpoints) -> None:
    assert _save(checkpoints, 2)
    checkpoint = checkpoints.directory / step_name(2)
    assert (
        json.loads((checkpoint / STATE_FILE).read_text()).items() >= {"step": 2, "stage": 7, "tokens": 10**12}.items()
    )
    (checkpoint / STATE_FILE).write_text("{}")
    assert "state.json" in (defect_of(checkpoint) or "")


def test_what_deepspeed_writes_by_itself_is_hashed_with_the_rest(checkpoints: Checkpoints) -> None:
    assert _save(checkpoints, 2)
    checkpoint = checkpoints.directory / step_name(2)
    (checkpoint / "offloaded_tensors" / "0.swp").write_bytes(bytes(99))
    assert "offloaded_tensors/0.swp has 99 bytes" in (defect_of(checkpoint) or "")


def test_what_cannot_be_tidied_costs_no_checkpoint(
    checkpoints: Checkpoints, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """A link to an archive, and a file that is held."""
    checkpoints.retention = Retention(checkpoints.directory, keep_last=1, keep_every=0)
    assert _save(checkpoints, 2)
    (checkpoints.directory / step_name(2)).rename(tmp_path / "archive")
    (checkpoints.directory / step_name(2)).symlink_to(tmp_path / "archive")
    assert _save(checkpoints, 4)
    with undeletable(checkpoints.directory / step_name(4) / "model.pt"):
        assert _save(checkpoints, 6) and _save(checkpoints, 8)
        assert [path.name for path in step_directories(checkpoints.directory)] == [step_name(8)]
    assert (tmp_path / "archive" / "model.pt").exists()
    assert caplog.text.count("cannot delete") == 1 and "no checkpoint" not in caplog.text
    assert _save(checkpoints, 10)
    assert _steps(checkpoints) == [10]
