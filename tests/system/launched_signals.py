"""Training runs that get a request to stop in chosen states, on one rank only, and are restarted until they finish.

    deepspeed --num_gpus 2 tests/system/launched_signals.py RUNS.json

RUNS.json holds a list of {"phase", "argv", "state", "how", "codes"}: in ``state`` (see STATES) the last rank gets the
signal ``how``, or a STOP file appears; the calls of the phase's ``main`` must end with these codes, the last of them 0.
"""

import gc
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

from ds_train.checkpoints import save as checkpoint
from ds_train.phases import evaluation
from ds_train.ranks import signals as preemption
from ds_train.ranks.entry import run_entry
from ds_train.ranks.world import world_from_env
from ds_train.run import assembly, start
from ds_train.step import stream
from ds_train.training import loop
from tests.system.runs_in_turn import MAINS

# State → what is about to be called, and the how manieth call of it in this process' run counts.
STATES: dict[str, tuple[Any, str, int]] = {
    "start-up": (assembly, "seed_rng", 1),
    "model building": (start, "fresh_engine", 1),
    "loader start-up": (stream.Stream, "restart", 1),
    "waiting for the first batch": (stream.Stream, "next", 1),
    "first evaluation": (evaluation, "_run", 1),
    "a later evaluation": (evaluation, "_run", 5),
    "a step": (loop, "train_step", 5),
    "a save": (checkpoint.StateCollector, "save", 1),
    "writing behind training": (checkpoint, "write_file", 1),
    "the commit of a save": (checkpoint, "commit", 1),
}


def main() -> int:
    runs_file = next(argument for argument in sys.argv[1:] if not argument.startswith("--"))
    preemption.install_handlers()
    preemption._LOOK_S = 0.0  # a STOP file is seen by the next look
    for run in json.loads(Path(runs_file).read_text()):
        codes = []
        with interrupted(run):
            codes.append(MAINS[run["phase"]](run["argv"]))
        while codes[-1] != 0 and len(codes) < 3:
            preemption._received.number = None
            gc.collect()  # engines hold cycles
            codes.append(MAINS[run["phase"]](run["argv"]))
        gc.collect()
        if codes != run["codes"]:
            print(f"{run['state']} {run['argv']}: ended with {codes}, expected {run['codes']}", file=sys.stderr)
            return 1
    return 0


def interrupted(run: dict[str, Any]):
    """A patch that asks for the stop right before the chosen call."""
    if run["state"] == "undisturbed":
        return nullcontext()
    owner, name, call = STATES[run["state"]]
    original: Callable = getattr(owner, name)
    num_calls = 0

    def patched(*args: Any, **kwargs: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        if num_calls == call:
            ask(run)
        return original(*args, **kwargs)

    return mock.patch.object(owner, name, patched)


def ask(run: dict[str, Any]) -> None:
    world = world_from_env()
    if run["how"] == "STOP":
        argv = run["argv"]
        stop = Path(argv[argv.index("--scratch_dir") + 1]) / argv[argv.index("--run_name") + 1] / preemption.STOP_FILE
        if world.is_main:
            stop.touch()
    elif world.rank == world.size - 1 or run["state"] == "the commit of a save":  # that is rank 0's alone
        os.kill(os.getpid(), getattr(signal, run["how"]))
        while preemption._received.number is None:  # the thread that reads signals takes a moment
            time.sleep(0.001)


if __name__ == "__main__":
    run_entry(main)
