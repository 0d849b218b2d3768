"""Files and directories are whole or absent; a directory has one owner at a time; what fails is named."""

import errno
import fcntl
import logging
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from data_tools.base.errors import UserError, user_message
from data_tools.base.files import append, exclusive, remove, sync, whole_directory, whole_file, write_json
from tests.support.file_systems import undeletable
from tests.support.holding import holder_of


class TestWholeDirectory:
    def test_takes_the_place_of_what_was_there(self, tmp_path: Path) -> None:
        target = tmp_path / "deep" / "out"
        for content in ("first", "second"):
            with whole_directory(target) as new:
                (new / "sub").mkdir()
                (new / "sub" / content).write_text(content)
        assert [path.name for path in (target / "sub").iterdir()] == ["second"]
        assert list(target.parent.iterdir()) == [target]

    def test_error_leaves_what_was_there(self, tmp_path: Path) -> None:
        target = tmp_path / "out"
        target.mkdir()
        (target / "old").touch()
        with pytest.raises(RuntimeError), whole_directory(target) as new:
            (new / "half").touch()
            raise RuntimeError
        assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["out", "out/old"]


class TestExclusive:
    def test_second_process_is_refused_and_the_first_one_named(self, tmp_path: Path) -> None:
        holder = holder_of(tmp_path)
        refusal = rf"in use by process {holder.pid} on .*; wait for it\.$"
        with pytest.raises(UserError, match=refusal), exclusive(tmp_path, "wait for it"):
            pass
        holder.communicate()
        with exclusive(tmp_path, "wait for it"):
            pass

    def test_lock_of_a_killed_process_does_not_stand_in_the_way(self, tmp_path: Path) -> None:
        holder = holder_of(tmp_path)
        holder.kill()
        holder.wait()
        with exclusive(tmp_path, ""):
            pass

    @pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
    def test_file_system_without_locks_is_a_warning(
        self, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def refuse(*_: object) -> None:
            raise OSError(number, "no locks")

        monkeypatch.setattr(fcntl, "lockf", refuse)
        with caplog.at_level(logging.WARNING), exclusive(tmp_path, ""):
            (tmp_path / "work").touch()
        assert f"{tmp_path}: its file system has no locks" in caplog.text

    def test_what_it_made_is_gone_if_nothing_was_written_there(self, tmp_path: Path) -> None:
        with pytest.raises(RuntimeError), exclusive(tmp_path / "A" / "seed_1", ""):
            assert (tmp_path / "A" / "seed_1" / ".lock").exists()
            raise RuntimeError
        assert [*tmp_path.iterdir()] == []
        with exclusive(tmp_path / "A" / "seed_1", ""):
            (tmp_path / "A" / "work").touch()
        assert [path.name for path in tmp_path.rglob("*")] == ["A", "work"]
        with exclusive(tmp_path / "A", ""):
            (tmp_path / "A" / "work").unlink()
        assert [path.name for path in tmp_path.rglob("*")] == ["A", ".lock"], "it was there before"

    def test_a_directory_that_cannot_be_made_is_one_message(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        refusal = "cannot write to .*/file/run .*make it writable, or choose another"
        with pytest.raises(UserError, match=refusal), exclusive(tmp_path / "file" / "run", ""):
            pass


@contextmanager
def file_size_limit(num_bytes: int) -> Iterator[None]:
    """No file grows larger inside the block, as on a full disk; Python ignores the signal."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_does_not_fit_is_named_and_not_left_behind(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    with file_size_limit(1000), pytest.raises(OSError) as caught:
        write_json(path, "x" * 5000)
    assert user_message(caught.value) == f"{caught.value.filename}: File too large" and str(path) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_line_that_does_not_fit_is_not_half_there(tmp_path: Path) -> None:
    path = tmp_path / "log"
    append(path, b"one\n")
    with file_size_limit(10):
        append(path, b"two\n")
        with pytest.raises(OSError) as caught:
            append(path, b"three\n")
    assert user_message(caught.value) == f"{path}: File too large"
    append(path, b"four\n")
    assert path.read_bytes() == b"one\ntwo\nfour\n"


def _refuse_sync(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP])
def test_directories_that_cannot_be_synced_are_tolerated_and_files_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = tmp_path / "file"
    path.write_text("")
    _refuse_sync(monkeypatch, number)
    sync(tmp_path)
    with pytest.raises(OSError, match=str(path)):
        sync(path)
    with pytest.raises(OSError, match="other"), whole_file(tmp_path / "other"):
        pass


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EROFS])
def test_another_failed_sync_of_a_directory_is_an_error_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    _refuse_sync(monkeypatch, number)
    with pytest.raises(OSError) as caught:
        sync(tmp_path)
    assert user_message(caught.value) == f"{tmp_path}: {os.strerror(number)}"


def test_remove_deletes_links_and_not_what_they_name(tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "precious").write_text("")
    (tmp_path / "doomed").mkdir()
    for link, target in (("link", "archive"), ("doomed/inner", tmp_path / "archive"), ("dangling", "nowhere")):
        (tmp_path / link).symlink_to(target)
    for name in ("link", "doomed", "dangling", "absent"):
        remove(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["archive"]
    assert (tmp_path / "archive" / "precious").exists()


def test_remove_deletes_all_that_can_be_deleted(tmp_path: Path) -> None:
    doomed = tmp_path / "doomed"
    for name in ("a", "b", "c"):
        (doomed / name).mkdir(parents=True)
        (doomed / name / "file").write_text("")
    with undeletable(doomed / "b" / "file"), pytest.raises(OSError):
        remove(doomed)
    assert [path.relative_to(doomed).as_posix() for path in doomed.rglob("*")] == ["b", "b/file"]


def test_an_error_without_a_number_is_a_message_too() -> None:
    """As shutil and the readers of other libraries raise them."""
    assert user_message(OSError("Cannot call rmtree on a symbolic link")) == "Cannot call rmtree on a symbolic link"
