"""A small tokenizer of each kind that causal LMs come with."""

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from data_tools.corpus.tokenizer import TextTokenizer
from tests.support import packing

EOS = "</s>"
SPECIAL = [EOS, "<unk>", "<s>", "[SEP]"]
KINDS = ("byte-level BPE", "digits BPE", "Llama-like BPE", "Metaspace BPE", "Unigram", "WordPiece", "WordLevel")


def tokenizer_of(kind: str) -> TextTokenizer:
    """Trained on made-up words, with `SPECIAL` among its tokens and a run of three spaces that is not special."""
    backend = _untrained(kind)
    trainer = {
        "Unigram": trainers.UnigramTrainer, "WordPiece": trainers.WordPieceTrainer,
        "WordLevel": trainers.WordLevelTrainer,
    }.get(kind, trainers.BpeTrainer)  # fmt: skip
    options = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet()} if "byte" in kind or "digits" in kind else {}
    if kind == "Unigram":
        options["unk_token"] = "<unk>"
    texts = [f"{text} </s> <unk> [SEP]" for text in packing.make_documents(60, seed=5)]
    backend.train_from_iterator(texts, trainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False, **options))
    backend.add_tokens([AddedToken("   ", normalized=False)])
    return TextTokenizer(backend, EOS, kind)


def _untrained(kind: str) -> Tokenizer:
    if kind == "Llama-like BPE":  # the text is one word: whatever stands anywhere in it might merge
        backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    elif kind == "Metaspace BPE":
        backend = Tokenizer(models.BPE(unk_token="<unk>"))
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    elif kind == "Unigram":
        backend = Tokenizer(models.Unigram())
        backend.normalizer = normalizers.NFKC()
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    elif kind == "WordPiece":
        backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
        backend.normalizer = normalizers.BertNormalizer()
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    elif kind == "WordLevel":
        backend = Tokenizer(models.WordLevel(unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    else:
        backend = Tokenizer(models.BPE())
        pattern = Regex(r"\p{N}{1,3}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
        split = [pre_tokenizers.Split(pattern, "isolated")] if kind == "digits BPE" else []
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not split)
        backend.pre_tokenizer = pre_tokenizers.Sequence([*split, byte_level])
        backend.decoder = decoders.ByteLevel()
    return backend
