"""Composed tokens are the tokenizer's, or the tokenizer itself is asked."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from data_tools.corpus.tokenizer import TextTokenizer, load_tokenizer
from data_tools.samples.word_tokens import WordTokens
from data_tools.search.generator import ExampleGenerator
from tests.support import packing

EOS = "<|endoftext|>"
SOURCE = ExampleGenerator(max_input_size=192, max_lookahead=32, seed=5, purpose="test")
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
FOREIGN = [
    "", " ", "  two spaces", "naïve 漢字", "don't", "a , b", "x1 y", "Craig is a-b.", "Craig\tis", "a b ", "a. b.\n\n",
    "<|endoftext|>", " If Craig is\nx", "Suppose: a", "wsizko.\n\nProof: Craig is", "a.b c,d", "A. .",
]  # fmt: skip


def texts(stages: tuple[int, ...] = (1, 8, 32), count: int = 30) -> list[str]:
    examples = [SOURCE.example(index, stage) for index in range(count) for stage in stages]
    return [example.input_text for example in examples] + [
        f" {a}" for example in examples for a in example.output_texts
    ]


def trained(
    model: models.Model | None = None,
    pre_tokenizer: object = None,
    normalizer: object = None,
    added: tuple[str, ...] = (),
) -> TextTokenizer:
    """A tokenizer of some 600 tokens, trained on search problems."""
    backend = Tokenizer(model or models.BPE())
    if pre_tokenizer is not None:
        backend.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        backend.normalizer = normalizer
    kind = trainers.WordPieceTrainer if isinstance(backend.model, models.WordPiece) else trainers.BpeTrainer
    options = {"special_tokens": [EOS, "[UNK]"], "initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
    backend.train_from_iterator(texts(count=10), kind(vocab_size=600, show_progress=False, **options))
    backend.add_tokens(list(added))
    return TextTokenizer(backend, EOS, "trained")


def byte_level(**options: bool) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(**{"add_prefix_space": False, **options})


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level(use_regex=False)])


COMPOSED: dict[str, Callable[[], TextTokenizer]] = {
    "gpt2": lambda: trained(pre_tokenizer=byte_level()),
    "llama3": lambda: trained(pre_tokenizer=split(LLAMA_3)),
    "lower": lambda: trained(pre_tokenizer=byte_level(), normalizer=normalizers.Lowercase()),
    "bert": lambda: trained(
        models.WordPiece(unk_token="[UNK]"),
        pre_tokenizers.BertPreTokenizer(),
        normalizers.Sequence([normalizers.NFD()]),
    ),
    "harmless tokens": lambda: trained(pre_tokenizer=byte_level(), added=("   ", "[x]", "naïve")),
}
WHOLE: dict[str, Callable[[], TextTokenizer]] = {
    "no words": lambda: trained(),
    "words of letters that matter": lambda: trained(pre_tokenizer=split(r" ?\p{L}*?k|.")),
    "words across spaces": lambda: trained(pre_tokenizer=split(r"\p{L}+ \p{L}+|.")),
    "prefix": lambda: trained(pre_tokenizer=byte_level(add_prefix_space=True)),
    "metaspace": lambda: trained(pre_tokenizer=pre_tokenizers.Metaspace()),
    "dropout": lambda: trained(models.BPE(dropout=0.5), byte_level()),
    "a token of several words": lambda: trained(pre_tokenizer=byte_level(), added=("they are",)),
    "strip": lambda: trained(pre_tokenizer=byte_level(), normalizer=normalizers.Strip()),
}


def assert_same(tokenizer: TextTokenizer, given: list[str]) -> None:
    for text, ids, expected in zip(
        given, WordTokens(tokenizer).encode_batch(given), tokenizer.encode_batch(given), strict=True
    ):
        assert ids.dtype == np.int64 and ids.tolist() == expected, text


@pytest.mark.parametrize("name", COMPOSED)
def test_composed_tokens_are_the_tokenizers(name: str) -> None:
    tokenizer = COMPOSED[name]()
    assert WordTokens(tokenizer).is_composed
    assert_same(tokenizer, texts() + FOREIGN)


@pytest.mark.parametrize("name", [name for name in WHOLE if name != "dropout"])
def test_tokenizers_that_do_not_compose_do_it_whole(name: str) -> None:
    tokenizer = WHOLE[name]()
    assert not WordTokens(tokenizer).is_composed
    assert_same(tokenizer, texts() + FOREIGN)


def test_random_tokens_are_not_composed() -> None:
    assert not WordTokens(WHOLE["dropout"]()).is_composed


def test_gpt_neox(gpt_neox_tokenizer_path: Path) -> None:
    tokenizer = load_tokenizer(str(gpt_neox_tokenizer_path))
    assert WordTokens(tokenizer).is_composed
    assert_same(tokenizer, texts(count=100) + FOREIGN)


def test_words_are_forgotten_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_tools.samples.word_tokens._MAX_KNOWN", 50)
    packing.save_small_tokenizer(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    words = WordTokens(tokenizer)
    for text in texts(count=20):
        assert words.encode_batch([text])[0].tolist() == tokenizer.encode(text)
        assert len(words._spaced) < 500
