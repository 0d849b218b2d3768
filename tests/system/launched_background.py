"""Training runs whose checkpoints are held back while they are written, until training has done something else.

    deepspeed --num_gpus 2 tests/system/launched_background.py RUNS.json

RUNS.json holds a list of {"scenario", "argv", "ends"}: a scenario (see SCENARIOS) of the pptrain run ``argv`` must end
with this code, or with an error of these words. What happened on rank 0, in order, goes into RUN/events.json.
"""

import errno
import gc
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

from data_tools.base.errors import UserError
from ds_train.checkpoints import background as background_save
from ds_train.checkpoints import save as checkpoint
from ds_train.phases import pptrain
from ds_train.ranks import signals as preemption
from ds_train.ranks.entry import run_entry
from ds_train.ranks.world import World, world_from_env
from ds_train.training import loop

HELD = 3  # step of the checkpoint that is held back
TIMEOUT_S = 60


class Events:
    """What has happened on this rank, as [what, step]; a thread may wait for an event."""

    def __init__(self) -> None:
        self.all: list[list] = []
        self._changed = threading.Condition()

    def add(self, what: str, step: int) -> None:
        with self._changed:
            self.all.append([what, step])
            self._changed.notify_all()

    def wait_for(self, what: str, step: int, times: int = 1) -> None:
        """Until this number of such events, of this step or a later one."""
        with self._changed:
            done = self._changed.wait_for(lambda: sum(w == what and s >= step for w, s in self.all) >= times, TIMEOUT_S)
        assert done, f"training does not come to {what} {step}: {self.all}"


def _go_on(events: Events, world: World) -> None:
    events.wait_for("step", HELD + 2)


def _until_next_save(events: Events, world: World) -> None:
    events.wait_for("save", HELD + 1)


def _fail_late(events: Events, world: World) -> None:
    events.wait_for("step", HELD + 2)
    if world.rank == world.size - 1:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _until_same_save(events: Events, world: World) -> None:
    events.wait_for("save", HELD, times=2)


def _signal(events: Events, world: World) -> None:
    events.wait_for("step", HELD + 2)
    if world.rank == world.size - 1 and preemption._received.number is None:
        os.kill(os.getpid(), signal.SIGUSR1)
    events.wait_for("save", HELD + 1)


def _until_error(events: Events, world: World) -> None:
    events.wait_for("error", HELD + 1)
    events.wait_for("wait", 0)


# What the thread does before it writes a file of checkpoint HELD.
SCENARIOS: dict[str, Callable[[Events, World], None] | None] = {
    "undisturbed": None, "little memory": None, "continues": _go_on, "next save waits": _until_next_save,
    "same save waits": _until_same_save, "fails late": _fail_late, "signal": _signal, "error": _until_error,
}  # fmt: skip


def main() -> int:
    runs_file = next(argument for argument in sys.argv[1:] if not argument.startswith("--"))
    preemption.install_handlers()
    for run in json.loads(Path(runs_file).read_text()):
        preemption._received.number = None
        events = Events()
        outcome: int | str
        with observed(run["scenario"], events):
            try:
                outcome = pptrain.main(run["argv"])
            except UserError as error:
                outcome = str(error)
        if outcome != run["ends"]:
            print(f"{run} ended with {outcome}: {events.all}", file=sys.stderr)
            return 1
        if world_from_env().is_main:
            argv = run["argv"]
            directory = Path(argv[argv.index("--scratch_dir") + 1]) / argv[argv.index("--run_name") + 1]
            (directory / "events.json").write_text(json.dumps(events.all))
        gc.collect()  # engines hold cycles
    return 0


def observed(scenario: str, events: Events) -> ExitStack:
    """Patches that tell the events and hold back the writing thread."""
    world = world_from_env()
    train_step, write_file, commit = loop.train_step, checkpoint.write_file, checkpoint.commit
    save, wait = checkpoint.Checkpoints.save, checkpoint.Checkpoints.wait

    def observed_step(engine: Any, batch: Any, *args: Any) -> Any:
        if scenario == "error" and batch.plan.step == HELD + 2:
            events.add("error", batch.plan.step)
            raise UserError("made up, on all ranks")
        result = train_step(engine, batch, *args)
        events.add("step", batch.plan.step)
        return result

    def held_write(path: Path, *args: Any) -> Any:
        hold = SCENARIOS[scenario]
        if hold and path.parent.name.endswith(f"{HELD:08d}"):
            hold(events, world)
        return write_file(path, *args)

    def observed_commit(directory: Path, step: int, entries: Any) -> Any:
        result = commit(directory, step, entries)
        events.add("commit", step)
        return result

    def observed_save(self: Any, engine: Any, state: Any, *milestones: Any, is_last: bool) -> None:
        events.add("save", state.step)
        save(self, engine, state, *milestones, is_last=is_last)
        events.add("begun", state.step)

    def observed_wait(self: Any) -> bool:
        events.add("wait", 0)
        return wait(self)

    stack = ExitStack()
    stack.enter_context(mock.patch.object(loop, "train_step", observed_step))
    stack.enter_context(mock.patch.object(checkpoint, "write_file", held_write))
    stack.enter_context(mock.patch.object(checkpoint, "commit", observed_commit))
    stack.enter_context(mock.patch.object(checkpoint.Checkpoints, "save", observed_save))
    stack.enter_context(mock.patch.object(checkpoint.Checkpoints, "wait", observed_wait))
    if scenario == "little memory" and not world.is_main:
        stack.enter_context(mock.patch.object(background_save, "available_host_bytes", lambda: 1000))
    return stack


if __name__ == "__main__":
    run_entry(main)
