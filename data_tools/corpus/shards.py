"""Packed blocks on disk: shard_00000.bin …, validation.bin and meta.json, written once and read by block number.

A ``.bin`` file holds raw little-endian uint16 or uint32 tokens only; a block is ``seq_len + 1`` of them. ``meta.json``
is written last: if it exists, the pack is complete. Until then `PROGRESS_NAME` records the finished files.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Interval

from data_tools.base.errors import UserError
from data_tools.base.files import sha256_of_file, write_json
from data_tools.base.foreign import foreign_note
from data_tools.base.records import Natural, Positive, read_record

META_NAME = "meta.json"
PROGRESS_NAME = "meta.in_progress.json"
VALIDATION_NAME = "validation.bin"
MAX_UINT16_IDS = 65_535  # tokenizers with more ids than this are packed as uint32


def pack_directory(scratch_dir: str | Path) -> Path:
    """Where packed blocks are if nothing else is given."""
    return Path(scratch_dir) / "data" / "c4_packed"


def shard_name(number: int) -> str:
    """File name of shard ``number``."""
    return f"shard_{number:05d}.bin"


def token_dtype(vocab_size: int) -> Literal["uint16", "uint32"]:
    """Name of the on-disk type for token ids below ``vocab_size``."""
    return "uint16" if vocab_size <= MAX_UINT16_IDS else "uint32"


def little_endian(dtype: str) -> np.dtype:
    """The on-disk NumPy type of ``uint16`` or ``uint32``."""
    return np.dtype(dtype).newbyteorder("<")


@dataclass(frozen=True)
class PackedFile:
    """One ``.bin`` file: its name, blocks, bytes and hex SHA-256."""

    name: str
    num_blocks: Natural
    size: Natural
    sha256: str


@dataclass(frozen=True, kw_only=True)
class PackParameters:
    """All parameters that decide the bytes of a pack; two packs with equal parameters are identical.

    Attributes:
        source_sha256: identity of the documents (names and sizes of the files, or the Hub revision).
        tokenizer_sha256: `TextTokenizer.fingerprint`.
        eos_id: token after each document.
        vocab_size: highest token id + 1.
        dtype: ``uint16`` or ``uint32``.
        seq_len: tokens of a training row; blocks hold one more.
        num_blocks: training blocks in all shards.
        blocks_per_shard: blocks of every shard but the last; 0 in adopted packs, whose shards differ.
        val_blocks: blocks of validation.bin; 0: no such file.
        seed, shuffle_buffer: parameters of the document shuffle.
        special_tokens_as_text: whether a special token that a text mentions holds its characters. Up to version 0.1,
            which does not record it, it was that token.
        half: of the documents, ``first`` (every other one from the first) or ``second``; empty: all.
    """

    source_sha256: str
    tokenizer_sha256: str
    eos_id: Natural
    vocab_size: Annotated[int, Interval(ge=1, le=1 << 32)]
    dtype: Literal["uint16", "uint32"]
    seq_len: Annotated[int, Interval(ge=2, le=10**7)]
    num_blocks: Positive
    blocks_per_shard: Natural
    val_blocks: Natural
    seed: int
    shuffle_buffer: Natural
    special_tokens_as_text: bool = False
    half: Literal["", "first", "second"] = ""

    @property
    def block_len(self) -> int:
        return self.seq_len + 1

    def file_blocks(self) -> dict[str, int]:
        """Name and number of blocks of every ``.bin`` file, in the order they are written."""
        blocks = {VALIDATION_NAME: self.val_blocks} if self.val_blocks else {}
        for number, first in enumerate(range(0, self.num_blocks, self.blocks_per_shard)):
            blocks[shard_name(number)] = min(self.blocks_per_shard, self.num_blocks - first)
        return blocks

    def file_bytes(self, num_blocks: int) -> int:
        """Size in bytes of a file with ``num_blocks`` blocks."""
        return num_blocks * self.block_len * np.dtype(self.dtype).itemsize

    def differences(self, other: "PackParameters") -> list[str]:
        """Describe each parameter in which the existing pack (self) differs from the requested one (other)."""
        pairs = [(f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(PackParameters)]
        return [
            f"another {name.removesuffix('_sha256')}" if name.endswith("_sha256") else f"{name} {there}, not {asked}"
            for name, there, asked in pairs
            if there != asked
        ]


@dataclass(frozen=True, kw_only=True)
class PackMeta(PackParameters):
    """meta.json: the parameters, where the tokens come from, and what was written.

    Attributes:
        source: description of the documents.
        tokenizer: the tokenizer's name as the user gave it.
        num_documents: documents with at least one token in a shard.
        num_validation_documents: documents with tokens in validation.bin; none of them is in a shard.
        shards: the shards in order.
        validation: validation.bin, or None.
        versions: versions of the libraries that wrote the pack.
        num_split_documents: documents whose own text gave the EOS token, which parts them.
        left_out: documents that are in no file, and why.
    """

    source: dict[str, Any]
    tokenizer: str
    num_documents: int
    num_validation_documents: int
    shards: tuple[PackedFile, ...]
    validation: PackedFile | None
    versions: dict[str, str]
    num_split_documents: int = 0
    left_out: tuple[str, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens in all shards."""
        return self.num_blocks * self.block_len

    @property
    def files(self) -> list[PackedFile]:
        return [*self.shards, *([self.validation] if self.validation else [])]

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 that identifies the training blocks: their type, length and content."""
        content = json.dumps([self.dtype, self.block_len, [shard.sha256 for shard in self.shards]])
        return hashlib.sha256(content.encode()).hexdigest()

    def write(self, directory: Path) -> None:
        """Write meta.json, which makes the pack complete."""
        derived = {"block_len": self.block_len, "num_tokens": self.num_tokens}
        write_json(directory / META_NAME, {**asdict(self), **derived})

    @classmethod
    def read(cls, directory: Path) -> "PackMeta":
        """Read the meta.json of a complete pack.

        Raises:
            UserError: it is missing or has another form.
        """
        path = directory / META_NAME
        if note := foreign_note(directory):
            raise UserError(f"{directory} was not packed by this program: {note}.")
        try:
            return read_record(cls, path.read_bytes())
        except FileNotFoundError:
            raise UserError(_no_meta_message(directory)) from None
        except ValueError as error:
            raise UserError(
                f"{path} is not the meta.json of a pack written by this version ({error}). "
                "Restore it, or pack into another directory with data_tools/build_pretrain.py."
            ) from None


def _no_meta_message(directory: Path) -> str:
    if (directory / PROGRESS_NAME).exists():
        return (
            f"{directory} holds an unfinished pack ({PROGRESS_NAME}, no {META_NAME}). Run the same "
            "data_tools/build_pretrain.py command again: it continues after the finished shards."
        )
    state = "has no meta.json" if directory.is_dir() else "does not exist"
    return f"no packed blocks: {directory} {state}. Make them with data_tools/build_pretrain.py."


_RESTORE = "Copy it again from where it was packed, or pack again with --overwrite."


class PackedBlocks:
    """Random access to the blocks of a complete pack. Safe to fork and to pickle: files are mapped when first read.

    Args:
        directory: where the pack is.

    Raises:
        UserError: there is no complete pack, or a file is missing or does not have the size recorded in meta.json.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.meta = PackMeta.read(self.directory)
        self._maps: dict[str, np.ndarray] = {}
        self._ends = np.cumsum([shard.num_blocks for shard in self.meta.shards])
        self._check_sizes()

    @property
    def num_blocks(self) -> int:
        return self.meta.num_blocks

    @property
    def num_validation_blocks(self) -> int:
        return self.meta.val_blocks

    def block(self, index: int) -> np.ndarray:
        """Training block ``index``: (block_len,) int64, a copy."""
        if not 0 <= index < self.num_blocks:
            raise IndexError(f"block {index} of {self.num_blocks}")
        return self._row(*self._place_of(index))

    def place_of(self, index: int) -> tuple[str, int]:
        """The name of the shard that holds training block ``index``, and its number there."""
        shard, row = self._place_of(index)
        return shard.name, row

    def _place_of(self, index: int) -> tuple[PackedFile, int]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        shard = self.meta.shards[number]
        return shard, index - int(self._ends[number]) + shard.num_blocks

    def validation_block(self, index: int) -> np.ndarray:
        """Validation block ``index``: (block_len,) int64, a copy."""
        if self.meta.validation is None or not 0 <= index < self.num_validation_blocks:
            raise IndexError(f"validation block {index} of {self.num_validation_blocks}")
        return self._row(self.meta.validation, index)

    def check_ids(self) -> None:
        """Read the first block of each file and some between, which fails where an id is beyond the vocabulary.

        Every block is checked so when it is read; this finds a file of another kind before anything is built.
        """
        for file in self.meta.files:
            for row in {0, file.num_blocks // 2, file.num_blocks - 1}:
                self._row(file, row)

    def verify(self) -> None:
        """Compare the SHA-256 of every file with meta.json; UserError names the first that differs."""
        for file in self.meta.files:
            found = sha256_of_file(self.directory / file.name)
            if found != file.sha256:
                raise UserError(
                    f"{self.directory / file.name} is damaged: SHA-256 {found}, expected {file.sha256}. {_RESTORE}"
                )

    def _row(self, file: PackedFile, row: int) -> np.ndarray:
        if file.name not in self._maps:
            path = self.directory / file.name
            shape = (file.num_blocks, self.meta.block_len)
            self._maps[file.name] = np.memmap(path, little_endian(self.meta.dtype), mode="r", shape=shape)
        tokens = self._maps[file.name][row].astype(np.int64)
        if tokens.max() >= self.meta.vocab_size:
            raise UserError(
                f"{self.directory / file.name} is damaged: its block {row:,} holds the id {tokens.max():,}, and the "
                f"vocabulary has {self.meta.vocab_size:,}. {_RESTORE}"
            )
        return tokens

    def _check_sizes(self) -> None:
        recorded = {file.name: file.num_blocks for file in self.meta.files}
        per_shard = self.meta.blocks_per_shard
        # Counted first: a wrong number of blocks could plan shards without an end.
        is_counted = not per_shard or -(-self.num_blocks // per_shard) == len(self.meta.shards)
        planned = self.meta.file_blocks() if per_shard and is_counted else recorded
        total = self.num_blocks + self.num_validation_blocks
        if not is_counted or planned != recorded or sum(recorded.values()) != total:
            raise UserError(
                f"{self.directory / META_NAME} contradicts itself: {self.num_blocks} blocks in shards of "
                f"{self.meta.blocks_per_shard} and {self.meta.val_blocks} validation blocks are not what its files "
                "hold. It was edited; restore it, or pack again with --overwrite."
            )
        for file in self.meta.files:
            path = self.directory / file.name
            size = path.stat().st_size if path.is_file() else None
            expected = self.meta.file_bytes(file.num_blocks)
            if size != expected:
                found = "is missing" if size is None else f"has {size:,} bytes"
                raise UserError(
                    f"{path} {found}, expected {expected:,} ({file.num_blocks:,} blocks of {self.meta.block_len} "
                    f"{self.meta.dtype} tokens). {_RESTORE}"
                )

    def __getstate__(self) -> dict[str, Any]:
        # A pickled memmap would carry the whole shard.
        return {**self.__dict__, "_maps": {}}
