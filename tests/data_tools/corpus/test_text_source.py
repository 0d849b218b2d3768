"""Every form of source gives the same documents, and the shuffle is seeded, whole and buffered."""

import gzip
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from data_tools.base.errors import UserError
from data_tools.corpus import text_source
from data_tools.corpus.document_files import SUFFIXES
from data_tools.corpus.text_source import FileSource, HubSource, buffer_shuffle, shuffled_documents
from tests.support import packing

DOCUMENTS = ["first\nof two lines", "zweites – mit Umlaut ü", "separators \u2028 and \x85 stay", "{not json}", "last"]


def json_lines(documents: list[str]) -> bytes:
    return "".join(json.dumps({"text": text, "url": "u"}) + "\n" for text in documents).encode()


ZST = zstandard.ZstdCompressor().compress(json_lines(DOCUMENTS))


def write(directory: Path, kind: str) -> Path:
    """DOCUMENTS as files of a kind."""
    directory.mkdir()
    pack = {"gz": gzip.compress, "zst": zstandard.ZstdCompressor().compress}.get(kind.split(".")[-1], bytes)
    if kind.startswith(".txt"):
        for number, text in enumerate(DOCUMENTS):
            (directory / f"{number}{kind}").write_bytes(pack(text.encode()))
    elif kind in (".parquet", ".arrow"):
        table = pyarrow.table({"url": ["u"] * len(DOCUMENTS), "text": DOCUMENTS})
        if kind == ".parquet":
            pyarrow.parquet.write_table(table, directory / "part.parquet")
        else:
            with pyarrow.ipc.new_stream(directory / "part.arrow", table.schema) as file:
                file.write_table(table)
    else:
        (directory / f"part{kind}").write_bytes(pack(json_lines(DOCUMENTS)))
    return directory


def read_all(source: text_source.DocumentSource) -> list[str]:
    return [text for part in range(source.num_parts) for text in source.read_part(part)]


@pytest.mark.parametrize("kind", SUFFIXES)
def test_each_kind_of_file(tmp_path: Path, kind: str) -> None:
    assert read_all(FileSource([str(write(tmp_path / "data", kind))])) == DOCUMENTS


def test_directories_patterns_and_lists_name_the_same_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path / "data", ".txt")
    (root / "README.md").write_text("not a document")
    (root / ".hidden").mkdir()
    (root / ".hidden" / "0.txt").write_text("not a document either")
    moved = shutil.copytree(root, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    lists = [[str(root)], ["data"], ["data/*.txt"], [f"../{tmp_path.name}/d*/[0-9].txt"], [f"{moved}/*.txt"]]
    sources = [FileSource(arguments) for arguments in lists]
    sources.append(FileSource([f"data/{n}.txt" for n in (4, 2, 3, 0, 1)] + [str(root)]))
    for source in sources:
        assert read_all(source) == DOCUMENTS
        assert source.sha256 == sources[0].sha256
    (moved / "2.txt").write_text("another size")
    assert FileSource([str(moved)]).sha256 != sources[0].sha256


def test_nested_directories_are_searched(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write(tmp_path / "a" / "b", ".jsonl")
    assert read_all(FileSource([str(tmp_path)])) == DOCUMENTS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b'{"text": "a"}\n\n{"txt": "b"}\n', 'x.jsonl, line 3: expected .*"text"'),
        ("x.jsonl", b'{"text": "a"}\n{"text": 5}\n', "x.jsonl, line 2"),
        ("x.jsonl", b'["a"]\n', "x.jsonl, line 1"),
        ("x.jsonl", b'{"text": "cut o', "x.jsonl, line 1"),
        ("x.jsonl", b'{"text": "\xff"}\n', "x.jsonl, line 1"),
        ("x.jsonl", b'{"text": null}\n', "x.jsonl, line 1: expected .*got .*null.*--skip_bad 1"),
        ("x.jsonl", b"[" * 10**6, "x.jsonl, line 1"),
        ("x.json", b'[{"text": "a"}, {"text": "b"}]', "x.json, line 1"),
        ("x.txt", b"\xff", "x.txt: expected UTF-8"),
        ("x.json.gz", b"plain", "cannot read .*x.json.gz"),
        ("x.json.gz", gzip.compress(json_lines(DOCUMENTS * 99))[:-9], "cannot read .*x.json.gz .EOFError"),
        ("x.jsonl.zst", b"plain", "cannot read .*x.jsonl.zst .ZstdError"),
        ("x.jsonl.zst", ZST[:-1], "cannot read .*x.jsonl.zst .EOFError: the file was cut"),
        ("x.jsonl.zst", ZST + ZST[:9], "cannot read .*x.jsonl.zst .EOFError: the file was cut"),
        ("x.txt.zst", ZST[:5], "cannot read .*x.txt.zst .EOFError: the file was cut"),
        ("x.parquet", b"plain", "cannot read .*x.parquet"),
        ("x.arrow", b"plain", "cannot read .*x.arrow"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_all(FileSource([str(tmp_path)]))


@pytest.mark.parametrize(
    ("column", "message"), [("body", 'no column "text", only body'), ("text", "row 1: expected a")]
)
def test_parquet_without_text(tmp_path: Path, column: str, message: str) -> None:
    pyarrow.parquet.write_table(pyarrow.table({column: [1, 2]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=message):
        read_all(FileSource([str(tmp_path)]))


def test_sources_that_match_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("x")
    os.mkfifo(tmp_path / "pipe.jsonl")
    for argument, message in (("", "holds no file"), ("/*.txt", "matches no file"), ("/notes.md", "unknown kind"),
                           ("/absent.jsonl", "does not exist"), ("/pipe.jsonl", "is no regular file")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            FileSource([f"{tmp_path}{argument}"])


def test_empty_documents_and_lone_surrogates(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(rb'{"text": "a\ud800b"}' + b'\n{"text": ""}\n' + rb'{"text": "\ud83d\ude00"}')
    assert list(shuffled_documents(FileSource([str(tmp_path)]), 0, 1)) == ["a?b", "😀"]


def test_shuffle_is_whole_seeded_and_fixed_for_good() -> None:
    numbers = [str(n) for n in range(100)]

    def shuffled(seed: int, size: int) -> list[str]:
        return list(buffer_shuffle(iter(numbers), seed, size))

    assert sorted(shuffled(0, 10)) == sorted(shuffled(0, 1000)) == sorted(numbers)
    assert shuffled(0, 10) == shuffled(0, 10) != shuffled(1, 10)
    assert shuffled(0, 1) == numbers
    # Recorded: packs made by earlier versions must stay reproducible.
    assert shuffled(0, 10)[:12] == ["0", "5", "3", "11", "8", "10", "15", "2", "12", "1", "7", "6"]


def test_shuffle_holds_no_more_than_its_buffer() -> None:
    taken = 0

    def pluralize() -> Iterator[str]:
        nonlocal taken
        for taken in range(1, 1001):
            yield str(taken)

    for yielded, _ in enumerate(buffer_shuffle(pluralize(), 0, 20), start=1):
        assert taken - yielded <= 20


def test_shuffle_reaches_evenly_over_the_buffer() -> None:
    """The first document out is each of the first ``size`` ones equally often (chi-square, 9 degrees, p > 0.001)."""
    counts = [0] * 10
    for seed in range(2000):
        counts[int(next(buffer_shuffle(map(str, range(11)), seed, 10)))] += 1
    assert sum((count - 200) ** 2 / 200 for count in counts) < 27.9


def test_parts_are_read_in_a_seeded_order(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"{number:02d}.txt").write_text(str(number))
    orders = {seed: tuple(shuffled_documents(FileSource([str(tmp_path)]), seed, 1)) for seed in range(3)}
    assert len(set(orders.values())) == 3 and {len(set(order)) for order in orders.values()} == {30}


class TestHub:
    """C4 from the Hub, with the Hub replaced by local files in its form."""

    @pytest.fixture
    def asked(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        packing.write_corpus(tmp_path / "hub", packing.make_documents(200))
        files = sorted(str(path) for path in (tmp_path / "hub").iterdir())
        load_dataset = datasets.load_dataset
        asked: list[str] = []

        def local(name: str, config: str, *, split: str, streaming: bool, revision: str) -> object:
            assert (name, config, split, streaming) == ("allenai/c4", "en", "train", True)
            asked.append(revision)
            return load_dataset("json", data_files=files, split="train", streaming=True)

        monkeypatch.setattr(datasets, "load_dataset", local)
        monkeypatch.setattr(text_source, "_newest_revision", lambda _: "abc123")
        return asked

    def test_streams_the_files_one_by_one(self, asked: list[str], tmp_path: Path) -> None:
        hub, local = HubSource(), FileSource([str(tmp_path / "hub")])
        assert hub.num_parts == 3 and asked == ["abc123"]
        assert list(shuffled_documents(hub, 3, 25)) == list(shuffled_documents(local, 3, 25))

    def test_packs_by_default_and_keeps_to_the_recorded_revision(
        self, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        packing.save_small_tokenizer(tmp_path / "tokenizer")
        arguments = packing.pack_arguments(tmp_path)
        at = arguments.index("--source")
        del arguments[at : at + 2]
        with monkeypatch.context() as patch, pytest.raises(TypeError):
            patch.setattr("data_tools.build_pretrain._meta", None)  # the run dies before it is complete
            packing.main(arguments)
        monkeypatch.setattr(text_source, "_newest_revision", None)  # a newer one must not be asked for
        packing.main(arguments)
        source = json.loads((tmp_path / "pack" / "meta.json").read_text())["source"]
        assert source == {"dataset": "allenai/c4", "config": "en", "split": "train", "revision": "abc123"}

    def test_unreachable_hub_says_what_to_do(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object, **__: object) -> None:
            raise ConnectionError("no route")

        monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", fail)
        with pytest.raises(UserError, match=r"allenai/c4 could not be read .*no route.*--source"):
            HubSource()
        monkeypatch.setattr(datasets, "load_dataset", fail)
        with pytest.raises(UserError, match="no route"):
            assert HubSource("abc123").num_parts
