"""Which pack each text block of a run is from: a pure function of the seed and the number of the block.

The text blocks of a run are numbered from 0, whatever synthetic blocks are among them. Block k goes to a pack by
quota, not by chance: after any number of blocks each pack has had its share of them, to within a block for each pack.
All blocks are equally long, so shares of blocks are shares of tokens, and they cannot drift. How many blocks of a pack
precede block k follows from k alone. So a checkpoint needs the number of text blocks only, as with one pack.

Each pack is read in its own order, as if it were alone: its n-th block in the run is block n of the pack, or of the
pass's permutation by the seed, and after its last block it begins again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data_tools.base.rng import uniform_at


@dataclass(frozen=True)
class PackMixture:
    """The packs of a run.

    Attributes:
        names: of the packs, in alphabetical order.
        weights: share of each in the text tokens, in millionths: in integers, block 10^12 is as exact as block 0.
        sizes: blocks of each.
    """

    names: tuple[str, ...]
    weights: tuple[int, ...]
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, shares: Mapping[str, int], sizes: Sequence[int]) -> "PackMixture":
        """The mixture with these shares by name, in millionths, in alphabetical order."""
        return cls(tuple(shares), tuple(shares.values()), tuple(sizes))

    def numbers(self, seed: int, first: int, count: int) -> np.ndarray:
        """(count,) int64, the number of the pack of text blocks ``first`` … ``first + count - 1`` of the run."""
        before = self._counts(seed, np.arange(first, first + count))
        after = self._counts(seed, np.arange(first + 1, first + count + 1))
        return (after - before).argmax(axis=0)

    def counts(self, seed: int, num_blocks: int) -> list[int]:
        """How many of the first ``num_blocks`` text blocks of the run are from each pack."""
        return self._counts(seed, np.array([num_blocks]))[:, 0].tolist()

    def _counts(self, seed: int, num_blocks: np.ndarray) -> np.ndarray:
        """(packs, numbers) int64. Each pack takes its quota of what the packs before it leave, from a seeded start."""
        starts = uniform_at(seed, "pretrain/packs", 0, len(self.weights))
        left, counts = num_blocks.astype(np.int64), []
        for number, weight in enumerate(self.weights):
            total = sum(self.weights[number:])
            taken = (left * weight + int(starts[number] * total)) // total
            counts.append(taken)
            left = left - taken
        return np.stack(counts)
