"""Rank, local rank and size of this process, read from the launcher's variables; and where the ranks meet."""

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from data_tools.base.errors import UserError


@dataclass(frozen=True)
class World:
    """This process among all processes of the job.

    Attributes:
        launcher: the launcher's name, for messages.
        gpu_bytes: memory of each rank's GPU, if they are not this machine's.
    """

    rank: int
    local_rank: int
    size: int
    launcher: str = "no launcher"
    gpu_bytes: int | None = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0


@dataclass(frozen=True)
class _Launcher:
    """Names of a launcher's variables; `marker` is set if and only if it started this process."""

    name: str
    marker: str
    rank: str
    local_rank: str
    size: str


# The first that is found counts: `deepspeed` and mpirun may themselves run inside a Slurm step, whose variables then
# describe the launcher's own process. Batch scripts and salloc shells have no SLURM_STEP_NUM_TASKS.
_LAUNCHERS = (
    _Launcher("deepspeed or torchrun", "RANK", "RANK", "LOCAL_RANK", "WORLD_SIZE"),
    _Launcher(
        name="Open MPI",
        marker="OMPI_COMM_WORLD_RANK",
        rank="OMPI_COMM_WORLD_RANK",
        local_rank="OMPI_COMM_WORLD_LOCAL_RANK",
        size="OMPI_COMM_WORLD_SIZE",
    ),
    _Launcher("MPICH or Intel MPI", "MPI_LOCALRANKID", "PMI_RANK", "MPI_LOCALRANKID", "PMI_SIZE"),
    _Launcher("srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS"),
)


def world_from_env(environ: Mapping[str, str] = os.environ) -> World:
    """Read the launcher's variables; a process without a launcher is a world of size 1.

    Raises:
        UserError: variables are missing, or contradict one another.
    """
    launcher = _launcher_of(environ)
    if launcher is None:
        return World(0, 0, 1)
    names = (launcher.rank, launcher.local_rank, launcher.size)
    rank, local_rank, size = (_number(environ, name, launcher.name) for name in names)
    world = World(rank, local_rank, size, launcher.name)
    if not (0 <= world.rank < world.size and 0 <= world.local_rank < world.size):
        raise UserError(
            f"{launcher.name} set {launcher_variables(environ)}; expected ranks below the size. Start all ranks with "
            "one launcher, or unset these variables."
        )
    return world


def _launcher_of(environ: Mapping[str, str]) -> _Launcher | None:
    return next((launcher for launcher in _LAUNCHERS if launcher.marker in environ), None)


def launcher_variables(environ: Mapping[str, str] = os.environ) -> str:
    """What the launcher set, for messages: ``SLURM_PROCID=0, …``; empty without one."""
    launcher = _launcher_of(environ)
    names = (launcher.rank, launcher.local_rank, launcher.size) if launcher else ()
    return ", ".join(f"{name}={environ[name]}" for name in names)


def _number(environ: Mapping[str, str], name: str, launcher: str) -> int:
    try:
        return int(environ[name])
    except (KeyError, ValueError):
        raise UserError(
            f"{name} is {environ.get(name, 'not set')}, expected a number: {launcher} was found by its other "
            "variables. Start through a launcher, or unset them all for a single process."
        ) from None


_FIRST_PORT, _NUM_PORTS = 15_000, 14_500  # below Linux' ephemeral ports (32768 …), and below DeepSpeed's
_DEEPSPEEDS_PORT = "29500"


def rendezvous(world: World, environ: Mapping[str, str] = os.environ) -> tuple[str, int] | None:
    """Address and port where the ranks meet; None where only the system can choose (a world of one).

    MASTER_ADDR and MASTER_PORT win where they are set. Under srun the address is that of the step's first node. The
    port follows from job and step, so that jobs that share a node do not meet. On a single node, `deepspeed` gives all
    its jobs the same port, unless it is told one; instead of that the number of its process decides.

    Raises:
        UserError: the address cannot be determined.
    """
    address, port = environ.get("MASTER_ADDR"), environ.get("MASTER_PORT")
    is_on_one_node = environ.get("LOCAL_SIZE") == str(world.size)  # only deepspeed sets it
    if is_on_one_node and port == _DEEPSPEEDS_PORT:
        port_number = _FIRST_PORT + os.getppid() % _NUM_PORTS
    elif port is not None:
        port_number = _number(environ, "MASTER_PORT", world.launcher)
        if not 0 < port_number < 1 << 16:
            raise UserError(f"MASTER_PORT is {port}, expected a number from 1 to 65535.")
    elif world.size == 1:
        return None
    else:
        job, step = (int(environ.get(name, "0")) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
        port_number = _FIRST_PORT + (7 * job + step) % _NUM_PORTS
    if address is None:
        address = _first_node(environ) if world.launcher == "srun" else _own_node(world, environ)
    return address, port_number


def _own_node(world: World, environ: Mapping[str, str]) -> str:
    ranks_here = environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") or environ.get("MPI_LOCALNRANKS") or str(world.size)
    if int(ranks_here) != world.size:
        raise UserError(
            f"MASTER_ADDR is not set, and {world.launcher} started ranks on several nodes; export it with the address "
            "of the node of rank 0."
        )
    return "127.0.0.1"


def _first_node(environ: Mapping[str, str]) -> str:
    """Address of the first node of a Slurm step, as Slurm itself reaches it."""
    if environ.get("SLURM_STEP_NUM_NODES") == "1":
        return "127.0.0.1"
    nodes = environ.get("SLURM_STEP_NODELIST", "")
    try:
        first = _scontrol("show", "hostnames", nodes).split()[0]
        found = re.search(r"\bNodeAddr=(\S+)", _scontrol("show", "node", first))
    except (OSError, IndexError, subprocess.CalledProcessError) as error:
        raise UserError(
            f"cannot find the address of the first node of {nodes or 'this step'} with scontrol ({error}); export "
            "MASTER_ADDR with it."
        ) from None
    return found[1] if found else first


def _scontrol(*arguments: str) -> str:
    return subprocess.run(["scontrol", *arguments], capture_output=True, text=True, check=True).stdout


def named_accelerator(environ: Mapping[str, str] = os.environ) -> str | None:
    """The kind of device that DS_ACCELERATOR, DeepSpeed's own variable, asks for: cuda or cpu, or None.

    Raises:
        UserError: it names another kind.
    """
    named = environ.get("DS_ACCELERATOR")
    if named not in (None, "cuda", "cpu"):
        raise UserError(
            f"DS_ACCELERATOR is {named!r}, expected cuda or cpu; unset it to use the GPUs, if there are any."
        )
    return named


def check_num_ranks(world: World, asked: int | None) -> None:
    """Refuse a world of another size than ``asked``.

    Raises:
        UserError: the sizes differ, e.g. because DeepSpeed could not read the hostfile and used one node.
    """
    if asked is not None and world.size != asked:
        raise UserError(
            f"--num_ranks {asked}, but {world.launcher} started {world.size}. Check the hostfile, or the tasks "
            "and nodes of the job; --num_ranks is what the run must have."
        )
