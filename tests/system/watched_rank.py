"""One rank of a job without a model, under the watchdog: sums over ranks, until one rank fails at step 6.

    python tests/system/watched_rank.py FAULT RANK BACKEND          with the launcher's variables in the environment

FAULT: killed, frozen, stuck, error (an exception), refused (a UserError), reading (for longer than any limit; long work
was announced), paused (all ranks, for longer than all limits; they wake one after the other), none.

BACKEND: gloo, or "asynchronous" with collectives like NCCL's: they return at once, and a result is awaited where it is
read, forever if a rank is gone.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from data_tools.base.errors import UserError
from ds_train.ranks.collectives import gather_objects, sum_over_ranks
from ds_train.ranks.entry import run_entry
from ds_train.ranks.judge import Patience
from ds_train.ranks.signals import install_handlers
from ds_train.ranks.watchdog import supervision
from ds_train.ranks.world import world_from_env

FAULT_STEP, STEPS = 6, 12
READ_EVERY = 4  # steps: until then an asynchronous rank runs ahead of the others
# Less than users have, so that a test takes seconds.
PATIENCE = Patience(stalled_s=5, long_s=7, silent_s=4, suspect_s=2, pause_s=1, grace_s=4, beat_s=0.2)


def main() -> int:
    fault, broken, backend = (argument for argument in sys.argv[1:] if not argument.startswith("--"))
    install_handlers()
    world = world_from_env()
    with supervision(world, PATIENCE) as watchdog:
        pids = gather_objects(os.getpid())
        launched: list[dist.Work] = []
        for step in range(STEPS):
            watchdog.progress(f"step {step}", is_long=fault == "reading" and step == FAULT_STEP)
            if world.rank == int(broken) and step == FAULT_STEP:
                break_down(fault, pids)
            if backend == "gloo":
                sum_over_ranks(torch.ones(1))
                continue
            launched.append(dist.all_reduce(torch.ones(1), async_op=True))
            if step % READ_EVERY == READ_EVERY - 1:
                read(launched)
    return 0


def read(launched: list[dist.Work]) -> None:
    """Wait for the results of collectives as the host waits for a device, which reports no failure of NCCL's."""
    while not all(is_summed(work) for work in launched):
        time.sleep(0.01)
    launched.clear()


def is_summed(work: dist.Work) -> bool:
    future = work.get_future()
    try:
        return future.done() and bool(future.value())
    except RuntimeError:  # gloo noticed that a rank is gone
        return False


def break_down(fault: str, pids: list[int]) -> None:
    if fault == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "frozen":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault == "stuck":
        time.sleep(10_000)
    elif fault == "reading":
        read_for(1.5 * PATIENCE.long_s)
    elif fault == "paused":
        first, *others = map(str, reversed(pids))
        pause = f"kill -STOP {first} {' '.join(others)}; sleep {1.5 * PATIENCE.stalled_s}; kill -CONT {first}"
        grace_s = PATIENCE.silent_s + PATIENCE.grace_s
        subprocess.run(["sh", "-c", f"{pause}; sleep {0.75 * grace_s}; kill -CONT {' '.join(others)}"], check=True)
    elif fault == "error":
        raise KeyError("a mistake of this rank")
    elif fault == "refused":
        raise UserError("this rank's disk is full")


def read_for(seconds: float) -> None:
    """Read as one reads a slow disk."""
    end = time.monotonic() + seconds
    with Path("/dev/zero").open("rb", buffering=0) as file:
        while time.monotonic() < end:
            file.read(1 << 24)
            time.sleep(0.1)


if __name__ == "__main__":
    run_entry(main)
