"""Checkpoints as files: what makes a step directory a checkpoint, which are usable, and which to resume from.

A save writes into ``.saving_step_00000200/``, with a manifest that names every file with size and hash, and renames
the directory to ``step_00000200/``. So a step directory is complete when it appears, a killed save leaves only a hidden
one, and a step directory that does not match its manifest was damaged later.
"""

import errno
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import xxhash
from annotated_types import MinLen

from data_tools.base.errors import UserError, file_problem, reason_of
from data_tools.base.files import entries, sync, whole_file, write_json
from data_tools.base.foreign import foreign_note
from data_tools.base.records import Natural, read_record
from data_tools.base.transfers import Transfer, count

logger = logging.getLogger(__name__)

NEWEST = ("auto", "latest")  # names for the newest checkpoint of a run

MANIFEST = "manifest.json"
LATEST = "latest"
HUGGING_FACE_CONFIG = "config.json"  # a directory of transformers has one at its top, a checkpoint of ours has not
SAVING, DELETING = ".saving_", ".deleting_"
_LOADED = ("*.pt", "huggingface/[!.]*")  # files that loading looks for, whatever the manifest lists
STEP_NAME = re.compile(r"step_(\d{8,})")
_READERS = 4  # files that are hashed at once
_CHUNK_BYTES = 1 << 20
_SUPERSEDED_NAME = re.compile(r"superseded_(\d+)")


@dataclass(frozen=True)
class FileEntry:
    """A file of a checkpoint, as its manifest records it.

    The hash detects damage, not forgery; SHA-256 would take more of training's time.
    """

    size: Natural
    xxh3_128: str


@dataclass(frozen=True)
class Manifest:
    """The content of `MANIFEST`: the step, and every file of the checkpoint by its path in the step directory.

    Attributes:
        xxh3_128: hash of the other two, so that a lost entry is noticed; version 0.1 wrote none.
    """

    step: Natural
    files: Annotated[dict[str, FileEntry], MinLen(1)]
    xxh3_128: str | None = None

    def own_hash(self) -> str:
        content = json.dumps(asdict(replace(self, xxh3_128=None)), sort_keys=True)
        return xxhash.xxh3_128_hexdigest(content.encode())


def file_entry(path: Path) -> FileEntry:
    found, chunk = xxhash.xxh3_128(), memoryview(bytearray(_CHUNK_BYTES))
    with path.open("rb", buffering=0) as file:
        while num_bytes := file.readinto(chunk):
            found.update(chunk[:num_bytes])
            count(num_bytes)
    return FileEntry(path.stat().st_size, found.hexdigest())


def file_entries(paths: Sequence[Path], what: str) -> list[FileEntry]:
    """The entries of several files, which are read at once.

    Args:
        what: is done, for the log.
    """
    num_bytes = sum(path.stat().st_size for path in paths)
    with Transfer(what, num_bytes), ThreadPoolExecutor(_READERS) as readers:
        return list(readers.map(file_entry, paths))


def step_name(step: int) -> str:
    return f"step_{step:08d}"


def saving_name(step: int) -> str:
    """Name of the directory in which a checkpoint is written before it is committed."""
    return SAVING + step_name(step)


def step_of(checkpoint: Path) -> int:
    """The optimizer step in a step directory's name."""
    match = STEP_NAME.fullmatch(checkpoint.name)
    if not match:
        raise UserError(f"{checkpoint} is not a step directory; expected a name like step_00000200.")
    return int(match[1])


def step_directories(directory: Path) -> list[Path]:
    """All step directories, usable or not, newest first."""
    found = [path for path in entries(directory) if STEP_NAME.fullmatch(path.name)]
    return sorted(found, key=step_of, reverse=True)


def commit(directory: Path, step: int, entries: dict[str, FileEntry]) -> Path:
    """Turn the written ``.saving_…`` directory into the checkpoint of ``step``; returns its path.

    The files themselves must already be on disk (fsync).

    Raises:
        OSError: there is no such checkpoint.
    """
    saving, target = directory / saving_name(step), directory / step_name(step)
    manifest = Manifest(step, dict(sorted(entries.items())))
    write_json(saving / MANIFEST, asdict(replace(manifest, xxh3_128=manifest.own_hash())))
    if os.path.lexists(target):  # damaged, else resume would have started from it
        retire(target)
    saving.rename(target)
    try:
        sync(directory)
        with whole_file(directory / LATEST) as file:
            file.write(target.name.encode())
    except OSError as error:  # resume reads neither
        logger.warning("%s is whole, but not all around it is in order: %s", target, file_problem(error))
    return target


def retire(checkpoint: Path) -> None:
    """Take a step directory out of the checkpoints; its files are deleted later (retention.py).

    A link to one is unlinked: whatever it names was put there by somebody else.

    Raises:
        OSError: it cannot be renamed, or is write-protected.
    """
    if checkpoint.is_symlink():
        checkpoint.unlink()
        return
    if not os.access(checkpoint, os.W_OK):  # else only half of it would be deleted
        raise PermissionError(errno.EACCES, "it is write-protected", str(checkpoint))
    number, target = 1, checkpoint.with_name(DELETING + checkpoint.name)
    while target.exists():  # an earlier one of this step that could not be deleted
        number, target = number + 1, checkpoint.with_name(f"{DELETING}{checkpoint.name}_{number}")
    checkpoint.rename(target)


FindDamage = Callable[[Path, Mapping[str, FileEntry]], str | None]


def damage_in(checkpoint: Path, files: Mapping[str, FileEntry]) -> str | None:
    """Why the content of some files of a checkpoint is not what was written, or None. Reads them whole."""
    try:
        found = file_entries([checkpoint / name for name in files], f"verifying {checkpoint}")
    except OSError as error:
        return f"{error.filename or checkpoint} cannot be read ({reason_of(error)})"
    damaged = [name for name, entry in zip(files, found, strict=True) if entry != files[name]]
    return f"{damaged[0]} is damaged: its hash is not the one in {MANIFEST}" if damaged else None


def not_read(checkpoint: Path, files: Mapping[str, FileEntry]) -> str | None:
    """In place of `damage_in` where the content is checked later."""
    return None


def defect_of(checkpoint: Path, find_damage: FindDamage = damage_in) -> str | None:
    """Why a step directory is not a usable checkpoint, or None.

    Args:
        find_damage: checks the content of the files, once they are all there.
    """
    try:
        manifest = read_record(Manifest, (checkpoint / MANIFEST).read_bytes())
    except FileNotFoundError:
        if note := foreign_note(checkpoint):
            return note
        if (checkpoint / HUGGING_FACE_CONFIG).exists():
            return "it is a Hugging Face model, with weights to start from but no training state to resume"
        return f"it has no {MANIFEST}" if checkpoint.is_dir() else "it does not exist"
    except (OSError, ValueError) as error:
        return f"its {MANIFEST} cannot be read ({error})"
    if STEP_NAME.fullmatch(checkpoint.name) and manifest.step != step_of(checkpoint):
        return f"its {MANIFEST} is that of step {manifest.step}"
    if manifest.xxh3_128 not in (None, manifest.own_hash()):
        return f"its {MANIFEST} is damaged: its entries are not those that were written"
    loaded = (path.relative_to(checkpoint).as_posix() for pattern in _LOADED for path in checkpoint.glob(pattern))
    if unlisted := sorted(set(loaded) - set(manifest.files)):
        return f"{unlisted[0]} is not in its {MANIFEST}"
    for name, entry in manifest.files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != entry.size:
            return f"{name} has {path.stat().st_size} bytes, its {MANIFEST} says {entry.size}"
    return find_damage(checkpoint, manifest.files)


def usable(directory: Path, find_damage: FindDamage = damage_in) -> Iterator[Path]:
    """Yield step directories that verify, newest first; the log reports why each other one is skipped."""
    for path in step_directories(directory):
        if defect := defect_of(path, find_damage):
            logger.warning("skipping %s: %s", path, defect)
        else:
            yield path


def newest_usable(directory: Path, find_damage: FindDamage = damage_in) -> Path | None:
    """The newest step directory that verifies, or None."""
    return next(usable(directory, find_damage), None)


def choose_checkpoint(
    directory: Path, resume: str, resume_from: str | None = None, find_damage: FindDamage = damage_in
) -> Path | None:
    """The checkpoint to resume from; None for a fresh start.

    Args:
        directory: the directory of the run's checkpoints.
        resume: ``auto`` or ``latest`` (the newest), ``none``, or a step directory.
        resume_from: the same, which wins over ``resume``.
        find_damage: checks the content of files.

    Raises:
        UserError: a named checkpoint is not usable, or there are checkpoints and none is usable.
    """
    named = resume_from or resume
    if named not in (*NEWEST, "none"):
        path = Path(named).absolute()
        if defect := defect_of(path, find_damage):
            flag = "resume_from" if resume_from else "resume"
            raise UserError(f"--{flag} {named}: {defect}. Give a complete step directory, or --resume auto or none.")
        return path
    if named == "none":
        return None
    chosen = newest_usable(directory, find_damage)
    if chosen is None and (damaged := step_directories(directory)):
        raise UserError(
            f"{directory} holds {len(damaged)} checkpoints and none is usable (reasons above). Restore one, start "
            "another run with --run_name, or start anew with --resume none, which moves them aside."
        )
    return chosen


def set_aside(run_directory: Path, after_step: int) -> None:
    """Move checkpoints of later steps into ``RUN/superseded_<n>/``, so that no resume continues an abandoned branch.

    Where checkpoints are on another disk than the run directory, they go into ``checkpoints/superseded_<n>/``.
    ``after_step`` -1 moves all of them and the logs: the run starts anew.
    """
    checkpoints = run_directory / "checkpoints"
    moved = [path for path in step_directories(checkpoints) if step_of(path) > after_step]
    if after_step < 0 and (run_directory / "logs").exists():
        moved.append(run_directory / "logs")
    found = [path.name for place in (run_directory, checkpoints) for path in place.glob("superseded_*")]
    numbers = [int(match[1]) for name in found if (match := _SUPERSEDED_NAME.fullmatch(name))]
    name = f"superseded_{max(numbers, default=0) + 1}"
    for path in moved:
        target = _move(path, run_directory / name, checkpoints / name)
        logger.warning("moved %s to %s", path.name, target)


def _move(path: Path, directory: Path, otherwise: Path) -> Path:
    """Move ``path`` into a directory, which is made, or into the other one if the first is on another disk."""
    directory.mkdir(exist_ok=True)
    try:
        return path.rename(directory / path.name)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    with suppress(OSError):  # something of this disk is in it
        directory.rmdir()
    otherwise.mkdir(exist_ok=True)
    return path.rename(otherwise / path.name)
