"""Files that cannot be deleted and small file systems, as far as this machine lets a test make them."""

import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_GET_FLAGS, _SET_FLAGS, _IMMUTABLE = 0x80086601, 0x40086602, 0x10  # FS_IOC_…FLAGS and FS_IMMUTABLE_FL of linux/fs.h


@contextmanager
def undeletable(path: Path) -> Iterator[None]:
    """A file or directory that nobody can delete, nor anything in it; for root it is immutable, as busy as a mount."""
    if os.geteuid() != 0:
        path.parent.chmod(0o500)
        yield
        path.parent.chmod(0o700)
        return
    descriptor = os.open(path, os.O_RDONLY)  # by which it is found again wherever it was moved
    try:
        _set_immutable(descriptor, True)
        yield
        _set_immutable(descriptor, False)
    finally:
        os.close(descriptor)


def _set_immutable(descriptor: int, is_immutable: bool) -> None:
    try:
        (flags,) = struct.unpack("l", fcntl.ioctl(descriptor, _GET_FLAGS, struct.pack("l", 0)))
        flags = flags | _IMMUTABLE if is_immutable else flags & ~_IMMUTABLE
        fcntl.ioctl(descriptor, _SET_FLAGS, struct.pack("l", flags))
    except OSError as error:
        pytest.skip(f"this file system has no immutable files: {error}")


@contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """A directory in which nothing can be written; for root it is mounted so."""
    if os.geteuid() != 0:
        directory.chmod(0o500)
        yield
        directory.chmod(0o700)
        return
    for arguments in (["--bind", directory, directory], ["-o", "remount,ro,bind", directory]):
        mounted = subprocess.run(["mount", *arguments], capture_output=True)
        if mounted.returncode:
            subprocess.run(["umount", directory], capture_output=True)
            pytest.skip(f"cannot mount here: {mounted.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", directory], check=True)


@contextmanager
def small_file_system(directory: Path, options: str) -> Iterator[None]:
    """A tmpfs with these mount options in the place of a directory, which is made."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    directory.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", directory], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount here: {mounted.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", directory], check=True)
