"""Where pretrain's synthetic blocks come from: the table of mixin.jsonl, or the splits' generator."""

import logging
import math
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from data_tools.base.text_table import round_up
from data_tools.corpus.tokenizer import TextTokenizer
from data_tools.samples.fresh_mixin import fresh_mixin
from data_tools.samples.mixin_table import MixinTable, load_mixin_table
from data_tools.samples.readers import MixinReader, Reader
from data_tools.samples.samplers import MixinShare
from data_tools.search.splits import Splits, split_file_name
from ds_train.config.phase_flags import PretrainFlags
from ds_train.phases.generator_check import check_generator, generator_fingerprints
from ds_train.ranks.collectives import on_main
from ds_train.ranks.world import World

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Mixin:
    """Synthetic blocks.

    Attributes:
        reader: reads them.
        num_blocks: of the table; None: there are as many as are drawn.
        fill: mean real targets of a block / seq_len.
        fingerprints: what a resumed checkpoint must match.
    """

    reader: Reader
    num_blocks: int | None
    fill: float
    fingerprints: dict[str, str] = field(default_factory=dict)


def make_mixin(
    flags: PretrainFlags,
    share: MixinShare,
    splits: Splits,
    tokenizer: TextTokenizer,
    *,
    seq_len: int,
    seed: int,
    cache_dir: Path,
    world: World,
    accepted: Collection[str],
) -> Mixin:
    """The synthetic blocks that the flags ask for; none where their share is 0. Collective.

    Args:
        seed: the run's.
        cache_dir: where tables are cached.
        accepted: changes since the splits were built that are accepted (``--accept_change``).

    Raises:
        UserError: the splits or their generator were changed, or no example fits a block.
    """
    if flags.mixin_source == "generator" and share.is_positive:
        fresh = fresh_mixin(splits, tokenizer, seq_len=seq_len, seed=seed, mode=flags.mixin_pack, loss=flags.mixin_loss)
        source = fresh.stream.source
        identity = on_main(world, source.identity)
        check_generator(splits, source, identity, accepted)
        return Mixin(fresh, None, on_main(world, fresh.fill), generator_fingerprints(source, identity))

    def load() -> MixinTable:
        if not share.is_positive:
            return MixinTable.empty()
        splits.reserved_digests()  # raises where held-out problems are mixed in
        sha256 = splits.meta.files[split_file_name("mixin")].sha256
        return load_mixin_table(splits.rows("mixin"), sha256, tokenizer, seq_len, flags.mixin_pack, cache_dir)

    table = on_main(world, load)
    if table.num_blocks:
        logger.info("mixin: %d blocks, %.1f %% filled", table.num_blocks, 100 * table.fill)
    if table.num_too_long:
        logger.warning("%d mixin examples are longer than seq_len and are left out", table.num_too_long)
    reader = MixinReader(splits.rows("mixin"), table, tokenizer, flags.mixin_loss, seq_len)
    return Mixin(reader, table.num_blocks, table.fill)


def warn_of_repeats(passes: float, splits: Splits) -> None:
    """Warn where a run trains on the same synthetic examples again.

    Args:
        passes: how many times it reads the table.
    """
    if passes <= 1:
        return
    num_examples = splits.meta.files[split_file_name("mixin")].num_examples
    logger.warning(
        "the run reads the %d examples of mixin.jsonl %.1f times; %d would suffice (build_data_splits.py "
        "--mixin_size), and --mixin_source generator takes fresh ones",
        num_examples,
        passes,
        round_up(math.ceil(num_examples * passes)),  # with room: another table is filled a little differently
    )
