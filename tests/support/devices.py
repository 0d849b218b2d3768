"""CPU and GPU as parameters of a test, and how often a device makes the host wait."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

# A test on a GPU is skipped where there is none.
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")],
    ),
]


@contextmanager
def waits(device: torch.device) -> Iterator[list[str]]:
    """Names of the operations for which the host waits for a GPU; on a CPU of those for which it would.

    The list is complete when the block has ended.
    """
    found: list[str] = []
    if device.type == "cpu":
        with _Waits(found):
            yield found
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield found
    finally:
        torch.cuda.set_sync_debug_mode(before)
    messages = [f"{each.filename}:{each.lineno} {each.message}" for each in caught]
    found += [message for message in messages if "synchronizing CUDA operation" in message]


class _Waits(TorchDispatchMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self._found = found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        indices = args[1] if name in ("aten::index.Tensor", "aten::index_put_", "aten::_index_put_impl_") else ()
        is_mask = any(index is not None and index.dtype == torch.bool for index in indices)
        if is_mask or name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::unique2"):
            self._found.append(name)
        return func(*args, **(kwargs or {}))
