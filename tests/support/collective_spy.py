"""Notes what travels between ranks."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class CollectiveSpy(TorchDispatchMode):
    """Notes the floating-point tensors of collectives, which CPUs call in the thread that calls backward.

    Attributes:
        added: dtypes of what is added over ranks.
        copied: dtypes of what ranks send as it is.
        sizes: address → largest number of bytes, of what is added.
        is_listening: false while a test communicates for its own purposes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.added: set[str] = set()
        self.copied: set[str] = set()
        self.sizes: dict[int, int] = {}
        self.is_listening = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if name.startswith("c10d.") and self.is_listening:
            is_added = "reduce" in name or "alltoall" in name
            for tensor in (leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)):
                if tensor.is_floating_point():
                    (self.added if is_added else self.copied).add(str(tensor.dtype))
                if tensor.is_floating_point() and is_added:
                    address = tensor.untyped_storage().data_ptr()
                    self.sizes[address] = max(self.sizes.get(address, 0), tensor.nbytes)
        return func(*args, **(kwargs or {}))
