"""Documents to pack: C4 from the Hub or local files, and a shuffle that depends on the seed only.

A source consists of parts (files), which can be read separately. Parts are read in a seeded order, and documents pass
through a shuffle buffer, so memory does not grow with the source.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any, Protocol

from data_tools.base.command_line import natural
from data_tools.base.errors import UserError
from data_tools.base.rng import CounterStream, permutation
from data_tools.corpus.document_files import Unusable, find_files, read_records, refuse_copies

HUB_DATASET = ("allenai/c4", "en", "train")
TEXT_FIELD = "text"  # of C4


class DocumentSource(Protocol):
    """Where documents come from.

    Attributes:
        description: description of the source for meta.json.
        sha256: identity of its documents: equal hashes mean equal documents in equal parts.
        num_begun: parts of which reading has begun.
    """

    description: dict[str, Any]
    sha256: str
    num_begun: int

    @property
    def num_parts(self) -> int: ...

    def identity(self, parts: Sequence[int]) -> str:
        """Hash that identifies the documents of some parts, in this order."""
        ...

    def read_part(self, part: int) -> Iterator[str]:
        """The documents of one part, in order."""
        ...

    def left_out(self, num_documents: int) -> list[str]:
        """Describe in sentences what was skipped before this number of non-empty documents was read."""
        ...


def reading_order(source: DocumentSource, seed: int) -> list[int]:
    """The parts of a source, in a seeded order."""
    return permutation(seed, "pack/parts", source.num_parts).tolist()


def shuffled_documents(source: DocumentSource, seed: int, buffer_size: int, half: str = "") -> Iterator[str]:
    """Yield all non-empty documents of a source: parts in a seeded order, then through a shuffle buffer.

    Args:
        half: ``first`` or ``second``: only every other document. Packs of the two halves share none.
    """
    texts = chain.from_iterable(source.read_part(part) for part in reading_order(source, seed))
    documents = buffer_shuffle((_encodable(text) for text in texts if text), seed, buffer_size)
    return islice(documents, int(half == "second"), None, stride(half))


def stride(half: str) -> int:
    """How many documents of the source there are for each one of a half; of all, for an empty one."""
    return 2 if half else 1


def buffer_shuffle(texts: Iterator[str], seed: int, buffer_size: int) -> Iterator[str]:
    """Yield a random one of ``buffer_size`` waiting documents whenever a new one arrives; 1 keeps the order."""
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
        revision: commit of the dataset, pinned so that an interrupted pack continues with the same documents;
            None asks the Hub for the newest.
    """

    def __init__(self, revision: str | None = None) -> None:
        name, config, split = HUB_DATASET
        self._revision = revision or _newest_revision(name)
        self._stream: Any = None
        self.num_begun = 0
        self.description = {"dataset": name, "config": config, "split": split, "revision": self._revision}
        self.sha256 = _hash_of([name, config, split, self._revision])

    @property
    def num_parts(self) -> int:
        return self._dataset().num_shards

    def read_part(self, part: int) -> Iterator[str]:
        self.num_begun += 1
        stream = self._dataset()
        try:
            for row in stream.shard(num_shards=stream.num_shards, index=part):
                yield row[TEXT_FIELD]
        except Exception as error:  # the network, after the clients' own retries
            raise _unreachable(error) from None

    def identity(self, parts: Sequence[int]) -> str:
        return _hash_of([self.sha256, *parts])

    def left_out(self, num_documents: int) -> list[str]:
        return []

    def _dataset(self) -> Any:
        if self._stream is None:
            import datasets  # here: local files need no datasets, which takes a second to import

            name, config, split = HUB_DATASET
            try:
                stream = datasets.load_dataset(name, config, split=split, streaming=True, revision=self._revision)
            except Exception as error:  # the clients below raise many kinds, by cause and version
                raise _unreachable(error) from None
            # Do not parse the other columns, e.g. timestamps into datetime objects.
            self._stream = stream.select_columns([TEXT_FIELD])
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
    """Local files, one part each; see `document_files`.

    Args:
        arguments: files, directories (searched at every depth) and glob patterns.
        text_field: key or column that holds the text.
        skip_bad: bad records (no JSON, no text, no UTF-8) to pass over; one more is an error.

    Raises:
        UserError: an argument matches nothing, a named file is of another form, or two files are equal; from
            `read_part`, a file is damaged, or has too many bad records.
    """

    def __init__(self, arguments: Sequence[str], text_field: str = TEXT_FIELD, skip_bad: int = 0) -> None:
        named = [pair for argument in arguments for pair in find_files(argument, text_field)]
        # A file named twice is read once; names are relative, so a moved directory is still the same source.
        by_path = {path.resolve(): name for name, path in reversed(named)}
        self._paths = sorted(by_path, key=lambda path: (by_path[path], str(path)))
        refuse_copies(self._paths)
        self._text_field = text_field
        self._skip_bad = skip_bad
        self._num_read = 0  # documents that are not empty
        self._passed_over: list[tuple[int, Unusable]] = []  # documents read before it
        self._names = [by_path[path] for path in self._paths]
        self._sizes = sizes = [path.stat().st_size for path in self._paths]
        self.num_begun = 0
        self.description = {"paths": list(arguments), "num_files": len(sizes), "num_bytes": sum(sizes)}
        identity: list[Any] = [[name, size] for name, size in zip(self._names, sizes, strict=True)]
        if text_field != TEXT_FIELD:
            self.description["text_field"] = text_field
            identity.append(text_field)
        self.sha256 = _hash_of(identity)

    @property
    def num_parts(self) -> int:
        return len(self._paths)

    def identity(self, parts: Sequence[int]) -> str:
        return _hash_of([self._text_field, *([self._names[part], self._sizes[part]] for part in parts)])

    def read_part(self, part: int) -> Iterator[str]:
        self.num_begun += 1
        for record in read_records(self._paths[part], self._text_field):
            if isinstance(record, Unusable):
                self._pass_over(record)
                continue
            self._num_read += bool(record)
            yield record

    def left_out(self, num_documents: int) -> list[str]:
        return [record.problem for num_before, record in self._passed_over if num_before < num_documents]

    def _pass_over(self, record: Unusable) -> None:
        self._passed_over.append((self._num_read, record))
        num_bad = sum(not other.is_too_large for _, other in self._passed_over)
        if num_bad > self._skip_bad:
            raise UserError(
                f"{record.problem} It is bad record number {num_bad}. Pass over it with --skip_bad {num_bad} (or "
                "more), which keeps all that is finished; or correct the file, which keeps the shards that were "
                "finished before it was opened."
            )


def add_source_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of commands that read documents; see `FileSource`."""
    parser.add_argument("--text_field", default=TEXT_FIELD, help="key or column of the text (default text)")
    parser.add_argument("--skip_bad", type=natural, default=0, help="bad records to pass over (default 0)")


def _hash_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
