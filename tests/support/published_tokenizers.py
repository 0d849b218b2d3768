"""Small tokenizers of five published kinds, with the post-processors, normalizers and files that those have."""

import json
from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from data_tools.corpus.tokenizer import TextTokenizer, load_tokenizer
from data_tools.search.generator import ExampleGenerator

VOCAB_SIZE = 300
TEXTS = [
    f"{example.input_text} {answer}"
    for source in [ExampleGenerator(max_input_size=48, max_lookahead=8, seed=5, purpose="tokenizer kinds")]
    for example in (source.example(index, 4) for index in range(60))
    for answer in example.output_texts
]


def gpt2() -> tuple[Tokenizer, str]:
    """Byte-level BPE that adds nothing."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<|begin_of_text|>"]
    tokenizer.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    )
    return tokenizer, special[0]


def llama3() -> tuple[Tokenizer, str]:
    """Byte-level BPE that begins each text with a token."""
    tokenizer, eos = gpt2()
    begin = processors.TemplateProcessing("<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 1)])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), begin])
    return tokenizer, eos


def llama2() -> tuple[Tokenizer, str]:
    """BPE without pre-tokenizer, whose normalizer puts a space before each text, and a token before that."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")  # pieces of a published one end at words
    special = ["<unk>", "<s>", "</s>"]
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=VOCAB_SIZE, special_tokens=special))
    definition = json.loads(tokenizer.to_str())
    definition["pre_tokenizer"] = None
    tokenizer = Tokenizer.from_str(json.dumps(definition))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer, "</s>"


def t5() -> tuple[Tokenizer, str]:
    """Unigram that ends each text with its end of document."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(
        TEXTS, trainers.UnigramTrainer(vocab_size=VOCAB_SIZE, special_tokens=special, unk_token="<unk>")
    )
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer, "</s>"


def bert() -> tuple[Tokenizer, str]:
    """WordPiece in lower case that encloses each text."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    tokenizer.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=VOCAB_SIZE, special_tokens=special))
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return tokenizer, "[SEP]"


KINDS: dict[str, Callable[[], tuple[Tokenizer, str]]] = {
    "gpt2": gpt2, "llama3": llama3, "llama2": llama2, "t5": t5, "bert": bert,
}  # fmt: skip


def published(kind: str, directory: Path) -> TextTokenizer:
    """A tokenizer of a kind, opened from a directory like a published one's, with a chat template."""
    backend, eos = KINDS[kind]()
    directory.mkdir()
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": True}))
    (directory / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": eos}}))
    (directory / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    return load_tokenizer(str(directory))
