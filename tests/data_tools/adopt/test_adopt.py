"""What other programs wrote becomes usable here, checked, and stays as it is."""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_tools.adopt.__main__ import main
from data_tools.base.errors import UserError
from data_tools.corpus.shards import PackedBlocks
from data_tools.corpus.tokenizer import load_tokenizer
from data_tools.inspect import __main__ as inspect
from data_tools.search.splits import Splits, find_data_dir
from tests.support import foreign_files, packing, tiny

NUM_IDS = 300  # of packing's small tokenizer


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scratch directory of theirs, a tokenizer and a model's configuration. Not to be changed."""
    root = tmp_path_factory.mktemp("theirs")
    packing.save_small_tokenizer(root / "tokenizer")
    tiny.write_model(root / "model")
    scratch = root / "scratch"
    foreign_files.write_splits(scratch)
    foreign_files.write_pack(scratch / "data" / "c4_packed", (60, 60, 40), NUM_IDS)
    foreign_files.write_pack(scratch / "data" / "c4_tokenized", (54, 52, 52, 2), NUM_IDS)
    foreign_files.write_checkpoint(scratch / "pptrain/checkpoints/step_00000200", "train_state.json")
    trainer = foreign_files.write_checkpoint(scratch / "trainer/checkpoint-100", "trainer_state.json")
    shutil.copy(root / "model" / "config.json", trainer)
    for path in (root / "tokenizer").iterdir():
        shutil.copy(path, trainer)
    return root


def adopt(theirs: Path, scratch: Path, *flags: str, source: str = "scratch") -> Path:
    given = ["--tokenizer", str(theirs / "tokenizer"), "--model_name", str(theirs / "model")]
    main([str(theirs / source), "--scratch_dir", str(scratch), *given, *flags])
    return scratch


@pytest.mark.parametrize("flags", [[], ["--copy"]])
def test_all_of_it_is_adopted_and_stays_as_it_is(theirs: Path, tmp_path: Path, flags: list[str]) -> None:
    before = foreign_files.files_of(theirs)
    scratch = adopt(theirs, tmp_path / "scratch", *flags)
    assert foreign_files.files_of(theirs) == before
    assert sorted(str(path.relative_to(scratch)) for path in [*scratch.glob("data/*"), *scratch.glob("adopted/*")]) == [
        "adopted/pptrain_step_00000200", "adopted/trainer_checkpoint-100", "data/c4_packed", "data/c4_tokenized",
        "data/nl_splits",
    ]  # fmt: skip
    links = [path for path in scratch.rglob("*") if path.is_symlink()]
    assert bool(links) == (not flags)
    assert all(path.resolve().is_relative_to(theirs) for path in links)


def test_splits_get_what_their_texts_say(theirs: Path, tmp_path: Path) -> None:
    splits = Splits(find_data_dir(adopt(theirs, tmp_path)))
    assert (splits.meta.max_lookahead, splits.meta.generator.name) == (8, None)
    assert {name: len(splits.rows(name)) for name in ("eval", "test", "mixin")} == {"eval": 20, "test": 10, "mixin": 40}
    original = [json.loads(line) for line in (theirs / "scratch" / foreign_files.SPLITS / "test.jsonl").open()]
    assert list(splits.rows("test")) == [row | {"lookahead": 1, "num_edges": 4} for row in original]
    assert len(splits.reserved_digests()) == 70


@pytest.mark.parametrize("name", ["c4_packed", "c4_tokenized"])
def test_blocks_are_read_in_their_order_and_the_last_are_held_out(theirs: Path, tmp_path: Path, name: str) -> None:
    pack = adopt(theirs, tmp_path) / "data" / name
    blocks = PackedBlocks(pack)
    blocks.verify()
    paths = sorted((theirs / "scratch" / "data" / name).glob("*.bin"))
    expected = np.concatenate([np.fromfile(path, "<u2") for path in paths]).reshape(-1, foreign_files.SEQ_LEN + 1)
    assert (blocks.num_blocks, blocks.num_validation_blocks) == (144, 16)
    np.testing.assert_array_equal([blocks.block(i) for i in range(144)], expected[:144])
    np.testing.assert_array_equal([blocks.validation_block(i) for i in range(16)], expected[144:])
    meta = json.loads((pack / "meta.json").read_text())
    assert meta["source"]["validation"] == "the last 16 blocks"
    assert meta["source"]["adopted_from"] == str(theirs / "scratch" / "data" / name)
    assert meta["tokenizer_sha256"] == load_tokenizer(str(theirs / "tokenizer")).fingerprint


def test_blocks_are_shown(theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack = adopt(theirs, tmp_path) / "data" / "c4_tokenized"
    inspect.main(["shards", "--pack_dir", str(pack), "--index", "107"])
    assert "c4 block 107 of 144" in (shown := capsys.readouterr().out) and "shard_00002.bin, row 1:" in shown


def test_checkpoints_become_hugging_face_directories(theirs: Path, tmp_path: Path) -> None:
    adopted = adopt(theirs, tmp_path) / "adopted"
    for name in ("pptrain_step_00000200", "trainer_checkpoint-100"):
        names = {path.name for path in (adopted / name).iterdir()}
        assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
        assert json.loads((adopted / name / "config.json").read_text())["vocab_size"] == foreign_files.VOCAB


def test_their_own_scratch_directory_takes_ours_beside(theirs: Path, tmp_path: Path) -> None:
    scratch = shutil.copytree(theirs / "scratch", tmp_path / "scratch")
    before = foreign_files.files_of(scratch)
    given = ["--tokenizer", str(theirs / "tokenizer"), "--model_name", str(theirs / "model")]
    main([str(scratch), "--scratch_dir", str(scratch), *given])
    assert before.items() <= foreign_files.files_of(scratch).items()
    assert find_data_dir(scratch).name == "mis48_look8_seed12345_adopted"
    assert PackedBlocks(scratch / "data" / "c4_packed_adopted").num_blocks == 144


def test_adopting_twice_and_nothing_are_refused(theirs: Path, tmp_path: Path) -> None:
    adopt(theirs, tmp_path)
    with pytest.raises(UserError, match=r"(?s)5 problems:(.*which exists){5}"):
        adopt(theirs, tmp_path)
    with pytest.raises(UserError, match="nothing to adopt"):
        adopt(theirs, tmp_path, source="tokenizer")
    with pytest.raises(UserError, match="is not a directory"):
        adopt(theirs, tmp_path, source="absent")


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 10)


def _append_row(directory: Path, **changes: object) -> None:
    """A changed copy of the first row of eval as the last of test, in a file that meta.json describes."""
    shutil.rmtree(directory)
    scratch = directory.parents[2]
    foreign_files.write_splits(scratch)
    row = json.loads((directory / "eval.jsonl").read_text().splitlines()[0]) | changes
    path = directory / "test.jsonl"
    path.write_text(path.read_text() + json.dumps(row) + "\n")
    meta = json.loads((directory / "meta.json").read_text())
    meta["splits"]["test"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (directory / "meta.json").write_text(json.dumps(meta))


SPLITS, PACK, STEP = foreign_files.SPLITS, "data/c4_packed", "pptrain/checkpoints/step_00000200"


@pytest.mark.parametrize(
    ("place", "spoil", "message"),
    [
        (SPLITS, lambda path: _cut(path / "mixin.jsonl"), "mixin.jsonl is not the file that meta.json"),
        (SPLITS, lambda path: (path / "eval.jsonl").unlink(), "eval.jsonl is not the file that meta.json"),
        (SPLITS, lambda path: _append_row(path), "test.jsonl, line 11: its prompt is in eval too"),
        (SPLITS, lambda path: _append_row(path, output_texts=["odder"]), "line 11: output_texts .* do not lead to"),
        (SPLITS, lambda path: _append_row(path, input_text="x"), "line 11: not a search prompt"),
        (SPLITS, lambda path: _append_row(path, output_texts=5), "line 11: not a row of data splits"),
        (PACK, lambda path: _cut(path / "shard_00001.bin"), "shard_00001.bin has 3,950 bytes: expected whole blocks"),
        (PACK, lambda path: (path / "shard_00002.bin").unlink(), "shard_00002.bin has 0 bytes"),
        (STEP, lambda path: _cut(path / "model.safetensors"), "model.safetensors has .* bytes, expected"),
        (STEP, lambda path: (path / "model.safetensors").write_bytes(b"PK"), "is no file of safetensors"),
    ],
)
def test_what_is_damaged_is_refused_whole(
    theirs: Path, tmp_path: Path, place: str, spoil: object, message: str
) -> None:
    shutil.copytree(theirs / "scratch" / place, tmp_path / "theirs" / place)
    spoil(tmp_path / "theirs" / place)  # type: ignore[operator]
    with pytest.raises(UserError, match=message):
        adopt(theirs, tmp_path / "ours", source=str(tmp_path / "theirs"))
    assert not [path for path in (tmp_path / "ours").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], r"3 problems:(.*tokenizer ){2}.*step_00000200 holds weights without a config.json: give --model_name"),
        (["--tokenizer", "T"], r"step_00000200 holds weights without a config.json: give --model_name"),
        (["--tokenizer", "T", "--model_name", "pythia-160m"], r"embeddings of the shapes .*configuration \[50304, 768"),
        (["--tokenizer", "T", "--model_name", "absent"], r"--model_name absent: no such preset"),
    ],
)
def test_what_is_missing_is_asked_for_before_anything_is_written(
    theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], message: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    given = [str(theirs / "tokenizer") if flag == "T" else flag for flag in flags]
    with pytest.raises(UserError, match="(?s)" + message):
        main([str(theirs / "scratch"), "--scratch_dir", str(tmp_path / "ours"), *given])
    assert not (tmp_path / "ours").exists()


def test_other_tasks_and_ids_of_another_tokenizer_are_refused(theirs: Path, tmp_path: Path) -> None:
    foreign_files.write_splits(tmp_path / "dfs", task="dfs")
    foreign_files.write_pack(tmp_path / "ids" / "pack", (20,), 5000)
    for name, message in (("dfs", "of the task 'dfs'; only 'search'"), ("ids", r"holds the id \d+, and .* has 300")):
        with pytest.raises(UserError, match=message):
            adopt(theirs, tmp_path / "ours", source=str(tmp_path / name))


@pytest.mark.parametrize("place", [SPLITS, PACK])
def test_no_wrong_value_in_meta_is_more_than_a_message(theirs: Path, tmp_path: Path, place: str) -> None:
    source = shutil.copytree(theirs / "scratch" / place, tmp_path / "theirs")
    meta = json.loads((source / "meta.json").read_text())
    for name, value in itertools.product(meta, (None, -1, 10**30, 0.5, True, "x", [], {}, [1])):
        (source / "meta.json").write_text(json.dumps(meta | {name: value}))
        with contextlib.suppress(UserError):
            adopt(theirs, tmp_path / "ours" / f"{name} {value}", source=str(source))


@pytest.mark.parametrize(
    "header", [b"[]", b'{"a": 5}', b'{"a": {"data_offsets": [0, "x"], "shape": []}}', b"{", b"\xff"]
)
@pytest.mark.parametrize("length", [None, 0, 2**63])
def test_no_wrong_header_of_weights_is_more_than_a_message(
    theirs: Path, tmp_path: Path, header: bytes, length: int | None
) -> None:
    checkpoint = foreign_files.write_checkpoint(tmp_path / "theirs" / "step", "train_state.json")
    size = len(header) if length is None else length
    (checkpoint / "model.safetensors").write_bytes(size.to_bytes(8, "little") + header)
    with pytest.raises(UserError, match="no file of safetensors"):
        adopt(theirs, tmp_path / "ours", source=str(checkpoint))


def test_shards_that_meta_does_not_count_are_refused(theirs: Path, tmp_path: Path) -> None:
    foreign_files.write_pack(tmp_path / "theirs", (5, 5, 5), NUM_IDS, num_shards=2)
    with pytest.raises(UserError, match=r"holds more shards than the 2 of its meta\.json"):
        adopt(theirs, tmp_path / "ours", source=str(tmp_path / "theirs"))
