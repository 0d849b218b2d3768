"""Measures which seq_len problems of a size need: their lengths, and the share that overflows."""

from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from data_tools.corpus.tokenizer import TextTokenizer, load_tokenizer
from data_tools.inspect.samples import DEFAULT_MAX_INPUT_SIZE, DEFAULT_MAX_LOOKAHEAD
from data_tools.runs.settings import DEFAULT_TOKENIZER
from data_tools.samples.documents import encode_examples
from data_tools.samples.readers import training_source
from data_tools.search.flags import generator_choice
from data_tools.search.generator import ExampleGenerator

_CHUNK = 100  # problems tokenized at a time
_PERCENTILES = (1, 50, 95, 99)
_ROUND_TO = 64  # the proposed seq_len is a multiple of this


@dataclass(frozen=True)
class Lengths:
    """Lengths of the problems of one stage, (num_problems,) int64 each.

    Attributes:
        tokens: tokens of prompt, longest right answer and EOS, which seq_len must hold.
        characters: characters of the same text without EOS.
        edges: number of facts, 0 where it is unknown.
    """

    stage: int
    tokens: np.ndarray
    characters: np.ndarray
    edges: np.ndarray


def length_lines(args: Namespace) -> Iterator[str]:
    """The table of `data_tools.inspect lengths`."""
    source = training_source(
        generator_choice(args),
        max_input_size=args.max_input_size or DEFAULT_MAX_INPUT_SIZE,
        max_lookahead=args.max_lookahead or DEFAULT_MAX_LOOKAHEAD,
        seed=args.seed,
    )
    tokenizer = load_tokenizer(args.tokenizer or DEFAULT_TOKENIZER)
    stages = sorted(set(args.stages or source.spread_stages()))
    for stage in stages:
        source.example(0, stage)  # an impossible stage is an error before anything is measured
    with tqdm(total=len(stages) * args.num_problems, unit="problem", disable=None, leave=False) as bar:
        measured = [measure_lengths(source, tokenizer, stage, args.num_problems, bar) for stage in stages]
    yield (
        f"max_input_size {source.max_input_size}, max_lookahead {source.max_lookahead}: at alpha 1 "
        f"{source.described_sizes()}"
    )
    yield f"the first {args.num_problems:,} problems of each stage, seed {args.seed}, tokenizer {tokenizer.name}"
    yield ""
    yield from length_table(measured, source.max_lookahead, sorted(set(args.seq_len)))
    yield ""
    yield from _advice(measured, sorted(set(args.seq_len)), args.num_problems)


def measure_lengths(
    source: ExampleGenerator, tokenizer: TextTokenizer, stage: int, num_problems: int, progress: tqdm | None = None
) -> Lengths:
    """Measure the first candidates of the training stream at a stage, including those that are too long."""
    rows: list[tuple[int, int, int]] = []
    for first in range(0, num_problems, _CHUNK):
        examples = [source.example(index, stage) for index in range(first, min(first + _CHUNK, num_problems))]
        encoded = encode_examples(tokenizer, [e.input_text for e in examples], [e.output_texts for e in examples])
        rows += [
            (tokens.longest, len(example.input_text) + 1 + max(map(len, example.output_texts)), example.num_edges or 0)
            for example, tokens in zip(examples, encoded, strict=True)
        ]
        if progress is not None:
            progress.update(len(examples))
    return Lengths(stage, *np.array(rows, np.int64).T)


def length_table(measured: Sequence[Lengths], max_lookahead: int, seq_lens: Sequence[int]) -> Iterator[str]:
    """Yield a line per stage: percentiles (values that occur), and the share of problems over each seq_len."""
    percentiles = [f"{p} %" for p in _PERCENTILES]
    groups = [
        ("", ["stage", "alpha"]),
        ("edges", ["50 %", "max"]),
        ("characters", ["50 %", "max"]),
        ("tokens", [*percentiles, "max"]),
        ("longer than", [f"{seq_len}" for seq_len in seq_lens]),
    ]
    table = [[head for _, heads in groups for head in heads]]
    for lengths in measured:
        table.append([f"{lengths.stage}", f"{lengths.stage / max_lookahead:.3f}"])
        for values, wanted in ((lengths.edges, [50]), (lengths.characters, [50]), (lengths.tokens, _PERCENTILES)):
            table[-1] += [f"{v:,}" for v in [*np.percentile(values, wanted, method="inverted_cdf"), values.max()]]
        table[-1] += [f"{100 * (lengths.tokens > seq_len).mean():.1f} %" for seq_len in seq_lens]
    # The title line holds the groups' names, so a group is at least as wide as its name.
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    at = 0
    title = ""
    for name, heads in groups:
        width = sum(widths[at : at + len(heads)]) + 2 * (len(heads) - 1)
        widths[at] += max(0, len(name) - width)
        title += f"{name:>{max(width, len(name))}}   "
        at += len(heads)
    yield title.rstrip()
    starts = {sum(len(heads) for _, heads in groups[:n]) for n in range(1, len(groups))}
    for row in table:
        cells = [f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)]
        yield "".join(("   " if n in starts else "  " if n else "") + cell for n, cell in enumerate(cells))


def _advice(measured: Sequence[Lengths], seq_lens: Sequence[int], num_problems: int) -> Iterator[str]:
    """Yield the conclusions: the worst stage for each seq_len, and a seq_len that holds all problems."""
    for seq_len in seq_lens:
        worst = max(measured, key=lambda lengths: (lengths.tokens > seq_len).sum())
        num_longer = int((worst.tokens > seq_len).sum())
        if num_longer:
            share = f"{100 * num_longer / num_problems:.1f} % of stage {worst.stage} overflow; others take their place"
        else:
            # The rule of three: at a share of 3 / n, the probability of none among n problems is 5 %.
            share = f"nothing overflows; with 95 % confidence less than {300 / num_problems:.2g} % of any stage does"
        yield f"seq_len {seq_len}: {share}"
    longest = max(measured, key=lambda lengths: lengths.tokens.max())
    tokens = int(longest.tokens.max())
    enough = -(-tokens // _ROUND_TO) * _ROUND_TO
    yield f"the longest problem has {tokens:,} tokens (stage {longest.stage}): seq_len {enough} holds all of these"
