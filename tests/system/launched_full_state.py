"""Put full tensors into engines of every ZeRO stage and read them back through DeepSpeed's own getters.

    deepspeed --num_gpus 3 tests/system/launched_full_state.py OUT.json

The model's sizes are odd: no number of ranks divides its tensors. OUT.json gets a line for each tensor that differs.
"""

import itertools
import json
import sys
from pathlib import Path

import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from transformers import LlamaConfig

from ds_train.checkpoints.full_state import fresh_engine, load_full_state
from ds_train.model.causal_lm import build_model
from ds_train.ranks.collectives import init_distributed
from ds_train.ranks.entry import run_entry
from ds_train.ranks.world import world_from_env
from ds_train.step.engine import Engine
from ds_train.step.losses import PackedLM
from tests.support.engine_configs import resolve

MOMENTS = ("exp_avg", "exp_avg_sq")
NUM_UPDATES = 7


def main() -> int:
    path = Path(next(argument for argument in sys.argv[1:] if not argument.startswith("--")))
    world = world_from_env()
    init_distributed(world)
    differing = []
    for stage, half in itertools.product((1, 2, 3), (False, True)):
        differing += [f"ZeRO {stage}, half {half}: {line}" for line in check(stage, half, world.size)]
    if world.is_main:
        path.write_text(json.dumps(differing))
    return 0


def check(stage: int, half: bool, num_ranks: int) -> list[str]:
    """Names of tensors that do not come back as they were put in."""
    sizes = {"num_hidden_layers": 1, "hidden_size": 14, "num_attention_heads": 1, "intermediate_size": 13}
    config = LlamaConfig(vocab_size=101, use_cache=False, **sizes)
    json_config = {
        "train_batch_size": num_ranks,
        "gradient_accumulation_steps": 1,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
        "zero_optimization": {"stage": stage},
        "bf16": {"enabled": half},
    }
    model = PackedLM(build_model(config, seed=1))
    generator = torch.Generator().manual_seed(2)
    fresh = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    full = {
        name: {kind: torch.randn(weights.shape, generator=generator) for kind in ("fp32", *MOMENTS)}
        for name, weights in fresh.items()
    }
    engine = fresh_engine(model, resolve(json_config, world_size=num_ranks).deepspeed)
    differing = [f"fresh {name}" for name in _differing(engine, {name: {"fp32": w} for name, w in fresh.items()})]
    load_full_state(engine, full, num_updates=NUM_UPDATES)
    differing += _differing(engine, full)
    steps = {float(state["step"]) for state in engine.optimizer.optimizer.state.values()}
    return differing + ([f"steps {steps}"] if steps != {NUM_UPDATES} else [])


def _differing(engine: Engine, full: dict[str, dict[str, torch.Tensor]]) -> list[str]:
    found = []
    for name, parameter in engine.module.named_parameters():
        for kind, value in full[name].items():
            is_weight = kind == "fp32"
            got = safe_get_full_fp32_param(parameter) if is_weight else safe_get_full_optimizer_state(parameter, kind)
            if not torch.equal(got, value):
                found.append(f"{name} {kind}")
    return found


if __name__ == "__main__":
    run_entry(main)
