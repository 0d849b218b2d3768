"""Measure the model states of a rank for a list of configurations.

    deepspeed --num_gpus 2 tests/ds_train/launched_memory.py CASES.json

CASES.json holds a list of {"zero": {…}, "half": true | false}; CASES.json.out gets, for each, rank 0's bytes of all
floating-point tensors between two micro-batches, after a first update: there weights, accumulated gradients and
moments are alive together.
"""

import gc
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GPTNeoXConfig

from data_tools.token_documents import Document
from ds_train.distributed import init_distributed, run_entry
from ds_train.documents import pack
from ds_train.engine import build_engine
from ds_train.losses import PackedLM
from ds_train.model import build_model
from ds_train.ranks import world_from_env

GRAD_ACCUM = 2
HALF = {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}


def model_config() -> GPTNeoXConfig:
    """Half a million parameters, so that DeepSpeed's alignment to a few elements does not count."""
    sizes = {"num_hidden_layers": 2, "hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 512}
    return GPTNeoXConfig(vocab_size=512, max_position_embeddings=64, use_cache=False, **sizes)


def main() -> int:
    path = Path(next(argument for argument in sys.argv[1:] if not argument.startswith("--")))
    world = world_from_env()
    init_distributed(world)
    alive: list[Any] = []  # engines stay, so that nothing of one takes the addresses of another
    measured = [measure(case, world.size, alive) for case in json.loads(path.read_text())]
    if world.is_main:
        path.with_name(f"{path.name}.out").write_text(json.dumps(measured))
    return 0


def measure(case: dict[str, Any], num_ranks: int, alive: list[Any]) -> int:
    before = live_storages()
    config = {
        "train_batch_size": GRAD_ACCUM * num_ranks,
        "gradient_accumulation_steps": GRAD_ACCUM,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True, "fused": True}},
        "zero_optimization": case["zero"],
        "steps_per_print": 10**9,
    }
    engine = build_engine(PackedLM(build_model(model_config(), seed=0)), config | (HALF if case["half"] else {}))
    engine.optimizer.overflow = False  # what train_step finds out for a plain optimizer (ZeRO 0)
    batch = pack([[Document(np.arange(20), np.ones(19, np.float32))]])
    for _ in range(GRAD_ACCUM + 1):
        engine.backward(engine(batch)[0])
        engine.step()
    after = live_storages()
    alive.append(engine)
    return sum(size for address, size in after.items() if address not in before)


def live_storages() -> dict[int, int]:
    """Address and bytes of the storages of all floating-point tensors that Python can reach."""
    gc.collect()
    tensors = [entry for entry in gc.get_objects() if isinstance(entry, torch.Tensor)]
    tensors += [tensor.grad for tensor in tensors if tensor.is_leaf and tensor.grad is not None]
    storages = [tensor.untyped_storage() for tensor in tensors if tensor.is_floating_point()]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


if __name__ == "__main__":
    run_entry(main)
