"""Train with each optimizer at some ZeRO stages, stop and resume, and compare with torch's own loop.

    deepspeed --num_gpus 2 tests/system/launched_optimizers.py CASES.json

CASES.json holds a list of {"optimizer": {…}, "stage": 0 … 3, "precision": "fp32" | "bf16", "clipping": number}.
Optional: "zero", more of the ZeRO block. CASES.json.out gets for each:

* losses: of every step;
* rates: learning rates of the groups at the last step;
* moved: largest change of a weight matrix inside a layer, and of any other parameter;
* resumed: largest difference of a weight when the second half was trained by an engine that loaded the first half;
* expected: the losses of a loop with torch's optimizer in one process, null where torch has none like it.
"""

import json
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param

from data_tools.samples.documents import Document
from ds_train.checkpoints.restore import load
from ds_train.checkpoints.state import TrainState
from ds_train.model.causal_lm import build_model
from ds_train.model.parts import without_decay
from ds_train.ranks.collectives import broadcast_object, init_distributed, sum_over_ranks
from ds_train.ranks.entry import run_entry
from ds_train.ranks.world import world_from_env
from ds_train.step.engine import Engine, build_engine, is_plain, set_learning_rate
from ds_train.step.losses import PackedLM
from ds_train.step.micro_batch import MicroBatch, pack
from tests.support.engine_configs import resolve
from tests.support.tiny_models import tiny_config

STEPS, HALF, BATCH, LENGTH = 4, 2, 2, 20
RATES = (2e-3, 4e-3, 8e-3, 4e-3)  # whose largest is the JSON's
Case = dict[str, Any]


def main() -> int:
    path = Path(next(argument for argument in sys.argv[1:] if not argument.startswith("--")))
    world = world_from_env()
    init_distributed(world)
    torch._dynamo.config.disable = True  # Muon's kernels would be compiled for a minute
    measured = [measure(case) for case in json.loads(path.read_text())]
    if world.is_main:
        path.with_name(f"{path.name}.out").write_text(json.dumps(measured))
    return 0


def measure(case: Case) -> Case:
    engine = build(case)
    before = weights(engine)
    directory = broadcast_object(tempfile.mkdtemp())
    losses = train(engine, range(HALF))
    engine.save_checkpoint(directory, tag="half", save_latest=False, client_state={})
    losses += train(engine, range(HALF, STEPS))
    after = weights(engine)

    resumed = build(case)
    load(resumed, Path(directory) / "half", state_of(case), world_from_env())
    train(resumed, range(HALF, STEPS))
    moved = {name: _difference(value, before[name]) for name, value in after.items()}
    is_matrix = {name: "layers" in name and value.dim() > 1 for name, value in after.items()}
    return {
        "losses": losses,
        "rates": [group["lr"] for group in resumed.optimizer.param_groups],
        "moved": [max(by for name, by in moved.items() if is_matrix[name] == wanted) for wanted in (True, False)],
        "resumed": max(_difference(value, after[name]) for name, value in weights(resumed).items()),
        "expected": torchs_losses(json.dumps(case["optimizer"]), case["clipping"]),
    }


def state_of(case: Case) -> TrainState:
    size = dist.get_world_size()
    return TrainState(1, size, 1, 1, BATCH, zero_stage=case["stage"], precision=case["precision"], step=HALF)


def model() -> PackedLM:
    causal_lm = build_model(tiny_config("gpt_neox"), seed=1)
    return PackedLM(causal_lm, no_decay=without_decay(causal_lm, ["norms", "biases"]))


def build(case: Case) -> Engine:
    num_ranks = dist.get_world_size()
    config = {
        "train_batch_size": BATCH,
        "train_micro_batch_size_per_gpu": 1,
        "optimizer": case["optimizer"],
        "gradient_clipping": case["clipping"],
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": case["stage"], "reduce_bucket_size": 50_000, **case.get("zero", {})},
        "bf16": {"enabled": case["precision"] == "bf16"},
    }
    return build_engine(model(), resolve(config, world_size=num_ranks).deepspeed)


def micro_batch(step: int, sample: int) -> MicroBatch:
    tokens = np.random.default_rng((step, sample)).integers(1, 60, LENGTH + 1)
    return pack([[Document(tokens, np.ones(LENGTH, np.float32))]])


def train(engine: Engine, steps: range) -> list[float]:
    """Train and return the mean loss of each step over all ranks."""
    per_rank = BATCH // dist.get_world_size()
    losses = []
    for step in steps:
        set_learning_rate(engine, RATES[step])
        total = torch.zeros((), dtype=torch.float64)
        for sample in range(per_rank):
            loss = engine(micro_batch(step, engine.global_rank * per_rank + sample))[0]
            total += loss.detach()
            engine.backward(loss / LENGTH)
            if is_plain(engine):  # what train_step finds out for a plain optimizer (ZeRO 0)
                engine.optimizer.overflow, engine.optimizer._global_grad_norm = False, 0.0
            engine.step()
        losses.append(sum_over_ranks(total).item() / BATCH / LENGTH)
    return losses


def weights(engine: Engine) -> dict[str, torch.Tensor]:
    """The fp32 weights, whole, by name."""
    parameters = engine.module.named_parameters()
    return {
        name: (parameter.detach() if is_plain(engine) else safe_get_full_fp32_param(parameter)).clone()
        for name, parameter in parameters
    }


@cache
def torchs_losses(optimizer_json: str, clipping: float) -> list[float] | None:
    """The same training without DeepSpeed, in fp32."""
    kind, params = json.loads(optimizer_json).values()
    if kind == "Muon" or not hasattr(torch.optim, kind):
        return None
    is_l2 = params.get("adam_w_mode") is False
    params = {name: value for name, value in params.items() if name not in ("torch_adam", "adam_w_mode")}
    alone = model()
    optimizer_class = getattr(torch.optim, "AdamW" if kind == "Adam" and not is_l2 else kind)
    groups: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
    for name, parameter in alone.named_parameters():
        groups[name in alone.no_decay].append(parameter)
    optimizer = optimizer_class([{"params": groups[False]}, {"params": groups[True], "weight_decay": 0.0}], **params)
    losses = []
    for step, rate in enumerate(RATES):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss = sum(alone(micro_batch(step, sample))[0] for sample in range(BATCH)) / BATCH / LENGTH
        loss.backward()
        torch.nn.utils.clip_grad_norm_(alone.parameters(), clipping or float("inf"))
        optimizer.step()
        losses.append(loss.item())
    return losses


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


if __name__ == "__main__":
    run_entry(main)
