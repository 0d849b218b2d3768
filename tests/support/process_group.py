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
def one_rank() -> Iterator[None]:
    """Within the block there is a process group; behind it everything is as before, the launcher's variables too."""
    with patch.dict(os.environ):
        init_distributed(World(0, 0, 1))
        yield
        dist.destroy_process_group()
        groups._WORLD_GROUP = None  # DeepSpeed's copy, which is void now
