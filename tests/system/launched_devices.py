"""Train some steps with documents end to end and with one a row, and count how often the host waits for the device.

    python tests/system/launched_devices.py RESULT.json

RESULT.json gets for each precision:

* device: that was used;
* end to end, one a row: losses and gradient norms of the steps;
* waits: operations for which the host waits, in steps of few and of many forwards.
"""

import json
import sys
from pathlib import Path
from typing import Any

from data_tools.samples.samplers import CurriculumSampler, Cursor, SampleKind
from ds_train.config.layout import Layout
from ds_train.model.causal_lm import build_model
from ds_train.ranks.collectives import init_distributed
from ds_train.ranks.entry import run_entry
from ds_train.ranks.world import world_from_env
from ds_train.step.engine import Engine, build_engine, set_learning_rate, train_step
from ds_train.step.losses import PackedLM
from ds_train.step.stream import RankBatchBuilder
from tests.support.devices import waits
from tests.support.engine_configs import BASE, resolve
from tests.support.tiny_models import stream_reader, tiny_config

STEPS, SAMPLES, SEQ_LEN, LR = 3, 8, 256, 1e-3
FEW, MANY = 8, 1  # documents of SEQ_LEN tokens that a forward has room for


def main() -> int:
    path = Path(next(argument for argument in sys.argv[1:] if not argument.startswith("--")))
    init_distributed(world_from_env())
    path.write_text(json.dumps({precision: measure(precision) for precision in ("no", "bf16")}))
    return 0


def measure(precision: str) -> dict[str, Any]:
    engine = build(precision, one_document_a_row=False)
    result: dict[str, Any] = {"device": engine.device.type, "end to end": train(engine, FEW)}
    result["waits"] = {}
    for name, micro_batch in (("few", FEW), ("many", MANY)):
        train(engine, micro_batch)
        with waits(engine.device) as found:
            result[name] = train(engine, micro_batch, num_steps=1)[0]
        result["waits"][name] = found
    result["one a row"] = train(build(precision, one_document_a_row=True), FEW)
    return result


def build(precision: str, *, one_document_a_row: bool) -> Engine:
    optimizer = {"type": "AdamW", "params": {"lr": LR, "torch_adam": True, "fused": True}}
    config = {**BASE, "train_batch_size": SAMPLES, "optimizer": optimizer}
    attention = "sdpa" if one_document_a_row else "packed"
    model = build_model(tiny_config("gpt_neox", attention=attention, positions=1024), seed=1)
    packed = PackedLM(model, one_document_a_row=one_document_a_row)
    return build_engine(packed, resolve(config, mixed_precision=precision).deepspeed)


def train(engine: Engine, micro_batch: int, num_steps: int = STEPS) -> list[dict[str, Any]]:
    """Train the first steps; returns what they did."""
    layout = Layout(1, micro_batch, SAMPLES)
    builder = RankBatchBuilder(
        {SampleKind.STREAM: stream_reader()}, layout, 0, SEQ_LEN,
        one_document_a_row=engine.module.one_document_a_row,
    )  # fmt: skip
    cursor, rows = Cursor(stage=2), []
    for step in range(1, num_steps + 1):
        batch = builder.build(CurriculumSampler(SAMPLES).plan(cursor, step))
        cursor = batch.plan.next_cursor
        batch = batch.pin_memory() if engine.device.type == "cuda" else batch  # as its loader does
        set_learning_rate(engine, LR)
        found = train_step(engine, batch, layout, "any", lambda: (0,))
        rows.append({"loss": found.loss, "norm": found.grad_norm, "forwards": found.num_forwards})
    return rows


if __name__ == "__main__":
    run_entry(main)
