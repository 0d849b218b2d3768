"""A whole scratch directory in miniature: splits, tokenizer, model, packed documents. Built in a few seconds."""

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from data_tools import build_data_splits, build_pretrain
from data_tools.base.rng import CounterStream

SEQ_LEN = 256
SHORT_STEPS = 12
_SHORT = "--lr 2e-3 --global_batch 8 --keep_last 0"
SHORT_FLAGS = {  # runs of so many steps, with two promotions and with evaluations
    "pptrain": f"--max_steps {SHORT_STEPS} --curr_window 16 --curr_threshold 0.4 --curr_check_every 2 {_SHORT}".split(),
    "pretrain": f"--total_steps {SHORT_STEPS} --mixin_percent 0.3 --eval_every 4 --pptrain_checkpoint none {_SHORT}"
    .split(),
}  # fmt: skip
_SENTENCE_WORDS = """Suppose we have the following facts If is a person are Everyone that someone then they Given and
want to prove Proof""".split()
_VOCABULARY = sorted([*_SENTENCE_WORDS, *"C V <|endoftext|> <unk> . : ,".split()])


def build_tiny_scratch(directory: Path) -> Path:
    """Fill ``directory`` with everything both phases need; see `flags`."""
    write_tokenizer(directory / "tokenizer")
    write_model(directory / "model")
    build_data_splits.main(
        f"--scratch_dir {directory} --max_input_size 48 --max_lookahead 8 --eval_size 40 --test_size 20 "
        "--mixin_size 150 --workers 1".split()
    )
    documents = directory / "documents.jsonl"
    write_documents(documents)
    build_pretrain.main(
        f"--scratch_dir {directory} --source {documents} --tokenizer {directory / 'tokenizer'} --seq_len {SEQ_LEN} "
        "--num_blocks 200 --val_blocks 6 --workers 1".split()
    )
    return directory


def flags(scratch: Path, precision: str | None = "no") -> list[str]:
    """Flags that point a run at a tiny scratch directory.

    Args:
        precision: of ``--mixed_precision``; fp32, because some CPUs emulate bf16. None leaves it to the JSON.
    """
    return [
        "--scratch_dir", str(scratch),
        "--model_name", str(scratch / "model"), "--tokenizer", str(scratch / "tokenizer"),
        "--seq_len", str(SEQ_LEN), "--eval_subset_size", "8", "--log_every", "1", "--warmup_steps", "4",
        *(["--mixed_precision", precision] if precision else []),
    ]  # fmt: skip


def write_tokenizer(directory: Path) -> None:
    """Words of the sentence forms; every other lower-case word is V or C by its first letter.

    So an answer is one of two tokens: a tiny model is right by chance at once and mostly soon after, which lets
    a curriculum advance within twenty steps, by its own rule.
    """
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(_VOCABULARY)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(rf"\b(?!(?:{'|'.join(_SENTENCE_WORDS)})\b)[aeiou][a-z]*\b"), "V"),
            normalizers.Replace(Regex(rf"\b(?!(?:{'|'.join(_SENTENCE_WORDS)})\b)[b-df-hj-np-tv-z][a-z]*\b"), "C"),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    # What training and exports leave out.
    end = ("<|endoftext|>", tokenizer.token_to_id("<|endoftext|>"))
    tokenizer.post_processor = processors.TemplateProcessing("<|endoftext|> $A", special_tokens=[end])
    directory.mkdir(parents=True)
    tokenizer.save(str(directory / "tokenizer.json"))


def write_model(directory: Path) -> None:
    """A GPT-NeoX of 30 thousand parameters."""
    directory.mkdir(parents=True)
    config = {
        "model_type": "gpt_neox", "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": SEQ_LEN,
        "rotary_pct": 0.25, "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))


def write_tied_model(directory: Path) -> None:
    """A Llama with one matrix for input and output embeddings."""
    config = {
        "model_type": "llama", "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 64,
        "max_position_embeddings": 2 * SEQ_LEN, "tie_word_embeddings": True, "attention_dropout": 0.1,
    }  # fmt: skip
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))


def write_documents(path: Path) -> None:
    """Four hundred documents of sentence words, in C4's form."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": _document(n)}) + "\n" for n in range(400)))


def _document(number: int) -> str:
    draws = CounterStream(7, "tiny documents", number)
    words = [draws.choice(_SENTENCE_WORDS) for _ in range(100 + draws.below(100))]
    return " ".join(word for first in words for word in (first, _SENTENCE_WORDS[(len(first) * 5) % 20]))
