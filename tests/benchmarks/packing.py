"""Tokens a second of packing documents on all cores, and its peak memory.

    python -m tests.benchmarks.packing

Ours is the rate that `build_pretrain` prints: from compressed files to written shards, its workers' start included.
The loop is what one would otherwise write: one document at a time through the tokenizer into a list that is cut into
blocks; it must give the same bytes. The raw rate is the tokenizer's batch call on the same documents, already in
memory, and nothing else. Documents are film reviews.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from data_tools import fetch_assets
from data_tools.base.errors import UserError, run_command
from data_tools.corpus.text_source import FileSource, shuffled_documents
from tests.benchmarks.measure import (
    REPOSITORY,
    parser,
    print_table,
    resident_peak_bytes,
    rounds_table,
    run_python,
    scratch_directory,
)

SEED, EOS_ID, RAW_BATCH = 12345, 0, 1024


def main(argv: list[str] | None = None) -> None:
    command = parser(__doc__, rounds=3)
    command.add_argument("--documents", type=int, default=24_000, help="reviews of about 300 tokens (default 24,000)")
    command.add_argument("--copies", type=int, default=6, help="of them: the start weighs little in C4 (default 6)")
    command.add_argument("--seq_len", type=int, default=2048, help="blocks hold one token more (default 2048)")
    args = command.parse_args(argv)
    args.shuffle_buffer = min(10_000, args.documents * args.copies // 3)  # full at 1 × and at 4 × the documents
    with scratch_directory() as scratch:
        with redirect_stdout(sys.stderr):
            fetch_assets.main(["corpus", "--out", f"{scratch}/once", "--documents", str(args.documents)])
        link_copies(scratch / "once", scratch / "corpus", args.copies)
        tokenizer = Tokenizer.from_file(f"{scratch}/tokenizer/tokenizer.json")
        num_tokens, _ = raw_tokens(tokenizer, list(documents(scratch / "corpus", args)))
        num_blocks = num_tokens // (args.seq_len + 1)
        measured = [measure_round(scratch, tokenizer, num_blocks, args) for _ in range(args.rounds)]
        memory = [
            [f"{times} ×", times * num_blocks * (args.seq_len + 1), peak_of(scratch, times, num_blocks, args) / 2**20]
            for times in (1, 4)
        ]
    columns = ["", "ours, tokens/s", "loop", "raw tokenizer", "ours / loop", "ours / raw"]
    print_table(f"Packing {num_tokens:,} tokens, identical bytes", columns, rounds_table(measured))
    print_table("Peak memory of packing", ["source", "tokens", "MiB"], memory)


def measure_round(scratch: Path, tokenizer: Tokenizer, num_blocks: int, args: Namespace) -> list[float]:
    """Rates of ours, the loop and the raw tokenizer, and the two ratios.

    Raises:
        UserError: ours and the loop wrote different bytes.
    """
    pack, looped = scratch / "pack", scratch / "looped.bin"
    shutil.rmtree(pack, ignore_errors=True)
    corpus = scratch / "corpus"
    output = run_python(["-m", "data_tools.build_pretrain", *pack_flags(corpus, pack, num_blocks, scratch, args)])
    ours = float(re.findall(r"([\d,]+) tokens/s", output)[0].replace(",", ""))
    loop_s, _ = timed(lambda: pack_one_by_one(tokenizer, documents(corpus, args), looped, num_blocks, args.seq_len + 1))
    raw_count, raw_s = raw_tokens(tokenizer, list(documents(corpus, args)))
    if b"".join(shard.read_bytes() for shard in sorted(pack.glob("shard_*.bin"))) != looped.read_bytes():
        raise UserError("ours and the loop wrote different bytes: their speeds say nothing")
    packed = num_blocks * (args.seq_len + 1)
    loop, raw = packed / loop_s, raw_count / raw_s
    return [ours, loop, raw, ours / loop, ours / raw]


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def documents(corpus: Path, args: Namespace) -> Iterator[str]:
    return shuffled_documents(FileSource([str(corpus)]), SEED, args.shuffle_buffer)


def pack_one_by_one(tokenizer: Tokenizer, texts: Iterator[str], path: Path, num_blocks: int, block_len: int) -> None:
    """The loop one would otherwise write."""
    tokens: list[int] = []
    written = 0
    with path.open("wb") as file:
        for text in texts:
            tokens += [*tokenizer.encode(text, add_special_tokens=False).ids, EOS_ID]
            while len(tokens) >= block_len and written < num_blocks:
                np.array(tokens[:block_len], np.uint16).tofile(file)
                tokens = tokens[block_len:]
                written += 1


def raw_tokens(tokenizer: Tokenizer, texts: list[str]) -> tuple[int, float]:
    """Tokens of the documents with their EOS, and the seconds that the tokenizer alone took."""
    count = len(texts)
    elapsed_s = 0.0
    for first in range(0, len(texts), RAW_BATCH):
        batch = texts[first : first + RAW_BATCH]
        seconds, encoded = timed(partial(tokenizer.encode_batch_fast, batch, add_special_tokens=False))
        elapsed_s += seconds
        count += sum(map(len, encoded))
    return count, elapsed_s


def peak_of(scratch: Path, times: int, num_blocks: int, args: Namespace) -> int:
    """Peak resident bytes, summed over the command and its workers, of packing a number of copies of the corpus."""
    corpus, pack = scratch / f"corpus_{times}", scratch / f"pack_{times}"
    link_copies(scratch / "corpus", corpus, times)
    flags = pack_flags(corpus, pack, times * num_blocks, scratch, args)
    command = subprocess.Popen(
        [sys.executable, "-m", "data_tools.build_pretrain", *flags], cwd=REPOSITORY, stdout=sys.stderr
    )
    peaks: dict[int, int] = {}
    while command.poll() is None:
        for process in (command.pid, *children_of(command.pid)):
            with suppress(OSError, IndexError):  # it ended in between
                peaks[process] = resident_peak_bytes(process)
        time.sleep(0.05)
    if command.returncode:
        raise SystemExit(f"build_pretrain failed: {command.returncode}")
    return sum(peaks.values())


def children_of(process: int) -> list[int]:
    with suppress(OSError):
        lists = [path.read_text().split() for path in Path(f"/proc/{process}/task").glob("*/children")]
        return [int(child) for child in chain.from_iterable(lists)]
    return []


def link_copies(source: Path, target: Path, copies: int) -> None:
    """A directory with a number of copies of a corpus, which take no room."""
    target.mkdir()
    for copy in range(copies):
        for file in source.glob("*.json.gz"):
            os.link(file, target / f"{copy}_{file.name}")


def pack_flags(corpus: Path, pack: Path, num_blocks: int, scratch: Path, args: Namespace) -> list[str]:
    return f"""--source {corpus} --pack_dir {pack} --tokenizer {scratch}/tokenizer --num_blocks {num_blocks}
        --seq_len {args.seq_len} --val_blocks 0 --seed {SEED} --shuffle_buffer {args.shuffle_buffer}""".split()


if __name__ == "__main__":
    run_command(main)
