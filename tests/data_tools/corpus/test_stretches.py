"""Documents tokenized in stretches give the tokens that they have as a whole, with every kind of tokenizer."""

import random
from functools import partial

import pytest

from data_tools.corpus import stretches as module
from data_tools.corpus.stretches import encode_stretch, is_long, join, stretches
from data_tools.corpus.token_stream import TokenCursor, TokenStream
from data_tools.corpus.tokenizer import TextTokenizer
from tests.support.tokenizer_kinds import KINDS, SPECIAL, tokenizer_of

ALPHABET = [
    "a",
    "b",
    "e",
    "th",
    " ",
    " ",
    "   ",
    "\n",
    "\n\n",
    "12345",
    "é",
    "e\u0301",
    "漢",
    "😀",
    "\u0600",
    ".",
    "--",
    *SPECIAL,
]


@pytest.fixture(autouse=True)
def short_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STRETCH", 300)
    monkeypatch.setattr(module, "OVERLAP", 100)


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> TextTokenizer:
    return tokenizer_of(request.param)


def in_stretches(tokenizer: TextTokenizer, text: str) -> list[int] | None:
    encode = partial(encode_stretch, tokenizer)
    tokens = join(((stretch, encode(stretch)) for stretch in stretches(text)), encode)
    return None if tokens is None else tokens.tolist()


def random_text(seed: int, length: int) -> str:
    """Words, digits, accents, spaces; some made of two letters only, and runs of one of them."""
    draw = random.Random(seed)
    parts = draw.sample(ALPHABET, draw.randint(2, len(ALPHABET)))
    text = ""
    while len(text) < length:
        text += draw.choice(parts) * (draw.randint(1, 70) if draw.random() < 0.02 else 1)
    return text


@pytest.mark.parametrize("seed", range(40))
def test_tokens_are_those_of_the_whole(tokenizer: TextTokenizer, seed: int) -> None:
    text = random_text(seed, random.Random(seed).randint(301, 4000))
    assert is_long(text) and in_stretches(tokenizer, text) == tokenizer.encode(text)


def test_a_long_run_without_a_place_to_cut_gives_nothing_rather_than_other_tokens() -> None:
    spaces = tokenizer_of("Metaspace BPE")
    runs = {n: in_stretches(spaces, f"a{' ' * n}b {random_text(1, 400)}") for n in (400, 4000)}
    assert runs[400] == spaces.encode(f"a{' ' * 400}b {random_text(1, 400)}")  # two stretches are tokenized as one
    assert runs[4000] is None


def test_long_documents_stand_between_others_in_the_row() -> None:
    """Tokens and cursors, from the beginning and from within a long document; one that cannot be cut has no EOS."""
    tokenizer = tokenizer_of("byte-level BPE")
    texts = ["short", random_text(3, 1500), "a </s> b", " " * 4001, random_text(4, 900), "end"]
    rows = [[] if text.isspace() else [*tokenizer.encode(text), tokenizer.eos_id] for text in texts]
    row = [token for tokens in rows for token in tokens]
    for start in (TokenCursor(0, 0), TokenCursor(1, 200), TokenCursor(4, 10, num_untokenized=1)):
        stream = TokenStream(iter(texts), tokenizer, start, num_workers=1)
        read: list[int] = []
        while len(tokens := stream.read(177)):
            read += tokens.tolist()
        assert read == row[sum(map(len, rows[: start.document])) + start.token :]
        assert stream.cursor == TokenCursor(6, 0, num_untokenized=1)


def test_no_more_is_given_to_a_tokenizer_than_is_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    encode = TextTokenizer.encode_with_places

    def watched(self: TextTokenizer, text: str) -> object:
        given.append(len(text))
        return encode(self, text)

    monkeypatch.setattr(TextTokenizer, "encode_with_places", watched)
    tokenizer = tokenizer_of("byte-level BPE")
    assert in_stretches(tokenizer, random_text(2, 9000)) is not None
    assert len(given) >= 30 and max(given) <= 300 + 2 * 100
