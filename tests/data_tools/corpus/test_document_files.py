"""Which files a source consists of, how their records are read, and what is left out of them."""

import gzip
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow
import pytest
import zstandard

from data_tools.base.errors import UserError
from data_tools.corpus import document_files
from data_tools.corpus.text_source import FileSource, shuffled_documents

BOM = b"\xef\xbb\xbf"


def lines(*texts: object, field: str = "text") -> bytes:
    return b"".join(json.dumps({field: text}).encode() + b"\n" for text in texts)


def read_all(*arguments: object, **options: object) -> list[str]:
    source = FileSource([str(argument) for argument in arguments], **options)  # type: ignore[arg-type]
    return [text for part in range(source.num_parts) for text in source.read_part(part)]


def test_links_are_followed_once_and_keep_real_names(tmp_path: Path) -> None:
    for name in ("corpus/b/part", "archive/deep"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "corpus" / "b" / "part" / "x.jsonl").write_bytes(lines("inside"))
    before = FileSource([str(tmp_path / "corpus")]).sha256
    (tmp_path / "corpus" / "a").symlink_to("b")  # to what is found anyway
    (tmp_path / "corpus" / "b" / "up").symlink_to(tmp_path / "corpus")  # a loop
    assert FileSource([str(tmp_path / "corpus")]).sha256 == before
    (tmp_path / "archive" / "deep" / "y.jsonl").write_bytes(lines("outside"))
    (tmp_path / "archive" / "back").symlink_to(tmp_path / "corpus")
    (tmp_path / "corpus" / "old").symlink_to(tmp_path / "archive")
    (tmp_path / "z.jsonl").write_bytes(lines("file"))
    (tmp_path / "corpus" / "z.jsonl").symlink_to(tmp_path / "z.jsonl")
    for arguments in ([tmp_path / "corpus"], [f"{tmp_path}/corpus/*"], [tmp_path / "corpus", tmp_path / "archive"]):
        assert sorted(read_all(*arguments)) == ["file", "inside", "outside"]


def test_copies_of_one_file_are_refused_and_equal_texts_are_not(tmp_path: Path) -> None:
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "note.txt").write_text("a text")
        (tmp_path / folder / "empty.jsonl").touch()
    (tmp_path / "a" / "x.jsonl").write_bytes(lines("one"))
    (tmp_path / "b" / "y.jsonl").write_bytes(lines("two"))  # of the same size
    assert sorted(read_all(tmp_path / "a", tmp_path / "b")) == ["a text", "a text", "one", "two"]
    (tmp_path / "b" / "y.jsonl").write_bytes(lines("one"))
    with pytest.raises(UserError, match=r"a/x\.jsonl and .*b/y\.jsonl are equal.*Leave one out"):
        read_all(tmp_path / "a", tmp_path / "b")


def test_what_cannot_be_followed_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(lines("a"))
    (tmp_path / "y.jsonl").symlink_to(tmp_path / "gone.jsonl")
    with pytest.raises(UserError, match=r"y\.jsonl is a link to nothing"):
        read_all(tmp_path)


@pytest.mark.parametrize(
    ("name", "pack"),
    [("x.jsonl", bytes), ("x.json", bytes), ("x.json.gz", gzip.compress), ("x.jsonl.zst", zstandard.compress)],
)
def test_a_byte_order_mark_is_no_text(tmp_path: Path, name: str, pack: Callable[[bytes], bytes]) -> None:
    (tmp_path / name).write_bytes(pack(BOM + lines("a", "\ufeffb")))
    (tmp_path / "z.txt").write_bytes(BOM + b"c")
    assert read_all(tmp_path) == ["a", "\ufeffb", "c"]


def test_zstandard_frames_one_after_the_other(tmp_path: Path) -> None:
    frames = b"".join(zstandard.compress(lines(text)) for text in ("a", "b" * 3_000_000, "c"))
    (tmp_path / "x.jsonl.zst").write_bytes(frames)
    assert [text[0] for text in read_all(tmp_path)] == ["a", "b", "c"]


def test_another_field(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(lines("a", field="content"))
    pyarrow.parquet.write_table(pyarrow.table({"content": ["b"], "text": ["no"]}), tmp_path / "y.parquet")
    assert read_all(tmp_path, text_field="content") == ["a", "b"]
    by_text = FileSource([str(tmp_path)])
    assert by_text.sha256 != FileSource([str(tmp_path)], text_field="content").sha256
    with pytest.raises(UserError, match='expected a JSON object with a string "text"'):
        list(by_text.read_part(0))


def test_json_files_that_describe_the_documents_are_not_among_them(tmp_path: Path) -> None:
    (tmp_path / "c4-train.00000-of-01024.json").write_bytes(lines("a", "b"))
    (tmp_path / "one.json").write_bytes(lines("c"))
    (tmp_path / "dataset_info.json").write_text(json.dumps({"features": {"text": "string"}}, indent=2))
    (tmp_path / "list.json").write_text('["text"]')
    assert read_all(tmp_path) == ["a", "b", "c"]
    with pytest.raises(UserError, match="line 1"):
        read_all(tmp_path / "list.json")  # named: taken as asked


def test_directories_of_save_to_disk(tmp_path: Path) -> None:
    texts = [f"text {n}" for n in range(9)]
    whole = datasets.Dataset.from_dict({"url": ["u"] * 9, "text": texts})
    whole.select(range(8, -1, -1)).save_to_disk(str(tmp_path / "one"), num_shards=3)
    datasets.DatasetDict(train=whole, test=whole).save_to_disk(str(tmp_path / "several"))
    datasets.load_from_disk(str(tmp_path / "one")).map(lambda row: {"text": f"cached {row['text']}"})
    assert list((tmp_path / "one").glob("cache-*.arrow"))
    assert read_all(tmp_path / "one") == texts[::-1]
    assert read_all(tmp_path / "several" / "train") == texts


class TestBadRecords:
    @pytest.fixture
    def corpus(self, tmp_path: Path) -> Path:
        (tmp_path / "a.jsonl").write_bytes(lines("a1") + b"{\n" + lines(None, "a2", 7) + b'{"text": "\xff"}\n')
        pyarrow.parquet.write_table(pyarrow.table({"text": ["b1", None, "b2"]}), tmp_path / "b.parquet")
        (tmp_path / "c.txt").write_bytes(b"\xfe\xff")
        (tmp_path / "d.txt").write_bytes(b"d")
        return tmp_path

    def test_so_many_are_passed_over_and_no_more(self, corpus: Path) -> None:
        assert read_all(corpus, skip_bad=6) == ["a1", "a2", "b1", "b2", "d"]
        for allowed, place in ((0, "a.jsonl, line 2"), (1, "line 3"), (4, "b.parquet, row 2"), (5, "c.txt: expected")):
            with pytest.raises(UserError, match=rf"{place}.*bad record number {allowed + 1}.*--skip_bad {allowed + 1}"):
                read_all(corpus, skip_bad=allowed)

    def test_they_are_listed_by_what_had_been_read(self, corpus: Path) -> None:
        source = FileSource([str(corpus)], skip_bad=10)
        list(shuffled_documents(source, 0, 1))
        found = [[problem.split(": ")[0].split("/")[-1] for problem in source.left_out(n)] for n in range(6)]
        order = found[-1]
        assert sorted(order) == ["a.jsonl, line 2", "a.jsonl, line 3", "a.jsonl, line 5", "a.jsonl, line 6",
                                 "b.parquet, row 2", "c.txt"]  # fmt: skip
        assert found == [order[: len(names)] for names in found]

    def test_documents_beyond_the_stated_size_are_left_out_without_being_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(document_files, "MAX_DOCUMENT_BYTES", 100_000)
        large = "x" * 20_000_000
        (tmp_path / "a.jsonl").write_bytes(lines("a1", large, "a2") + lines(large)[:-1])
        (tmp_path / "b.txt.gz").write_bytes(gzip.compress(large.encode()))
        pyarrow.parquet.write_table(pyarrow.table({"text": ["c", "y" * 100_001]}), tmp_path / "c.parquet")
        tracemalloc.start()
        source = FileSource([str(tmp_path)])
        texts = list(shuffled_documents(source, 0, 1))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert sorted(texts) == ["a1", "a2", "c"] and peak < 8_000_000
        assert len(source.left_out(4)) == 4
        assert all("a document of more than 100,000 bytes" in problem for problem in source.left_out(4))
