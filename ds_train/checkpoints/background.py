"""What lets training go on while its checkpoint is written: a copy of the state in memory, and a thread that writes.

The copy takes as long as memory takes, the files as long as a disk; only the copy stops training.
"""

import errno
import fcntl
import io
import mmap
import os
import pickle
import socket
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
import xxhash
from torch.utils.serialization import config

from ds_train.checkpoints.manifest import FileEntry
from ds_train.ranks.collectives import gather_objects

_ROOM = 1.1  # free memory asked for, as a multiple of what a copy takes
_BULK_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 24
_MEMINFO = Path("/proc/meminfo")
_CGROUP, _CGROUP_ROOT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


class Snapshots:
    """Copies of values in host memory, kept and used again: only the first copy allocates.

    A snapshot is void as soon as the next one is taken.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[int, bool], list[torch.Tensor]] = {}  # by bytes and whether they are pinned

    def try_take(self, value: Any) -> tuple[Any, str | None]:
        """A copy that nothing done to ``value`` later reaches, its tensors in host memory. Collective.

        Tensors that share memory share it in the copy.

        Returns:
            the copy; or None, and which host has too little memory for its ranks' copies.
        """
        pickled, tensors = _without_tensors(value)
        storages = {_key(tensor): tensor.untyped_storage() for tensor in tensors}
        kept = {size: list(buffers) for size, buffers in self._buffers.items()}
        lacking = 0
        for storage in storages.values():
            if fitting := kept.get(_size(storage)):
                fitting.pop()
            else:
                lacking += storage.nbytes()
        if problem := _too_little_memory(gather_objects((socket.gethostname(), lacking, available_host_bytes()))):
            return None, problem
        copies = self._copy(storages)
        return _with_tensors(pickled, [_on_storage(tensor, copies[_key(tensor)]) for tensor in tensors]), None

    def _copy(self, storages: dict[int, torch.UntypedStorage]) -> dict[int, torch.Tensor]:
        kept, self._buffers = self._buffers, {}
        copies = {}
        for key, storage in storages.items():
            num_bytes, is_pinned = size = _size(storage)
            fitting = kept.get(size)
            buffer = fitting.pop() if fitting else _host_buffer(num_bytes, is_pinned)
            source = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
            copies[key] = buffer.copy_(source, non_blocking=is_pinned)
            self._buffers.setdefault(size, []).append(buffer)
        if any(is_pinned for _, is_pinned in self._buffers):
            torch.cuda.synchronize()
        return copies


def _without_tensors(value: Any) -> tuple[bytes, list[torch.Tensor]]:
    """The value pickled with numbers in the place of its tensors, as ``torch.save`` takes it apart; and those."""
    tensors: list[torch.Tensor] = []

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> tuple[int, dict[str, Any]] | None:
            if not isinstance(obj, torch.Tensor):
                return None
            tensors.append(obj)
            return len(tensors) - 1, vars(obj)  # DeepSpeed hangs attributes on tensors

    file = io.BytesIO()
    Pickler(file, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    return file.getvalue(), tensors


def _with_tensors(pickled: bytes, tensors: list[torch.Tensor]) -> Any:
    class Unpickler(pickle.Unpickler):
        def persistent_load(self, pid: Any) -> torch.Tensor:
            number, attributes = pid
            vars(tensors[number]).update(attributes)
            return tensors[number]

    return Unpickler(io.BytesIO(pickled)).load()


def _host_buffer(num_bytes: int, is_pinned: bool) -> torch.Tensor:
    """(num_bytes,) uint8; large ones begin at a page, as writes past the page cache want it.

    Of huge pages, where there are any: touched first in a tenth of the time, and written with a tenth of the work.
    """
    if is_pinned or num_bytes < _BULK_BYTES:
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=is_pinned)
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):  # Linux
        with suppress(OSError):  # a kernel without
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata  # how torch.save tells storages apart


def _size(storage: torch.UntypedStorage) -> tuple[int, bool]:
    return storage.nbytes(), storage.device.type == "cuda"


def _on_storage(tensor: torch.Tensor, copy: torch.Tensor) -> torch.Tensor:
    """The tensor as it was, on the copy of its storage."""
    moved = torch.empty(0, dtype=tensor.dtype)
    moved.set_(copy.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())
    return moved.requires_grad_(tensor.requires_grad)


def _too_little_memory(ranks: Sequence[tuple[str, int, int]]) -> str | None:
    """Which host cannot hold what its ranks lack.

    Args:
        ranks: host, bytes to allocate and bytes available of each rank.
    """
    for host in sorted({host for host, *_ in ranks}):
        lacking = sum(bytes_ for name, bytes_, _ in ranks if name == host)
        available = min(bytes_ for name, _, bytes_ in ranks if name == host)
        if lacking * _ROOM > available:
            return f"{host} has {available / 2**30:.2f} GiB of memory free, a copy takes {lacking / 2**30:.2f} GiB"
    return None


def available_host_bytes() -> int:
    """Host memory that can still be allocated here: what the kernel says, or less where a cgroup (a job) sets a limit.

    Without the kernel's files (not Linux) there is no limit to know.
    """
    if not _MEMINFO.exists():
        return sys.maxsize
    fields = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
    return min([int(fields["MemAvailable"].split()[0]) * 1024, *_cgroup_bytes()])


def _cgroup_bytes() -> list[int]:
    """What each cgroup around this process leaves it. Its page cache counts as free: the kernel drops it at need."""
    left = []
    for line in _CGROUP.read_text().splitlines() if _CGROUP.exists() else ():
        number, controllers, path = line.split(":", 2)
        if number == "0":  # version 2
            root, files, cached = _CGROUP_ROOT, ("memory.max", "memory.current"), "inactive_file"
        elif controllers == "memory":
            files, cached = ("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_inactive_file"
            root = _CGROUP_ROOT / "memory"
        else:
            continue
        group = Path(path.lstrip("/"))
        for directory in [root / part for part in (group, *group.parents)]:
            try:
                limit, used = (int((directory / name).read_text()) for name in files)
                statistics = dict(row.split() for row in (directory / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):  # no such directory in this container; "max" is no limit
                continue
            left.append(max(0, limit - used + int(statistics.get(cached, 0))))
    return left


class HashingFile:
    """A file that is hashed as it is written, past the page cache: nothing is read back, and nothing copied that lies
    in whole pages both in memory and in the file.

    The kernel's copy of what is written would cost a core more time than all the rest. File systems that know no
    direct writes get ordinary ones.
    """

    def __init__(self, path: Path) -> None:
        self._hash = xxhash.xxh3_128()
        self._size = 0
        self._chunk = np.frombuffer(mmap.mmap(-1, _CHUNK_BYTES), np.uint8)  # gathers what lies elsewhere in memory
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
        if new.ctypes.data % mmap.PAGESIZE == self._filled % mmap.PAGESIZE == 0:
            whole = len(new) // mmap.PAGESIZE * mmap.PAGESIZE
            if whole >= _BULK_BYTES:
                self._write_chunk(self._filled)
                self._write(new[:whole])
                new = new[whole:]
        while len(new):
            part = new[: _CHUNK_BYTES - self._filled]
            self._chunk[self._filled : self._filled + len(part)] = part  # of all copies numpy's lets others run
            self._filled, new = self._filled + len(part), new[len(part) :]
            if self._filled == _CHUNK_BYTES:
                self._write_chunk(_CHUNK_BYTES)
        return len(data)

    def _write_chunk(self, end: int) -> None:
        """Write the chunk up to ``end`` and move what lies behind it to the front."""
        self._write(self._chunk[:end])
        self._chunk[: self._filled - end] = self._chunk[end : self._filled]
        self._filled -= end

    def _write(self, new: np.ndarray) -> None:
        start = 0
        while start < len(new):
            try:
                start += os.write(self._descriptor, new[start : start + _CHUNK_BYTES].data)
            except OSError as error:  # some file systems say so only here, and a short write may end within a page
                if error.errno != errno.EINVAL or not self._direct:
                    raise
                self._through_cache()

    def _through_cache(self) -> None:
        fcntl.fcntl(self._descriptor, fcntl.F_SETFL, fcntl.fcntl(self._descriptor, fcntl.F_GETFL) & ~self._direct)
        self._direct = 0

    def flush(self) -> None:
        """Called by torch; everything is written at the end."""

    def finish(self) -> FileEntry:
        """Write the rest, put all on the disk (fsync) and describe the file."""
        self._write_chunk(self._filled // mmap.PAGESIZE * mmap.PAGESIZE)
        if self._direct:
            self._through_cache()
        self._write_chunk(self._filled)
        os.fsync(self._descriptor)
        return FileEntry(self._size, self._hash.hexdigest())

    def close(self) -> None:
        os.close(self._descriptor)


def write_file(path: Path, value: Any) -> FileEntry:
    """``torch.save`` onto the disk (fsync).

    Raises:
        OSError: it cannot be written.
        RuntimeError: what torch's zip writer makes of a write that failed.
    """
    # Pages: what lies in whole ones is not copied. No CRC: more work than all the rest, and the manifest has a hash.
    options = {"save.storage_alignment": mmap.PAGESIZE, "save.compute_crc32": False}
    with closing(HashingFile(path)) as file, config.patch(options):  # type: ignore[attr-defined]
        torch.save(value, cast(IO[bytes], file))
        return file.finish()


def saving_thread() -> ThreadPoolExecutor:
    """One thread; the interpreter's exit waits for its work.

    Normal priority: a low-priority thread can be descheduled while holding the GIL, and training waits for that.
    """
    return ThreadPoolExecutor(1, thread_name_prefix="save")
