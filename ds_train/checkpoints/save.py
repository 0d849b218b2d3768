"""The only user of DeepSpeed's checkpoint API: save and commit, load. What files mean is in manifest.py."""

import logging
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

from data_tools.base.errors import UserError
from ds_train.checkpoints.background import Snapshots, saving_thread
from ds_train.checkpoints.hashing_file import write_file
from ds_train.checkpoints.manifest import FileEntry, commit, file_entry, prune, saving_name, step_directories, sweep
from ds_train.checkpoints.rank_rng import rng_state, seed_rng, set_rng_state
from ds_train.checkpoints.state import TrainState
from ds_train.ranks.collectives import gather_objects, on_main
from ds_train.ranks.watchdog import LONG_S
from ds_train.ranks.world import World
from ds_train.step.engine import Engine

logger = logging.getLogger(__name__)

DESCRIPTION = "huggingface"  # config.json and tokenizer, inside each step directory
_BYTES_PER_PARAMETER = 16  # half-precision weights, fp32 weights and two Adam moments, and some room


class StateCollector(TorchCheckpointEngine):
    """Takes what DeepSpeed would write: the files come later, from here or from a thread.

    A failure is kept for the end of the save, when all ranks learn of it: raised at once on one rank, it would leave
    the others waiting inside DeepSpeed's collective save.
    """

    def __init__(self) -> None:
        self.zipfile_serialization = False
        self.name = type(self).__name__
        self.files: list[tuple[Path, Any]] = []
        self.error: str | None = None

    def create(self, info: Any) -> None:
        pass

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        try:
            super().makedirs(path, exist_ok=exist_ok)
        except OSError as error:
            self.error = f"{path}: {error.strerror}"

    def save(self, state_dict: Any, path: str) -> None:
        self.files.append((Path(path), state_dict))


@dataclass
class _PendingSave:
    """A checkpoint that is to be made.

    Attributes:
        step: its step.
        files: this rank's, with what goes into them.
        error: what went wrong on this rank so far.
        started: when, by `time.perf_counter`.
        stalled_s: how long training stood still for it; None where it still does.
    """

    step: int
    files: list[tuple[Path, Any]]
    error: str | None
    started: float
    stalled_s: float | None = None


@dataclass
class Checkpoints:
    """The checkpoints of one run. Construction is collective.

    A save takes a copy of the state, and a thread writes and commits it while training goes on. That thread talks to
    those of the other ranks over a process group of its own.

    Attributes:
        directory: ``RUN/checkpoints``.
        describe: writes config.json and the tokenizer into a directory, so that a checkpoint explains itself.
        keep_last: newest checkpoints kept; 0 keeps all.
        keep_every: checkpoints at steps divisible by this are kept for good; 0: none.
        sync: write before training goes on.
    """

    directory: Path
    world: World
    describe: Callable[[Path], None]
    keep_last: int = 3
    keep_every: int = 0
    sync: bool = False
    last_saved_step: int = 0  # step that needs no saving: resumed from or saved last; a fresh start is at 0
    _snapshots: Snapshots = field(default_factory=Snapshots)
    _thread: ThreadPoolExecutor = field(default_factory=saving_thread)
    _running: Future[str | None] | None = None
    _said_memory: bool = False

    def __post_init__(self) -> None:
        self._asked_step = self.last_saved_step
        self._group = None
        if self.world.size > 1:  # its ranks wait for the slowest writer, and the watchdog for them
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=2 * LONG_S))

    def save(self, engine: Engine, state: TrainState) -> None:
        """Begin a checkpoint of this step; one still being written is waited for first. Collective.

        A save that fails (disk full, directory read-only) is reported and undone; the previous checkpoints stay.
        """
        self.wait()
        self._asked_step = state.step
        if state.step == self.last_saved_step:
            return
        started = time.perf_counter()
        if problem := on_main(self.world, lambda: self._prepare(engine)):
            self._report(state.step, problem)
            return
        # DeepSpeed hands its files over in memory.
        state.rng = gather_objects(rng_state())
        collector = StateCollector()
        engine.checkpoint_engine = collector
        engine._copy_recovery_script = _leave_out  # it does not read bf16 runs (export does), and may fail mid-save
        engine.save_checkpoint(
            str(self.directory), tag=saving_name(state.step), client_state=state.to_client_state(), save_latest=False
        )
        asked = _PendingSave(state.step, collector.files, collector.error, started)
        collector.files = []  # DeepSpeed keeps the collector

        # Training waits for a copy of them only; without memory for one it waits for the files.
        if self._snapshot(asked):
            asked.stalled_s = time.perf_counter() - started
            self._running = self._thread.submit(self._write_and_commit, asked)
        else:
            self._mark_saved(self._write_and_commit(asked))

    def wait(self) -> bool:
        """Wait until no checkpoint is being written. Works also where other ranks' main threads are elsewhere.

        Returns:
            whether the checkpoint asked for last exists.
        """
        if self._running is not None:
            running, self._running = self._running, None
            self._mark_saved(running.result())
        return self.last_saved_step == self._asked_step

    def close(self) -> None:
        """End the thread and the process group, once nothing is being written. Collective."""
        self._thread.shutdown()
        if self._group is not None:
            dist.destroy_process_group(self._group)

    def _mark_saved(self, problem: str | None) -> None:
        if problem is None:
            self.last_saved_step = self._asked_step

    def _snapshot(self, asked: _PendingSave) -> bool:
        """Put a copy in the place of the files' contents; False where there is not to be one. Collective."""
        if self.sync:
            return False
        copies, problem = self._snapshots.try_take(asked.files)
        if problem is None:
            asked.files = copies
        elif not self._said_memory and self.world.is_main:
            logger.warning("%s: checkpoints are written before training goes on, as with --sync_save", problem)
            self._said_memory = True
        return problem is None

    def _write_and_commit(self, asked: _PendingSave) -> str | None:
        """Write, agree, commit; returns what went wrong, the same on all ranks. Collective on the thread's group."""
        reports = self._gather(_write(asked))
        problem = self._gather(self._commit(asked.step, reports) if self.world.is_main else None)[0]
        if problem is not None:
            self._report(asked.step, problem)
        elif self.world.is_main:
            seconds = time.perf_counter() - asked.started
            stalled_s = seconds if asked.stalled_s is None else asked.stalled_s
            logger.info("saved step %d in %.1f s; training waited %.1f s", asked.step, seconds, stalled_s)
        return problem

    def _gather(self, value: Any) -> list[Any]:
        return gather_objects(value, self._group) if self._group else [value]

    def _report(self, step: int, problem: str) -> None:
        if self.world.is_main:
            logger.error("no checkpoint of step %d: %s. Older ones stay.", step, problem)

    def _prepare(self, engine: Engine) -> str | None:
        """Room for a checkpoint; returns what is in the way."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            sweep(self.directory)
            needed = self._expected_bytes(engine)
            free = shutil.disk_usage(self.directory).free
        except OSError as error:
            return f"{self.directory}: {error.strerror}"
        if free < needed:
            return f"{self.directory} has {free / 2**30:.2f} GiB free and about {needed / 2**30:.2f} GiB are needed"
        return None

    def _expected_bytes(self, engine: Engine) -> int:
        for previous in step_directories(self.directory):
            return sum(path.stat().st_size for path in previous.rglob("*") if path.is_file())
        parameters = sum(getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters())
        return parameters * _BYTES_PER_PARAMETER

    def _commit(self, step: int, reports: list[tuple[str | None, dict[Path, FileEntry]]]) -> str | None:
        """Make the written files a checkpoint; returns what went wrong."""
        saving = self.directory / saving_name(step)
        try:
            errors = [error for error, _ in reports if error]
            if not errors:
                self.describe(saving / DESCRIPTION)
                entries = {p.relative_to(saving).as_posix(): e for _, part in reports for p, e in part.items()}
                for path in (saving / DESCRIPTION).iterdir():
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
                    entries[path.relative_to(saving).as_posix()] = file_entry(path)
                commit(self.directory, step, entries)
                prune(self.directory, self.keep_last, self.keep_every)
                return None
        except OSError as error:
            errors = [f"{error.filename}: {error.strerror}"]
        shutil.rmtree(saving, ignore_errors=True)
        return "; ".join(errors)


def _write(asked: _PendingSave) -> tuple[str | None, dict[Path, FileEntry]]:
    """Write this rank's files; returns what went wrong, and the files."""
    written = {}
    for path, value in asked.files if asked.error is None else ():
        try:
            written[path] = write_file(path, value)
        except OSError as error:
            return f"{path}: {error.strerror}", written
        except RuntimeError as error:  # what torch's zip writer makes of a write that failed
            return f"{path}: writing stopped short, is the disk full? ({error})", written
    return asked.error, written


def _leave_out(save_path: str) -> None:
    """Instead of DeepSpeed's zero_to_fp32.py in the checkpoint directory."""


def read_state(checkpoint: Path) -> TrainState:
    """The training state that a complete checkpoint carries."""
    files = sorted(checkpoint.glob("*_model_states.pt"))
    if not files:
        raise UserError(f"{checkpoint} holds no model states; it is not a checkpoint of this program.")
    return TrainState.from_client_state(mapped_file(files[0]), str(checkpoint))


def mapped_file(path: Path) -> Any:
    """What DeepSpeed saved in a file; tensors stay on disk until they are read."""
    # DeepSpeed reads its own files without the weights_only restriction; they are as trusted as the program.
    return torch.load(path, map_location="cpu", weights_only=False, mmap=True)


def load(engine: Engine, directory: Path, saved: TrainState, world: World) -> None:
    """Load weights, optimizer and this rank's random state. Collective.

    Args:
        directory: the step directory, or its universal copy where the engine was built for one.
        saved: the state the checkpoint carries.
    """
    path, _ = engine.load_checkpoint(str(directory.parent), tag=directory.name)
    if path is None:
        raise UserError(f"DeepSpeed could not load {directory}; see the warnings above.")
    restore_rng(saved, world)


def restore_rng(saved: TrainState, world: World) -> None:
    """This rank's random state; a rank that the saved run did not have gets one of its own."""
    if world.rank < len(saved.rng):
        set_rng_state(saved.rng[world.rank])
    else:
        seed_rng(saved.seed + saved.step, world.rank)
