"""Pack documents into blocks of tokens for pretraining.

    python -m data_tools.build_pretrain --scratch_dir DIR --total_steps 10000 --effective_batch 32

streams C4 from the Hub; ``--source`` takes local files. The bytes written are a function of the source, the tokenizer
and the flags, not of the number of cores. After an interruption, the same command continues the pack.
"""

import argparse
import hashlib
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

if __package__ in (None, ""):
    # Run as a script: put the repository in place of this directory on the import path.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from tqdm import tqdm

from data_tools.base.command_line import CommandParser, any_seed, length, natural, positive
from data_tools.base.errors import UserError, run_command
from data_tools.base.files import whole_file
from data_tools.base.hub import use_fetched
from data_tools.base.processes import num_cores
from data_tools.base.text_table import pluralize
from data_tools.corpus.document_files import SUFFIXES
from data_tools.corpus.named_packs import check_pack_name, named_pack_directory
from data_tools.corpus.pack_progress import (
    FinishedFile,
    PackProgress,
    check_free_space,
    find_progress,
    pack_lock,
    recorded,
    refuse_what_others_wrote,
    remove_pack,
)
from data_tools.corpus.shards import (
    META_NAME,
    PROGRESS_NAME,
    VALIDATION_NAME,
    PackedFile,
    PackMeta,
    PackParameters,
    little_endian,
    pack_directory,
    token_dtype,
)
from data_tools.corpus.text_source import (
    TEXT_FIELD,
    DocumentSource,
    FileSource,
    HubSource,
    add_source_flags,
    reading_order,
    shuffled_documents,
    stride,
)
from data_tools.corpus.token_stream import TokenStream
from data_tools.corpus.tokenizer import TextTokenizer, load_tokenizer

_DEFAULT_STEPS, _DEFAULT_BATCH = 10_000, 32
_NUM_SHOWN = 5  # records that were left out


def main(argv: list[str] | None = None) -> None:
    """The command; see ``--help``."""
    args = parse(argv)
    use_fetched(args.scratch_dir)
    tokenizer = load_tokenizer(args.tokenizer)
    if args.name:
        args.pack_dir = named_pack_directory(args.scratch_dir, args.name, tokenizer)
    refuse_what_others_wrote(args.pack_dir)
    source = _open_source(args)
    with pack_lock(args.pack_dir, args.overwrite):
        begun = {} if args.overwrite else recorded(args.pack_dir)
        asked = PackParameters(
            source_sha256=source.sha256,
            tokenizer_sha256=tokenizer.fingerprint,
            eos_id=tokenizer.eos_id,
            vocab_size=tokenizer.vocab_size,
            dtype=token_dtype(tokenizer.vocab_size),
            seq_len=args.seq_len,
            num_blocks=args.num_blocks,
            blocks_per_shard=args.blocks_per_shard,
            val_blocks=args.val_blocks,
            seed=args.seed,
            shuffle_buffer=args.shuffle_buffer,
            special_tokens_as_text=begun.get("special_tokens_as_text", not begun),
            half=args.half,
        )
        order = reading_order(source, args.seed) if args.source else []  # the Hub's is pinned, and costs a request
        progress = find_progress(args.pack_dir, asked, args.overwrite, lambda number: source.identity(order[:number]))
        if progress is None:
            print(f"{args.pack_dir} already holds this pack, complete: {asked.num_blocks:,} blocks")
            return
        progress.source = source.description
        if not asked.special_tokens_as_text:
            tokenizer = tokenizer.with_special_tokens()
        _pack(args.pack_dir, progress, source, tokenizer, args.workers)


def _pack(
    directory: Path, progress: PackProgress, source: DocumentSource, tokenizer: TextTokenizer, num_workers: int
) -> None:
    """Write the files that are still missing, then meta.json."""
    asked = progress.parameters
    check_free_space(directory, asked)
    documents = shuffled_documents(source, asked.seed, asked.shuffle_buffer, asked.half)
    progress.write(directory)  # only now: the source could be opened
    remove_pack(directory, keep=progress)
    if progress.finished:
        print(f"{len(progress.finished)} finished files kept; skipping {progress.end.document:,} documents")
    started_s, tokens_before = time.monotonic(), progress.num_tokens
    total = (asked.num_blocks + asked.val_blocks) * asked.block_len
    interval_s = 0.5 if sys.stderr.isatty() else 30.0  # a job's log wants few lines
    with tqdm(
        total=total, initial=tokens_before, unit="tok", unit_scale=True, mininterval=interval_s, desc="packing"
    ) as bar:
        stream = TokenStream(documents, tokenizer, progress.end, num_workers=num_workers)
        _write_files(directory, progress, source, stream, bar)
    meta = _meta(progress, source, tokenizer)
    meta.write(directory)
    (directory / PROGRESS_NAME).unlink()
    elapsed_s = time.monotonic() - started_s
    print(
        f"{directory}: {meta.num_blocks:,} blocks of {meta.block_len} {meta.dtype} tokens from {meta.num_documents:,} "
        f"documents, {meta.val_blocks:,} validation blocks from {meta.num_validation_documents:,} others; "
        f"{(total - tokens_before) / elapsed_s:,.0f} tokens/s"
    )
    if meta.left_out:
        print(f"left out: {_listed(meta.left_out)}")
    if meta.num_split_documents:
        print(
            f"{pluralize(meta.num_split_documents, 'document')} mention {tokenizer.eos_token}, which became the token "
            "that ends documents: the pack holds each of them in parts"
        )


def _listed(left_out: Sequence[str]) -> str:
    """The first few of what was left out, and how many more there are."""
    more = len(left_out) - _NUM_SHOWN
    return " ".join([*left_out[:_NUM_SHOWN], *([f"And {more:,} more, see {META_NAME}."] if more > 0 else [])])


def _write_files(
    directory: Path, progress: PackProgress, source: DocumentSource, stream: TokenStream, bar: tqdm
) -> None:
    asked = progress.parameters
    for name, num_blocks in list(asked.file_blocks().items())[len(progress.finished) :]:
        try:
            file = _write_blocks(directory / name, num_blocks, asked, stream, bar)
        except _SourceEndsError as end:
            given = (progress.num_tokens + end.tokens_written) // asked.block_len
            validation = min(given, asked.val_blocks)
            left_out = source.left_out(stride(asked.half) * (stream.cursor.document + 1))
            remove_pack(directory)
            raise UserError(
                f"the source is too small: its {stream.cursor.document:,} documents gave {given - validation:,} of "
                f"{asked.num_blocks:,} blocks of {asked.block_len} tokens, after {validation:,} of "
                f"{asked.val_blocks:,} validation blocks. Give more documents, or ask for less with --num_blocks "
                f"(and --val_blocks). Nothing was kept.{' Left out: ' if left_out else ''}{_listed(left_out)}"
            ) from None
        if name == VALIDATION_NAME:
            stream.finish_document()  # its rest would put a validation document into a shard
        begun = reading_order(source, asked.seed)[: source.num_begun]
        progress.finished.append(FinishedFile(file, stream.cursor, len(begun), source.identity(begun)))
        progress.write(directory)


class _SourceEndsError(Exception):
    """The source ended within a file."""

    def __init__(self, tokens_written: int) -> None:
        super().__init__(tokens_written)
        self.tokens_written = tokens_written


def _write_blocks(
    path: Path, num_blocks: int, parameters: PackParameters, stream: TokenStream, bar: tqdm
) -> PackedFile:
    """Write the next blocks to a file, which stays away if the source ends within."""
    dtype = little_endian(parameters.dtype)
    digest = hashlib.sha256()
    remaining = num_blocks * parameters.block_len
    with whole_file(path) as out:
        while remaining:
            tokens = stream.read(remaining)
            if not len(tokens):
                raise _SourceEndsError(num_blocks * parameters.block_len - remaining)
            data = np.ascontiguousarray(tokens, dtype).data
            out.write(data)
            digest.update(data)
            remaining -= len(tokens)
            bar.update(len(tokens))
    return PackedFile(path.name, num_blocks, parameters.file_bytes(num_blocks), digest.hexdigest())


def _meta(progress: PackProgress, source: DocumentSource, tokenizer: TextTokenizer) -> PackMeta:
    files = [item.file for item in progress.finished]
    validation = files.pop(0) if progress.parameters.val_blocks else None
    end, validation_end = progress.end, progress.finished[0].end
    num_validation_documents = validation_end.document - validation_end.num_untokenized if validation else 0
    num_read = end.document + (end.token > 0)  # the last one may have a part in
    left_out = source.left_out(stride(progress.parameters.half) * num_read + progress.parameters.shuffle_buffer)
    if end.num_untokenized:
        documents = pluralize(end.num_untokenized, "document")
        left_out.append(f"{documents} so long and uniform that no place to cut was found.")
    return PackMeta(
        **vars(progress.parameters),
        source=progress.source,
        tokenizer=tokenizer.name,
        num_documents=num_read - end.num_untokenized - num_validation_documents,
        num_validation_documents=num_validation_documents,
        shards=tuple(files),
        validation=validation,
        versions={name: version(name) for name in ("numpy", "tokenizers")},
        num_split_documents=end.num_split,
        left_out=tuple(left_out),
    )


def _open_source(args: argparse.Namespace) -> DocumentSource:
    if args.source:
        return FileSource(args.source, args.text_field, args.skip_bad)
    # A dataset revised in between would make an unfinished pack impossible to finish.
    return HubSource(recorded(args.pack_dir).get("source", {}).get("revision"))


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = CommandParser(description=__doc__)
    parser.add_argument("--scratch_dir", type=Path, help="the pack goes to SCRATCH_DIR/data/c4_packed")
    parser.add_argument("--pack_dir", type=Path, help="put the pack here instead")
    parser.add_argument("--name", help="put it into SCRATCH_DIR/data/packs/NAME, beside those of other tokenizers")
    parser.add_argument(
        "--source",
        nargs="+",
        metavar="PATH",
        help=f'files, directories or glob patterns ({" ".join(SUFFIXES)}) with C4\'s {{"text": …}}; each .txt file is '
        "one document (default: stream allenai/c4 en from the Hub)",
    )
    add_source_flags(parser)
    parser.add_argument("--tokenizer", default="EleutherAI/pythia-160m", help="hub id, directory or tokenizer.json")
    parser.add_argument(
        "--seq_len", type=length, default=2048, help="tokens of a training row; a block has one more (default 2048)"
    )
    parser.add_argument(
        "--total_steps", type=positive, help=f"optimizer steps that the pack is for (default {_DEFAULT_STEPS})"
    )
    parser.add_argument("--effective_batch", type=positive, help=f"blocks per step (default {_DEFAULT_BATCH})")
    parser.add_argument(
        "--num_blocks", type=positive, help="number of blocks, instead of total_steps x effective_batch"
    )
    parser.add_argument("--blocks_per_shard", type=positive, default=10_000, help="blocks per shard (default 10000)")
    parser.add_argument("--val_blocks", type=natural, default=256, help="held-out blocks (default 256)")
    parser.add_argument("--seed", type=any_seed, default=12345, help="seed of the document shuffle (default 12345)")
    parser.add_argument(
        "--shuffle_buffer", type=positive, default=10_000, help="documents in the shuffle buffer (default 10000)"
    )
    parser.add_argument(
        "--half",
        choices=("first", "second"),
        default="",
        help="pack only every other document, from the first or the second one on: two packs that share none",
    )
    parser.add_argument(
        "--workers",
        type=positive,
        default=num_cores(),
        help="processes that tokenize (default: all cores); the result does not depend on it",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a pack made with other parameters")
    args = parser.parse_args(argv)
    if args.name:
        check_pack_name(args.name, "--name")
        if args.pack_dir or args.scratch_dir is None:
            raise UserError("--name places the pack under --scratch_dir: give that, and no --pack_dir.")
    elif args.pack_dir is None:
        if args.scratch_dir is None:
            raise UserError("no output directory: give --scratch_dir (for its data/c4_packed) or --pack_dir.")
        args.pack_dir = pack_directory(args.scratch_dir)
    if not args.source and (args.text_field != TEXT_FIELD or args.skip_bad):
        raise UserError("--text_field and --skip_bad are about local files: give --source.")
    if args.num_blocks is None:
        args.num_blocks = (args.total_steps or _DEFAULT_STEPS) * (args.effective_batch or _DEFAULT_BATCH)
    elif args.total_steps or args.effective_batch:
        raise UserError("--num_blocks and --total_steps/--effective_batch both set the number of blocks; give one.")
    return args


if __name__ == "__main__":
    run_command(main)
