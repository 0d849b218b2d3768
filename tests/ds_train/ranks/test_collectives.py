"""The process group: its waits never time out, and NCCL leaves lost ranks to our watchdog."""

import os

import deepspeed
import pytest
import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_timeout, _world

from ds_train.ranks import collectives
from ds_train.ranks.collectives import NEVER, join_process_group
from ds_train.ranks.world import World
from tests.support.process_group import one_rank


def test_no_wait_times_out() -> None:
    """The groups that DeepSpeed makes have torch's defaults: the clock of a time-out goes on while a job sleeps."""
    with one_rank():
        dist.new_group()
        timeouts = [group._get_backend(torch.device("cpu")).options._timeout for group in _world.pg_map]
        assert timeouts == [NEVER, NEVER]
        assert [_get_default_timeout(dist.Backend(name)) for name in ("gloo", "nccl")] == [NEVER, NEVER]


@pytest.mark.parametrize(("of_user", "expected"), [({}, "0"), ({"TORCH_NCCL_ASYNC_ERROR_HANDLING": "1"}, "1")])
def test_nccl_ends_no_process_unless_the_user_asks(
    of_user: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    monkeypatch.setattr(collectives, "take_device", lambda world: torch.device("cuda", 0))
    monkeypatch.setattr(deepspeed, "init_distributed", lambda **kwargs: found.update(os.environ))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name, value in of_user.items():
        monkeypatch.setenv(name, value)
    join_process_group(World(0, 0, 1))
    assert (found["TORCH_NCCL_ASYNC_ERROR_HANDLING"], found["TORCH_NCCL_ENABLE_MONITORING"]) == (expected, "0")
