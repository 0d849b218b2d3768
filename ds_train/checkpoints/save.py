"""Saves checkpoints: the only user of DeepSpeed's checkpoint API. manifest.py defines the files."""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

from data_tools.base.errors import UserError, file_problem
from data_tools.base.files import NO_ROOM, remove, size_on_disk, sync
from ds_train.checkpoints.background import Snapshots, saving_thread
from ds_train.checkpoints.hashing_file import write_file
from ds_train.checkpoints.manifest import FileEntry, commit, file_entry, saving_name, step_directories
from ds_train.checkpoints.rank_rng import rng_state
from ds_train.checkpoints.retention import Retention
from ds_train.checkpoints.state import STATE_FILE, TrainState, mapped_file
from ds_train.ranks.collectives import gather_objects, on_main
from ds_train.ranks.world import World
from ds_train.step.engine import Engine

logger = logging.getLogger(__name__)

DESCRIPTION = "huggingface"  # config.json and tokenizer, inside each step directory
_BYTES_PER_PARAMETER = 16  # half-precision weights, fp32 weights and two Adam moments, and some room


class StateCollector(TorchCheckpointEngine):
    """Collects the state that DeepSpeed would write, so that a thread can write the files later.

    A failure is reported to all ranks at the end of the save. Raised at once on one rank, it would leave the others
    waiting inside DeepSpeed's collective save.
    """

    def __init__(self) -> None:
        self.zipfile_serialization = False
        self.name = type(self).__name__
        self.files: list[tuple[Path, Any]] = []
        self.error: str | None = None

    def create(self, info: Any) -> None: ...

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        try:
            super().makedirs(path, exist_ok=exist_ok)
        except OSError as error:
            self.error = file_problem(error, Path(path))

    def save(self, state_dict: Any, path: str) -> None:
        self.files.append((Path(path), state_dict))


@dataclass
class _PendingSave:
    """A checkpoint that is yet to be written.

    Attributes:
        step, state: its step, and its training state as JSON.
        files: paths and contents of this rank's files.
        error: message of the first failure on this rank, if any.
        started: start of the save, by `time.perf_counter`.
        stalled_s: how long training waited for it; None while it still waits.
    """

    step: int
    state: str
    files: list[tuple[Path, Any]]
    error: str | None
    started: float
    stalled_s: float | None = None


@dataclass(frozen=True)
class _Written:
    """What one rank wrote.

    Attributes:
        files: path → its entry in the manifest.
        error: message of the failure, or None.
        lacked_room: whether that was a full disk.
    """

    files: dict[Path, FileEntry]
    error: str | None
    lacked_room: bool = False


@dataclass
class Checkpoints:
    """The checkpoints of one run. Construction is collective.

    A save copies the state, and a thread writes and commits the copy while training continues. The threads of all
    ranks communicate over a separate process group.

    Attributes:
        directory: ``RUN/checkpoints``.
        describe: writes config.json and the tokenizer into a directory, so that a checkpoint needs no run to be used.
        retention: deletes older ones.
        sync: write before training continues.
    """

    directory: Path
    world: World
    describe: Callable[[Path], None]
    retention: Retention
    sync: bool = False
    committed: Callable[[], None] = lambda: None  # called on rank 0 after each
    last_saved_step: int = 0  # step that needs no saving: resumed from or saved last; a fresh start is at 0
    _snapshots: Snapshots = field(default_factory=Snapshots)
    _thread: ThreadPoolExecutor = field(default_factory=saving_thread)
    _running: Future[str | None] | None = None
    _has_warned: bool = False

    def __post_init__(self) -> None:
        self._asked_step = self.last_saved_step
        self._lacked_room = False  # at the last save; known on rank 0
        self._group = None
        if self.world.size > 1:
            self._group = dist.new_group(backend="gloo")

    def save(self, engine: Engine, state: TrainState, milestones: Sequence[str] = (), *, is_last: bool = False) -> None:
        """Begin a checkpoint of this step, after waiting for one that is still being written. Collective.

        The last one of a launch is written at once. One with milestones is kept forever. A save that fails (disk full)
        is reported and undone; the previous checkpoints stay, and the next one has its milestones.
        """
        # Nothing to do if this step is already saved, and nothing to start without room on the disk.
        self.wait()
        self._asked_step = state.step
        if state.step == self.last_saved_step:
            return
        self.retention.keep_next(milestones)
        started = time.perf_counter()
        if problem := on_main(self.world, lambda: self._prepare(engine)):
            self._report(state.step, problem)
            return

        # Collect DeepSpeed's files in memory.
        state.rng = gather_objects(rng_state())
        collector = StateCollector()
        engine.checkpoint_engine = collector
        engine._copy_recovery_script = _leave_out  # it does not read bf16 runs (export does), and may fail mid-save
        engine.save_checkpoint(
            str(self.directory), tag=saving_name(state.step), client_state=state.to_client_state(), save_latest=False
        )
        asked = _PendingSave(state.step, state.to_json(), collector.files, collector.error, started)
        collector.files = []  # DeepSpeed keeps the collector

        # Training waits only for a copy of them, or for the files if there is no memory for a copy.
        if not is_last and self._snapshot(asked):
            asked.stalled_s = time.perf_counter() - started
            self._running = self._thread.submit(self._write_and_commit, asked)
        else:
            self._mark_saved(self._write_and_commit(asked))

    def wait(self) -> bool:
        """Wait until no checkpoint is being written. Not collective: other ranks' main threads may be elsewhere.

        Returns:
            whether the last requested checkpoint exists.
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
        """Replace the files' contents by a copy; False if `sync` is set or memory is short. Collective."""
        if self.sync:
            return False
        copies, problem = self._snapshots.try_take(asked.files)
        if problem is None:
            asked.files = copies
        elif not self._has_warned and self.world.is_main:
            logger.warning("%s: checkpoints are written before training continues, as with --sync_save", problem)
            self._has_warned = True
        return problem is None

    def _write_and_commit(self, asked: _PendingSave) -> str | None:
        """Write, agree, commit; returns an error message, the same on all ranks. Collective on the thread's group."""
        reports = self._gather(_write(asked))
        problem = self._gather(self._commit(asked, reports) if self.world.is_main else None)[0]
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
        """Make room for a checkpoint; returns an error message if there is none."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self.retention.tidy()
            needed = self._expected_bytes(engine)
            free = self.retention.make_room(needed, at_least_one=self._lacked_room)
        except OSError as error:
            return file_problem(error, self.directory)
        if free < needed:
            return f"{self.directory} has {free / 2**30:.2f} GiB free and about {needed / 2**30:.2f} GiB are needed"
        return None

    def _expected_bytes(self, engine: Engine) -> int:
        for previous in step_directories(self.directory):
            return size_on_disk(previous)
        parameters = sum(getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters())
        return parameters * _BYTES_PER_PARAMETER

    def _commit(self, asked: _PendingSave, ranks: list[_Written]) -> str | None:
        """Make the written files a checkpoint, then tidy; returns an error message if that fails."""
        saving, errors = self.directory / saving_name(asked.step), [written.error for written in ranks if written.error]
        self._lacked_room = any(written.lacked_room for written in ranks)
        try:
            if not errors:
                commit(self.directory, asked.step, self._described(saving, asked.state, ranks))
                self.retention.committed()
                self.committed()
                return None
        except OSError as error:
            errors = [file_problem(error, saving)]
            self._lacked_room = error.errno in NO_ROOM
        with suppress(OSError):  # the next save tries again, and reports why it cannot
            remove(saving)
        return "; ".join(errors)

    def _described(self, saving: Path, state: str, ranks: list[_Written]) -> dict[str, FileEntry]:
        """Add the training state, configuration and tokenizer; returns the manifest's entries of all files."""
        self.describe(saving / DESCRIPTION)
        self.retention.mark(saving)
        (saving / STATE_FILE).write_text(state, encoding="utf-8")
        entries = {path: entry for written in ranks for path, entry in written.files.items()}
        for path in saving.rglob("*"):
            if path.is_file() and path not in entries:  # these, and what DeepSpeed itself copies of tensors on NVMe
                sync(path)
                entries[path] = file_entry(path)
        return {path.relative_to(saving).as_posix(): entry for path, entry in entries.items()}


def _write(asked: _PendingSave) -> _Written:
    """Write this rank's files."""
    written: dict[Path, FileEntry] = {}
    for path, value in asked.files if asked.error is None else ():
        try:
            written[path] = write_file(path, value)
        except OSError as error:
            return _Written(written, file_problem(error, path), error.errno in NO_ROOM)
    return _Written(written, asked.error)


def _leave_out(save_path: str) -> None:
    """Replaces DeepSpeed's function that copies zero_to_fp32.py into the checkpoint directory."""


def read_state(checkpoint: Path) -> TrainState:
    """The training state that a complete checkpoint carries.

    Raises:
        UserError: it cannot be read, or files of a rank are missing: DeepSpeed would load the others without them.
    """
    files = sorted(checkpoint.glob("*_model_states.pt"))
    if not files:
        raise UserError(f"{checkpoint} holds no model states; it is not a checkpoint of this program.")
    state = TrainState.from_client_state(mapped_file(files[0]), str(checkpoint))
    state.check_num_files(len(files), len(list(checkpoint.glob("*_optim_states.pt"))), str(checkpoint))
    return state
