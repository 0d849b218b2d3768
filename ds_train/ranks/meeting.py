"""Where the ranks of a job meet before they are a process group: a wait that says for whom, and that a signal ends."""

import logging
import re
import socket
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import NamedTuple

import torch.distributed as dist

from data_tools.base.errors import UserError
from ds_train.ranks.signals import ExitCode, received_signal
from ds_train.ranks.world import World, launcher_variables

logger = logging.getLogger(__name__)

_FIRST_REPORT_S, _REPORT_EVERY_S = 5.0, 120.0
_FIRST_POLL_S, _SLOWEST_POLL_S = 0.02, 1.0
_CONNECT_S = 10.0
_ALL_HERE = "all ranks are here"


class Meeting(NamedTuple):
    """What ranks have when they have met.

    Attributes:
        store: held by rank 0; torch's own rendezvous may share its port as long as this one lives.
        hosts: the node of each rank.
    """

    store: dist.TCPStore
    hosts: list[str]


def meet(world: World, address: str, port: int, timeout_s: float) -> Meeting:
    """Wait until all ranks have called this. Exits with code 85 on a signal, with 87 when the time is over.

    Args:
        address, port: where rank 0 listens.

    Raises:
        UserError: the port cannot be used.
    """
    if world.is_main:
        store = _listen(address, port)
    else:
        _wait(lambda: _answers(address, port), lambda: f"rank 0 at {address}:{port}", world, timeout_s)
        store = _connect(address, port, timeout_s)
    store.set(_name(world.rank), socket.gethostname())
    names = [_name(rank) for rank in range(world.size)]
    if world.is_main:

        def missing() -> str:
            ranks = [rank for rank, name in enumerate(names) if not store.check([name])]
            return f"{len(ranks)} of {world.size} ranks ({', '.join(map(str, ranks[:8]))}{' …' * (len(ranks) > 8)})"

        _wait(lambda: store.check(names), missing, world, timeout_s)
        store.set(_ALL_HERE, "")
    else:
        others = f"the other ranks, who meet at {address}:{port}"
        _wait(lambda: store.check([_ALL_HERE]), lambda: others, world, timeout_s)
    return Meeting(store, [host.decode() for host in store.multi_get(names)])


def _name(rank: int) -> str:
    return f"rank {rank} is here"


def _listen(address: str, port: int) -> dist.TCPStore:
    try:
        return dist.TCPStore(address, port, is_master=True, wait_for_workers=False, multi_tenant=True)
    except RuntimeError as error:
        reason = re.search(r"message: ([\w ]+)", str(error))
        raise UserError(
            f"ranks cannot meet at port {port} of this node ({reason[1] if reason else error}); another job may use "
            "it. Give another one: deepspeed --master_port NUMBER, or MASTER_PORT=NUMBER with other launchers."
        ) from None


def _connect(address: str, port: int, timeout_s: float) -> dist.TCPStore:
    try:
        timeout = timedelta(seconds=timeout_s)
        return dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timeout)
    except RuntimeError as error:
        raise UserError(f"{address}:{port} is not rank 0 of this job ({str(error).splitlines()[0]}).") from None


def _answers(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=_CONNECT_S).close()
    except OSError:  # torch's client would print a stack for each attempt
        return False
    return True


def _wait(is_over: Callable[[], bool], what: Callable[[], str], world: World, timeout_s: float) -> None:
    """Poll until something is so; ``what`` describes it."""
    started, poll_s, next_report_s = time.monotonic(), _FIRST_POLL_S, _FIRST_REPORT_S
    while not is_over():
        waited_s = time.monotonic() - started
        if (name := received_signal()) is not None:
            logger.error("stopped before training began, waiting for %s: received %s", what(), name)
            sys.exit(ExitCode.PREEMPTED)
        if waited_s > timeout_s:
            logger.error("waited %.0f s for %s", waited_s, what())
            sys.exit(ExitCode.RANK_LOST)
        if waited_s > next_report_s:
            next_report_s += _REPORT_EVERY_S
            logger.log(
                logging.WARNING if world.is_main else logging.ERROR,
                "rank %d is waiting for %s; %s set %s. For a single process, unset these variables.",
                world.rank, what(), world.launcher, launcher_variables(),
            )  # fmt: skip
        time.sleep(poll_s)
        poll_s = min(1.5 * poll_s, _SLOWEST_POLL_S)
