"""Packs mixin examples into synthetic blocks: a pure function of split, tokenizer and seq_len."""

import bisect
import hashlib
import logging
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from data_tools.base.errors import UserError
from data_tools.base.files import whole_file
from data_tools.corpus.tokenizer import TextTokenizer
from data_tools.samples.documents import encode_examples
from data_tools.search.splits import SplitRows

logger = logging.getLogger(__name__)

_ENCODE_ROWS = 1000  # rows tokenized at a time while measuring lengths
_FORMAT = 1  # part of the cache key: raise when the packing changes


@dataclass(frozen=True)
class MixinTable:
    """Blocks of whole examples in ragged form.

    Attributes:
        examples: (num_packed,) int64 row numbers of mixin.jsonl, block after block.
        starts: (num_blocks + 1,) int64, block b holds examples[starts[b] : starts[b + 1]].
        fill: mean real target tokens of a block / seq_len.
        num_too_long: rows left out because they are longer than seq_len.
    """

    examples: np.ndarray
    starts: np.ndarray
    fill: float
    num_too_long: int

    @property
    def num_blocks(self) -> int:
        return len(self.starts) - 1

    @classmethod
    def empty(cls) -> "MixinTable":
        """A table without blocks, for runs without synthetic data."""
        return cls(np.empty(0, np.int64), np.zeros(1, np.int64), fill=1.0, num_too_long=0)

    def examples_of(self, block: int) -> list[int]:
        return self.examples[self.starts[block] : self.starts[block + 1]].tolist()


def pack_table(lengths: np.ndarray, seq_len: int, mode: str) -> MixinTable:
    """Put examples into blocks of at most ``seq_len`` targets.

    Best-fit decreasing: the longest example first, each into the fullest block with room for it. Ties go to the lower
    row and the older block.

    Args:
        lengths: (num_rows,) targets of each example (its tokens less one).
        seq_len: capacity of a block.
        mode: ``packed``, or ``single`` for one example per block.

    Raises:
        UserError: every example is longer than a block.
    """
    order = np.argsort(-lengths, kind="stable")
    order = order[lengths[order] <= seq_len]
    if not len(order):
        raise UserError(
            f"all {len(lengths)} mixin examples are longer than seq_len {seq_len} (shortest: {lengths.min(initial=0)} "
            "targets). Use a larger --seq_len or a data directory with a smaller max_input_size."
        )
    # Place the examples, longest first.
    blocks: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (room left, block), sorted: the first that fits is the best fit
    for row in order.tolist():
        length = int(lengths[row])
        at = len(rooms) if mode == "single" else bisect.bisect_left(rooms, (length, -1))
        if at == len(rooms):
            blocks.append([row])
            bisect.insort(rooms, (seq_len - length, len(blocks) - 1))
        else:
            room, block = rooms.pop(at)
            blocks[block].append(row)
            bisect.insort(rooms, (room - length, block))
    return MixinTable(
        examples=np.array([row for block in blocks for row in block], np.int64),
        starts=np.cumsum([0, *map(len, blocks)]).astype(np.int64),
        fill=float(lengths[order].sum() / (len(blocks) * seq_len)),
        num_too_long=len(lengths) - len(order),
    )


def load_mixin_table(
    rows: SplitRows, split_sha256: str, tokenizer: TextTokenizer, seq_len: int, mode: str, cache_dir: Path
) -> MixinTable:
    """The table for a split, measured once and cached as ``cache_dir/mixin_<key>.npz``."""
    form = f"{_FORMAT}{' one space' if tokenizer.prepends_space else ''}"  # version 0.1 had two before an answer
    key = hashlib.sha256(f"{form} {split_sha256} {tokenizer.fingerprint} {seq_len} {mode}".encode()).hexdigest()[:16]
    path = cache_dir / f"mixin_{key}.npz"
    if path.exists():
        try:
            return _read_table(path)
        except (OSError, EOFError, ValueError, TypeError, KeyError, BadZipFile, zlib.error) as error:
            logger.warning("%s is damaged (%s); measuring again", path, error)
    table = pack_table(_target_counts(rows, tokenizer), seq_len, mode)
    with suppress(OSError):  # without write permission the lengths are measured each time
        cache_dir.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            np.savez(
                file, examples=table.examples, starts=table.starts, fill=table.fill, num_too_long=table.num_too_long
            )
    return table


def _read_table(path: Path) -> MixinTable:
    with np.load(path) as saved:
        return MixinTable(saved["examples"], saved["starts"], float(saved["fill"]), int(saved["num_too_long"]))


def _target_counts(rows: SplitRows, tokenizer: TextTokenizer) -> np.ndarray:
    counts = []
    for first in range(0, len(rows), _ENCODE_ROWS):
        part = [rows[row] for row in range(first, min(first + _ENCODE_ROWS, len(rows)))]
        prompts, answers = [r["input_text"] for r in part], [r["output_texts"][:1] for r in part]
        counts += [example.longest - 1 for example in encode_examples(tokenizer, prompts, answers)]
    return np.array(counts, np.int64)
