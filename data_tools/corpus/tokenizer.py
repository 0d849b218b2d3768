"""Tokenizers behind one small interface, opened from ``tokenizer.json`` so that every way of naming one agrees.

A hub id, a directory and a file all lead to the same ``tokenizer.json``, which is opened unchanged. transformers would
rebuild the pipeline of known model classes: the same ids, but another serialization, hence another fingerprint. It is
used only for repositories without a ``tokenizer.json``.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from data_tools.base.errors import UserError, first_line
from data_tools.base.files import whole_file, write_json
from data_tools.base.hub import DESCRIPTION, how_to_fetch

_CONFIG_NAME = "tokenizer_config.json"
_SPECIAL_NAME, _CHAT_TEMPLATE_NAME = "special_tokens_map.json", "chat_template.jinja"
_REMOVED = "removed_post_processor"  # in a tokenizer_config.json: JSON of what `save` left out
_ADDING = ("TemplateProcessing", "BertProcessing", "RobertaProcessing")  # post-processors that add special tokens
_USUAL_EOS_TOKENS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "<|eos|>")


class TextTokenizer:
    """A tokenizer that adds nothing to the text: no special tokens, no truncation, no padding.

    A text that mentions a special token holds its characters: ``<|endoftext|>`` in a web page ends no document.

    Args:
        backend: the tokenizer; changed in place (truncation and padding are switched off).
        eos_token: the end-of-document token.
        name: its name as the user gave it, for messages and metadata.
        config: the content of its tokenizer_config.json, kept for `save`.
        special_tokens_as_text: False makes a mentioned special token that token, as versions up to 0.1 did.

    Raises:
        UserError: the EOS token is not in the vocabulary.
    """

    def __init__(
        self,
        backend: Tokenizer,
        eos_token: str,
        name: str,
        config: dict[str, Any] | None = None,
        special_tokens_as_text: bool = True,
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = special_tokens_as_text
        self.name = name
        self.eos_token = eos_token
        eos_id = backend.token_to_id(eos_token)
        if eos_id is None:
            raise UserError(
                f"tokenizer {name!r}: its eos_token {eos_token!r} is not in its vocabulary. Fix its {_CONFIG_NAME}."
            )
        self.eos_id = eos_id
        # Not len(vocab): ids may have holes, and what matters is which integers can occur.
        self.vocab_size: int = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        self._backend = backend
        self._config = config or {}
        self._special_tokens_as_text = special_tokens_as_text

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state
        self._backend.encode_special_tokens = self._special_tokens_as_text  # its own pickle leaves this out

    def with_special_tokens(self) -> "TextTokenizer":
        """The same tokenizer, for which a mentioned special token is that token: for packs begun by version 0.1."""
        backend = Tokenizer.from_str(self.serialized)
        return TextTokenizer(backend, self.eos_token, self.name, self._config, special_tokens_as_text=False)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens; parallel over the cores (``RAYON_NUM_THREADS``)."""
        return [e.ids for e in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode(self, text: str) -> list[int]:
        """Token ids of one text, without special tokens."""
        return self.encode_batch([text])[0]

    def encode_with_places(self, text: str) -> np.ndarray:
        """Token id, first character and end in the text of each token: (n, 3) int64."""
        encoded = self._backend.encode(text, add_special_tokens=False)
        places = np.array(encoded.offsets, np.int64).reshape(-1, 2)
        return np.column_stack([np.array(encoded.ids, np.int64), places])

    def encode_spaced(self, words: Sequence[str]) -> list[bytes]:
        """Token ids (as int64) of each word with a space before it; for tokenizers that encode words separately."""
        if not words:
            return []
        # One text of all words takes a third of the time of many texts.
        ids = np.array(self.encode(f" {' '.join(words)}"), np.int64)
        ends = [*(ids.itemsize * np.flatnonzero(self._begins_with_space[ids])[1:]).tolist(), ids.nbytes]
        if len(ends) != len(words):  # its tokens do not show spaces
            return [np.array(ids, np.int64).tobytes() for ids in self.encode_batch([f" {word}" for word in words])]
        data = ids.tobytes()
        return [data[start:end] for start, end in pairwise([0, *ends])]

    @cached_property
    def _begins_with_space(self) -> np.ndarray:
        """(vocab_size,) bool, by the sign that byte-level tokenizers have for a space."""
        flags = np.zeros(self.vocab_size, bool)
        flags[[index for token, index in self._backend.get_vocab().items() if token.startswith("Ġ")]] = True
        return flags

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some token ids, special tokens included."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=False)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each token by itself; for a part of a character, the vocabulary's spelling."""
        tokens = [self._backend.id_to_token(index) or f"<{index}>" for index in ids]
        pieces = self._backend.decode_batch([[index] for index in ids], skip_special_tokens=False)
        for number, (token, piece) in enumerate(zip(tokens, pieces, strict=True)):
            if not piece or "\ufffd" in piece:
                pieces[number] = token
            elif token.startswith("▁") and not piece.startswith(" "):
                pieces[number] = f" {piece}"  # its decoder strips the space at the start of a text
        return pieces

    @property
    def serialized(self) -> str:
        """The content of its tokenizer.json."""
        return self._backend.to_str()

    @property
    def added_tokens(self) -> list[str]:
        """The special tokens that its post-processor would add to a text; training never sees them."""
        return self._backend.encode("", add_special_tokens=True).tokens

    @cached_property
    def prepends_space(self) -> bool:
        """Whether every text gets a space in front, even one that begins with a space (Llama 2)."""
        normalizer = json.loads(self.serialized)["normalizer"] or {}
        return any(part.get("type") == "Prepend" for part in normalizer.get("normalizers", [normalizer]))

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 of the serialized tokenizer (key order and white space aside) and of its EOS token."""
        definition = json.loads(self.serialized)
        if _REMOVED in self._config:
            definition["post_processor"] = json.loads(self._config[_REMOVED])
        serialized = json.dumps(definition, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(f"{serialized}\0{self.eos_token}".encode()).hexdigest()

    def save(self, directory: Path, max_length: int | None = None, *, as_trained: bool = False) -> None:
        """Write tokenizer.json and tokenizer_config.json, which transformers' AutoTokenizer opens unchanged.

        Args:
            max_length: longest text of the model beside it, in tokens.
            as_trained: leave out what would add special tokens to a text; the fingerprint stays the same.
        """
        directory.mkdir(parents=True, exist_ok=True)
        backend = Tokenizer.from_str(self.serialized)
        # The generic class uses tokenizer.json unchanged; a model's own class may rebuild the pipeline.
        config = {**self._config, "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": self.eos_token}
        if as_trained and self.added_tokens:
            removed = json.loads(self.serialized)["post_processor"]
            config |= {_REMOVED: json.dumps(removed), "add_bos_token": False, "add_eos_token": False}
            backend = _without_added_tokens(backend, removed)
        with whole_file(directory / "tokenizer.json") as file:
            file.write(backend.to_str(pretty=True).encode())
        if max_length is not None:
            config["model_max_length"] = max_length
        write_json(directory / _CONFIG_NAME, config)


def is_path(spec: str) -> bool:
    """Whether a name cannot be a hub id, which has the form ``name`` or ``owner/name``."""
    return spec.endswith((".json", "/")) or spec.startswith((".", "/", "~")) or spec.count("/") > 1


def _without_added_tokens(backend: Tokenizer, post_processor: dict[str, Any]) -> Tokenizer:
    """The tokenizer with those parts of its post-processor only that add no tokens (they trim offsets)."""
    parts = post_processor["processors"] if post_processor["type"] == "Sequence" else [post_processor]
    kept = [part for part in parts if part["type"] not in _ADDING]
    definition = json.loads(backend.to_str())
    definition["post_processor"] = {"type": "Sequence", "processors": kept} if kept else None
    return Tokenizer.from_str(json.dumps(definition))


def load_tokenizer(spec: str) -> TextTokenizer:
    """Open a tokenizer.

    Args:
        spec: a ``tokenizer.json`` file, a directory holding one, or a hub id such as ``EleutherAI/pythia-160m``.

    Raises:
        UserError: there is no such tokenizer, it cannot be read, or it has no end-of-document token.
    """
    path = Path(spec).expanduser()
    if path.is_file():
        return _open_file(path, spec)
    if path.is_dir():
        return _open_directory(path, spec)
    if is_path(spec):
        raise UserError(
            f"tokenizer {spec!r}: no such file or directory. Give a tokenizer.json, a directory that holds one, or a "
            "hub id of the form owner/name."
        )
    return _open_directory(_download(spec), spec)


def _download(spec: str) -> Path:
    from huggingface_hub import snapshot_download  # here: local files need no hub client

    try:
        # All tokenizer files, no weights: a repository without tokenizer.json is read through transformers.
        return Path(snapshot_download(spec, allow_patterns=[*DESCRIPTION]))
    except Exception as error:  # the client raises a dozen kinds, by cause and version
        raise UserError(
            f"tokenizer {spec!r}: it is not a local path and could not be downloaded from the Hub "
            f"({first_line(error)}). Check the name and the network, or give a local tokenizer.json. "
            f"{how_to_fetch(spec)}"
        ) from None


def _open_directory(directory: Path, name: str) -> TextTokenizer:
    if (directory / "tokenizer.json").is_file():
        return _open_file(directory / "tokenizer.json", name)
    from transformers import AutoTokenizer  # here: it takes seconds to import

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory)
        backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    except Exception as error:  # transformers raises many kinds
        raise UserError(
            f"tokenizer {name!r}: {directory} holds no tokenizer.json, and transformers opens no tokenizer there "
            f"({type(error).__name__}). Give a directory saved by a fast tokenizer's save_pretrained."
        ) from None
    config = {"chat_template": tokenizer.chat_template} if tokenizer.chat_template else {}
    return TextTokenizer(backend, _find_eos(backend, tokenizer.eos_token, name), name, config)


def _open_file(path: Path, name: str) -> TextTokenizer:
    try:
        backend = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise UserError(
            f"tokenizer {name!r}: {path} is not a tokenizer ({error}). Expected a tokenizer.json as written by the "
            "tokenizers library."
        ) from None
    config: dict[str, Any] = {}
    # Only a file of the usual name belongs to the configuration beside it.
    if path.name == "tokenizer.json":
        config = _read_json(path.with_name(_CONFIG_NAME))
        for token, text in _read_json(path.with_name(_SPECIAL_NAME)).items():
            config[token] = config.get(token) or text
        if (chat_template := path.with_name(_CHAT_TEMPLATE_NAME)).is_file():
            config["chat_template"] = chat_template.read_text(encoding="utf-8")
    stated = config.get("eos_token")
    if isinstance(stated, dict):  # an AddedToken written out
        stated = stated.get("content")
    return TextTokenizer(backend, _find_eos(backend, stated, name), name, config)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}). Repair it or remove it.") from None
    return content if isinstance(content, dict) else {}


def _find_eos(backend: Tokenizer, stated: str | None, name: str) -> str:
    if stated:
        return stated
    for token in _USUAL_EOS_TOKENS:
        if backend.token_to_id(token) is not None:
            return token
    raise UserError(
        f"tokenizer {name!r}: no end-of-document token. Neither {_CONFIG_NAME} nor special_tokens_map.json names an "
        f"eos_token, and none of {', '.join(_USUAL_EOS_TOKENS)} is in the vocabulary. Write "
        f'{{"eos_token": "…"}} into a {_CONFIG_NAME} beside tokenizer.json.'
    )
