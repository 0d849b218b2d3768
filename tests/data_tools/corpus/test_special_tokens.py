"""A document that mentions a special token holds its characters, with every kind of tokenizer."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from data_tools.corpus.shards import PackedBlocks
from data_tools.corpus.token_stream import TokenCursor, TokenStream
from data_tools.corpus.tokenizer import TextTokenizer, load_tokenizer
from data_tools.samples.documents import encode_examples
from tests.support import packing
from tests.support.tokenizer_kinds import KINDS, SPECIAL, tokenizer_of

HAS_EOS_AS_WORD = ("Unigram", "WordLevel")
DOCUMENTS = ["one </s> two", "three", "<s>[SEP]</s>", "</s>", "four   five"]


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> TextTokenizer:
    return tokenizer_of(request.param)


def test_a_mention_is_text_or_counted(tokenizer: TextTokenizer) -> None:
    stream = TokenStream(iter(DOCUMENTS), tokenizer, num_workers=1)
    num_eos = int((stream.read(10_000) == tokenizer.eos_id).sum())
    if tokenizer.name in HAS_EOS_AS_WORD:
        assert num_eos > len(DOCUMENTS) and stream.cursor.num_split > 0
    else:
        assert num_eos == len(DOCUMENTS) and stream.cursor == TokenCursor(len(DOCUMENTS), 0)


def test_tokens_that_are_not_special_stay_tokens(tokenizer: TextTokenizer) -> None:
    assert tokenizer._backend.token_to_id("   ") in tokenizer.encode("four   five")


def test_prompts_and_answers_that_mention_it(tokenizer: TextTokenizer) -> None:
    if tokenizer.name not in HAS_EOS_AS_WORD:
        (example,) = encode_examples(tokenizer, ["say </s> now."], [["a</s>b"]])
        assert tokenizer.eos_id not in example.prompt
        assert np.flatnonzero(example.answers[0] == tokenizer.eos_id).tolist() == [len(example.answers[0]) - 1]


def test_it_holds_for_copies_and_the_fingerprint_is_the_former_one(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    former = tokenizer.with_special_tokens()
    for copy in (pickle.loads(pickle.dumps(tokenizer)), load_tokenizer(str(tmp_path))):
        assert copy.encode_batch(DOCUMENTS) == tokenizer.encode_batch(DOCUMENTS)
        assert copy.fingerprint == former.fingerprint
    for copy in (former, pickle.loads(pickle.dumps(former))):
        ids = copy.encode("<s>[SEP]</s>")
        assert {copy._backend.token_to_id(token) for token in ("<s>", "[SEP]", "</s>")} <= set(ids)


def mentioning(root: Path) -> Path:
    """A corpus, 50 of whose 100 documents mention EOS, and its tokenizer."""
    documents = [f"{text} <|endoftext|> more" if n % 2 else text for n, text in enumerate(packing.make_documents(200))]
    packing.write_corpus(root / "corpus", documents)
    packing.save_small_tokenizer(root / "tokenizer")
    return root


def num_eos(pack: Path) -> int:
    blocks = PackedBlocks(pack)
    return sum(int((blocks.block(i) == blocks.meta.eos_id).sum()) for i in range(blocks.num_blocks))


def test_a_pack_has_as_many_ends_as_documents_and_says_so(tmp_path: Path) -> None:
    pack = packing.pack(mentioning(tmp_path))
    meta = json.loads((pack / "meta.json").read_text())
    assert meta["special_tokens_as_text"] is True and meta["num_split_documents"] == 0
    assert num_eos(pack) in (meta["num_documents"], meta["num_documents"] - 1)  # the last one may be cut


def test_a_pack_that_version_0_1_began_continues_as_it_began(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = mentioning(tmp_path)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(TypeError):
        patch.setattr("data_tools.build_pretrain._write_files", None)  # it stops when it has recorded its parameters
        packing.pack(root)
    progress = root / "pack" / "meta.in_progress.json"
    content = json.loads(progress.read_text())
    del content["parameters"]["special_tokens_as_text"]
    progress.write_text(json.dumps(content))
    pack = packing.pack(root)
    meta = PackedBlocks(pack).meta
    assert not meta.special_tokens_as_text and meta.num_split_documents > 0 and num_eos(pack) > meta.num_documents
    assert "mention <|endoftext|>" in capsys.readouterr().out
    packing.pack(root)
    assert "already holds this pack" in capsys.readouterr().out
    packing.pack(root, overwrite=True)
    assert PackedBlocks(pack).meta.special_tokens_as_text


def test_a_vocabulary_with_eos_as_a_word_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer_of("Unigram").save(tmp_path / "tokenizer")
    packing.write_corpus(tmp_path / "corpus", [f"{n} {SPECIAL[0]} x" if n < 30 else f"{n}" for n in range(60)])
    pack = packing.pack(tmp_path, seq_len=8, num_blocks=30, val_blocks=0)
    number = PackedBlocks(pack).meta.num_split_documents
    assert 10 < number <= 30 and f"{number} documents mention </s>" in capsys.readouterr().out
