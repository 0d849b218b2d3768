"""The text of a pretrain run: the pack without a name, or several named packs with their shares of the tokens."""

import hashlib
import json
import logging
from dataclasses import dataclass, replace

from data_tools.base.errors import Problems, UserError
from data_tools.base.text_table import pluralize
from data_tools.corpus.named_packs import C4_PACK, as_texts, check_pack_exists, find_pack, pack_shares
from data_tools.corpus.shards import PackedBlocks, pack_directory
from data_tools.corpus.tokenizer import TextTokenizer
from data_tools.samples.pack_mixture import PackMixture
from data_tools.samples.readers import C4Reader, Reader
from data_tools.samples.samplers import MixtureSampler, pack_blocks_needed, source_of_pack
from ds_train.config.phase_flags import PretrainFlags
from ds_train.run.inputs import CommonInputs

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextPacks:
    """The packs of a run.

    Attributes:
        packs: by name, in the order of their numbers. Without ``--packs`` there is one, called c4.
        mixture: which block is from which; None without ``--packs``.
        is_masked: whether the documents in a block are isolated from each other.
    """

    packs: dict[str, PackedBlocks]
    mixture: PackMixture | None = None
    is_masked: bool = False

    @property
    def fingerprint(self) -> str:
        """Identifies the text of all blocks."""
        of_each = {name: pack.meta.fingerprint for name, pack in self.packs.items()}
        if self.mixture is None:
            return of_each[C4_PACK]
        return hashlib.sha256(json.dumps(of_each).encode()).hexdigest()

    @property
    def num_blocks(self) -> int:
        return sum(pack.num_blocks for pack in self.packs.values())

    @property
    def defaults(self) -> dict[str, str]:
        """What ``--pack_dir`` stands for where it is not given."""
        return {"pack_dir": str(self.packs[C4_PACK].directory)} if C4_PACK in self.packs else {}

    @property
    def places(self) -> str:
        """Where the packs are, for the summary."""
        return ", ".join(f"{pack.directory} ({pack.meta.fingerprint[:12]})" for pack in self.packs.values())

    def describe(self, sizes: dict[str, tuple[int, int]]) -> str:
        """How many blocks the run needs of those there are, for the summary."""
        shown = [f"{needed:,} of {size:,} {name} blocks" for name, (needed, size) in sizes.items()]
        return ", ".join(shown) if self.mixture else shown[0].replace(" C4 ", " ")

    def readers(self) -> dict[int, Reader]:
        return {
            source_of_pack(number): C4Reader(pack, self.is_masked) for number, pack in enumerate(self.packs.values())
        }

    def counts(self, seed: int, num_blocks: int) -> dict[str, int]:
        """How many of the first ``num_blocks`` text blocks of a run are from each pack."""
        if self.mixture is None:
            return {C4_PACK: num_blocks}
        return dict(zip(self.packs, self.mixture.counts(seed, num_blocks), strict=True))

    def token_columns(self, seed: int, num_blocks: int) -> dict[str, int]:
        """The tokens of each named pack so far, for a train row; none without ``--packs``."""
        if self.mixture is None:
            return {}
        counts = self.counts(seed, num_blocks)
        return {f"{name}_tokens": counts[name] * pack.meta.seq_len for name, pack in self.packs.items()}

    def warn_of_repeats(self, seed: int, step: int, before: int, now: int) -> None:
        """Warn where a step begins to read a pack again.

        Args:
            before, now: text blocks that the run had read before the step, and after it.
        """
        earlier, later = self.counts(seed, before), self.counts(seed, now)
        for name, pack in self.packs.items():
            passes, passes_before = (max(0, number - 1) // pack.num_blocks for number in (later[name], earlier[name]))
            if passes > passes_before:
                what = f"pack {name}" if self.mixture else "pack"
                logger.warning("step %d: the %s has been read %s, and is read again", step, what, _times(passes))


def _times(passes: int) -> str:
    return pluralize(passes, "time")


def with_sorted_packs(flags: PretrainFlags) -> PretrainFlags:
    """The flags with ``--packs`` in the one form that a resume compares.

    Raises:
        UserError: see `pack_shares`.
    """
    if flags.packs is None:
        return flags
    shares = pack_shares(flags.packs)
    if flags.pack_dir and C4_PACK not in shares:
        raise UserError(f"--pack_dir is the place of the pack {C4_PACK}, which --packs {' '.join(flags.packs)} lacks.")
    return replace(flags, packs=as_texts(shares))


def check_named_packs(flags: PretrainFlags, scratch_dir: str) -> None:
    """Check ``--packs`` before there is the pack c4, or a tokenizer.

    Raises:
        UserError: it has another form, or another pack is not there.
    """
    for name in pack_shares(with_sorted_packs(flags).packs or [f"{C4_PACK}=1"]):
        if name != C4_PACK:
            check_pack_exists(scratch_dir, name)


def find_text_packs(
    flags: PretrainFlags, scratch_dir: str, inputs: CommonInputs | None, problems: Problems
) -> TextPacks | None:
    """The packs that the flags name, checked against tokenizer and seq_len; None after a fault.

    Args:
        inputs: None after a fault elsewhere; then only what needs no tokenizer is checked.
    """
    packs: dict[str, PackedBlocks] = {}
    shares = pack_shares(flags.packs) if flags.packs else {}
    before = len(problems)
    for name in shares or (C4_PACK,):
        with problems.collect():
            if not shares:
                packs[name] = PackedBlocks(flags.pack_dir or pack_directory(scratch_dir))
            elif inputs is None:
                check_pack_exists(scratch_dir, name, flags.pack_dir)
            else:
                packs[name] = find_pack(scratch_dir, name, inputs.tokenizer, flags.pack_dir)
    for pack in packs.values() if inputs else ():
        assert inputs
        _check_pack(pack, inputs.model_flags.seq_len, inputs.tokenizer, problems)
    if inputs is None or len(problems) > before:
        return None
    is_masked = flags.c4_documents == "masked"
    if not shares:
        return TextPacks(packs, is_masked=is_masked)
    return TextPacks(packs, PackMixture.of(shares, [pack.num_blocks for pack in packs.values()]), is_masked)


def _check_pack(blocks: PackedBlocks, seq_len: int, tokenizer: TextTokenizer, problems: Problems) -> None:
    meta = blocks.meta
    with problems.collect():
        blocks.check_ids()
    if meta.seq_len != seq_len:
        problems.add(
            f"--seq_len {seq_len}, but {blocks.directory} is packed for seq_len {meta.seq_len}; give --seq_len "
            f"{meta.seq_len}, or pack again."
        )
    if meta.tokenizer_sha256 != tokenizer.fingerprint:
        problems.add(
            f"the tokenizer {tokenizer.name} is not the one {blocks.directory} was packed with "
            f"({meta.tokenizer}); give --tokenizer accordingly, or pack again."
        )


def blocks_read(text: TextPacks, sampler: MixtureSampler, flags: PretrainFlags) -> dict[str, tuple[int, int]]:
    """Blocks that the run needs of each pack, and has, by name.

    Raises:
        UserError: a pack has too few, and must not be read again.
    """
    sizes = pack_blocks_needed(sampler, flags.total_steps)
    places = zip(text.packs.values(), sizes.items(), strict=True)
    short = [
        f"{needed} {name} blocks but {pack.directory} holds {size}"
        for pack, (name, (needed, size)) in places
        if needed > size
    ]
    if short and not flags.allow_repeat:
        raise UserError(
            f"the run needs {', and '.join(short)}; pack more, take fewer --total_steps, or give --allow_repeat."
        )
    return sizes
