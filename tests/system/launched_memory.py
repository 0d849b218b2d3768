"""Measure what DeepSpeed's engines keep and send, for a list of configurations.

    deepspeed --num_gpus 2 tests/system/launched_memory.py CASES.json

CASES.json holds a list of {"zero": {…}, "half": true | false}. Optional: "no_decay", parameters without weight decay,
as `without_decay` takes them. CASES.json.out gets of rank 0, for each:

* bytes: all floating-point tensors between two micro-batches, after a first update: there weights, accumulated
  gradients and moments are alive together;
* copied: the largest tensor (bytes) that was made to be added over ranks; the engine does not hold it from the start.
"""

import gc
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GPTNeoXConfig

from data_tools.samples.documents import Document
from ds_train.model.causal_lm import build_model
from ds_train.model.parts import without_decay
from ds_train.ranks.collectives import init_distributed
from ds_train.ranks.entry import run_entry
from ds_train.ranks.world import world_from_env
from ds_train.step.engine import build_engine
from ds_train.step.losses import PackedLM
from ds_train.step.micro_batch import pack
from tests.support.collective_spy import CollectiveSpy
from tests.support.engine_configs import resolve

GRAD_ACCUM = 2


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


def measure(case: dict[str, Any], num_ranks: int, alive: list[Any]) -> dict[str, Any]:
    before = live_storages()
    config = {
        "train_batch_size": GRAD_ACCUM * num_ranks,
        "gradient_accumulation_steps": GRAD_ACCUM,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True, "fused": True}},
        "zero_optimization": case["zero"],
        "bf16": {"enabled": case["half"]},
    }
    config = resolve(config, world_size=num_ranks).deepspeed
    model = build_model(model_config(), seed=0)
    names = without_decay(model, case.get("no_decay", ()))
    engine = build_engine(PackedLM(model, no_decay=names), config)
    engine.optimizer.overflow = False  # what train_step finds out for a plain optimizer (ZeRO 0)
    built = live_storages()
    batch = pack([[Document(np.arange(20), np.ones(19, np.float32))]])
    with CollectiveSpy() as spy:
        for number in range(1, GRAD_ACCUM + 2):
            engine.set_gradient_accumulation_boundary(number == GRAD_ACCUM)
            engine.backward(engine(batch)[0])
            engine.step()
    after = live_storages()
    alive.append(engine)
    new_bytes = sum(size for address, size in after.items() if address not in before)
    copied = max((size for address, size in spy.sizes.items() if address not in built), default=0)
    return {"bytes": new_bytes, "copied": copied}


def live_storages() -> dict[int, int]:
    """Address and bytes of the storages of all floating-point tensors that Python can reach."""
    gc.collect()
    tensors = [entry for entry in gc.get_objects() if isinstance(entry, torch.Tensor)]
    tensors += [tensor.grad for tensor in tensors if tensor.is_leaf and tensor.grad is not None]
    storages = [tensor.untyped_storage() for tensor in tensors if tensor.is_floating_point()]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


if __name__ == "__main__":
    run_entry(main)
