"""The only user of DeepSpeed's checkpoint API: save and commit, load. What files mean is in manifest.py."""

import logging
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

from data_tools.errors import UserError
from ds_train.distributed import gather_objects, on_main
from ds_train.engine import Engine
from ds_train.global_rng import rng_state, seed_rng, set_rng_state
from ds_train.manifest import FileEntry, commit, file_entry, prune, saving_name, step_directories, sweep
from ds_train.ranks import World
from ds_train.state import TrainState

logger = logging.getLogger(__name__)

DESCRIPTION = "huggingface"  # config.json and tokenizer, inside each step directory
_BYTES_PER_PARAMETER = 16  # half-precision weights, fp32 weights and two Adam moments, and some room


class VerifiedWriter(TorchCheckpointEngine):
    """Writes a rank's files to disk with their hashes.

    A failed write is kept for the end of the save, when all ranks learn of it: raised at once on one rank, it would
    leave the others waiting inside DeepSpeed's collective save.
    """

    def __init__(self) -> None:
        self.zipfile_serialization = False
        self.name = type(self).__name__
        self.written: dict[Path, FileEntry] = {}
        self.error: str | None = None

    def begin(self) -> None:
        self.written, self.error = {}, None

    def create(self, info: Any) -> None:
        pass

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        try:
            super().makedirs(path, exist_ok=exist_ok)
        except OSError as error:
            self.error = f"{path}: {error.strerror}"

    def save(self, state_dict: Any, path: str) -> None:
        if self.error:
            return
        try:
            with Path(path).open("wb") as file:
                torch.save(state_dict, file)
                file.flush()
                os.fsync(file.fileno())
            self.written[Path(path)] = file_entry(Path(path))
        except OSError as error:
            self.error = f"{path}: {error.strerror}"
        except RuntimeError as error:  # what torch's zip writer makes of a write that failed
            self.error = f"{path}: writing stopped short, is the disk full? ({error})"


@dataclass
class Checkpoints:
    """The checkpoints of one run.

    Attributes:
        directory: ``RUN/checkpoints``.
        describe: writes config.json and the tokenizer into a directory, so that a checkpoint explains itself.
        keep_last: newest checkpoints kept; 0 keeps all.
        keep_every: checkpoints at steps divisible by this are kept for good; 0: none.
    """

    directory: Path
    world: World
    describe: Callable[[Path], None]
    keep_last: int = 3
    keep_every: int = 0
    committed: int = 0  # step that needs no saving: resumed from or saved last; a fresh start is at 0
    _writer: VerifiedWriter = field(default_factory=VerifiedWriter)

    def save(self, engine: Engine, state: TrainState) -> bool:
        """Write and commit a checkpoint of this step. Collective.

        A save that fails (disk full, directory read-only) is reported and undone; the previous checkpoints stay.

        Returns:
            whether the checkpoint exists now.
        """
        if state.step == self.committed:
            return True
        started = time.perf_counter()
        problem = on_main(self.world, lambda: self._prepare(engine))
        if problem is None:
            state.rng = gather_objects(rng_state())
            self._writer.begin()
            engine.checkpoint_engine = self._writer
            engine._copy_recovery_script = _leave_out  # it does not read bf16 runs (export does), and may fail mid-save
            engine.save_checkpoint(
                str(self.directory),
                tag=saving_name(state.step),
                client_state=state.to_client_state(),
                save_latest=False,
            )
            reports = gather_objects((self._writer.error, self._writer.written))
            problem = on_main(self.world, lambda: self._commit(state.step, reports))
        if problem is not None:
            if self.world.is_main:
                logger.error("no checkpoint of step %d: %s. Older ones stay.", state.step, problem)
            return False
        logger.info("saved step %d in %.1f s", state.step, time.perf_counter() - started)
        self.committed = state.step
        return True

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


def _leave_out(save_path: str) -> None:
    """Instead of DeepSpeed's zero_to_fp32.py in the checkpoint directory."""


def read_state(checkpoint: Path) -> TrainState:
    """The training state that a complete checkpoint carries."""
    files = sorted(checkpoint.glob("*_model_states.pt"))
    if not files:
        raise UserError(f"{checkpoint} holds no model states; it is not a checkpoint of this program.")
    # DeepSpeed reads its own files without the weights_only restriction; they are as trusted as the program.
    client_state = torch.load(files[0], map_location="cpu", weights_only=False, mmap=True)
    return TrainState.from_client_state(client_state, str(checkpoint))


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
