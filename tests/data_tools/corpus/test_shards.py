"""Reading packed blocks: what is refused, and that readers may be forked and pickled."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_tools.base.errors import UserError
from data_tools.corpus.shards import PackedBlocks, token_dtype
from tests.support import packing


@pytest.fixture(scope="module")
def whole_pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    packing.write_corpus(root / "corpus", packing.make_documents(200))
    packing.save_small_tokenizer(root / "tokenizer")
    return packing.pack(root)


@pytest.fixture
def pack(whole_pack: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole_pack, tmp_path / "pack"))


def edit_meta(pack: Path, **changes: object) -> None:
    meta = json.loads((pack / "meta.json").read_text())
    (pack / "meta.json").write_text(json.dumps({**meta, **changes}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: os.truncate(p / "shard_00002.bin", 1319), r"shard_00002.bin has 1,319 bytes, expected 1,320"),
        (lambda p: os.truncate(p / "shard_00003.bin", 661), r"shard_00003.bin has 661 bytes, expected 660"),
        (lambda p: (p / "validation.bin").unlink(), r"validation.bin is missing, expected 462 \(7 blocks of 33 uint16"),
        (lambda p: (p / "meta.json").unlink(), r"no packed blocks: .* has no meta.json.*build_pretrain"),
        (lambda p: shutil.rmtree(p), r"no packed blocks: .* does not exist.*build_pretrain"),
        (lambda p: (p / "meta.json").rename(p / "meta.in_progress.json"), "unfinished pack"),
        (lambda p: (p / "meta.json").write_text("{"), "not the meta.json of a pack"),
        (lambda p: edit_meta(p, num_blocks=90), "contradicts itself"),
    ],
)  # fmt: skip
def test_damaged_packs_are_refused_at_opening(pack: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(pack)
    with pytest.raises(UserError, match=message):
        PackedBlocks(pack)


def test_verify_finds_a_flipped_bit(pack: Path) -> None:
    PackedBlocks(pack).verify()
    content = bytearray((pack / "shard_00002.bin").read_bytes())
    content[7] ^= 4
    (pack / "shard_00002.bin").write_bytes(content)
    with pytest.raises(UserError, match=r"shard_00002.bin is damaged: SHA-256"):
        PackedBlocks(pack).verify()


def test_ids_beyond_the_vocabulary_are_refused(pack: Path) -> None:
    blocks = PackedBlocks(pack)
    blocks.check_ids()
    content = bytearray((pack / "shard_00002.bin").read_bytes())
    content[66:68] = b"\xff\xff"  # in its second block
    (pack / "shard_00002.bin").write_bytes(content)
    with pytest.raises(UserError, match=r"shard_00002\.bin is damaged: its block 1 holds the id 65,535"):
        for index in range(blocks.num_blocks):
            blocks.block(index)
    (pack / "shard_00000.bin").write_bytes(b"\xff" * len((pack / "shard_00000.bin").read_bytes()))
    with pytest.raises(UserError, match=r"shard_00000\.bin is damaged: its block 0 holds the id 65,535"):
        PackedBlocks(pack).check_ids()


def test_blocks_are_writable_int64_copies_in_range(pack: Path) -> None:
    blocks = PackedBlocks(pack)
    first = blocks.block(0)
    assert first.shape == (33,) and first.dtype == np.int64
    first[:] = -1
    assert (blocks.block(0) >= 0).all()
    for index in (-1, 70):
        with pytest.raises(IndexError):
            blocks.block(index)
    for index in (-1, 7):
        with pytest.raises(IndexError):
            blocks.validation_block(index)


def test_reader_survives_pickling_and_forking_without_carrying_the_data(pack: Path) -> None:
    blocks = PackedBlocks(pack)
    expected = [blocks.block(i).tolist() for i in range(70)]
    pickled = pickle.dumps(blocks)
    assert len(pickled) < 4000
    assert pickle.loads(pickled).block(65).tolist() == expected[65]
    child = os.fork()
    if child == 0:
        os._exit(0 if [blocks.block(i).tolist() for i in range(70)] == expected else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_fingerprint_follows_the_training_blocks(whole_pack: Path, pack: Path) -> None:
    assert PackedBlocks(pack).meta.fingerprint == PackedBlocks(whole_pack).meta.fingerprint
    shards = json.loads((pack / "meta.json").read_text())["shards"]
    shards[3]["sha256"] = "0" * 64
    edit_meta(pack, shards=shards)
    assert PackedBlocks(pack).meta.fingerprint != PackedBlocks(whole_pack).meta.fingerprint


def test_dtype_follows_the_number_of_ids() -> None:
    assert [token_dtype(size) for size in (50_277, 65_535, 65_536)] == ["uint16", "uint16", "uint32"]
