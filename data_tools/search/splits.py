"""The data splits on disk: names, ``meta.json``, rows, and the prompts that training must not use.

    {scratch_dir}/data/nl_splits/mis{max_input_size}_look{max_lookahead}_seed{seed}/
        eval.jsonl  test.jsonl  mixin.jsonl  meta.json

``data_tools.build_data_splits`` writes them. ``meta.json`` holds the size and hash of each file; a directory without
it is no split.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from annotated_types import Interval

from data_tools.base.errors import UserError
from data_tools.base.files import entries
from data_tools.base.foreign import foreign_note, form_of
from data_tools.base.records import Natural, Positive, read_record
from data_tools.search.examples import SEARCH, Example, GeneratorChoice, Task
from data_tools.search.generator import BUILTIN_NAME, ExampleGenerator, GeneratorIdentity

SPLIT_NAMES = ("eval", "test", "mixin")
META_NAME = "meta.json"
ROW_KEYS = ("input_text", "output_texts", "alpha", "stage", "seed", "lookahead", "num_edges")
BUILD_COMMAND = "python data_tools/build_data_splits.py --scratch_dir {scratch_dir}"


@dataclass(frozen=True)
class SplitFile:
    """Size and hex SHA-256 of one ``.jsonl`` file."""

    num_examples: Natural
    num_bytes: Natural
    sha256: str


@dataclass(frozen=True)
class SplitMeta:
    """The content of ``meta.json``: how the splits were made, and ``files`` (``"eval.jsonl"`` … → size and hash)."""

    max_input_size: Annotated[int, Interval(ge=8, le=10**6)]
    max_lookahead: Annotated[int, Interval(ge=1, le=10**6)]
    alpha: Annotated[float, Interval(gt=0, le=1)]
    stage: Positive
    seed: Annotated[int, Interval(ge=-9 * 10**18, le=9 * 10**18)]
    generator_name: str
    generator_version: str
    files: dict[str, SplitFile]
    # Version 0.1 had none of these. They are written where they differ from this.
    generator_task: Task = SEARCH
    generator_options: dict[str, bool | int | float | str] = field(default_factory=dict)
    generator_examples: str | None = None
    __pydantic_config__: ClassVar = {"extra": "forbid"}  # keys of a later version

    @property
    def generator(self) -> GeneratorChoice:
        """The generator of these splits, which is also that of training."""
        name = None if self.generator_name == BUILTIN_NAME else self.generator_name
        return GeneratorChoice(name, self.generator_task, self.generator_options)

    def to_json(self) -> dict[str, Any]:
        former: dict[str, Any] = {"generator_task": SEARCH, "generator_options": {}, "generator_examples": None}
        return {name: value for name, value in asdict(self).items() if name not in former or value != former[name]}

    @classmethod
    def from_json(cls, content: bytes, path: Path) -> "SplitMeta":
        """The meta that ``content``, that of the file ``path``, describes.

        Raises:
            UserError: it has other keys or types than :meth:`to_json` gives.
        """
        rebuild = "restore it, or build splits elsewhere with data_tools/build_data_splits.py"
        try:
            meta = read_record(cls, content)
        except ValueError as error:
            raise UserError(f"{path} does not describe data splits ({error}); {rebuild}") from error
        if set(meta.files) != {*map(split_file_name, SPLIT_NAMES)}:
            raise UserError(f"{path}: 'files' names {sorted(meta.files)}, expected those of {SPLIT_NAMES}; {rebuild}")
        return meta


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_text, value))


def _is_count(value: Any) -> bool:
    return value is None or (type(value) is int and 0 <= value < 1 << 31)


_ROW_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "input_text": (_is_text, "text"),
    "output_texts": (_is_texts, "a list of texts"),
    "lookahead": (_is_count, "a whole number or null"),
    "num_edges": (_is_count, "a whole number or null"),
}


def split_file_name(name: str) -> str:
    return f"{name}.jsonl"


def split_directory(scratch_dir: Path | str, max_input_size: int, max_lookahead: int, seed: int) -> Path:
    """The directory of the splits with these parameters under a scratch directory."""
    return Path(scratch_dir) / "data" / "nl_splits" / f"mis{max_input_size}_look{max_lookahead}_seed{seed}"


def find_data_dir(scratch_dir: Path | str, data_dir: Path | str | None = None) -> Path:
    """``data_dir`` if given, else the only split directory under the scratch directory.

    Raises:
        UserError: ``data_dir`` is no directory; there are no splits, or several to choose from.
    """
    if data_dir is not None:
        if not Path(data_dir).is_dir():
            raise UserError(f"--data_dir {data_dir} is not a directory; expected one written by build_data_splits.py")
        return Path(data_dir)
    parent = Path(scratch_dir) / "data" / "nl_splits"
    found = [path for path in entries(parent) if path.name[0] != "." and (path / META_NAME).exists()]
    found = [directory for directory in found if not form_of(directory)] or found
    if not found:
        raise UserError(
            f"no data splits under {parent}; build them with {BUILD_COMMAND.format(scratch_dir=scratch_dir)}, "
            "or name a directory with --data_dir"
        )
    if len(found) > 1:
        listed = "".join(f"\n  --data_dir {directory}" for directory in found)
        raise UserError(f"{len(found)} data splits under {parent}; choose one:{listed}")
    return found[0]


def prompt_digest(input_text: str) -> bytes:
    """16 bytes that stand for a prompt: two different prompts share them with probability 2**-128."""
    return hashlib.blake2b(input_text.encode(), digest_size=16).digest()


def row_line(example: Example, *, alpha: float, stage: int, seed: int) -> bytes:
    """An example as a line of a split file."""
    row = {
        "input_text": example.input_text,
        "output_texts": example.output_texts,
        "alpha": alpha,
        "stage": stage,
        "seed": seed,
        "lookahead": example.lookahead,
        "num_edges": example.num_edges,
    }
    return (json.dumps(row, ensure_ascii=False) + "\n").encode()


class Splits:
    """A split directory, checked: meta data, the rows of each split, the reserved prompts.

    Raises:
        UserError: ``meta.json`` is missing or of another form, or a file is missing, empty or of another size.
    """

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory)
        self.meta = _read_meta(self.directory)
        for file_name, recorded in self.meta.files.items():
            path = self.directory / file_name
            if not path.is_file():
                raise UserError(f"{path} is missing; {META_NAME} beside it lists it: rebuild or copy the splits whole")
            if path.stat().st_size == 0 or recorded.num_examples == 0:
                raise UserError(f"{path} holds no examples; rebuild the splits")
            if path.stat().st_size != recorded.num_bytes:
                raise UserError(
                    f"{path} has {path.stat().st_size} bytes, {META_NAME} says {recorded.num_bytes}: it was changed or "
                    "copied in part; rebuild the splits"
                )

    @property
    def fingerprint(self) -> str:
        """A hash of all content of ``meta.json``, including the files' hashes."""
        return hashlib.sha256(json.dumps(self.meta.to_json(), sort_keys=True).encode()).hexdigest()

    def generator_change(self, source: ExampleGenerator, identity: GeneratorIdentity) -> str | None:
        """A complaint about a generator that is the splits' by its name and gives other examples; else None."""
        if source.choice != self.meta.generator or self.meta.generator_examples in (None, identity.examples):
            return None
        return (
            f"generator {source.name} gives other examples than when {self.directory} was built: it was changed, or "
            "what it is compiled from"
        )

    def rows(self, name: str) -> "SplitRows":
        """The rows of ``eval``, ``test`` or ``mixin``; reads the file through once to check its hash."""
        file_name = split_file_name(name)
        return SplitRows(self.directory / file_name, self.meta.files[file_name])

    def reserved_digests(self) -> set[bytes]:
        """The digest of every prompt of eval, test and mixin: what training must pass over.

        Raises:
            UserError: a prompt occurs twice, so one that is trained on may be held out.
        """
        found: set[bytes] = set()
        for name in SPLIT_NAMES:
            for number, row in enumerate(self.rows(name), 1):
                digest = prompt_digest(row["input_text"])
                if digest in found:
                    raise UserError(
                        f"{self.directory / split_file_name(name)}, line {number}: its prompt occurs before, in this "
                        "file or another split; rebuild the splits"
                    )
                found.add(digest)
        return found


class SplitRows:
    """The rows of one split file by number; each is a dict with :data:`ROW_KEYS`.

    Only the file's name and line offsets are kept and it is opened anew for every row, so an object can be pickled
    and shared with forked workers.

    Raises:
        UserError: the file is not the one ``recorded``; on access: a line that is no row.
    """

    def __init__(self, path: Path, recorded: SplitFile) -> None:
        self.path = path
        digest = hashlib.sha256()
        ends = [0]
        with path.open("rb") as file:
            for line in file:
                digest.update(line)
                ends.append(ends[-1] + len(line))
        if digest.hexdigest() != recorded.sha256 or len(ends) - 1 != recorded.num_examples:
            raise UserError(f"{path} is not the file {META_NAME} describes (sha256 or rows differ); rebuild the splits")
        self._offsets = np.array(ends, np.int64)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, number: int) -> dict[str, Any]:
        if not 0 <= number < len(self):
            raise IndexError(f"row {number} of {len(self)} in {self.path}")
        with self.path.open("rb") as file:
            file.seek(int(self._offsets[number]))
            return self._row(file.readline(), number)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with self.path.open("rb") as file:
            for number, line in enumerate(file):
                yield self._row(line, number)

    def _row(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{self.path}, line {number + 1}: not JSON ({error})") from error
        missing = [key for key in ROW_KEYS if key not in row] if isinstance(row, dict) else list(ROW_KEYS)
        if missing:
            raise UserError(f"{self.path}, line {number + 1}: {', '.join(missing)} missing")
        for key, (fits, expected) in _ROW_KINDS.items():
            if not fits(row[key]):
                raise UserError(f"{self.path}, line {number + 1}: {key} is {row[key]!r:.80}, expected {expected}")
        return row


def _read_meta(directory: Path) -> SplitMeta:
    path = directory / META_NAME
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(
            f"{directory} has no {META_NAME}: not a directory of build_data_splits.py, or half copied; rebuild it"
        ) from None
    if note := foreign_note(directory):
        raise UserError(f"{directory} was not written by this program: {note}.")
    return SplitMeta.from_json(content, path)
