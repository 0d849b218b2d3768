"""Small samples of what the Accelerate scripts and the Trainer leave behind."""

import hashlib
import json
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np

SEQ_LEN = 32
LAYERS, HIDDEN, VOCAB = 2, 32, 64  # of the model that tests.support.tiny writes
SPLITS = "data/nl_splits/mis48_look8_seed12345"
_WORDS = "bold calm deft eager fond glad hale idle jolly keen loyal mild neat odd proud quiet".split()


def write_splits(scratch: Path, **changes: object) -> Path:
    """Rows without lookahead and num_edges; meta.json with the task and, by split, size, path and hash."""
    directory = scratch / SPLITS
    directory.mkdir(parents=True)
    draw = random.Random(1)
    files = {}
    seen: set[str] = set()
    for split, size in (("eval", 20), ("test", 10), ("mixin", 40)):
        rows = []
        while len(rows) < size:
            row = _row(draw)
            if row["input_text"] not in seen:
                seen.add(row["input_text"])
                rows.append(row)
        body = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (directory / f"{split}.jsonl").write_bytes(body)
        sha256 = hashlib.sha256(body).hexdigest()
        files[split] = {"size": size, "path": f"/elsewhere/{split}.jsonl", "sha256": sha256}
    meta = {"task": "search", "max_input_size": 48, "max_lookahead": 8, "seed": 12345, "alpha": 1.0, "splits": files}
    (directory / "meta.json").write_text(json.dumps(meta | changes))
    return directory


def _row(draw: random.Random) -> dict[str, Any]:
    """Two steps to the goal, beside a branch that ends at once: lookahead 1, four edges."""
    a, b, c, d, e = draw.sample(_WORDS, 5)
    facts = [f"If Ada is {one}, then Ada is {other}." for one, other in ((a, b), (b, c), (c, d))]
    facts.append(f"Everyone that is {a} is {e}.")
    draw.shuffle(facts)
    question = f"Given that Ada is {a}, and we want to prove Ada is {d}."
    text = f"Suppose we have the following facts: {' '.join(facts)} {question}\n\nProof: Ada is {a}. Ada is"
    return {"input_text": text, "output_texts": [b], "alpha": 1.0, "stage": 8, "seed": draw.getrandbits(31)}


def write_pack(directory: Path, lengths: tuple[int, ...], num_ids: int, **changes: object) -> Path:
    """Shards of so many blocks each, no validation blocks."""
    directory.mkdir(parents=True)
    tokens = np.random.default_rng(1).integers(0, num_ids, size=(sum(lengths), SEQ_LEN + 1), dtype=np.uint16)
    for number, part in enumerate(np.split(tokens, np.cumsum(lengths)[:-1])):
        (directory / f"shard_{number:05d}.bin").write_bytes(part.tobytes())
    meta = {"seq_len": SEQ_LEN, "block_len": SEQ_LEN + 1, "dtype": "uint16", "total_blocks": sum(lengths) + 2,
            "num_shards": len(lengths), "blocks_per_shard": 53, "tokenizer": "EleutherAI/pythia-160m", "seed": 42,
            }  # fmt: skip
    (directory / "meta.json").write_text(json.dumps(meta | changes))
    return directory


def write_checkpoint(directory: Path, state: str) -> Path:
    """Weights in safetensors of a GPT-NeoX by name and shape, beside ``train_state.json`` or ``trainer_state.json``."""
    directory.mkdir(parents=True)
    shapes = {"gpt_neox.embed_in.weight": (VOCAB, HIDDEN), "embed_out.weight": (VOCAB, HIDDEN)}
    shapes |= {f"gpt_neox.layers.{n}.mlp.dense.weight": (HIDDEN, HIDDEN) for n in range(LAYERS)}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * shape[0] * shape[1]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))
    (directory / "optimizer.bin").write_bytes(b"state")
    (directory / state).write_text('{"step": 200}')
    return directory


def files_of(directory: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of change of every file below a directory."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}
