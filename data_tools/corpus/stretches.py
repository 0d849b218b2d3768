"""Tokens of a document too long to be tokenized at once: from stretches of it that overlap.

A tokenizer needs over a hundred bytes for each character that it is given, so memory is bounded by giving it
`STRETCH` characters at a time. Neighbouring stretches overlap by `OVERLAP` on each side of the cut between them. What a
tokenizer makes of a place depends on its surroundings only; so where both stretches give the same tokens around a cut,
those left of it come from one, those right of it from the other, and together they are the tokens of the whole. Where
they differ (in a long run of one character, for instance) the two are tokenized as one.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from data_tools.corpus.tokenizer import TextTokenizer

STRETCH = 1_000_000  # characters between two cuts
OVERLAP = 4_096  # characters that a stretch extends beyond its cuts
_MAX_UNITED = 4  # stretches that are tokenized as one; a document that needs more cannot be tokenized

Encode = Callable[["Stretch"], np.ndarray]


@dataclass(frozen=True)
class Stretch:
    """A part of a document.

    Attributes:
        text: its characters and those of the overlaps.
        first: number of the text's first character in the document.
        begin, end: the cuts, in characters of the document: the stretch gives the tokens that begin between them.
        is_last: whether the document ends with it.
    """

    text: str
    first: int
    begin: int
    end: int
    is_last: bool


def is_long(text: str) -> bool:
    """Whether a document is tokenized in stretches."""
    return len(text) > STRETCH


def stretches(text: str) -> Iterator[Stretch]:
    """The stretches of a document, in order."""
    for begin in range(0, len(text), STRETCH):
        first, end = max(0, begin - OVERLAP), min(begin + STRETCH, len(text))
        yield Stretch(text[first : end + OVERLAP], first, begin, end, end == len(text))


def encode_stretch(tokenizer: TextTokenizer, stretch: Stretch) -> np.ndarray:
    """(n, 3) int64: id, first character and end of each token of the text, in characters of the document."""
    return tokenizer.encode_with_places(stretch.text) + np.array([0, stretch.first, stretch.first])


def join(encoded: Iterator[tuple[Stretch, np.ndarray]], encode: Encode) -> np.ndarray | None:
    """Token ids of a whole document, (n,) uint32; None if there are no places to cut it.

    Args:
        encoded: its stretches in order, each with what `encode_stretch` gives; they are taken from the iterator up to
            the document's last.
        encode: `encode_stretch` with the tokenizer, for stretches that must be one.
    """
    joined: list[np.ndarray] = []
    left, tokens = next(encoded)
    while not left.is_last:
        right, next_tokens = next(encoded)
        if _agree(tokens, next_tokens, left.end):
            joined.append(_own(left, tokens))
            left, tokens = right, next_tokens
        elif right.end - left.begin <= _MAX_UNITED * STRETCH:
            left = _united(left, right)
            tokens = encode(left)
        else:
            while not right.is_last:
                right, _ = next(encoded)
            return None
    return np.concatenate([*joined, _own(left, tokens)])


def _agree(left: np.ndarray, right: np.ndarray, cut: int) -> bool:
    """Whether two stretches give the same tokens around the cut between them."""
    low, high = cut - OVERLAP // 2, cut + OVERLAP // 2
    near_left, near_right = (tokens[(tokens[:, 1] >= low) & (tokens[:, 1] < high)] for tokens in (left, right))
    return np.array_equal(near_left, near_right)


def _own(stretch: Stretch, tokens: np.ndarray) -> np.ndarray:
    first = np.searchsorted(tokens[:, 1], stretch.begin) if stretch.begin else 0
    last = len(tokens) if stretch.is_last else np.searchsorted(tokens[:, 1], stretch.end)
    return tokens[first:last, 0].astype(np.uint32)


def _united(left: Stretch, right: Stretch) -> Stretch:
    shared = left.first + len(left.text) - right.first
    return Stretch(left.text + right.text[shared:], left.first, left.begin, right.end, right.is_last)
