"""DeepSpeed JSON files made from one that is right, and their resolution."""

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

from data_tools.base.errors import Problems
from ds_train.config.deepspeed_json import EngineConfig, resolve_engine_config
from ds_train.config.trainer_flags import OverrideFlags

BASE: dict[str, Any] = {
    "train_batch_size": 32,
    "train_micro_batch_size_per_gpu": 2,
    "optimizer": {"type": "AdamW", "params": {"lr": 5e-4, "betas": [0.9, 0.999], "weight_decay": 0.1}},
    "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 10, "warmup_type": "linear"}},
    "gradient_clipping": 1.0,
    "bf16": {"enabled": True},
    "zero_optimization": {"stage": 1},
}
GONE = object()


def changed(*changes: tuple[str, Any]) -> dict[str, Any]:
    """BASE with dotted keys set, or taken out for GONE."""
    config = copy.deepcopy(BASE)
    for dotted, value in changes:
        *parents, key = dotted.split(".")
        block = config
        for parent in parents:
            block = block.setdefault(parent, {})
        if value is GONE:
            block.pop(key, None)
        else:
            block[key] = copy.deepcopy(value)
    return config


def batch(global_batch: Any = GONE, micro_batch: Any = GONE, grad_accum: Any = GONE) -> list[tuple[str, Any]]:
    return [
        ("train_batch_size", global_batch),
        ("train_micro_batch_size_per_gpu", micro_batch),
        ("gradient_accumulation_steps", grad_accum),
    ]


def resolve(config: Any, **settings) -> EngineConfig:
    """Resolve a JSON given as an object or as text; a UserError where there are problems."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "ds.json"
        path.write_text(config if isinstance(config, str) else json.dumps(config))
        return resolve_file(path, **settings)


def resolve_file(path: Path, world_size=1, total_steps=None, min_lr_ratio=None, **flags) -> EngineConfig:
    problems = Problems()
    resolved = resolve_engine_config(
        str(path), OverrideFlags(**flags), problems, world_size=world_size, total_steps=total_steps,
        min_lr_ratio=min_lr_ratio,
    )  # fmt: skip
    problems.raise_if_any()
    assert resolved is not None
    return resolved
