"""One rank of a job without a model, under the watchdog: sums over ranks until step 6, where one rank fails.

    python tests/system/watched_rank.py FAULT RANK TIMEOUT_S          with the launcher's variables in the environment

FAULT: killed, frozen, stuck, error (an exception), refused (a UserError), slow (but long work was announced), paused
(all ranks, for longer than all time-outs; they wake one after the other), none.
"""

import os
import signal
import subprocess
import sys
import time
from datetime import timedelta

import torch
from torch.distributed.distributed_c10d import _set_pg_timeout

from data_tools.base.errors import UserError
from ds_train.ranks.collectives import gather_objects, init_distributed, sum_over_ranks
from ds_train.ranks.entry import run_entry
from ds_train.ranks.signals import install_handlers
from ds_train.ranks.watchdog import supervision
from ds_train.ranks.world import world_from_env

FAULT_STEP, STEPS = 6, 8


def main() -> int:
    fault, broken, seconds = (argument for argument in sys.argv[1:] if not argument.startswith("--"))
    rank, timeout_s = int(broken), float(seconds)
    install_handlers()
    world = world_from_env()
    init_distributed(world)
    pids = gather_objects(os.getpid())
    if fault == "paused":
        _set_pg_timeout(timedelta(seconds=timeout_s))
    with supervision(world, timeout_s) as watchdog:
        for step in range(STEPS):
            watchdog.progress(f"step {step}", is_long=fault == "slow" and step == FAULT_STEP)
            if world.rank == rank and step == FAULT_STEP:
                break_down(fault, pids, timeout_s)
            sum_over_ranks(torch.ones(1))
    return 0


def break_down(fault: str, pids: list[int], timeout_s: float) -> None:
    if fault == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "frozen":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault == "stuck":
        time.sleep(10_000)
    elif fault == "slow":
        time.sleep(1.5 * timeout_s)
    elif fault == "paused":
        first, *others = map(str, reversed(pids))
        pause = f"kill -STOP {first} {' '.join(others)}; sleep {2 * timeout_s}; kill -CONT {first}"
        subprocess.run(["sh", "-c", f"{pause}; sleep {timeout_s / 2}; kill -CONT {' '.join(others)}"], check=True)
    elif fault == "error":
        raise KeyError("a mistake of this rank")
    elif fault == "refused":
        raise UserError("this rank's disk is full")


if __name__ == "__main__":
    run_entry(main)
