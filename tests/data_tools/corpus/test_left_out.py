"""A pack of a source with bad records: how many it may have, where they are listed, and what an interruption costs."""

import gzip
import json
from pathlib import Path

import pytest

from data_tools.base.errors import UserError
from data_tools.build_pretrain import main
from data_tools.corpus import document_files, stretches
from data_tools.corpus.shards import PackedBlocks
from data_tools.corpus.text_source import FileSource, reading_order
from tests.support import packing
from tests.support.tokenizer_kinds import tokenizer_of

BAD_FIRST, BAD_LAST = 85, 95  # lines


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """One file with two bad lines, both behind what the first shards are made of, and a tokenizer."""
    texts = [json.dumps({"text": text}) for text in packing.make_documents(220)]
    texts[BAD_FIRST - 1], texts[BAD_LAST - 1] = "{", '{"text": null}'
    (tmp_path / "corpus.jsonl").write_text("\n".join(texts))
    packing.save_small_tokenizer(tmp_path / "tokenizer")
    return tmp_path


def test_they_are_counted_listed_and_cost_nothing_else(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packs = [
        packing.pack(root, source=root / "corpus.jsonl", pack_dir=root / f"{workers}", skip_bad=2, workers=workers)
        for workers in (1, 3)
    ]
    assert f"left out: {root}/corpus.jsonl, line {BAD_FIRST}: expected" in capsys.readouterr().out
    assert packing.bytes_of(packs[0]) == packing.bytes_of(packs[1])
    left_out = json.loads((packs[0] / "meta.json").read_text())["left_out"]
    assert [problem.split(":")[0].split("line ")[1] for problem in left_out] == [str(BAD_FIRST), str(BAD_LAST)]
    without = [line for line in (root / "corpus.jsonl").read_text().split("\n") if line not in ("{", '{"text": null}')]
    (root / "good.jsonl").write_text("\n".join(without))
    good = packing.pack(root, source=root / "good.jsonl")
    assert PackedBlocks(good).meta.fingerprint == PackedBlocks(packs[0]).meta.fingerprint


def test_what_a_pack_did_not_reach_is_not_listed(root: Path) -> None:
    pack = packing.pack(root, source=root / "corpus.jsonl", skip_bad=2, num_blocks=20)
    assert 0 < packing.BUFFER + PackedBlocks(pack).meta.num_documents < BAD_FIRST
    assert PackedBlocks(pack).meta.left_out == ()


def test_an_abort_names_the_flag_that_keeps_what_is_finished(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_tools.corpus.token_stream._BATCH_CHARACTERS", 400)
    with pytest.raises(UserError, match=rf"line {BAD_FIRST}: .*--skip_bad 1 .*keeps all that is finished"):
        packing.pack(root, source=root / "corpus.jsonl", workers=1)
    finished = {path: path.stat().st_mtime_ns for path in (root / "pack").glob("*.bin")}
    assert len(finished) >= 2
    with pytest.raises(UserError, match="--skip_bad 2"):
        packing.pack(root, source=root / "corpus.jsonl", skip_bad=1)
    packing.pack(root, source=root / "corpus.jsonl", skip_bad=2)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished


def test_a_corrected_file_costs_only_what_depends_on_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_tools.corpus.token_stream._BATCH_CHARACTERS", 200)
    corpus = packing.write_corpus(root / "corpus", packing.make_documents(240), num_files=8)
    paths = sorted(corpus.iterdir())
    order = reading_order(FileSource([str(corpus)]), packing.SEED)
    early, late = paths[order[0]], paths[order[3]]
    whole = late.read_bytes()
    late.write_bytes(gzip.compress(b"{\n" + gzip.decompress(whole)))
    with pytest.raises(UserError, match=r"--skip_bad 1 .*or correct the file"):
        packing.pack(root, workers=1)
    finished = {path: path.stat().st_mtime_ns for path in (root / "pack").glob("*.bin")}
    late.write_bytes(whole)
    changed = early.read_bytes()
    early.write_bytes(gzip.compress(gzip.decompress(changed) + b'{"text": "more"}\n'))
    with pytest.raises(UserError, match=r"an unfinished pack with other parameters .another source"):
        packing.pack(root, workers=1)
    early.write_bytes(changed)
    packing.pack(root, workers=1)
    assert len(finished) >= 2 and {path: path.stat().st_mtime_ns for path in finished} == finished
    assert packing.bytes_of(root / "pack") == packing.bytes_of(packing.pack(root, pack_dir=root / "again"))


def test_too_small_a_source_names_them_too(root: Path) -> None:
    with pytest.raises(UserError, match=rf"too small.*Left out: .*line {BAD_FIRST}: .*line {BAD_LAST}: "):
        packing.pack(root, source=root / "corpus.jsonl", skip_bad=2, num_blocks=1000)


def test_large_documents_are_listed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document_files, "MAX_DOCUMENT_BYTES", 1000)
    monkeypatch.setattr(stretches, "STRETCH", 201)
    monkeypatch.setattr(stretches, "OVERLAP", 61)
    rest = [{"text": text} for text in ["large " * 200, " " * 900, *packing.make_documents(200)]]
    (root / "corpus.jsonl").write_text("\n".join(map(json.dumps, rest)))
    tokenizer_of("byte-level BPE").save(root / "tokenizer")  # three spaces are a token
    pack = packing.pack(root, source=root / "corpus.jsonl", val_blocks=0, shuffle_buffer=1)
    left_out = PackedBlocks(pack).meta.left_out
    assert "line 1: a document of more than 1,000 bytes" in left_out[0]
    assert left_out[1:] == ("1 document so long and uniform that no place to cut was found.",)


def test_flags_of_files_need_files(tmp_path: Path) -> None:
    for flag in (["--text_field", "body"], ["--skip_bad", "1"]):
        with pytest.raises(UserError, match=r"--text_field and --skip_bad .*--source"):
            main(["--scratch_dir", str(tmp_path), *flag])
