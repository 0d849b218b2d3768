"""Who this process is among the ranks, and the few collectives that training needs."""

import logging
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from data_tools.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among all processes of the job."""

    rank: int
    local_rank: int
    size: int

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", self.local_rank) if torch.cuda.is_available() else torch.device("cpu")


def world_from_env() -> World:
    """Read the launcher's variables; a process started without a launcher is a world of its own."""
    return World(
        rank=int(os.environ.get("RANK", "0")),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        size=int(os.environ.get("WORLD_SIZE", "1")),
    )


def init_distributed(world: World) -> None:
    """Join the process group (NCCL on GPUs, gloo on CPU) and give each CPU rank its share of the cores."""
    import deepspeed

    for name, value in (("RANK", world.rank), ("LOCAL_RANK", world.local_rank), ("WORLD_SIZE", world.size)):
        os.environ.setdefault(name, str(value))
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(_free_port())
    if torch.cuda.is_available():
        torch.cuda.set_device(world.local_rank)
    else:
        # The shared-memory collectives serve CPU inference only, and building them costs a minute of g++ at first use.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        if "OMP_NUM_THREADS" not in os.environ:
            ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", str(world.size)))
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks_here))
    deepspeed.init_distributed(verbose=False)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def set_up_logging(world: World) -> None:
    """Rank 0 says everything, the others only warnings of their own."""
    logging.basicConfig(format="%(asctime)s %(levelname).1s %(message)s", datefmt="%H:%M:%S", force=True)
    for package in ("ds_train", "data_tools", "__main__"):
        logging.getLogger(package).setLevel(logging.INFO if world.is_main else logging.ERROR)


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The element-wise sum over all ranks (in place; the same on every rank)."""
    dist.all_reduce(tensor)
    return tensor


def gather_in_rank_order(tensor: torch.Tensor) -> torch.Tensor:
    """Concatenate every rank's (n,) tensor in rank order: (world · n,), the same on every rank."""
    gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, tensor)
    return torch.cat(gathered)


def gather_objects(value: Any) -> list[Any]:
    """Every rank's picklable value, in rank order, on every rank."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast_object(value: Any) -> Any:
    """Rank 0's picklable value, on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def on_main(world: World, work: Callable[[], T]) -> T:
    """Run ``work`` on rank 0 and give its result, or raise its ``UserError``, on all ranks. Collective."""
    outcome: Any = None
    if world.is_main:
        try:
            outcome = work()
        except UserError as error:
            outcome = error
    outcome = broadcast_object(outcome)
    if isinstance(outcome, UserError):
        raise outcome
    return outcome


_SECONDS_FOR_MAIN_TO_SPEAK = 10


def run_entry(main: Callable[[], int]) -> None:
    """Run an entry point on this rank and exit with its code; a ``UserError`` is one message and exit code 1.

    Most errors meet all ranks alike, and rank 0 should report them once. Launchers kill every rank when the first
    one fails, so the others wait until rank 0 has spoken; who is still there then had an error of its own.
    """
    rank = world_from_env().rank
    try:
        code = main()
    except UserError as error:
        code = 1
        if rank != 0:
            time.sleep(_SECONDS_FOR_MAIN_TO_SPEAK)
        print(f"error: {error}", file=sys.stderr, flush=True)
    if dist.is_initialized() and code == 0:
        dist.destroy_process_group()
    sys.exit(code)
