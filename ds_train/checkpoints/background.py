"""Lets training continue while a checkpoint is written: a copy of the state in memory, and a thread that writes it.

Training waits for the copy only, not for the disk.
"""

import io
import logging
import mmap
import pickle
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import torch

from ds_train.checkpoints.hashing_file import BULK_BYTES
from ds_train.checkpoints.host_memory import available_host_bytes
from ds_train.ranks.collectives import gather_objects

logger = logging.getLogger(__name__)

_ROOM = 1.1  # required free memory, as a multiple of a copy's size


class Snapshots:
    """Copies of values in host memory. Buffers are reused, so only the first copy allocates.

    A snapshot is valid until the next one is taken.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[int, bool], list[torch.Tensor]] = {}  # by bytes and whether they are pinned

    def try_take(self, value: Any) -> tuple[Any, str | None]:
        """Copy ``value``, with its tensors in host memory; later changes to it do not reach the copy. Collective.

        Tensors that share memory share it in the copy.

        Returns:
            the copy and None; or None and a message, if a host has too little memory for its ranks' copies.
        """
        # Separate the tensors, and find the memory that their storages need beyond the kept buffers.
        pickled, tensors = _without_tensors(value)
        storages = {_key(tensor): tensor.untyped_storage() for tensor in tensors}
        # Reuse the kept buffers; what they lack must be free on this host for all of its ranks.
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
    """Pickle the value with numbers in place of its tensors, as ``torch.save`` does; returns the bytes and tensors."""
    tensors: list[torch.Tensor] = []

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> tuple[int, dict[str, Any]] | None:
            if not isinstance(obj, torch.Tensor):
                return None
            tensors.append(obj)
            return len(tensors) - 1, vars(obj)  # DeepSpeed sets attributes on tensors

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
    """A buffer, (num_bytes,) uint8. Large ones are page-aligned, which direct writes need.

    They use huge pages where available, which are ten times faster to touch first and to write. For copies from a GPU
    their pages are pinned. Torch's own pinned memory would be rounded up to a power of two: 1.65 times as much for a
    checkpoint.
    """
    if num_bytes < BULK_BYTES:
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=is_pinned)
    memory = _Pages(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):  # Linux
        with suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    buffer = torch.frombuffer(memory, dtype=torch.uint8)
    if is_pinned:
        memory.pin(buffer.data_ptr())
    return buffer


class _Pages(mmap.mmap):
    """Anonymous memory that a GPU can be allowed to write to."""

    _pinned_at: int | None = None

    def pin(self, address: int) -> None:
        """Pin the pages until the memory is freed; leave them as they are where the system refuses."""
        if torch.cuda.cudart().cudaHostRegister(address, len(self), 0) == torch.cuda.cudart().cudaError.success:
            self._pinned_at = address
            return
        logger.warning("%.2f GiB of memory cannot be pinned: copies of checkpoints take longer", len(self) / 2**30)
        with suppress(RuntimeError):  # CUDA reports the refusal once more, to the next call
            torch.zeros(1, device="cuda")

    def __del__(self) -> None:  # runs before the memory is unmapped
        if self._pinned_at is not None:
            torch.cuda.cudart().cudaHostUnregister(self._pinned_at)


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata  # torch.save identifies storages by it


def _size(storage: torch.UntypedStorage) -> tuple[int, bool]:
    return storage.nbytes(), storage.device.type == "cuda"


def _on_storage(tensor: torch.Tensor, copy: torch.Tensor) -> torch.Tensor:
    """A tensor of the same shape and strides on the copy of its storage."""
    moved = torch.empty(0, dtype=tensor.dtype)
    moved.set_(copy.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())
    return moved.requires_grad_(tensor.requires_grad)


def _too_little_memory(ranks: Sequence[tuple[str, int, int]]) -> str | None:
    """Describe a host that cannot hold what its ranks must allocate; None if all can.

    Args:
        ranks: for each rank its host, bytes to allocate and bytes available.
    """
    for host in sorted({host for host, *_ in ranks}):
        lacking = sum(bytes_ for name, bytes_, _ in ranks if name == host)
        available = min(bytes_ for name, _, bytes_ in ranks if name == host)
        if lacking * _ROOM > available:
            return f"{host} has {available / 2**30:.2f} GiB of memory free, a copy takes {lacking / 2**30:.2f} GiB"
    return None


def saving_thread() -> ThreadPoolExecutor:
    """An executor of one thread; the interpreter's exit waits for its work.

    Normal priority: a low-priority thread can be descheduled while holding the GIL, and training waits for that.
    """
    return ThreadPoolExecutor(1, thread_name_prefix="save")
