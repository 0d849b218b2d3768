"""Counter-based random numbers: every draw is a pure function of its purpose and position.

There is no shared generator. A stream is addressed by (seed, purpose, index, stage, attempt), so any sample can be
regenerated alone, on any rank, in any order, and equal seeds with different purposes never repeat one another. This
module converts raw 64-bit Philox4x64-10 words (Salmon et al., SC 2011) to numbers itself: the methods of
``numpy.random.Generator`` may change their streams between NumPy releases.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np

T = TypeVar("T")

_WORDS_PER_COUNTER = 4  # Philox4x64 turns one counter value into four 64-bit words
_HALF_WORD = np.uint64(32)  # bits


@lru_cache(maxsize=256)
def _philox_key(seed: int, purpose: str) -> int:
    digest = hashlib.blake2b(f"{purpose}\0{seed}".encode(), digest_size=16).digest()
    return int.from_bytes(digest, "little")


class CounterStream:
    """Random draws at one address (seed, purpose, index, stage, attempt).

    Args:
        seed: the run's or split's seed.
        purpose: the use of the draws, e.g. ``"train"``, ``"split/eval"``; part of the key.
        index, stage, attempt: non-negative position of the stream, each below 2**64.
    """

    __slots__ = ("_philox", "_words")

    def __init__(self, seed: int, purpose: str, index: int = 0, stage: int = 0, attempt: int = 0) -> None:
        # The lowest counter word advances as words are drawn; the address fills the three above it.
        counter = index << 64 | stage << 128 | attempt << 192
        self._philox = np.random.Philox(key=_philox_key(seed, purpose), counter=counter)
        self._words: list[int] = []

    def below(self, bound: int) -> int:
        """A uniform integer in [0, bound); the bias of multiply-shift is below bound / 2**64."""
        if not self._words:
            self._words = self._philox.random_raw(256).tolist()
        return self._words.pop() * bound >> 64

    def below_many(self, bound: int, count: int) -> list[int]:
        """``count`` uniform integers in [0, bound), bound below 2**32, in one go; the bias is below bound / 2**32."""
        words = self._philox.random_raw(count)
        return ((words >> _HALF_WORD) * np.uint64(bound) >> _HALF_WORD).tolist()

    def choice(self, items: Sequence[T]) -> T:
        """A uniform element of a non-empty sequence."""
        return items[self.below(len(items))]

    def shuffle(self, items: list) -> None:
        """Shuffle a list in place (Fisher-Yates)."""
        below = self.below
        for i in range(len(items) - 1, 0, -1):
            j = below(i + 1)
            items[i], items[j] = items[j], items[i]


def uniform_at(seed: int, purpose: str, start: int, count: int) -> np.ndarray:
    """Draws ``start`` … ``start + count - 1`` of one endless stream, without producing those before.

    Returns:
        float64 array (count,), each in [0, 1); element i depends on (seed, purpose, start + i) only.
    """
    skip = start % _WORDS_PER_COUNTER
    philox = np.random.Philox(key=_philox_key(seed, purpose), counter=start // _WORDS_PER_COUNTER)
    words = philox.random_raw(skip + count)[skip:]
    return (words >> np.uint64(11)) * 2.0**-53


def permutation(seed: int, purpose: str, size: int, pass_index: int = 0) -> np.ndarray:
    """A permutation of 0 … size - 1 (int64) that depends on its arguments only.

    Sorting 64-bit words: two equal words among n occur with probability n² / 2**65 and keep their order.
    """
    words = np.random.Philox(key=_philox_key(seed, purpose), counter=pass_index << 64).random_raw(size)
    return np.argsort(words, kind="stable")


def hashed_seed_31bit(*address: int | str) -> int:
    """A 31-bit seed for generators that take a plain integer; neighbours in the address give unrelated seeds."""
    text = "\0".join(map(str, address))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little") >> 1
