"""A process group of one rank inside the tests' process, as often as modules of tests want one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch.distributed as dist
from deepspeed.utils import groups

from ds_train.ranks.collectives import init_distributed
from ds_train.ranks.world import World


@contextmanager
def own_process_group() -> Iterator[None]:
    """Of a process group that is made within the block nothing is left, the launcher's variables neither."""
    with patch.dict(os.environ):
        try:
            yield
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
            groups._WORLD_GROUP = None  # DeepSpeed's copy, which is void now


@contextmanager
def one_rank() -> Iterator[None]:
    """Within the block there is a process group."""
    with own_process_group():
        init_distributed(World(0, 0, 1))
        yield
