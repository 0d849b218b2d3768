"""Documents to pack: C4 from the Hub or local files, and a shuffle that depends on the seed only.

A source is a number of parts (files) that can each be read on their own. Parts are read in a seeded order, and
documents pass through a shuffle buffer, so memory does not grow with the source.
"""

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import zstandard

from data_tools.base.errors import UserError
from data_tools.base.rng import CounterStream, permutation

HUB_DATASET = ("allenai/c4", "en", "train")
_TEXT_FIELD = "text"
_JSON_LINES = (".json.gz", ".jsonl.gz", ".jsonl", ".json.zst", ".jsonl.zst")
SUFFIXES = (*_JSON_LINES, ".parquet", ".txt")


class DocumentSource(Protocol):
    """Where documents come from.

    Attributes:
        description: what it is, for meta.json.
        sha256: identity of its documents: equal hashes mean equal documents in equal parts.
    """

    description: dict[str, Any]
    sha256: str

    @property
    def num_parts(self) -> int: ...

    def read_part(self, part: int) -> Iterator[str]:
        """The documents of one part, in order."""
        ...


def shuffled_documents(source: DocumentSource, seed: int, buffer_size: int) -> Iterator[str]:
    """All documents of a source that are not empty: parts in a seeded order, then through a shuffle buffer."""
    order = permutation(seed, "pack/parts", source.num_parts).tolist()
    texts = chain.from_iterable(source.read_part(part) for part in order)
    return buffer_shuffle((_encodable(text) for text in texts if text), seed, buffer_size)


def buffer_shuffle(texts: Iterator[str], seed: int, buffer_size: int) -> Iterator[str]:
    """Yield a random one of ``buffer_size`` waiting documents whenever the next one comes in; 1 keeps the order."""
    draws = CounterStream(seed, "pack/buffer")
    waiting: list[str] = []
    for text in texts:
        if len(waiting) < buffer_size:
            waiting.append(text)
            continue
        chosen = draws.below(buffer_size)
        yield waiting[chosen]
        waiting[chosen] = text
    draws.shuffle(waiting)
    yield from waiting


def _encodable(text: str) -> str:
    """The text with lone surrogates, which JSON can carry and UTF-8 cannot, replaced by ``?``."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="replace").decode()
    return text


class HubSource:
    """C4 streamed from the Hub, one part per file of the dataset.

    Args:
        revision: commit of the dataset, pinned so that an interrupted pack goes on with the same documents;
            None asks the Hub for the newest.
    """

    def __init__(self, revision: str | None = None) -> None:
        name, config, split = HUB_DATASET
        self._revision = revision or _newest_revision(name)
        self._stream: Any = None
        self.description = {"dataset": name, "config": config, "split": split, "revision": self._revision}
        self.sha256 = _hash_of([name, config, split, self._revision])

    @property
    def num_parts(self) -> int:
        return self._dataset().num_shards

    def read_part(self, part: int) -> Iterator[str]:
        stream = self._dataset()
        try:
            for row in stream.shard(num_shards=stream.num_shards, index=part):
                yield row[_TEXT_FIELD]
        except Exception as error:  # the network, after the clients' own retries
            raise _unreachable(error) from None

    def _dataset(self) -> Any:
        if self._stream is None:
            import datasets  # here: local files need no datasets, which takes a second to import

            name, config, split = HUB_DATASET
            try:
                stream = datasets.load_dataset(name, config, split=split, streaming=True, revision=self._revision)
            except Exception as error:  # the clients below raise many kinds, by cause and version
                raise _unreachable(error) from None
            # Other columns would be parsed for nothing: timestamps become datetime objects.
            self._stream = stream.select_columns([_TEXT_FIELD])
        return self._stream


def _newest_revision(name: str) -> str:
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(name).sha)
    except Exception as error:
        raise _unreachable(error) from None


def _unreachable(error: Exception) -> UserError:
    return UserError(
        f"{HUB_DATASET[0]} could not be read from the Hub ({type(error).__name__}: {error}). Check the network and run "
        "the same command again (finished shards are kept), or give local files with --source."
    )


class FileSource:
    """Local files, one part each.

    ``.jsonl`` and ``.json.gz``, ``.jsonl.gz``, ``.json.zst``, ``.jsonl.zst``: a JSON object with a string ``text`` on
    each line, as C4 has it. ``.parquet``: a string column ``text``. ``.txt``: the whole file is one document.

    Args:
        arguments: files, directories (searched at every depth) and glob patterns.

    Raises:
        UserError: an argument matches nothing, or a named file is of another form.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        named = [pair for argument in arguments for pair in _matches(argument)]
        # A file named twice is read once; names are relative, so a moved directory is still the same source.
        by_path = {path.resolve(): name for name, path in reversed(named)}
        self._paths = sorted(by_path, key=lambda path: (by_path[path], str(path)))
        sizes = [path.stat().st_size for path in self._paths]
        self.description = {"paths": list(arguments), "num_files": len(sizes), "num_bytes": sum(sizes)}
        self.sha256 = _hash_of([[by_path[path], size] for path, size in zip(self._paths, sizes, strict=True)])

    @property
    def num_parts(self) -> int:
        return len(self._paths)

    def read_part(self, part: int) -> Iterator[str]:
        path = self._paths[part]
        try:
            if path.suffix == ".txt":
                yield path.read_bytes().decode("utf-8")
            elif path.suffix == ".parquet":
                yield from _read_parquet(path)
            else:
                yield from _read_json_lines(path)
        except (OSError, EOFError, UnicodeDecodeError, zlib.error, zstandard.ZstdError) as error:
            raise UserError(f"cannot read {path} ({type(error).__name__}: {error}). Replace or remove it.") from None


def _matches(argument: str) -> list[tuple[str, Path]]:
    """(name relative to the argument, path) of each file an argument stands for, sorted by name."""
    root = Path(argument).expanduser()
    if root.is_file():
        if not root.name.endswith(SUFFIXES):
            raise UserError(f"{argument}: unknown kind of file. Expected one of {', '.join(SUFFIXES)}.")
        return [(root.name, root)]
    if root.is_dir():
        found = [(path.relative_to(root).as_posix(), path) for path in root.rglob("*")]
        found = [(name, path) for name, path in found if not name.startswith(".") and "/." not in name]
    else:
        pattern = str(root.relative_to(root.anchor))
        found = [(path.name, path) for path in Path(root.anchor).glob(pattern)]
    files = sorted((name, path) for name, path in found if name.endswith(SUFFIXES) and path.is_file())
    if not files:
        problem = "holds" if root.is_dir() else "matches"
        raise UserError(f"{argument}: {problem} no file ending in {', '.join(SUFFIXES)}.")
    return files


def _read_json_lines(path: Path) -> Iterator[str]:
    with _open_text(path) as lines:
        for number, line in enumerate(lines, start=1):
            if line.isspace():
                continue
            try:
                text = json.loads(line)[_TEXT_FIELD]
            except (ValueError, KeyError, TypeError):
                text = None
            if not isinstance(text, str):
                expected = f'a JSON object with a string "{_TEXT_FIELD}"'
                raise UserError(f"{path}, line {number}: expected {expected}, got {line.rstrip()[:80]!r}.")
            yield text


def _open_text(path: Path) -> io.TextIOBase:
    # newline="\n": JSON lines end there only, whatever other separators the text has.
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", newline="\n")
    if path.suffix == ".zst":
        return zstandard.open(path, "rt", encoding="utf-8", newline="\n")
    return path.open(encoding="utf-8", newline="\n")


def _read_parquet(path: Path) -> Iterator[str]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            if _TEXT_FIELD not in file.schema_arrow.names:
                raise UserError(f'{path}: no column "{_TEXT_FIELD}", only {", ".join(file.schema_arrow.names)}.')
            batches = file.iter_batches(batch_size=1024, columns=[_TEXT_FIELD])
            texts = chain.from_iterable(batch.column(0).to_pylist() for batch in batches)
            for row, text in enumerate(texts, start=1):
                if not isinstance(text, str):
                    raise UserError(f'{path}, row {row}: expected a string in "{_TEXT_FIELD}", got {text!r}.')
                yield text
    except pyarrow.ArrowException as error:
        raise OSError(error) from None


def _hash_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
