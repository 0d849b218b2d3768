"""Train a small byte-level BPE tokenizer, for models too small for Pythia's 50,277 embeddings.

    python -m data_tools.train_tokenizer --corpus DIR --extra eval.jsonl --vocab_size 1024 --out DIR

The same documents always give the same bytes.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from data_tools.base.command_line import CommandParser, natural, of_kind, positive
from data_tools.base.errors import UserError, run_command
from data_tools.corpus.text_source import DocumentSource, FileSource, add_source_flags
from data_tools.corpus.tokenizer import TextTokenizer

EOS_TOKEN = "<|endoftext|>"
_MIN_VOCAB_SIZE = 257  # EOS and every byte
_vocab_size = of_kind(f"whole number in [{_MIN_VOCAB_SIZE}, 1e7]")  # tokenizers reserves memory for all of them


def train_bpe(texts: Iterator[str], vocab_size: int, name: str = "bpe") -> TextTokenizer:
    """Train a byte-level BPE: EOS is id 0, every text can be encoded, and decoding gives it back.

    Args:
        texts: texts to count pairs in, in any order.
        vocab_size: number of ids, at least 257; the result has fewer if no pairs are left to merge.
        name: name of the tokenizer, for messages.
    """
    if vocab_size < _MIN_VOCAB_SIZE:
        raise UserError(f"vocab_size {vocab_size} is too small: EOS and the bytes take {_MIN_VOCAB_SIZE}.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=sys.stderr.isatty(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return TextTokenizer(tokenizer, EOS_TOKEN, name)


def _documents(source: DocumentSource, limit: int) -> Iterator[str]:
    return islice(chain.from_iterable(source.read_part(part) for part in range(source.num_parts)), limit)


def _prompts(path: Path, limit: int) -> Iterator[str]:
    """``input_text`` of the first rows of a data split."""
    try:
        with path.open(encoding="utf-8") as lines:
            for line in islice(lines, limit):
                yield json.loads(line)["input_text"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--extra {path}: expected the rows of a data split with input_text ({type(error).__name__}: {error})."
        ) from None


def main(argv: Sequence[str] | None = None) -> None:
    """The command; see ``--help``."""
    args = parse(argv)
    extra = chain.from_iterable(_prompts(path, args.extra_rows) for path in args.extra)
    source = FileSource(args.corpus, args.text_field, args.skip_bad)
    tokenizer = train_bpe(chain(_documents(source, args.documents), extra), args.vocab_size)
    tokenizer.save(args.out)
    print(f"{args.out}: {tokenizer.vocab_size:,} ids, EOS {tokenizer.eos_id}")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = CommandParser(description=__doc__)
    parser.add_argument("--corpus", nargs="+", required=True, help="files, directories or patterns of documents")
    add_source_flags(parser)
    parser.add_argument(
        "--documents", type=positive, default=5000, help="number of documents to read, the first ones (default 5000)"
    )
    parser.add_argument("--extra", type=Path, nargs="*", default=[], help="jsonl files of a data split")
    parser.add_argument(
        "--extra_rows", type=natural, default=2000, help="number of rows to read of each, the first ones (default 2000)"
    )
    parser.add_argument(
        "--vocab_size", type=_vocab_size, default=1024, help="number of tokens, including the 256 bytes (default 1024)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory to write tokenizer.json into")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_command(main)
