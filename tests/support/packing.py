"""A small corpus, a small tokenizer and a plain account of what packing them must give."""

import gzip
import json
import random
from pathlib import Path

import numpy as np

from data_tools.build_pretrain import main
from data_tools.corpus.text_source import FileSource, shuffled_documents
from data_tools.corpus.tokenizer import TextTokenizer
from data_tools.train_tokenizer import train_bpe

SEQ_LEN = 32
NUM_BLOCKS = 70
BLOCKS_PER_SHARD = 20  # three whole shards and one of 10 blocks
VAL_BLOCKS = 7
SEED = 3
BUFFER = 25


def make_documents(count: int, seed: int = 0) -> list[str]:
    """Documents of 0 … 15 made-up words, no two alike but the empty ones."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghijklmnop ü漢\n", k=rng.randint(1, 7))) for _ in range(50)]
    return ["" if rng.random() < 0.02 else f"{n} " + " ".join(rng.choices(words, k=rng.randint(0, 15)))
            for n in range(count)]  # fmt: skip


def write_corpus(directory: Path, documents: list[str], num_files: int = 3) -> Path:
    """Write documents as .json.gz files in C4's form."""
    directory.mkdir(parents=True, exist_ok=True)
    for number in range(num_files):
        with gzip.open(directory / f"c4-train.{number:05d}.json.gz", "wt", encoding="utf-8") as file:
            for text in documents[number::num_files]:
                file.write(json.dumps({"text": text, "url": "u", "timestamp": "2019-04-25T12:57:54Z"}) + "\n")
    return directory


def save_small_tokenizer(directory: Path) -> TextTokenizer:
    """Train a byte-level BPE of 300 ids and save it."""
    tokenizer = train_bpe(iter(make_documents(50, seed=1)), 300)
    tokenizer.save(directory)
    return tokenizer


def pack_arguments(root: Path, **changes: object) -> list[str]:
    """Arguments that pack ``root/corpus`` with ``root/tokenizer`` into ``root/pack``."""
    options: dict[str, object] = {
        "pack_dir": root / "pack", "source": root / "corpus", "tokenizer": root / "tokenizer", "seq_len": SEQ_LEN,
        "num_blocks": NUM_BLOCKS, "blocks_per_shard": BLOCKS_PER_SHARD, "val_blocks": VAL_BLOCKS, "seed": SEED,
        "shuffle_buffer": BUFFER, **changes,
    }  # fmt: skip
    flags = [name for name, value in options.items() if value is True]
    pairs = [(name, str(value)) for name, value in options.items() if value is not True]
    return [part for name, value in pairs for part in (f"--{name}", value)] + [f"--{name}" for name in flags]


def pack(root: Path, **changes: object) -> Path:
    """Run the command in this process; the pack directory."""
    main(pack_arguments(root, **changes))
    return Path(str(changes.get("pack_dir", root / "pack")))


def bytes_of(directory: Path) -> dict[str, bytes]:
    """Content of every visible file in a directory, by name."""
    return {path.name: path.read_bytes() for path in sorted(directory.glob("[!.]*"))}


def expected_rows(corpus: Path, tokenizer: TextTokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Validation and training blocks, (blocks, block_len) each, document by document in plain lists."""
    documents = list(shuffled_documents(FileSource([str(corpus)]), SEED, BUFFER))
    block_len = SEQ_LEN + 1
    rows = []
    for num_blocks in (VAL_BLOCKS, NUM_BLOCKS):
        tokens: list[int] = []
        while len(tokens) < num_blocks * block_len:
            tokens += [*tokenizer.encode(documents.pop(0)), tokenizer.eos_id]
        rows.append(np.array(tokens[: num_blocks * block_len]).reshape(num_blocks, block_len))
    return rows[0], rows[1]
