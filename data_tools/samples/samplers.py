"""Samplers choose the samples of a global batch: pure functions of (configuration, cursor, step).

A sampler knows nothing about tokens, files or ranks. Every rank plans the whole global batch (a few integers per
sample) and takes its slice, so the order of samples cannot depend on the number of ranks.
"""

import hashlib
import math
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import lru_cache
from typing import Protocol

import numpy as np

from data_tools.base.errors import UserError
from data_tools.base.rng import permutation, uniform_at
from data_tools.samples.pack_mixture import PackMixture


class SampleKind(IntEnum):
    """Where a sample comes from."""

    STREAM = 0  # sample ``index`` of the endless synthetic stream, at the plan's stage
    C4 = 1  # packed block ``index``
    MIXIN = 2  # synthetic block ``index``, of the mixin table or of the series of fresh ones


def source_of_pack(number: int) -> int:
    """The source of the blocks of pack ``number``: `SampleKind.C4` of the first, and values after all kinds."""
    return number + len(SampleKind) - 1 if number else SampleKind.C4


_NAMES = tuple(kind.name.lower() for kind in SampleKind)


@dataclass(frozen=True)
class Cursor:
    """The position in the data where the next global batch starts, in counts over all ranks."""

    consumed_index: int = 0  # samples consumed; in pptrain also the index of the next sample of the stream
    stage: int = 0  # curriculum stage of the next sample; 0 where there is no curriculum
    c4_block_idx: int = 0  # C4 blocks consumed, of all packs
    mixin_idx: int = 0  # synthetic blocks consumed


@dataclass(frozen=True)
class GlobalBatchPlan:
    """The samples of one optimizer step in global order, and the cursor that follows them.

    Attributes:
        step: the optimizer step these samples train, from 1.
        stage: curriculum stage of the stream samples (0: none).
        sources: (global_batch,) uint8, values of `SampleKind` or `source_of_pack`.
        indices: (global_batch,) int64, index within the source.
        next_cursor: where the next plan starts.
        names: of the sources, by their values.
    """

    step: int
    stage: int
    sources: np.ndarray
    indices: np.ndarray
    next_cursor: Cursor
    names: tuple[str, ...] = _NAMES

    def extended_ledger(self, ledger: str) -> str:
        """The rolling hash of all consumed sample ids after this batch: 16 bytes in hex."""
        digest = hashlib.blake2b(bytes.fromhex(ledger), digest_size=16)
        digest.update(self.stage.to_bytes(8, "little") + self.sources.tobytes() + self.indices.astype("<i8").tobytes())
        return digest.hexdigest()


class Sampler(Protocol):
    def plan(self, cursor: Cursor, step: int) -> GlobalBatchPlan: ...


@dataclass(frozen=True)
class CurriculumSampler:
    """pptrain: the next ``global_batch`` samples of the synthetic stream at the cursor's stage."""

    global_batch: int

    def plan(self, cursor: Cursor, step: int) -> GlobalBatchPlan:
        first, end = cursor.consumed_index, cursor.consumed_index + self.global_batch
        return GlobalBatchPlan(
            step=step,
            stage=cursor.stage,
            sources=np.full(self.global_batch, SampleKind.STREAM, np.uint8),
            indices=np.arange(first, end, dtype=np.int64),
            next_cursor=replace(cursor, consumed_index=end),
        )


@dataclass(frozen=True)
class MixinShare:
    """The share of real tokens that is synthetic, over the run.

    Attributes:
        start: share at step 1 (``--mixin_percent``, a fraction).
        end: share at the last step; equal to start for the constant schedule.
        schedule: ``constant``, ``linear``, ``cosine`` or ``exponential``, in the fraction of steps done.
        total_steps: length of the run in optimizer steps.
    """

    start: float
    end: float
    schedule: str
    total_steps: int

    @property
    def is_positive(self) -> bool:
        return self.start > 0 or self.end > 0

    def at(self, step: int) -> float:
        """The requested share at optimizer step ``step`` (from 1)."""
        if self.schedule == "constant" or self.total_steps < 2:
            return self.start
        if self.schedule == "exponential":  # at the last step 0.7 % of the way are left
            return self.end + (self.start - self.end) * math.exp(-5 * (step - 1) / self.total_steps)
        progress = min(1.0, (step - 1) / (self.total_steps - 1))
        if self.schedule == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        return self.start + (self.end - self.start) * progress


def mixin_share(percent: float, schedule: str, end: float | None, total_steps: int) -> MixinShare:
    """The share that ``--mixin_percent``, ``--mixin_schedule`` and ``--mixin_end`` define.

    Raises:
        UserError: a share is not a fraction, or the schedule lacks ``--mixin_end`` or does not take it.
    """
    problems = [
        f"--{name} is {value}, expected a fraction in [0, 1] (0.02 is 2 %)."
        for name, value in (("mixin_percent", percent), ("mixin_end", end))
        if value is not None and not 0 <= value <= 1
    ]
    if schedule != "constant" and end is None:
        problems.append(f"--mixin_schedule {schedule} needs --mixin_end, the share at the last step.")
    if schedule == "constant" and end is not None:
        problems.append(
            "--mixin_end was given with a constant schedule; choose --mixin_schedule linear, cosine or exponential."
        )
    if problems:
        raise UserError(" ".join(problems))
    return MixinShare(percent, percent if end is None else end, schedule, total_steps)


def block_probability(share: float, fill: float) -> float:
    """Probability that a sample is a synthetic block, so that ``share`` of the real tokens are synthetic.

    A C4 block is full; a synthetic one holds the fraction ``fill`` of real tokens. With probability q the synthetic
    share is q·fill / (q·fill + 1 - q), which is solved for q.
    """
    return share / (fill + share * (1 - fill)) if share > 0 else 0.0


@dataclass(frozen=True)
class MixtureSampler:
    """pretrain: sample g is a synthetic block by a draw keyed (seed, g), otherwise the next C4 block.

    Attributes:
        num_c4_blocks: blocks of the pack; C4 indices wrap around (the start of a run checks whether they may).
        num_mixin_blocks: blocks of the mixin table, visited in a new seeded permutation each pass; None: there are as
            many as are drawn, and they come in order.
        shuffles_c4: whether the blocks of each pack are visited so too, and not in their order.
        mixin_fill: mean real tokens of a synthetic block / seq_len.
        packs: several packs, whose blocks are C4 blocks all; None: there is one.
    """

    global_batch: int
    seed: int
    share: MixinShare
    num_c4_blocks: int
    num_mixin_blocks: int | None
    mixin_fill: float
    shuffles_c4: bool = False
    packs: PackMixture | None = None

    def plan(self, cursor: Cursor, step: int) -> GlobalBatchPlan:
        is_mixin = self.is_mixin(cursor.consumed_index, step)
        num_mixin = int(is_mixin.sum())
        num_c4 = self.global_batch - num_mixin
        sources = np.where(is_mixin, SampleKind.MIXIN, SampleKind.C4).astype(np.uint8)
        indices = np.empty(self.global_batch, np.int64)
        if self.packs is None:
            indices[~is_mixin] = self._of_pack("c4", self.num_c4_blocks, cursor.c4_block_idx, num_c4)
        else:
            sources[~is_mixin], indices[~is_mixin] = self._of_packs(self.packs, cursor.c4_block_idx, num_c4)
        if self.num_mixin_blocks is None:
            indices[is_mixin] = cursor.mixin_idx + np.arange(num_mixin)
        else:
            order = "pretrain/mixin order"
            indices[is_mixin] = self._shuffled(order, self.num_mixin_blocks, cursor.mixin_idx, num_mixin)
        return GlobalBatchPlan(
            step=step,
            stage=cursor.stage,
            sources=sources,
            indices=indices,
            next_cursor=replace(
                cursor,
                consumed_index=cursor.consumed_index + self.global_batch,
                c4_block_idx=cursor.c4_block_idx + num_c4,
                mixin_idx=cursor.mixin_idx + num_mixin,
            ),
            **({"names": self._names(self.packs)} if self.packs else {}),
        )

    def is_mixin(self, first_sample: int, step: int) -> np.ndarray:
        """(global_batch,) bool, whether each sample of a step is synthetic."""
        probability = block_probability(self.share.at(step), self.mixin_fill)
        return uniform_at(self.seed, "pretrain/mix", first_sample, self.global_batch) < probability

    def cursor_before(self, step: int) -> Cursor:
        """The cursor before ``step`` in a run without curriculum; repeats all draws up to there."""
        num_steps = step - 1
        num_mixin = sum(int(self.is_mixin(n * self.global_batch, n + 1).sum()) for n in range(num_steps))
        consumed = num_steps * self.global_batch
        return Cursor(consumed_index=consumed, c4_block_idx=consumed - num_mixin, mixin_idx=num_mixin)

    @staticmethod
    def _names(packs: PackMixture) -> tuple[str, ...]:
        first, *others = packs.names
        return (*(first if name == _NAMES[SampleKind.C4] else name for name in _NAMES), *others)

    def _of_packs(self, packs: PackMixture, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Sources and indices of text blocks ``start`` … ``start + count - 1`` of the run, (count,) each."""
        numbers, before = packs.numbers(self.seed, start, count), packs.counts(self.seed, start)
        indices = np.empty(count, np.int64)
        for number, (name, size) in enumerate(zip(packs.names, packs.sizes, strict=True)):
            is_own = numbers == number
            indices[is_own] = self._of_pack(name, size, before[number], int(is_own.sum()))
        return np.array([*map(source_of_pack, range(len(packs.names)))])[numbers], indices

    def _of_pack(self, name: str, num_blocks: int, start: int, count: int) -> np.ndarray:
        """The blocks of a pack that the run reads after the first ``start`` ones, (count,)."""
        if self.shuffles_c4:
            return self._shuffled(f"pretrain/{name} order", num_blocks, start, count)
        return (start + np.arange(count)) % max(1, num_blocks)

    def _shuffled(self, purpose: str, num_blocks: int, start: int, count: int) -> np.ndarray:
        blocks = np.empty(count, np.int64)
        done = 0
        while done < count:
            pass_index, position = divmod(start + done, num_blocks)
            order = _order(self.seed, purpose, num_blocks, pass_index)
            taken = order[position : position + count - done]
            blocks[done : done + len(taken)] = taken
            done += len(taken)
        return blocks


@lru_cache(maxsize=16)  # the packs and the table of a run
def _order(seed: int, purpose: str, num_blocks: int, pass_index: int) -> np.ndarray:
    return permutation(seed, purpose, num_blocks, pass_index)


def mixin_passes(sampler: MixtureSampler, total_steps: int) -> float:
    """How many times a run of ``total_steps`` reads the table of synthetic blocks; 0 without one."""
    if not sampler.num_mixin_blocks:
        return 0.0
    return sampler.cursor_before(total_steps + 1).mixin_idx / sampler.num_mixin_blocks


def c4_blocks_needed(sampler: MixtureSampler, total_steps: int) -> int:
    """C4 blocks that a run of ``total_steps`` reads; an upper bound where the pack has enough for any draws."""
    num_samples = sampler.global_batch * total_steps
    if sampler.packs is None and sampler.num_c4_blocks >= num_samples:
        return num_samples  # enough even without a single synthetic block
    return sampler.cursor_before(total_steps + 1).c4_block_idx


def pack_blocks_needed(sampler: MixtureSampler, total_steps: int) -> dict[str, tuple[int, int]]:
    """Blocks that a run reads of each pack (one pack: see `c4_blocks_needed`), and how many it has, by name."""
    needed = c4_blocks_needed(sampler, total_steps)
    if sampler.packs is None:
        return {"C4": (needed, sampler.num_c4_blocks)}
    counts = sampler.packs.counts(sampler.seed, needed)
    return dict(zip(sampler.packs.names, zip(counts, sampler.packs.sizes, strict=True), strict=True))
