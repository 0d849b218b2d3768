"""The only user of DeepSpeed's checkpoint API: commit, pick, load, prune.

A checkpoint ``step_00000200/`` exists when its ``manifest.json`` does: the manifest names every file with its size
and hash and is written last. ``latest`` is advanced after that, for people and tools; resume does not trust it.
"""

import json
import logging
import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from data_tools.errors import UserError
from data_tools.files import sha256_of_file, whole_file, write_json
from ds_train.distributed import World, gather_objects, on_main
from ds_train.engine import Engine
from ds_train.global_rng import rng_state, set_rng_state
from ds_train.state import TrainState

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
DESCRIPTION = "huggingface"  # config.json and tokenizer, inside each step directory
_STEP = "step_{:08d}"


@dataclass
class Checkpoints:
    """The checkpoints of one run.

    Attributes:
        directory: ``RUN/checkpoints``.
        describe: writes config.json and the tokenizer into a directory, so that a checkpoint explains itself.
        keep_last: newest checkpoints kept.
        keep_every: checkpoints at steps divisible by this are kept for good; 0: none.
    """

    directory: Path
    world: World
    describe: Any
    keep_last: int = 3
    keep_every: int = 0
    _committed: set[int] = field(default_factory=set)

    def save(self, engine: Engine, state: TrainState) -> None:
        """Write and commit a checkpoint of this step, unless it is there already. Collective."""
        if state.step in self._committed:
            return
        started = time.perf_counter()
        tag = _STEP.format(state.step)
        target = self.directory / tag
        if self.world.is_main and target.exists():
            shutil.rmtree(target)  # left half-written by a killed run, or of a future that resume went behind
        dist.barrier()
        state.rng = gather_objects(rng_state())
        engine.save_checkpoint(str(self.directory), tag=tag, client_state=state.to_client_state(), save_latest=False)
        dist.barrier()
        if self.world.is_main:
            self.describe(target / DESCRIPTION)
            commit(target, state.step)
            with whole_file(self.directory / "latest") as file:
                file.write(tag.encode())
            self._prune()
            logger.info("saved %s in %.1f s", target, time.perf_counter() - started)
        dist.barrier()
        self._committed.add(state.step)

    def _prune(self) -> None:
        steps = sorted(step for step in map(step_of, complete_checkpoints(self.directory)))
        for step in steps[: -self.keep_last] if self.keep_last else []:
            if not (self.keep_every and step % self.keep_every == 0):
                shutil.rmtree(self.directory / _STEP.format(step))


def commit(target: Path, step: int) -> None:
    """Make a step directory a checkpoint: flush its files, then write the manifest atomically."""
    entries = {}
    for path in sorted(path for path in target.rglob("*") if path.is_file() and path.name != MANIFEST):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        entries[path.relative_to(target).as_posix()] = {"size": path.stat().st_size, "sha256": sha256_of_file(path)}
    write_json(target / MANIFEST, {"step": step, "files": entries})


def step_of(checkpoint: Path) -> int:
    """The optimizer step in a step directory's name."""
    return int(checkpoint.name.removeprefix("step_"))


def complete_checkpoints(directory: Path) -> list[Path]:
    """Step directories whose manifest exists and whose files have the sizes it names, oldest first."""
    found = [path for path in directory.glob("step_*") if path.name.removeprefix("step_").isdigit()]
    return sorted((path for path in found if not defect_of(path)), key=step_of)


def defect_of(checkpoint: Path) -> str | None:
    """Why a step directory is not a usable checkpoint, or None."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text())["files"]
    except FileNotFoundError:
        return "it has no manifest: its save did not finish"
    except (OSError, json.JSONDecodeError, KeyError):
        return "its manifest cannot be read"
    for name, entry in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != entry["size"]:
            return f"{name} has {path.stat().st_size} bytes, its manifest says {entry['size']}"
    return None


def choose_checkpoint(directory: Path, resume: str, world: World) -> Path | None:
    """The checkpoint to resume from, chosen by rank 0 for all; None for a fresh start. Collective.

    Raises:
        UserError: a named checkpoint is not usable, or there are some and none is.
    """
    return on_main(world, lambda: _choose(directory, resume))


def _choose(directory: Path, resume: str) -> Path | None:
    if resume == "none":
        return None
    if resume != "auto":
        path = Path(resume)
        if defect := defect_of(path):
            raise UserError(f"--resume {path}: {defect}. Give a complete step directory, or --resume auto.")
        return path.absolute()
    candidates = sorted(directory.glob("step_*"), reverse=True)
    for path in candidates:
        defect = defect_of(path)
        if not defect:
            return path
        logger.warning("not resuming from %s: %s", path, defect)
    if candidates:
        raise UserError(
            f"{directory} holds {len(candidates)} checkpoints but none is usable (see above); "
            "restore one, or start anew with --resume none and another --run_name."
        )
    return None


def load(engine: Engine, checkpoint: Path, current: TrainState, world: World) -> TrainState:
    """Load weights, optimizer and state; the layout must be the saved one. Collective.

    Args:
        current: this launch's fresh state, whose seed, layout and fingerprints the saved one must match.

    Raises:
        UserError: the checkpoint belongs to a run with other settings, or DeepSpeed cannot read it.
    """
    saved = read_state(checkpoint)
    _require_same(saved, current, checkpoint)
    path, _ = engine.load_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
    if path is None:
        raise UserError(f"DeepSpeed could not load {checkpoint}; see the warnings above.")
    set_rng_state(saved.rng[world.rank])
    return saved


def read_state(checkpoint: Path) -> TrainState:
    """The training state that a complete checkpoint carries."""
    files = sorted(checkpoint.glob("*_model_states.pt"))
    if not files:
        raise UserError(f"{checkpoint} holds no model states; it is not a checkpoint of this program.")
    # DeepSpeed reads its own files without the weights_only restriction; they are as trusted as the program.
    return TrainState.from_client_state(
        torch.load(files[0], map_location="cpu", weights_only=False, mmap=True), str(checkpoint)
    )


def _require_same(saved: TrainState, current: TrainState, checkpoint: Path) -> None:
    names = ("seed", "global_batch", "world_size", "micro_batch", "grad_accum")
    pairs = {name: (getattr(saved, name), getattr(current, name)) for name in names}
    for name in sorted(set(saved.fingerprints) | set(current.fingerprints)):
        pairs[name] = (saved.fingerprints.get(name, "nothing"), current.fingerprints.get(name, "nothing"))
    differing = [f"{name}: saved {old}, now {new}" for name, (old, new) in pairs.items() if old != new]
    if differing:
        raise UserError(
            f"{checkpoint} was saved by a run with other settings ({'; '.join(differing)}). "
            "Use the same settings, or start another run with --run_name."
        )
