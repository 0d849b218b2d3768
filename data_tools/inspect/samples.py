"""The lines that ``data_tools.inspect`` prints for samples, which it reads as training does."""

from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from data_tools.base.errors import UserError
from data_tools.base.text_table import pluralize
from data_tools.corpus.named_packs import C4_PACK, find_pack, pack_shares
from data_tools.corpus.shards import VALIDATION_NAME, PackedBlocks, pack_directory
from data_tools.corpus.tokenizer import TextTokenizer, load_tokenizer
from data_tools.inspect.terminal import Terminal
from data_tools.inspect.token_view import View
from data_tools.runs.settings import DEFAULT_TOKENIZER, tokenizer_of_runs
from data_tools.samples.documents import Document, encode_examples, example_documents
from data_tools.samples.fresh_mixin import fresh_mixin
from data_tools.samples.mixin_table import MixinTable, load_mixin_table
from data_tools.samples.pack_mixture import PackMixture
from data_tools.samples.readers import MixinReader, Reader, StreamReader, c4_document, training_source
from data_tools.samples.samplers import MixtureSampler, SampleKind, mixin_share, source_of_pack
from data_tools.search.examples import GeneratorChoice
from data_tools.search.flags import generator_choice
from data_tools.search.generator import ExampleGenerator
from data_tools.search.splits import Splits, find_data_dir, split_file_name

DEFAULT_MAX_INPUT_SIZE, DEFAULT_MAX_LOOKAHEAD = 384, 64  # those of build_data_splits


def split_lines(args: Namespace) -> Iterator[str]:
    """Rows of a split: eval and test as they are evaluated, mixin as pretraining reads it."""
    splits = _splits(args)
    rows = splits.rows(args.split)
    picked = _picked(args, len(rows), f"rows of {args.split}.jsonl")
    tokenizer = _tokenizer(args) if "tokens" in args.show and not args.dot else None
    view = _view(args, tokenizer)
    for number in picked:
        row = rows[number]
        facts = f"{_graph_facts(row['lookahead'], row['num_edges'])}{pluralize(len(row['input_text']), 'character')}"
        documents: list[Document] = []
        if tokenizer:
            answers = row["output_texts"][:1] if args.split == "mixin" else row["output_texts"]
            (encoded,) = encode_examples(tokenizer, [row["input_text"]], [answers])
            how: dict[str, Any] = {"loss": "weighted", "scored": "any"}
            if args.split == "mixin":
                how = {"loss": args.mixin_loss, "seq_len": args.seq_len}
            documents = example_documents(encoded, **how)
            facts += f", {encoded.longest:,} tokens"
            if encoded.longest > args.seq_len:
                facts += f": longer than seq_len {args.seq_len}, so it is left out"
        made = f"stage {row['stage']}, alpha {row['alpha']:g}, seed {row['seed']}"
        title = f"{args.split} {number} of {len(rows):,} ({made})"
        yield from view.example(title, facts, row["input_text"], row["output_texts"], documents)


def stream_lines(args: Namespace) -> Iterator[str]:
    """Samples of pptrain's stream."""
    splits = _splits(args) if args.data_dir or args.scratch_dir else None
    reader = _stream_reader(args, splits)
    view = _view(args, reader.tokenizer)
    if splits is None:
        yield from view.terminal.wrapped(
            "No --scratch_dir or --data_dir: the flags give the sizes, and prompts of eval, test and mixin are not "
            "skipped.",
            style="warning",
        )
    for index in range(args.index, args.index + args.count):
        (candidate,) = reader.candidates([index], args.stage)
        example, alpha = candidate.example, args.stage / reader.source.max_lookahead
        facts = (
            f"{_graph_facts(example.lookahead, example.num_edges)}{len(example.input_text):,} characters, "
            f"{candidate.encoded.longest:,} tokens; attempt {candidate.attempt}"
        )
        if candidate.attempt:
            num_reserved = candidate.attempt - len(candidate.overflows)
            facts += f" ({len(candidate.overflows)} were longer than seq_len, {num_reserved} reserved)"
        stages = reader.source.max_lookahead
        title = f"stream {index} at stage {args.stage} of {stages} (alpha {alpha:.4g}, seed {args.seed})"
        documents = reader.read([index], args.stage)[0].documents
        yield from view.example(title, facts, example.input_text, example.output_texts, documents)


def mixture_lines(args: Namespace) -> Iterator[str]:
    """Samples of a pretrain run."""
    if args.scratch_dir is None:
        raise UserError("samples of which run? Give --run RUN, or --scratch_dir and the flags of the run.")
    splits, packs = _splits(args), _packs(args)
    blocks = next(iter(packs.values()))
    tokenizer = _pack_tokenizer(args, blocks)
    share = mixin_share(args.mixin_percent, args.mixin_schedule, args.mixin_end, args.total_steps)
    if args.mixin_source == "generator" and share.is_positive:
        mixin = _fresh(args, splits, tokenizer, blocks.meta.seq_len)
    else:
        mixin = _of_table(args, splits, tokenizer, blocks.meta.seq_len, is_empty=not share.is_positive)
    sizes = [pack.num_blocks for pack in packs.values()]
    sampler = MixtureSampler(
        args.global_batch, args.seed, share, blocks.num_blocks, mixin.num_blocks, mixin.fill, args.c4_order == "seed",
        PackMixture.of(pack_shares(args.packs), sizes) if args.packs else None,
    )  # fmt: skip
    of_source = {source_of_pack(number): (name, pack) for number, (name, pack) in enumerate(packs.items())}
    view = _view(args, tokenizer)
    for title, source, block in _planned(args, sampler):
        if source in of_source:
            name, pack = of_source[source]
            yield from _block(view, pack, block, title, name=name)
            continue
        members = mixin.examples_of(block)
        (sample,) = mixin.reader.read([block], 0)
        num_targets = sum(len(document.weights) for document in sample.documents)
        for number, ((origin, row), document) in enumerate(zip(members, sample.documents, strict=True), 1):
            facts = (
                f"{origin}: {_graph_facts(row['lookahead'], row['num_edges'])}"
                f"{len(document.tokens):,} tokens; "
                f"the block holds {num_targets:,} of {blocks.meta.seq_len:,} targets"
            )
            which = f"{title}mixin block {block}, example {number} of {len(members)}"
            yield from view.example(which, facts, row["input_text"], row["output_texts"], [document])


@dataclass(frozen=True)
class _Mixin:
    """Synthetic blocks: what reads them, how many there are (None: endless), and the examples of one, with origins."""

    reader: Reader
    num_blocks: int | None
    fill: float
    examples_of: Callable[[int], list[tuple[str, dict[str, Any]]]]


def _of_table(args: Namespace, splits: Splits, tokenizer: TextTokenizer, seq_len: int, is_empty: bool) -> _Mixin:
    rows, table = splits.rows("mixin"), MixinTable.empty()
    if not is_empty:
        sha256 = splits.meta.files[split_file_name("mixin")].sha256
        cache = args.scratch_dir / "data" / "cache"
        table = load_mixin_table(rows, sha256, tokenizer, seq_len, args.mixin_pack, cache)
    return _Mixin(
        MixinReader(rows, table, tokenizer, args.mixin_loss, seq_len),
        table.num_blocks,
        table.fill,
        lambda block: [(f"row {row} of mixin.jsonl", rows[row]) for row in table.examples_of(block)],
    )


def _fresh(args: Namespace, splits: Splits, tokenizer: TextTokenizer, seq_len: int) -> _Mixin:
    how = {"mode": args.mixin_pack, "loss": args.mixin_loss}
    fresh = fresh_mixin(splits, tokenizer, seq_len=seq_len, seed=args.seed, **how)
    _check_generator(splits, fresh.stream.source)

    def examples_of(block: int) -> list[tuple[str, dict[str, Any]]]:
        return [
            (f"example {each.index} of the generator, attempt {each.attempt}", asdict(each.example))
            for each in fresh.examples_of([block])[0]
        ]

    return _Mixin(fresh, None, fresh.fill(), examples_of)


def _graph_facts(lookahead: int | None, num_edges: int | None) -> str:
    """What is known of a problem's graph, as the beginning of a list."""
    facts = "" if lookahead is None else f"lookahead {lookahead}, "
    return facts if num_edges is None else f"{facts}{pluralize(num_edges, 'edge')}, "


def _planned(args: Namespace, sampler: MixtureSampler) -> Iterator[tuple[str, int, int]]:
    """Yield the requested samples of the run: a title, the source of the sample, and its index."""
    if args.blocks:
        num_blocks = sampler.num_mixin_blocks
        if num_blocks is None:
            num_blocks = sampler.cursor_before(args.total_steps + 1).mixin_idx
        for block in _picked(args, num_blocks, "synthetic blocks"):
            yield "", SampleKind.MIXIN, block
        return
    size = args.global_batch
    picked = _picked(args, args.total_steps * size, "samples of the run (total_steps × global_batch)")
    cursor = sampler.cursor_before(picked[0] // size + 1)
    for step in range(picked[0] // size + 1, picked[-1] // size + 2):
        plan = sampler.plan(cursor, step)
        cursor = plan.next_cursor
        for sample in range(max(picked[0], (step - 1) * size), min(picked[-1] + 1, step * size)):
            position = sample % size
            title = f"sample {sample} of the run (step {step}): "
            yield title, int(plan.sources[position]), int(plan.indices[position])


def shards_lines(args: Namespace) -> Iterator[str]:
    """Packed blocks."""
    blocks = _pack(args)
    total = blocks.num_validation_blocks if args.validation else blocks.num_blocks
    picked = _picked(args, total, "validation blocks" if args.validation else "blocks")
    view = _view(args, _pack_tokenizer(args, blocks))
    for index in picked:
        yield from _block(view, blocks, index, is_validation=args.validation)


def _block(
    view: View, blocks: PackedBlocks, index: int, title: str = "", is_validation: bool = False, name: str = "c4"
) -> Iterator[str]:
    tokens = blocks.validation_block(index) if is_validation else blocks.block(index)
    total = blocks.num_validation_blocks if is_validation else blocks.num_blocks
    file, row = (VALIDATION_NAME, index) if is_validation else blocks.place_of(index)
    documents = int((tokens == blocks.meta.eos_id).sum())
    ends = f"{pluralize(documents, 'document')} {'ends' if documents == 1 else 'end'} in it"
    facts = f"{file}, row {row}: {len(tokens):,} tokens; {ends}"
    what = "validation block" if is_validation else f"{name} block"
    yield from view.block(f"{title}{what} {index} of {total:,}", facts, c4_document(tokens))


def _splits(args: Namespace) -> Splits:
    if args.data_dir is None and args.scratch_dir is None:
        raise UserError("which splits? Give --scratch_dir, or --data_dir.")
    return Splits(find_data_dir(args.scratch_dir, args.data_dir))


def _stream_reader(args: Namespace, splits: Splits | None) -> StreamReader:
    """The reader that pptrain uses with the same flags."""
    size, lookahead, generator = DEFAULT_MAX_INPUT_SIZE, DEFAULT_MAX_LOOKAHEAD, GeneratorChoice()
    if splits:
        size, lookahead = splits.meta.max_input_size, splits.meta.max_lookahead
        generator = splits.meta.generator
        for name, built in (("max_input_size", size), ("max_lookahead", lookahead)):
            if getattr(args, name) not in (None, built):
                raise UserError(
                    f"--{name} {getattr(args, name)} contradicts {splits.directory}, which was built with {built}; "
                    "leave the flag out, or the directory."
                )
    source = training_source(
        generator_choice(args, generator),
        max_input_size=args.max_input_size or size,
        max_lookahead=args.max_lookahead or lookahead,
        seed=args.seed,
    )
    if splits:
        _check_generator(splits, source)
    source.example(0, args.stage)  # an impossible stage is an error before the tokenizer is loaded
    return StreamReader(
        source,
        _tokenizer(args),
        args.seq_len,
        splits.reserved_digests() if splits else frozenset(),
        args.seed,
        args.train_answer,
        args.accuracy,
        args.loss,
        args.answers,
    )


def _check_generator(splits: Splits, source: ExampleGenerator) -> None:
    if problem := splits.generator_change(source, source.identity()):
        raise UserError(f"{problem}. Restore it, or build the splits again.")


def _tokenizer(args: Namespace) -> TextTokenizer:
    """The tokenizer that is given, or of the directory's runs, or of its pack."""
    if name := args.tokenizer or tokenizer_of_runs(args.scratch_dir):
        return load_tokenizer(name)
    if args.scratch_dir and (pack := pack_directory(args.scratch_dir)).exists():
        return load_tokenizer(PackedBlocks(pack).meta.tokenizer)
    return load_tokenizer(DEFAULT_TOKENIZER)


def _pack(args: Namespace) -> PackedBlocks:
    if args.pack_dir is None and args.scratch_dir is None:
        raise UserError("which packed blocks? Give --scratch_dir, or --pack_dir.")
    return PackedBlocks(args.pack_dir or pack_directory(args.scratch_dir))


def _packs(args: Namespace) -> dict[str, PackedBlocks]:
    """The packs of a run by name, in the order of their numbers."""
    if not args.packs:
        return {C4_PACK: _pack(args)}
    tokenizer = _tokenizer(args)
    return {name: find_pack(args.scratch_dir, name, tokenizer, args.pack_dir) for name in pack_shares(args.packs)}


def _pack_tokenizer(args: Namespace, blocks: PackedBlocks) -> TextTokenizer:
    tokenizer = load_tokenizer(args.tokenizer or blocks.meta.tokenizer)
    if tokenizer.fingerprint != blocks.meta.tokenizer_sha256:
        raise UserError(
            f"the tokenizer {tokenizer.name} is not the one {blocks.directory} was packed with "
            f"({blocks.meta.tokenizer}); give --tokenizer accordingly."
        )
    return tokenizer


def _view(args: Namespace, tokenizer: TextTokenizer | None) -> View:
    return View(Terminal.of_stdout(args.color), tokenizer, args.show, args.ids, getattr(args, "dot", False))


def _picked(args: Namespace, total: int, what: str) -> range:
    if not total:
        raise UserError(f"there are no {what}.")
    if args.index >= total:
        raise UserError(f"--index is {args.index}, but there are {total:,} {what}: expected 0 … {total - 1}.")
    return range(args.index, min(args.index + args.count, total))
