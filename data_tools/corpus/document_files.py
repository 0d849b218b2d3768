"""Files of documents: which ones an argument stands for, and the records in them.

``.jsonl`` and ``.json`` hold a JSON object on each line, as C4 does, ``.parquet`` and ``.arrow`` rows of a table;
``.txt`` is one document. All but the tables may be compressed (``.gz``, ``.zst``). A directory that `datasets` wrote
with ``save_to_disk`` is a directory of ``.arrow`` files.
"""

import codecs
import gzip
import json
import os
import zlib
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from glob import has_magic
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from data_tools.base.errors import UserError
from data_tools.base.files import sha256_of_file

_COMPRESSED = ("", ".gz", ".zst")
_TEXT = tuple(f".txt{ending}" for ending in _COMPRESSED)
_JSON_LINES = tuple(f"{kind}{ending}" for kind in (".jsonl", ".json") for ending in _COMPRESSED)
SUFFIXES = (*_JSON_LINES, ".parquet", ".arrow", *_TEXT)
MAX_DOCUMENT_BYTES = 100_000_000  # of a line or a text; larger ones are left out, so memory is bounded
_CHUNK_BYTES = 1 << 20
_MAX_METADATA_BYTES = 16 << 20  # a larger .json file holds lines
_ROWS_AT_ONCE = 64  # of a table: few, as each may be a book
_MAX_ZSTD_WINDOW = 1 << 31  # bytes; what the zstd program writes with --long


@dataclass(frozen=True)
class Unusable:
    """A record that gives no document: where it is and what is wrong with it, as a sentence."""

    problem: str
    is_too_large: bool = False


def find_files(argument: str, text_field: str) -> list[tuple[str, Path]]:
    """(name relative to the argument, path) of each file that an argument stands for, sorted by name.

    Args:
        argument: a file, a directory (searched at every depth, links included) or a glob pattern.
        text_field: of the documents; a ``.json`` file without it beside them describes them and is passed over.

    Raises:
        UserError: there is none, or a link leads nowhere.
    """
    root = Path(argument).expanduser()
    if root.is_file():
        if not root.name.endswith(SUFFIXES):
            raise UserError(f"{argument}: unknown kind of file. Expected one of {', '.join(SUFFIXES)}.")
        return [(root.name, root)]
    if root.is_dir():
        found = [(path.relative_to(root).as_posix(), path) for path in _walk(root)]
    else:
        matches = sorted(Path(root.anchor).glob(str(root.relative_to(root.anchor))))
        found = [
            (path.relative_to(match.parent).as_posix(), path)
            for match in matches
            for path in (_walk(match) if match.is_dir() else [match])
        ]
    files = sorted((name, path) for name, path in found if name.endswith(SUFFIXES))
    if broken := [path for _, path in files if not path.exists()]:
        raise UserError(f"{broken[0]} is a link to nothing. Restore what it leads to, or remove it.")
    files = [(name, path) for name, path in files if path.is_file() and _is_of_documents(path, text_field)]
    if not files:
        raise UserError(f"{argument} {_nothing_in(root)}. Expected files with names ending in {', '.join(SUFFIXES)}.")
    return files


def _nothing_in(root: Path) -> str:
    if root.is_dir():
        return "holds no file of documents"
    if root.exists():
        return "is no regular file"
    return "matches no file of documents" if has_magic(str(root)) else "does not exist"


def refuse_copies(paths: Sequence[Path]) -> None:
    """Refuse equal files: documents that are held out from one would be trained on from the other.

    Files of one document are passed over: a corpus may have equal documents, in one file as in several.
    """
    sizes = {path: path.stat().st_size for path in paths if not path.name.endswith(_TEXT)}
    num_of_size = Counter(sizes.values())
    by_content: dict[str, Path] = {}
    for path, size in sizes.items():
        if size and num_of_size[size] > 1:
            other = by_content.setdefault(sha256_of_file(path), path)
            if other != path:
                raise UserError(
                    f"{other} and {path} are equal, so documents that are held out would be trained on. Leave one out."
                )


def _walk(root: Path) -> Iterator[Path]:
    """The files below a directory that are not hidden. Links are followed, after all else; no directory comes twice."""
    seen: set[str] = set()
    pending = deque([root])
    while pending:
        for place, folders, files in os.walk(pending.popleft(), onerror=_raise):
            if (real := os.path.realpath(place)) in seen:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            pending.extend(path for name in folders if (path := Path(place, name)).is_symlink())
            yield from (Path(place, name) for name in files if not name.startswith("."))


def _raise(error: OSError) -> None:
    raise error


def _is_of_documents(path: Path, text_field: str) -> bool:
    """Whether a file that was found, not named, holds documents rather than something about them."""
    if path.suffix == ".arrow":
        saved = _read_small_json(path.with_name("state.json"))  # of save_to_disk; caches may be beside its files
        listed = saved.get("_data_files") if isinstance(saved, dict) else None
        return listed is None or path.name in [file["filename"] for file in listed]
    if path.suffix == ".json":
        content = _read_small_json(path)
        rows = content if isinstance(content, list) else [content]
        return content is None or any(isinstance(row, dict) and text_field in row for row in rows)
    return True


def _read_small_json(path: Path) -> Any:
    """The value that a file consists of; None if it is large, or of another form, or not there."""
    try:
        if path.stat().st_size <= _MAX_METADATA_BYTES:
            return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        pass
    return None


def read_records(path: Path, text_field: str) -> Iterator[str | Unusable]:
    """The documents of a file in order, and in their places the records that give none.

    Raises:
        UserError: the file is damaged, or a table without such a column.
    """
    try:
        if path.name.endswith(_TEXT):
            yield _read_text(path)
        elif path.suffix in (".parquet", ".arrow"):
            yield from _read_table(path, text_field)
        else:
            yield from _read_json_lines(path, text_field)
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise UserError(f"cannot read {path} ({type(error).__name__}: {error}). Replace or remove it.") from None


def _read_text(path: Path) -> str | Unusable:
    content = bytearray()
    for chunk in _chunks(path):
        content += chunk
        if len(content) > MAX_DOCUMENT_BYTES:
            return _too_large(str(path))
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        return Unusable(f"{path}: expected UTF-8 ({error}).")


def _read_json_lines(path: Path, text_field: str) -> Iterator[str | Unusable]:
    for number, line in enumerate(_lines(_chunks(path)), start=1):
        place = f"{path}, line {number}"
        if line is None:
            yield _too_large(place)
            continue
        if not line or line.isspace():
            continue
        try:
            text = json.loads(line.decode())[text_field]
        except (ValueError, KeyError, TypeError, RecursionError):
            text = None
        if isinstance(text, str):
            yield text
        else:
            got = line[:80].decode(errors="replace").rstrip()
            yield Unusable(f'{place}: expected a JSON object with a string "{text_field}", got {got!r}.')


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes | None]:
    """Lines without their ends; None for one that is too large."""
    line = bytearray()
    for chunk in chunks:
        *ended, rest = chunk.split(b"\n")
        for part in ended:
            line += part
            yield None if len(line) > MAX_DOCUMENT_BYTES else bytes(line)
            line.clear()
        if len(line) <= MAX_DOCUMENT_BYTES:
            line += rest
    if line:
        yield None if len(line) > MAX_DOCUMENT_BYTES else bytes(line)


def _chunks(path: Path) -> Iterator[bytes]:
    """The content of a file, decompressed, without a byte order mark."""
    with path.open("rb") as file:
        if path.suffix == ".gz":
            chunks = _pieces_of(gzip.GzipFile(fileobj=file))
        elif path.suffix == ".zst":
            chunks = _zstd_chunks(_pieces_of(file))
        else:
            chunks = _pieces_of(file)
        first = next(chunks, b"")
        yield first.removeprefix(codecs.BOM_UTF8)
        yield from chunks


def _pieces_of(file: BinaryIO | gzip.GzipFile) -> Iterator[bytes]:
    return iter(partial(file.read, _CHUNK_BYTES), b"")


def _zstd_chunks(compressed: Iterable[bytes]) -> Iterator[bytes]:
    """Decompress frame after frame. Zstandard's own readers take a file that was cut for one that ends."""
    frame = None
    for data in compressed:
        while data:
            frame = frame or zstandard.ZstdDecompressor(max_window_size=_MAX_ZSTD_WINDOW).decompressobj()
            yield frame.decompress(data)
            data = frame.unused_data
            if frame.eof:
                frame = None
    if frame:
        raise EOFError("the file was cut: its last frame has no end")


def _read_table(path: Path, text_field: str) -> Iterator[str | Unusable]:
    import pyarrow  # here: it takes long to import

    try:
        rows = chain.from_iterable(_columns(path, text_field))
        for row, value in enumerate(rows, start=1):
            text = value.as_py()
            if not isinstance(text, str):
                yield Unusable(f'{path}, row {row}: expected a string in "{text_field}", got {str(text)[:80]}.')
            elif len(text.encode(errors="replace")) > MAX_DOCUMENT_BYTES:
                yield _too_large(f"{path}, row {row}")
            else:
                yield text
    except pyarrow.ArrowException as error:
        raise OSError(error) from None


def _columns(path: Path, text_field: str) -> Iterator[Any]:
    """The text column of a table in parts."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    with ExitStack() as opened:
        if path.suffix == ".parquet":
            table = opened.enter_context(ParquetFile(path))
            schema = table.schema_arrow
            batches = table.iter_batches(batch_size=_ROWS_AT_ONCE, columns=[text_field])
        else:
            source = opened.enter_context(pyarrow.memory_map(str(path)))
            table = pyarrow.ipc.open_stream(source)
            schema, batches = table.schema, iter(table)
        if text_field not in schema.names:
            raise UserError(f'{path}: no column "{text_field}", only {", ".join(schema.names)}. Name it: --text_field.')
        for batch in batches:
            yield batch.column(text_field)


def _too_large(place: str) -> Unusable:
    return Unusable(f"{place}: a document of more than {MAX_DOCUMENT_BYTES:,} bytes.", is_too_large=True)
