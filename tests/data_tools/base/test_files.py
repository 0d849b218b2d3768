"""Files and directories are whole or absent; a directory has one owner at a time."""

import errno
import fcntl
import logging
from pathlib import Path

import pytest

from data_tools.base.errors import UserError
from data_tools.base.files import exclusive, whole_directory
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
