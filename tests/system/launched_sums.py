"""Compare the gradients that engines update with, with the exact sums of what each micro-batch contributed.

    deepspeed --num_gpus 3 tests/system/launched_sums.py CASES.json

CASES.json holds a list of {"zero": {…}, "half": true | false}. Optional: "instead", keys of the DeepSpeed JSON that
undo what the checks set. CASES.json.out gets for each:

* error: largest difference to the sum in fp64, relative to the parameter's largest gradient;
* added, copied: dtypes of all floating-point numbers that were added over ranks, or sent as they are, by a step;
* loss, norm: of the step.

Three ranks: DeepSpeed divides by their number, which half precision cannot do exactly.
"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_grad

from data_tools.samples.samplers import CurriculumSampler, Cursor, SampleKind
from ds_train.config.layout import Layout
from ds_train.model.causal_lm import build_model
from ds_train.ranks.collectives import init_distributed
from ds_train.ranks.entry import run_entry
from ds_train.ranks.world import world_from_env
from ds_train.step.engine import Engine, build_engine, is_plain, train_step
from ds_train.step.losses import PackedLM
from ds_train.step.stream import RankBatch, RankBatchBuilder
from tests.support.collective_spy import CollectiveSpy
from tests.support.engine_configs import resolve
from tests.support.tiny_models import stream_reader, tiny_config

MICRO_BATCH, SEQ_LEN, SAMPLES_OF_RANK = 1, 256, 3


def main() -> int:
    path = Path(next(argument for argument in sys.argv[1:] if not argument.startswith("--")))
    world = world_from_env()
    init_distributed(world)
    layout = Layout(world.size, MICRO_BATCH, SAMPLES_OF_RANK * world.size)
    builder = RankBatchBuilder({SampleKind.STREAM: stream_reader()}, layout, world.rank, SEQ_LEN)
    batch = builder.build(CurriculumSampler(layout.global_batch).plan(Cursor(stage=2), step=1))
    measured = [measure(case, batch, layout) for case in json.loads(path.read_text())]
    if world.is_main:
        path.with_name(f"{path.name}.out").write_text(json.dumps(measured))
    return 0


def measure(case: dict[str, Any], batch: RankBatch, layout: Layout) -> dict[str, Any]:
    engine = build(case, layout)
    contributed: dict[str, torch.Tensor] = {}
    used: dict[str, torch.Tensor] = {}
    parameters = dict(engine.module.named_parameters())
    for name, parameter in parameters.items():
        contributed[name] = torch.zeros(getattr(parameter, "ds_shape", parameter.shape), dtype=torch.float64)
        parameter.register_hook(partial(_add, contributed[name]))
    update, spy = engine.step, CollectiveSpy()

    def look_and_update() -> None:
        if engine.is_gradient_accumulation_boundary():
            spy.is_listening = False
            for name, parameter in parameters.items():
                gradient = parameter.grad if is_plain(engine) else safe_get_full_grad(parameter)
                used[name] = gradient.double()
            spy.is_listening = True
        update()

    engine.step = look_and_update
    with spy:
        result = train_step(engine, batch, layout, "any", lambda: (0,))
    assert result.num_forwards > 1, "the test needs an accumulation"
    return {
        "error": max(_error(used[name], exact) for name, exact in contributed.items()),
        "added": sorted(spy.added),
        "copied": sorted(spy.copied),
        "loss": result.loss,
        "norm": result.grad_norm,
    }


def build(case: dict[str, Any], layout: Layout) -> Engine:
    config = {
        "train_batch_size": layout.global_batch,
        "train_micro_batch_size_per_gpu": MICRO_BATCH,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True, "fused": True}},
        "zero_optimization": {"reduce_bucket_size": 20_000, "allgather_bucket_size": 20_000, **case["zero"]},
        "bf16": {"enabled": case["half"]},
    }
    resolved = resolve(config, world_size=layout.world_size).deepspeed
    for name, values in case.get("instead", {}).items():  # of what the checks set
        resolved[name] = resolved[name] | values if isinstance(values, dict) else values
    return build_engine(PackedLM(build_model(tiny_config("gpt_neox", positions=1024), seed=1)), resolved)


def _add(total: torch.Tensor, gradient: torch.Tensor) -> None:
    total.add_(gradient)


def _error(gradient: torch.Tensor, own: torch.Tensor) -> float:
    """Largest difference to the mean of all ranks' sums, relative to the largest number of that."""
    exact = own.clone()
    dist.all_reduce(exact)
    exact /= dist.get_world_size()
    return ((gradient - exact).abs().max() / exact.abs().max()).item()


if __name__ == "__main__":
    run_entry(main)
