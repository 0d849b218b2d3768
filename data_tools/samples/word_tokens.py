"""Tokens of search problems composed from the tokens of their words: each distinct word is tokenized once.

Most tokenizers split a text into words before they look at letters (pre-tokenization), so the tokens of a text are
those of its words, concatenated. A search problem repeats few words many times, which makes composing several times
faster. Two checks show for each tokenizer that composing is exact:

- Its definition splits words by the kinds of their characters, never by single letters. All attributes consist of
  lower-case letters, so they are split alike.
- For every name, every sentence form and whole prompts the composed tokens equal the tokenizer's.

If either fails, or a text holds more than words and punctuation, the whole text is tokenized.
"""

import json
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np

from data_tools.corpus.tokenizer import TextTokenizer
from data_tools.search.generator import ExampleGenerator
from data_tools.search.prompts import FIRST_NAMES, SENTENCE_FORMS

_MAX_KNOWN = 10_000  # words kept: new attributes seldom come again, and a small table stays in the processor's cache
_SPACED_MARK = re.compile(" [,.:]")  # a mark that `_split` would take for one that follows a word directly
_NORMALIZERS = {"NFC", "NFD", "NFKC", "NFKD", "Lowercase"}  # what they make of a character depends on no neighbour
_SPLITTERS = {"ByteLevel", "Digits", "Punctuation", "Whitespace", "WhitespaceSplit", "BertPreTokenizer"}
_MODELS = {"BPE", "WordPiece", "WordLevel"}
# Letters of a regular expression that stand for no letter of a text, or for one after an apostrophe only.
_NO_LETTERS = re.compile(r"\\p\{\^?\w+\}|\\.|\(\?i?[:=!]|'\w+|'\(\?i:\[\w+\](\|\w+)*\)|'\[\w+\]")


class WordTokens:
    """Encodes search problems; see the module.

    Args:
        tokenizer: whose tokens are wanted.

    Attributes:
        is_composed: whether composition is exact for this tokenizer.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._first: dict[str, bytes] = {}  # words that begin a text; ids as int64
        self._marks: dict[str, bytes] = {}  # marks between words: all that the check has seen
        self._spaced: dict[str, bytes] = {}  # words after a space, and marks
        self.is_composed = splits_by_kind(json.loads(tokenizer.serialized)) and self._is_exact()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each text without special tokens, (n,) int64, the same as the tokenizer's."""
        if not self.is_composed:
            return self._whole(texts)
        composed = self._composed(texts)
        whole = iter(self._whole([text for text, ids in zip(texts, composed, strict=True) if ids is None]))
        return [next(whole) if ids is None else ids for ids in composed]

    def _whole(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.array(ids, np.int64) for ids in self._tokenizer.encode_batch(texts)] if texts else []

    def _composed(self, texts: Sequence[str]) -> list[np.ndarray | None]:
        """Token ids of each text; None for a text that holds more than words and marks."""
        words = [_split(text) for text in texts]
        if len(self._spaced) > _MAX_KNOWN:
            self._spaced = dict(self._marks)
        self._learn_first({parts[0] for parts in words} - self._first.keys())
        self._learn_spaced(set(chain.from_iterable(parts[1:] for parts in words)) - self._spaced.keys())
        composed: list[np.ndarray | None] = []
        for text, parts in zip(texts, words, strict=True):
            try:
                ids = b"".join([self._first[parts[0]], *map(self._spaced.__getitem__, parts[1:])])
                composed.append(None if _SPACED_MARK.search(text) else np.frombuffer(ids, np.int64))
            except KeyError:
                composed.append(None)
        return composed

    def _learn_first(self, words: Iterable[str]) -> None:
        for word in words:
            if not word or _is_letters(word):  # no word: the text begins with a space
                self._first[word] = np.array(self._tokenizer.encode(word), np.int64).tobytes()

    def _learn_spaced(self, words: Iterable[str]) -> None:
        new = list(filter(_is_letters, words))
        self._spaced.update(zip(new, self._tokenizer.encode_spaced(new), strict=True))

    def _is_exact(self) -> bool:
        """Whether composed and tokenized texts agree, over all names and forms; collects the marks on the way."""
        source = ExampleGenerator(max_input_size=96, max_lookahead=16, seed=0, purpose="word tokens")
        examples = [source.example(index, stage) for index in range(8) for stage in (1, 4, 16)]
        facts = [form.format(name=name) % ("ab", "unwsizko") for name in FIRST_NAMES for form in SENTENCE_FORMS]
        texts = [" ".join(facts), *(example.input_text for example in examples)]
        texts += [f" {answer}" for example in examples for answer in example.output_texts]
        marks = {word for text in texts for word in _split(text)[1:] if not _is_letters(word)}
        self._marks = {mark: np.array(self._tokenizer.encode(mark), np.int64).tobytes() for mark in marks}
        self._spaced = dict(self._marks)
        composed = self._composed(texts)
        return all(
            ids is not None and np.array_equal(ids, whole)
            for ids, whole in zip(composed, self._whole(texts), strict=True)
        )


def _split(text: str) -> list[str]:
    """The words of a text; punctuation after a word, perhaps with a new paragraph, counts as a word."""
    return text.replace(",", " ,").replace(".", " .").replace(":", " :").split(" ")


@lru_cache(maxsize=4)
def word_tokens(tokenizer: TextTokenizer) -> WordTokens:
    """The composing encoder of a tokenizer, checked once."""
    return WordTokens(tokenizer)


def splits_by_kind(definition: dict[str, Any]) -> bool:
    """Whether a tokenizer splits words by the kinds of their characters alone, and encodes each word separately.

    Args:
        definition: the content of tokenizer.json. Parts that are not known to be harmless count as harmful.
    """
    model = definition["model"]
    return (
        model.get("type") in _MODELS
        and not model.get("dropout")
        and all(part["type"] in _NORMALIZERS for part in _parts(definition["normalizer"], "normalizers"))
        and definition["pre_tokenizer"] is not None
        and all(map(_is_harmless, _parts(definition["pre_tokenizer"], "pretokenizers")))
        and not any(_may_occur(token["content"]) for token in definition["added_tokens"])
    )


def _parts(part: dict[str, Any] | None, members: str) -> list[dict[str, Any]]:
    if part is None:
        return []
    return part[members] if part["type"] == "Sequence" else [part]


def _is_harmless(splitter: dict[str, Any]) -> bool:
    if splitter["type"] == "Split":
        pattern = splitter["pattern"].get("Regex")
        return pattern is not None and not re.search("[A-Za-z]", _NO_LETTERS.sub("", pattern))
    return splitter["type"] in _SPLITTERS and not splitter.get("add_prefix_space")


def _may_occur(token: str) -> bool:
    """Whether a search problem may hold this text, which the tokenizer would cut out before anything else."""
    return "  " not in token and re.fullmatch(r"[A-Za-z \n,.:]*", token) is not None


def _is_letters(word: str) -> bool:
    return word.isascii() and word.isalpha()
