"""Packed blocks of the Accelerate scripts: shards that may differ in length, and no validation blocks."""

import hashlib
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.adopt.plan import Adoption, Options, beside, take
from data_tools.base.errors import UserError
from data_tools.base.files import sha256_of_file, whole_file
from data_tools.base.foreign import number_of, read_object
from data_tools.corpus.shards import (
    META_NAME,
    VALIDATION_NAME,
    PackedFile,
    PackMeta,
    little_endian,
    shard_name,
)
from data_tools.corpus.tokenizer import TextTokenizer, load_tokenizer

_VAL_BLOCKS = 256
_ABSENT = {"shuffle_seed": 0, "seed": 0, "shuffle_buffer": 0}  # each of the two packers records other ones
_BLOCKS_AT_ONCE = 4096  # read together
_PADDED_TO = 512  # ids: models have some more than their tokenizers


def plan_pack(source: Path, options: Options) -> Adoption:
    """Check the shards' sizes and the tokens in them.

    Raises:
        UserError: a shard is missing or cut, has ids beyond the tokenizer's, or there is no tokenizer.
    """
    meta = read_object(source / META_NAME)
    names = ("seq_len", "block_len", "num_shards", "shuffle_seed", "seed", "shuffle_buffer")
    numbers = {name: number_of(_ABSENT | meta, name, source / META_NAME) for name in names}
    if meta.get("dtype") != "uint16" or numbers["block_len"] != numbers["seq_len"] + 1:
        raise UserError(f"{source / META_NAME}: expected dtype uint16 and a block_len of seq_len + 1.")
    name = options.tokenizer or meta.get("tokenizer") or meta.get("model_name")
    if not isinstance(name, str):
        raise UserError(f"{source / META_NAME} names no tokenizer: give --tokenizer.")
    tokenizer = load_tokenizer(name)
    if len(list(source.glob("shard_*.bin"))) > numbers["num_shards"]:
        raise UserError(f"{source} holds more shards than the {numbers['num_shards']} of its {META_NAME}.")
    places = (source / shard_name(number) for number in range(numbers["num_shards"]))
    shards = [_blocks_of(path, numbers["block_len"]) for path in places]
    num_blocks = sum(map(len, shards))
    if num_blocks < 2:
        raise UserError(f"{source} holds {num_blocks} blocks: too few to keep one for validation.")
    padded = -(-tokenizer.vocab_size // _PADDED_TO) * _PADDED_TO
    for number, blocks in enumerate(shards):
        if (largest := _largest(blocks)) >= padded:
            raise UserError(
                f"{source / shard_name(number)} holds the id {largest}, and {name} has {tokenizer.vocab_size}: give "
                "the tokenizer it was packed with as --tokenizer."
            )
    target = beside(options.scratch_dir / "data" / source.name, source)
    num_held_out = max(1, min(_VAL_BLOCKS, num_blocks // 10))
    fill = partial(_fill, source, meta, tokenizer, shards, num_blocks - num_held_out, options.copy)
    usage = (
        f"Give pretrain --pack_dir {target} --seq_len {numbers['seq_len']}. Of its {num_blocks} blocks the last "
        f"{num_held_out} are held out for validation."
    )
    return Adoption(source, target, fill, usage)


def _blocks_of(path: Path, block_len: int) -> np.ndarray:
    """The (blocks, block_len) of a shard, mapped."""
    size = path.stat().st_size if path.is_file() else 0
    if not size or size % (2 * block_len):
        raise UserError(f"{path} has {size:,} bytes: expected whole blocks of {block_len} uint16. Copy it again.")
    return np.memmap(path, little_endian("uint16"), mode="r").reshape(-1, block_len)


def _largest(blocks: np.ndarray) -> int:
    return max(int(blocks[at : at + _BLOCKS_AT_ONCE].max()) for at in range(0, len(blocks), _BLOCKS_AT_ONCE))


def _fill(
    source: Path,
    meta: dict[str, Any],
    tokenizer: TextTokenizer,
    shards: list[np.ndarray],
    num_training: int,
    copy: bool,
    directory: Path,
) -> None:
    files: list[PackedFile] = []
    held_out: list[np.ndarray] = []
    num_eos = [0, 0]
    remaining = num_training
    for number, blocks in enumerate(shards):
        kept, rest = blocks[:remaining], blocks[remaining:]
        remaining -= len(kept)
        if not len(rest):
            take(source / shard_name(number), directory, copy)
        elif len(kept):
            _write(directory / shard_name(number), [kept])
        held_out.append(rest)
        num_eos = [n + int((part == tokenizer.eos_id).sum()) for n, part in zip(num_eos, (kept, rest), strict=True)]
        if len(kept):
            files.append(_recorded(directory / shard_name(number), len(kept)))
    _write(directory / VALIDATION_NAME, held_out)
    num_held_out = sum(map(len, held_out))
    adopted = PackMeta(
        source_sha256=hashlib.sha256((source / META_NAME).read_bytes()).hexdigest(),
        tokenizer_sha256=tokenizer.fingerprint,
        eos_id=tokenizer.eos_id,
        vocab_size=tokenizer.vocab_size,
        dtype="uint16",
        seq_len=shards[0].shape[1] - 1,
        num_blocks=num_training,
        blocks_per_shard=0,
        val_blocks=num_held_out,
        seed=meta.get("shuffle_seed", meta.get("seed", 0)),
        shuffle_buffer=meta.get("shuffle_buffer", 0),
        source={"adopted_from": str(source.resolve()), "validation": f"the last {num_held_out} blocks", "meta": meta},
        tokenizer=tokenizer.name,
        num_documents=num_eos[0],
        num_validation_documents=num_eos[1],
        shards=tuple(files),
        validation=_recorded(directory / VALIDATION_NAME, num_held_out),
        versions={name: version(name) for name in ("numpy", "tokenizers")},
    )
    adopted.write(directory)


def _write(path: Path, parts: list[np.ndarray]) -> None:
    with whole_file(path) as file:
        for part in parts:
            file.write(np.ascontiguousarray(part).data)


def _recorded(path: Path, num_blocks: int) -> PackedFile:
    return PackedFile(path.name, num_blocks, path.stat().st_size, sha256_of_file(path))
