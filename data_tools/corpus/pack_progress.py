"""The state of a pack directory: empty, an interrupted pack with finished files, or a complete pack; and its lock."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from data_tools.base.errors import UserError
from data_tools.base.files import PARTIAL_SUFFIX, exclusive, sha256_of_file, write_json
from data_tools.base.foreign import foreign_note, read_object
from data_tools.base.records import read_record
from data_tools.corpus.shards import (
    META_NAME,
    PROGRESS_NAME,
    VALIDATION_NAME,
    PackedBlocks,
    PackedFile,
    PackMeta,
    PackParameters,
)
from data_tools.corpus.token_stream import TokenCursor


@dataclass(frozen=True)
class FinishedFile:
    """A written file, and the position in the row of all documents where the next file begins.

    It depends on the first ``num_parts`` parts of the source, in the order of reading, whose identity is
    ``parts_sha256``; version 0.1 did not record this.
    """

    file: PackedFile
    end: TokenCursor
    num_parts: int = 0
    parts_sha256: str = ""


@dataclass
class PackProgress:
    """The files finished so far, in order, of a pack with these parameters; kept in `PROGRESS_NAME`."""

    parameters: PackParameters
    source: dict[str, Any]
    finished: list[FinishedFile] = field(default_factory=list)

    @property
    def end(self) -> TokenCursor:
        """Where the next file begins."""
        return self.finished[-1].end if self.finished else TokenCursor(0, 0)

    @property
    def num_tokens(self) -> int:
        """Tokens in the finished files."""
        return sum(item.file.num_blocks for item in self.finished) * self.parameters.block_len

    def write(self, directory: Path) -> None:
        """Record the progress, whole or not at all."""
        write_json(directory / PROGRESS_NAME, asdict(self))

    @classmethod
    def read(cls, directory: Path) -> "PackProgress | None":
        """The recorded progress of a directory, up to the first missing or changed file; None without a record."""
        try:
            recorded = read_record(cls, (directory / PROGRESS_NAME).read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise UserError(
                f"{directory / PROGRESS_NAME} cannot be read ({error}). Start the pack afresh with --overwrite."
            ) from None
        progress = cls(recorded.parameters, recorded.source)
        for item in recorded.finished:
            path = directory / item.file.name
            if not path.is_file() or sha256_of_file(path) != item.file.sha256:
                break
            progress.finished.append(item)
        return progress


def pack_lock(directory: Path, overwrite: bool) -> AbstractContextManager[None]:
    """Hold a pack directory inside the block; one that is complete and cannot be written to is only read, without.

    Raises:
        UserError: another process holds it, or it is incomplete and cannot be written to.
    """
    if (directory / META_NAME).exists() and not overwrite and not os.access(directory, os.W_OK):
        return nullcontext()
    return exclusive(directory, "wait for it to end, or choose another --pack_dir")


def recorded(directory: Path) -> dict[str, Any]:
    """What a complete or unfinished pack in a directory records of its parameters and its source, {} if none."""
    for name in (META_NAME, PROGRESS_NAME):
        try:
            content = json.loads((directory / name).read_text(encoding="utf-8"))
            return {**content.get("parameters", content), "source": dict(content["source"])}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return {}


def refuse_what_others_wrote(directory: Path) -> None:
    """Raise a ``UserError`` for packed files that this program cannot have made: they are not its to replace."""
    files = [path for path in pack_files(directory) if path.suffix != PARTIAL_SUFFIX]
    is_ours = (directory / PROGRESS_NAME).exists() or "tokenizer_sha256" in read_object(directory / META_NAME)
    if files and not is_ours:
        if note := foreign_note(directory):
            problem = f"{directory} was not packed by this program: {note}. Or"
        elif (directory / META_NAME).exists():
            problem = f"{directory / META_NAME} does not show which program packed the files beside it. Restore it, or"
        else:
            problem = f"{directory} holds {files[0].name} and no {META_NAME}, so this program did not make it. Please"
        raise UserError(f"{problem} choose another --pack_dir.")


def find_progress(
    directory: Path, asked: PackParameters, overwrite: bool, identity: Callable[[int], str]
) -> PackProgress | None:
    """Find the progress of an earlier pack with the parameters ``asked``.

    Of an unfinished pack whose source has changed since, the files that do not depend on the change are kept.

    Args:
        identity: of this number of parts of the source, in the order of reading.

    Returns:
        its progress; an empty one if there is nothing, or if ``overwrite`` allows to replace what is there; None if
        the pack is complete.

    Raises:
        UserError: the directory holds a pack with other parameters, or a damaged one, and ``overwrite`` is not set.
    """
    fresh = PackProgress(asked, {})
    if (directory / META_NAME).exists():
        if overwrite:
            return fresh
        _refuse_if_different(directory, PackMeta.read(directory), asked, "a pack")
        PackedBlocks(directory)  # raises if a file is missing or short
        with suppress(OSError):  # there after a kill between the two; a directory may be read-only
            (directory / PROGRESS_NAME).unlink()
        return None
    try:
        progress = PackProgress.read(directory)
    except UserError:
        if not overwrite:
            raise
        return fresh
    if progress is not None and progress.parameters == asked:
        return progress
    if overwrite:
        return fresh
    if progress is not None:
        kept = list(takewhile(lambda item: item.parts_sha256 == identity(item.num_parts), progress.finished))
        if kept and replace(progress.parameters, source_sha256=asked.source_sha256) == asked:
            return PackProgress(asked, {}, kept)
        _refuse_if_different(directory, progress.parameters, asked, "an unfinished pack")
    return fresh


def _refuse_if_different(directory: Path, there: PackParameters, asked: PackParameters, what: str) -> None:
    if differences := there.differences(asked):
        raise UserError(
            f"{directory} holds {what} with other parameters ({'; '.join(differences)}). "
            "Give its parameters, choose another --pack_dir, or replace it with --overwrite."
        )


def pack_files(directory: Path) -> list[Path]:
    """Every file of a complete or unfinished pack in a directory."""
    names = (META_NAME, VALIDATION_NAME, "shard_[0-9]*.bin", PROGRESS_NAME)
    patterns = [name + ending for name in names for ending in ("", f".*{PARTIAL_SUFFIX}")]
    return [path for pattern in patterns for path in sorted(directory.glob(pattern))]


def check_free_space(directory: Path, asked: PackParameters) -> None:
    """Raise a ``UserError`` where a pack does not fit on the disk."""
    needed = asked.file_bytes(asked.num_blocks + asked.val_blocks)
    usable = shutil.disk_usage(directory).free + sum(path.stat().st_size for path in pack_files(directory))
    if usable < needed:
        raise UserError(
            f"{directory}: the pack takes {needed / 1e6:,.1f} MB, {usable / 1e6:,.1f} MB are free. "
            "Make room, choose another --pack_dir, or ask for fewer blocks."
        )


def remove_pack(directory: Path, keep: PackProgress | None = None) -> None:
    """Delete the files of a pack: meta.json first, so that at no time a damaged pack looks complete.

    Args:
        keep: what is recorded stays, so that what a kill leaves is still known to be this program's.
    """
    kept = {PROGRESS_NAME, *(item.file.name for item in keep.finished)} if keep else set()
    for path in pack_files(directory):
        if path.name not in kept:
            path.unlink()
