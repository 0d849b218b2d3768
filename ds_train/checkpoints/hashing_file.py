"""``torch.save`` into a file that is hashed as it is written, past the page cache."""

import errno
import fcntl
import mmap
import os
from contextlib import closing
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
import xxhash
from torch.utils.serialization import config

from data_tools.base.files import naming
from ds_train.checkpoints.manifest import FileEntry

BULK_BYTES = 1 << 20  # from this size on, memory and files are aligned to pages
_CHUNK_BYTES = 1 << 24


class HashingFile:
    """A file that is hashed while it is written, with direct writes past the page cache.

    Nothing is read back, and pages that are aligned both in memory and in the file are not copied: the kernel's copy
    would take more processor time than all the rest. File systems without direct writes get ordinary ones.
    """

    def __init__(self, path: Path) -> None:
        self._hash = xxhash.xxh3_128()
        self._size = 0
        self._chunk = np.frombuffer(mmap.mmap(-1, _CHUNK_BYTES), np.uint8)  # gathers data that is not aligned
        self._filled = 0
        self._direct = getattr(os, "O_DIRECT", 0)  # Linux
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        try:
            self._descriptor = os.open(path, flags | self._direct, 0o666)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._direct = 0
            self._descriptor = os.open(path, flags, 0o666)

    def write(self, data: Any) -> int:
        self._hash.update(data)
        new = np.frombuffer(data, np.uint8) if len(data) else np.empty(0, np.uint8)
        self._size += len(new)

        # Large aligned data is written from where it is.
        if new.ctypes.data % mmap.PAGESIZE == self._filled % mmap.PAGESIZE == 0:
            whole = len(new) // mmap.PAGESIZE * mmap.PAGESIZE
            if whole >= BULK_BYTES:
                self._write_chunk(self._filled)
                self._write(new[:whole])
                new = new[whole:]

        # All else goes through the chunk.
        while len(new):
            part = new[: _CHUNK_BYTES - self._filled]
            self._chunk[self._filled : self._filled + len(part)] = part  # numpy's copy releases the GIL
            self._filled, new = self._filled + len(part), new[len(part) :]
            if self._filled == _CHUNK_BYTES:
                self._write_chunk(_CHUNK_BYTES)
        return len(data)

    def _write_chunk(self, end: int) -> None:
        """Write the chunk up to ``end`` and move the rest to the front."""
        self._write(self._chunk[:end])
        self._chunk[: self._filled - end] = self._chunk[end : self._filled]
        self._filled -= end

    def _write(self, new: np.ndarray) -> None:
        start = 0
        while start < len(new):
            try:
                start += os.write(self._descriptor, new[start : start + _CHUNK_BYTES].data)
            except OSError as error:  # some file systems refuse only here; a short write may also end within a page
                if error.errno != errno.EINVAL or not self._direct:
                    raise
                self._through_cache()

    def _through_cache(self) -> None:
        fcntl.fcntl(self._descriptor, fcntl.F_SETFL, fcntl.fcntl(self._descriptor, fcntl.F_GETFL) & ~self._direct)
        self._direct = 0

    def flush(self) -> None:
        """Do nothing: torch calls it, but `finish` writes the rest."""

    def finish(self) -> FileEntry:
        """Write the rest, sync the file to disk (fsync) and return its entry for the manifest."""
        self._write_chunk(self._filled // mmap.PAGESIZE * mmap.PAGESIZE)
        if self._direct:
            self._through_cache()
        self._write_chunk(self._filled)
        os.fsync(self._descriptor)
        return FileEntry(self._size, self._hash.hexdigest())

    def close(self) -> None:
        os.close(self._descriptor)


def write_file(path: Path, value: Any) -> FileEntry:
    """Write a value with ``torch.save`` and sync it to disk (fsync).

    Raises:
        OSError: it cannot be written.
    """
    # Page-aligned storages are not copied. A CRC would be more work than all the rest, and the manifest has a hash.
    options = {"save.storage_alignment": mmap.PAGESIZE, "save.compute_crc32": False}
    with naming(path), closing(HashingFile(path)) as file, config.patch(options):  # type: ignore[attr-defined]
        try:
            torch.save(value, cast(IO[bytes], file))
        except RuntimeError as error:  # torch's zip writer closes its file after a write that failed, which fails too
            failed = error.__context__
            raise failed if isinstance(failed, OSError) else OSError(f"writing stopped short: {error}") from None
        return file.finish()
