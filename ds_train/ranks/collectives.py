"""The device and process group of this rank, and the few collectives that training needs."""

import os
import socket
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from data_tools.base.errors import UserError, user_message
from data_tools.base.processes import num_cores
from ds_train.ranks.meeting import Meeting, meet
from ds_train.ranks.world import World, named_accelerator, rendezvous

T = TypeVar("T")

NEVER = timedelta(days=365)
_MEETING_S = 3600.0  # for ranks that start late, or read their inputs slowly
# Torch's own watchdog of NCCL would end a process without naming the rank that is gone: right after an error of a
# connection, and where CUDA is silent for 8 minutes.
_NCCL_LEAVES_IT_TO_OURS = {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "0", "TORCH_NCCL_ENABLE_MONITORING": "0"}


def uses_gpus() -> bool:
    """Whether ranks train on GPUs: wherever there are any, unless DS_ACCELERATOR is cpu.

    Raises:
        UserError: DS_ACCELERATOR is cuda, and there are none.
    """
    named, has_gpus = named_accelerator(), torch.cuda.is_available()
    if named == "cuda" and not has_gpus:
        raise UserError("DS_ACCELERATOR is cuda, but torch sees no GPU; unset it to train on CPUs, or see nvidia-smi.")
    return has_gpus and named != "cpu"


def device_of(world: World) -> torch.device:
    """This rank's device: the GPU of its local rank, or the only GPU that its Slurm task can see."""
    if not uses_gpus():
        return torch.device("cpu")
    is_bound = world.launcher == "srun" and torch.cuda.device_count() == 1
    return torch.device("cuda", 0 if is_bound else world.local_rank)


# Flags of a CPU that computes in 16 bits itself, as Linux lists them.
_NATIVE = {"bf16": {"avx512_bf16", "amx_bf16", "bf16"}, "fp16": {"avx512_fp16", "amx_fp16", "fphp"}}
_CPU_INFO = Path("/proc/cpuinfo")


def is_emulated(precision: str, device: torch.device) -> bool:
    """Whether a device computes this precision (fp32, bf16, fp16) by converting, hundreds of times slower than fp32."""
    if device.type != "cpu" or precision not in _NATIVE or not _CPU_INFO.exists():
        return False
    return not _NATIVE[precision] & set(_CPU_INFO.read_text().split())


def take_device(world: World) -> torch.device:
    """This rank's device, which becomes the process's current one."""
    device = device_of(world)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def init_distributed(world: World) -> None:
    """Meet the other ranks and join them in a process group, without a watchdog. Collective."""
    meeting = meet_all(world)
    join_process_group(world)
    del meeting  # torch has a store of its own now, on the same port


def meet_all(world: World) -> Meeting:
    """Wait for the other ranks. Collective.

    Raises:
        UserError: the ranks cannot meet at their port.
    """
    address, port = rendezvous(world) or ("127.0.0.1", _free_port())
    meeting = meet(world, address, port, _MEETING_S)
    for name, value in (
        ("RANK", world.rank), ("LOCAL_RANK", device_of(world).index or 0), ("WORLD_SIZE", world.size),
        ("MASTER_ADDR", address), ("MASTER_PORT", port),
    ):  # fmt: skip
        os.environ[name] = str(value)
    return meeting


def join_process_group(world: World) -> None:
    """Make the ranks that have met a process group: NCCL on GPUs, gloo on CPU, which gets its share of the cores.

    No collective ever times out: the clock of a time-out also counts time in which the process slept. A watchdog ends
    a wait that is too long.
    """
    import deepspeed

    # For the groups that DeepSpeed makes: torch's defaults are 10 minutes under NCCL, 30 under gloo.
    distributed_c10d.default_pg_timeout = distributed_c10d.default_pg_nccl_timeout = NEVER
    if take_device(world).type == "cuda":
        os.environ.update(_NCCL_LEAVES_IT_TO_OURS | os.environ)
    else:
        # DeepSpeed's shared-memory collectives serve CPU inference only, and compiling them takes a minute.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(verbose=False, timeout=NEVER)
    if not uses_gpus() and "OMP_NUM_THREADS" not in os.environ:
        ranks_here = gather_objects(socket.gethostname()).count(socket.gethostname())
        torch.set_num_threads(max(1, num_cores() // ranks_here))


def report_communication() -> None:
    """Print what DeepSpeed's logger of communication measured, where the JSON enables it. Collective."""
    from deepspeed import comm

    if comm.comm.comms_logger.enabled:
        comm.log_summary()


def check_num_nodes(world: World, asked: int | None) -> None:
    """Refuse a job on another number of nodes than ``asked``. Collective."""
    num_nodes = sum(local_rank == 0 for local_rank in gather_objects(world.local_rank))
    if asked is not None and num_nodes != asked:
        raise UserError(
            f"--num_nodes {asked}, but {world.launcher} started {world.size} ranks on {num_nodes}. Check the "
            "hostfile, or the nodes of the job; --num_nodes is what the run must have."
        )


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The element-wise sum over all ranks (in place; the same on every rank)."""
    dist.all_reduce(tensor)
    return tensor


def start_gathering(own: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Start to gather every rank's (n,) tensor; the result finishes that, and returns (ranks, n) on the host.

    On a GPU the values travel on streams of their own, so work that is launched in between does not delay them.
    """
    gathered = own.new_empty(dist.get_world_size(), len(own))
    work = dist.all_gather([*gathered], own, async_op=True)

    def finish() -> torch.Tensor:
        with torch.cuda.stream(torch.cuda.Stream()) if own.is_cuda else nullcontext():
            work.wait()
            return gathered.cpu()

    return finish


def gather_objects(value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Every rank's picklable value, in rank order, on every rank; over ``group`` of all ranks, if one is given."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group)
    return values


def broadcast_object(value: Any) -> Any:
    """Rank 0's picklable value, on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def on_main(world: World, work: Callable[[], T]) -> T:
    """Run ``work`` on rank 0 and give its result, or raise its expected error, on all ranks. Collective."""
    if not dist.is_initialized():  # preflight runs without other ranks
        return work()
    outcome: Any = None
    if world.is_main:
        try:
            outcome = work()
        except Exception as error:
            message = user_message(error)
            if message is None:
                raise
            outcome = UserError(message)
    outcome = broadcast_object(outcome)
    if isinstance(outcome, UserError):
        raise outcome
    return outcome
