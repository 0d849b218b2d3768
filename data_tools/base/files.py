"""Files and directories that are either whole or absent, what a file system may refuse; locks; hashes."""

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, TextIO

from data_tools.base.errors import UserError, reason_of

logger = logging.getLogger(__name__)

PARTIAL_SUFFIX = ".partial"
_NO_DIRECTORY_SYNC = (errno.EINVAL, errno.ENOTSUP)  # what file systems answer that sync files only
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_LOCK = ".lock"
_FLOCK = "hhqqi"  # Linux: type, whence, start, length, process


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an ``OSError`` of the block this path, if it has none: failed writes and syncs do not name their file."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open ``path`` for writing under a temporary name; if the block succeeds, sync it to disk and rename it."""
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL_SUFFIX}")
    try:
        with naming(path), partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """Give a hidden directory to fill; it takes the place of ``path``, synced to disk, if the body ends well.

    Raises:
        OSError: it cannot be made beside ``path``, or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent, ignore_cleanup_errors=True) as temporary:
        new = Path(temporary, "new")
        new.mkdir()
        yield new
        for directory, _, names in os.walk(new):
            for name in (*names, "."):
                sync(Path(directory, name))
        if path.exists():
            path.rename(Path(temporary, "old"))
        new.rename(path)
        sync(path.parent)


class InUseError(UserError):
    """A directory that another process holds."""


@contextmanager
def exclusive(directory: Path, otherwise: str) -> Iterator[None]:
    """Create a directory and hold its lock inside the block. If nothing is written there, it is gone afterwards.

    It is a POSIX record lock: the kernel releases it when its holder dies, and loader workers do not inherit it, which
    may outlive a killed trainer by some seconds.

    Args:
        otherwise: what to do where it is held, for the message.

    Raises:
        InUseError: another process holds it.
        UserError: nobody can write there.
    """
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    with _locked(directory, otherwise) as file:
        with suppress(OSError):  # a full disk; the name is for the message only
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        try:
            yield
        finally:
            if missing:
                _remove_unused(directory, missing)


def _locked(directory: Path, otherwise: str) -> TextIO:
    """The lock file of a directory, both made if they are missing, open and locked."""
    while True:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            file = (directory / _LOCK).open("a+", errors="replace")
        except OSError as error:
            raise UserError(
                f"cannot write to {directory} ({reason_of(error)}); make it writable, or choose another."
            ) from error
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                with file:
                    file.seek(0)
                    holder = file.read().strip() or "another process"
                raise InUseError(f"{directory} is in use by {holder}; {otherwise}.") from error
            logger.warning(
                "%s: its file system has no locks (%s); two processes at once would damage what is there",
                directory, reason_of(error),
            )  # fmt: skip
        with suppress(FileNotFoundError):  # its last holder may have removed it in between
            if os.path.samestat(os.fstat(file.fileno()), (directory / _LOCK).stat()):
                return file
        file.close()


def _remove_unused(directory: Path, made: list[Path]) -> None:
    """Remove directories that were made, from the lowest up, if there is nothing but the lock."""
    with suppress(OSError):
        if [path.name for path in directory.iterdir()] == [_LOCK]:
            (directory / _LOCK).unlink()
            for path in made:
                path.rmdir()


def lock_holder(directory: Path) -> tuple[bool, str]:
    """Whether a process holds a directory (see `exclusive`), and who does or did so last. Takes no lock itself.

    Raises:
        OSError: nobody ever held it, or its file system has no locks.
    """
    with (directory / _LOCK).open(errors="replace") as file:
        asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        found, *_ = struct.unpack(_FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, asked))
        return found != fcntl.F_UNLCK, file.read().strip()


def text_of(path: Path, name: str) -> str:
    """The content of a text file that a person has given.

    Args:
        name: the file as messages name it, with its flag.

    Raises:
        UserError: it is no regular file (a pipe would be waited for), cannot be read, or is not UTF-8.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{name} is not a regular file; give one.")
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{name} cannot be read ({reason_of(error)}).") from None
    except ValueError as error:
        raise UserError(f"{name} cannot be read ({error}).") from None


def entries(directory: Path) -> list[Path]:
    """What a directory holds, in the order of names; nothing where it does not exist.

    Raises:
        OSError: it cannot be read, which `Path.glob` passes over as if it were empty.
    """
    try:
        return sorted(directory.iterdir())
    except FileNotFoundError:
        return []


def existing_parent(path: Path) -> Path:
    """``path`` itself or the nearest directory above it that exists."""
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())


def sync(path: Path) -> None:
    """Make a file's content survive a power cut, or renames in a directory, where its file system can."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_SYNC or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file, a link (never what it names) or a directory; of a directory all that can be deleted.

    Raises:
        OSError: why something is left.
    """
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        shutil.rmtree(path)


def size_on_disk(directory: Path) -> int:
    """Bytes of all files below a directory; links are not followed."""
    files = (path.lstat() for path in directory.rglob("*") if not path.is_dir())
    return sum(status.st_size for status in files)


def append(path: Path, data: bytes) -> None:
    """Add ``data`` to the end of a file: all of it, or nothing where the disk is full."""
    with naming(path), path.open("ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            file.truncate(end)
            raise


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all."""
    with whole_file(path) as file:
        file.write((json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def sha256_of_file(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
