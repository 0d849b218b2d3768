"""Tokenizers: every way of naming one opens the same, and what cannot be opened says why."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer

from data_tools.base.errors import UserError
from data_tools.corpus.tokenizer import TextTokenizer, load_tokenizer
from tests.support import packing

TEXTS = ["", "abc def", " naïve 漢字 \n\t 😀", "7 " * 500, "<|endoftext|> in the text"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved byte-level BPE. Not to be changed."""
    directory = tmp_path_factory.mktemp("tokenizer")
    packing.save_small_tokenizer(directory)
    return directory


@pytest.fixture
def directory(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "tokenizer"))


def word_level(path: Path, words: list[str]) -> Path:
    backend = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token=words[0]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    path.parent.mkdir(parents=True, exist_ok=True)
    backend.save(str(path))
    return path


def test_gpt_neox(gpt_neox_tokenizer_path: Path) -> None:
    tokenizer = load_tokenizer(str(gpt_neox_tokenizer_path))
    assert tokenizer.encode("Hello world") == [12092, 1533]
    assert (tokenizer.eos_id, tokenizer.vocab_size) == (0, 50277)
    assert tokenizer.decode([12092, 1533, 0]) == "Hello world<|endoftext|>"


def test_file_directory_and_hub_id_are_one(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: str(directory))
    ways = [load_tokenizer(spec) for spec in (str(directory), str(directory / "tokenizer.json"), "owner/name")]
    for tokenizer in ways:
        assert tokenizer.fingerprint == ways[0].fingerprint
        assert tokenizer.encode_batch(TEXTS) == ways[0].encode_batch(TEXTS)
    assert [tokenizer.name for tokenizer in ways][2] == "owner/name"


def test_pieces_are_the_text_of_each_token(saved: Path) -> None:
    tokenizer = load_tokenizer(str(saved))
    for text, ids in zip(TEXTS, tokenizer.encode_batch(TEXTS), strict=True):
        pieces = tokenizer.pieces(ids)
        assert len(pieces) == len(ids) and "\ufffd" not in "".join(pieces)
        if text.isascii():
            assert "".join(pieces) == text
    # Each byte of an emoji by itself is no character: it stands as in the vocabulary.
    assert tokenizer.pieces(tokenizer.encode("😀")) == ["ð", "Ł", "ĺ", "Ģ"]
    assert tokenizer.pieces([tokenizer.vocab_size]) == [f"<{tokenizer.vocab_size}>"]


def test_pieces_keep_the_space_that_a_decoder_takes_away() -> None:
    backend = Tokenizer(models.WordLevel({"▁ab": 0, "cd": 1, "</s>": 2}, unk_token="</s>"))
    backend.decoder = decoders.Metaspace()
    assert TextTokenizer(backend, "</s>", "metaspace").pieces([0, 1, 2]) == [" ab", "cd", "</s>"]


def test_encoding_adds_nothing_and_decoding_gives_the_text_back(saved: Path) -> None:
    tokenizer = load_tokenizer(str(saved))
    for text, ids in zip(TEXTS, tokenizer.encode_batch(TEXTS), strict=True):
        assert tokenizer.decode(ids) == text
        assert ids == tokenizer.encode(text)
    assert tokenizer.encode_batch([]) == []
    assert tokenizer.encode("") == []


def test_truncation_padding_and_special_tokens_of_the_file_are_switched_off(directory: Path) -> None:
    plain = load_tokenizer(str(directory))
    content = json.loads((directory / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                          "pad_type_id": 0, "pad_token": "<|endoftext|>"}  # fmt: skip
    (directory / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = load_tokenizer(str(directory))
    assert tokenizer.encode_batch(TEXTS) == plain.encode_batch(TEXTS)
    assert tokenizer.fingerprint == plain.fingerprint
    content["post_processor"] = {
        "type": "TemplateProcessing", "pair": [], "special_tokens": {"E": {"id": "E", "ids": [0], "tokens": ["E"]}},
        "single": [{"SpecialToken": {"id": "E", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    }  # fmt: skip
    (directory / "tokenizer.json").write_text(json.dumps(content))
    assert load_tokenizer(str(directory)).encode_batch(TEXTS) == plain.encode_batch(TEXTS)


def test_saved_tokenizer_opens_in_transformers_unchanged(directory: Path, tmp_path: Path) -> None:
    config = json.loads((directory / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "GPTNeoXTokenizer", "model_max_length": 2048}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(str(directory))
    tokenizer.save(tmp_path / "out" / "model")
    opened = AutoTokenizer.from_pretrained(tmp_path / "out" / "model")
    assert opened.eos_token_id == tokenizer.eos_id and opened.model_max_length == 2048
    ids = [opened(text, split_special_tokens=True)["input_ids"] for text in TEXTS]
    assert ids == tokenizer.encode_batch(TEXTS)
    assert load_tokenizer(str(tmp_path / "out" / "model")).fingerprint == tokenizer.fingerprint


def test_directory_without_tokenizer_json_is_read_by_transformers(directory: Path) -> None:
    model = json.loads((directory / "tokenizer.json").read_text())["model"]
    expected = load_tokenizer(str(directory)).encode_batch(TEXTS)
    (directory / "tokenizer.json").unlink()
    (directory / "vocab.json").write_text(json.dumps(model["vocab"]))
    (directory / "merges.txt").write_text("\n".join(" ".join(pair) for pair in model["merges"]))
    config = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>", "add_prefix_space": False}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_tokenizer(str(directory)).encode_batch(TEXTS) == expected


def test_fingerprint_follows_vocabulary_and_eos(tmp_path: Path) -> None:
    file = word_level(tmp_path / "a.json", ["</s>", "a", "b"])
    backend = Tokenizer.from_file(str(file))
    other = word_level(tmp_path / "b.json", ["</s>", "b", "a"])
    fingerprints = {load_tokenizer(str(file)).fingerprint, load_tokenizer(str(other)).fingerprint}
    fingerprints.add(TextTokenizer(backend, "a", "eos a").fingerprint)
    assert len(fingerprints) == 3
    assert load_tokenizer(str(file)).fingerprint in fingerprints


@pytest.mark.parametrize(
    ("words", "files", "eos"),
    [
        (["x", "</s>"], {}, "</s>"),
        (["x", "</s>", "<|endoftext|>"], {}, "<|endoftext|>"),
        (["x", "</s>", "end"], {"tokenizer_config.json": {"eos_token": "end"}}, "end"),
        (["x", "</s>", "end"], {"tokenizer_config.json": {"eos_token": {"content": "end", "lstrip": False}}}, "end"),
        (["x", "</s>", "end"], {"special_tokens_map.json": {"eos_token": "end"}}, "end"),
        (["x", "</s>"], {"tokenizer_config.json": {"eos_token": None}}, "</s>"),
    ],
)
def test_where_the_eos_comes_from(tmp_path: Path, words: list[str], files: dict[str, object], eos: str) -> None:
    word_level(tmp_path / "tokenizer.json", words)
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    tokenizer = load_tokenizer(str(tmp_path))
    assert (tokenizer.eos_token, tokenizer.eos_id) == (eos, words.index(eos))


def test_missing_eos(tmp_path: Path) -> None:
    word_level(tmp_path / "tokenizer.json", ["x", "y"])
    with pytest.raises(UserError, match=r"no end-of-document token.*eos_token.*tokenizer_config.json"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    with pytest.raises(UserError, match=r"eos_token '</s>' is not in its vocabulary"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer_config.json is not valid JSON"):
        load_tokenizer(str(tmp_path))


def test_what_is_no_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer.json").write_text('{"a": 1}')
    for spec, message in (
        (str(tmp_path / "tokenizer.json"), "is not a tokenizer"),
        (str(tmp_path), "is not a tokenizer"),
        (str(tmp_path / "absent.json"), "no such file or directory"),
        ("./absent", "no such file or directory"),
    ):
        with pytest.raises(UserError, match=message):
            load_tokenizer(spec)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no tokenizer.json"):
        load_tokenizer(str(tmp_path / "empty"))

    def unreachable(*_: object, **__: object) -> str:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(UserError, match=r"not a local path .*ConnectionError: no route\).*tokenizer.json"):
        load_tokenizer("EleutherAI/pythia-160m")


def test_vocab_size_counts_to_the_highest_id(tmp_path: Path) -> None:
    backend = Tokenizer(models.WordLevel({"</s>": 0, "a": 90}, unk_token="</s>"))
    assert TextTokenizer(backend, "</s>", "holes").vocab_size == 91


def test_tokenizer_travels_to_workers(saved: Path) -> None:
    tokenizer = load_tokenizer(str(saved))
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode_batch(TEXTS) == tokenizer.encode_batch(TEXTS) and copy.fingerprint == tokenizer.fingerprint
