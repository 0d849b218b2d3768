"""The packing command: its bytes, and what it refuses."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from data_tools.base.errors import UserError
from data_tools.build_pretrain import main
from data_tools.corpus.shards import PackedBlocks
from data_tools.corpus.text_source import FileSource, shuffled_documents
from data_tools.corpus.token_stream import TokenCursor, TokenStream
from data_tools.corpus.tokenizer import TextTokenizer, load_tokenizer
from tests.support import foreign_files, packing
from tests.support.file_systems import read_only
from tests.support.holding import holder_of
from tests.support.paths import REPOSITORY


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a corpus, a tokenizer and the pack made of them. Not to be changed."""
    root = tmp_path_factory.mktemp("packing")
    packing.write_corpus(root / "corpus", packing.make_documents(200))
    packing.save_small_tokenizer(root / "tokenizer")
    packing.pack(root)
    return root


def test_blocks_are_those_of_a_plain_reimplementation(root: Path) -> None:
    validation, training = packing.expected_rows(root / "corpus", load_tokenizer(str(root / "tokenizer")))
    blocks = PackedBlocks(root / "pack")
    np.testing.assert_array_equal([blocks.block(i) for i in range(blocks.num_blocks)], training)
    np.testing.assert_array_equal([blocks.validation_block(i) for i in range(packing.VAL_BLOCKS)], validation)
    raw = b"".join((root / "pack" / f"shard_{i:05d}.bin").read_bytes() for i in range(4))
    assert raw == training.astype("<u2").tobytes()


def test_meta_says_what_was_written(root: Path) -> None:
    meta = json.loads((root / "pack" / "meta.json").read_text())
    tokenizer = load_tokenizer(str(root / "tokenizer"))
    assert meta["tokenizer_sha256"] == tokenizer.fingerprint
    expected = {"seq_len": 32, "block_len": 33, "dtype": "uint16", "eos_id": 0, "num_blocks": 70, "num_tokens": 70 * 33,
                "seed": 3, "shuffle_buffer": 25, "vocab_size": tokenizer.vocab_size}  # fmt: skip
    assert {name: meta[name] for name in expected} == expected
    assert [shard["num_blocks"] for shard in meta["shards"]] == [20, 20, 20, 10]
    for file in [*meta["shards"], meta["validation"]]:
        content = (root / "pack" / file["name"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file["size"], file["sha256"])
    assert sorted(packing.bytes_of(root / "pack")) == [
        "meta.json", *(f"shard_{i:05d}.bin" for i in range(4)), "validation.bin"
    ]  # fmt: skip


def documents_in(pack: Path, tokenizer: TextTokenizer) -> tuple[list[str], list[str]]:
    """The numbers with which the documents begin that have tokens in validation.bin, and in the shards."""
    blocks = PackedBlocks(pack)
    numbers = []
    for row, count in ((blocks.validation_block, blocks.meta.val_blocks), (blocks.block, blocks.num_blocks)):
        tokens = np.concatenate([row(i) for i in range(count)])
        documents = [tokenizer.decode(part[part != 0]) for part in np.split(tokens, np.flatnonzero(tokens == 0) + 1)]
        numbers.append([text.split(" ")[0] for text in documents if text])
    return numbers[0], numbers[1]


def test_validation_documents_are_in_no_shard(root: Path) -> None:
    meta = PackedBlocks(root / "pack").meta
    validation, training = documents_in(root / "pack", load_tokenizer(str(root / "tokenizer")))
    assert not set(validation) & set(training)
    assert len(validation) == len(set(validation)) == meta.num_validation_documents
    assert len(training) == len(set(training)) == meta.num_documents


def test_halves_share_no_document(root: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(root / "tokenizer"))
    sizes = {"first": 30, "second": 30, "longer": 33}
    packs = {
        name: packing.pack(root, pack_dir=tmp_path / name, half=name.replace("longer", "first"), num_blocks=size)
        for name, size in sizes.items()
    }
    first, second, longer = (
        {number for part in documents_in(pack, tokenizer) for number in part} for pack in packs.values()
    )
    assert not first & second and not longer & second
    assert (packs["longer"] / "validation.bin").read_bytes() == (packs["first"] / "validation.bin").read_bytes()
    blocks, more = (PackedBlocks(packs[name]) for name in ("first", "longer"))
    np.testing.assert_array_equal([more.block(i) for i in range(30)], [blocks.block(i) for i in range(30)])
    with pytest.raises(UserError, match="half"):
        packing.pack(root, pack_dir=packs["first"], half="second", num_blocks=30)


def test_bytes_do_not_depend_on_workers_and_the_plain_script_runs(tmp_path: Path) -> None:
    packing.write_corpus(tmp_path / "corpus", packing.make_documents(2000))
    packing.save_small_tokenizer(tmp_path / "tokenizer")
    script = REPOSITORY / "data_tools" / "build_pretrain.py"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for workers in (1, 3):
        arguments = packing.pack_arguments(tmp_path, pack_dir=tmp_path / f"{workers}", workers=workers, num_blocks=900)
        subprocess.run([sys.executable, script, *arguments], check=True, cwd=tmp_path, env=environment, timeout=120)
    assert packing.bytes_of(tmp_path / "1") == packing.bytes_of(tmp_path / "3")


@pytest.mark.parametrize("batch_documents", [1, 3, 7, 1000])
def test_tokens_and_cursors_do_not_depend_on_batches(root: Path, batch_documents: int) -> None:
    tokenizer = load_tokenizer(str(root / "tokenizer"))
    documents = list(shuffled_documents(FileSource([str(root / "corpus")]), packing.SEED, packing.BUFFER))
    ids = [[*tokenizer.encode(text), tokenizer.eos_id] for text in documents]
    cursors = [TokenCursor(d, t) for d, tokens in enumerate(ids) for t in range(len(tokens))]
    row = np.concatenate(ids)
    for start in (0, 5, 1000, 2500):
        stream = TokenStream(iter(documents), tokenizer, cursors[start], batch_documents)
        position = start
        while len(tokens := stream.read(97)):
            np.testing.assert_array_equal(tokens, row[position : position + len(tokens)])
            position += len(tokens)
            assert stream.cursor == (cursors[position] if position < len(row) else TokenCursor(len(ids), 0))
        assert position == len(row)


def test_stream_reads_two_batches_ahead_for_each_worker(root: Path) -> None:
    taken = 0

    def pluralize() -> Iterator[str]:
        nonlocal taken
        for taken in range(1, 1001):
            yield f"document {taken}"

    stream = TokenStream(pluralize(), load_tokenizer(str(root / "tokenizer")), batch_documents=10, num_workers=2)
    while len(stream.read(10_000)):
        assert taken - stream.cursor.document <= 50
    assert stream.cursor == TokenCursor(1000, 0)


def test_large_vocabulary_is_packed_as_uint32(tmp_path: Path) -> None:
    vocabulary = {"<|endoftext|>": 0, **{f"w{i}": i for i in range(1, 70_000)}}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    TextTokenizer(backend, "<|endoftext|>", "words").save(tmp_path / "tokenizer")
    packing.write_corpus(tmp_path / "corpus", ["w65535 w65536 w69999 w1"], num_files=1)
    packing.pack(tmp_path, seq_len=4, num_blocks=1, val_blocks=0)
    blocks = PackedBlocks(tmp_path / "pack")
    assert (blocks.meta.dtype, (tmp_path / "pack" / "shard_00000.bin").stat().st_size) == ("uint32", 5 * 4)
    assert blocks.block(0).tolist() == [65535, 65536, 69999, 1, 0]
    assert blocks.num_validation_blocks == 0 and not (tmp_path / "pack" / "validation.bin").exists()


@pytest.mark.parametrize(
    ("num_documents", "message"),
    [(60, r"gave [1-6][0-9] of 70 blocks of 33 tokens, after 7 of 7"), (3, r"gave 0 of 70 .* after [0-6] of 7")],
)
def test_too_small_source_is_an_error_and_leaves_nothing(
    root: Path, tmp_path: Path, num_documents: int, message: str
) -> None:
    packing.write_corpus(tmp_path / "corpus", packing.make_documents(num_documents))
    with pytest.raises(UserError, match=message):
        packing.pack(tmp_path, tokenizer=root / "tokenizer")
    assert packing.bytes_of(tmp_path / "pack") == {}


def test_too_small_source_says_exactly_what_would_fit(tmp_path: Path, root: Path) -> None:
    packing.write_corpus(tmp_path / "corpus", packing.make_documents(60))
    with pytest.raises(UserError) as caught:
        packing.pack(tmp_path, tokenizer=root / "tokenizer")
    given = int(str(caught.value).split("gave ")[1].split(" ")[0])
    packing.pack(tmp_path, tokenizer=root / "tokenizer", num_blocks=given)
    with pytest.raises(UserError, match="too small"):
        packing.pack(tmp_path, tokenizer=root / "tokenizer", num_blocks=given + 1, pack_dir=tmp_path / "more")


def test_second_run_is_complete_and_other_parameters_are_refused(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack = packing.pack(root, pack_dir=tmp_path / "pack", num_blocks=30)
    before = packing.bytes_of(pack)
    packing.pack(root, pack_dir=pack, num_blocks=30)
    assert "already holds this pack" in capsys.readouterr().out
    other_corpus = packing.write_corpus(tmp_path / "corpus", packing.make_documents(210))
    for changes, message in (({"seed": 4}, "seed 3, not 4"), ({"source": other_corpus}, "another source")):
        with pytest.raises(UserError, match=f"other parameters .*{message}.*--overwrite"):
            packing.pack(root, pack_dir=pack, **{"num_blocks": 30, **changes})
    assert packing.bytes_of(pack) == before
    packing.pack(root, pack_dir=pack, overwrite=True)
    assert packing.bytes_of(pack) == packing.bytes_of(root / "pack")


def test_damaged_pack_is_refused_without_overwrite(root: Path, tmp_path: Path) -> None:
    pack = packing.pack(root, pack_dir=tmp_path / "pack")
    os.truncate(pack / "shard_00001.bin", 100)
    with pytest.raises(UserError, match=r"shard_00001.bin has 100 bytes, expected 1,320"):
        packing.pack(root, pack_dir=pack)
    packing.pack(root, pack_dir=pack, overwrite=True)
    assert packing.bytes_of(pack) == packing.bytes_of(root / "pack")
    (pack / "meta.json").write_text('{"num_blocks": 5, "tokenizer_sha256": ""}')
    with pytest.raises(UserError, match=r"is not the meta.json of a pack .*source_sha256: Field required"):
        packing.pack(root, pack_dir=pack)
    packing.pack(root, pack_dir=pack, overwrite=True)
    assert packing.bytes_of(pack) == packing.bytes_of(root / "pack")


@pytest.mark.parametrize("meta", [None, "{", "theirs"])
@pytest.mark.parametrize("changes", [{}, {"overwrite": True}])
def test_shards_of_another_origin_are_never_replaced(
    root: Path, tmp_path: Path, meta: str | None, changes: dict[str, bool]
) -> None:
    theirs = foreign_files.write_pack(tmp_path / "pack", (5, 3), 300)
    if meta is None:
        (theirs / "meta.json").unlink()
    elif meta != "theirs":
        (theirs / "meta.json").write_text(meta)
    before = foreign_files.files_of(theirs)
    messages = {
        None: "holds shard_00000.bin and no meta.json",
        "{": "meta.json does not show which program",
        "theirs": "data_tools.adopt .*pack --scratch_dir",
    }
    with pytest.raises(UserError, match=rf"{messages[meta]}.*another --pack_dir"):
        packing.pack(root, pack_dir=theirs, **changes)
    assert foreign_files.files_of(theirs) == before
    if meta == "theirs":
        with pytest.raises(UserError, match=r"data_tools.adopt") as caught:
            PackedBlocks(theirs)
        assert "overwrite" not in str(caught.value)


def test_two_packers_of_one_directory_are_kept_apart(root: Path, tmp_path: Path) -> None:
    holder = holder_of(tmp_path)
    with pytest.raises(UserError, match=f"in use by process {holder.pid} on"):
        packing.pack(root, pack_dir=tmp_path)
    holder.communicate()


def test_a_complete_pack_may_be_on_a_read_only_disk(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack, begun = tmp_path / "pack", tmp_path / "begun"
    shutil.copytree(root / "pack", pack)
    begun.mkdir()
    with read_only(tmp_path):
        packing.pack(root, pack_dir=pack)
        assert "already holds this pack, complete" in capsys.readouterr().out
        with pytest.raises(UserError, match="other parameters"):
            packing.pack(root, pack_dir=pack, seed=99)
        for directory, more in ((begun, {}), (pack, {"overwrite": True})):
            with pytest.raises(UserError, match=f"cannot write to {directory} .*make it writable, or choose another"):
                packing.pack(root, pack_dir=directory, **more)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_blocks", "3"], "--scratch_dir"),
        (["--scratch_dir", "s", "--num_blocks", "3", "--total_steps", "3"], "set the number of blocks"),
        (["--scratch_dir", "s", "--tokenizer", "no/such/tokenizer.json"], "no such file"),
    ],
)
def test_contradicting_arguments(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        main(arguments)


def test_steps_times_batch_blocks_go_below_the_scratch_directory(root: Path, tmp_path: Path) -> None:
    arguments = packing.pack_arguments(root)
    at = arguments.index("--num_blocks")
    arguments[at : at + 2] = ["--total_steps", "7", "--effective_batch", "5"]
    arguments[:2] = ["--scratch_dir", str(tmp_path)]
    main(arguments)
    assert PackedBlocks(tmp_path / "data" / "c4_packed").num_blocks == 35


def test_a_disk_without_room_is_reported_before_packing(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="MB are free"):
        packing.pack(root, pack_dir=tmp_path / "pack", num_blocks=10**15)
