"""Train with DeepSpeed JSONs that differ in a few keys, and continue their checkpoints.

    deepspeed --num_gpus 2 tests/system/launched_json_keys.py CASES.json

CASES.json holds a list of {"keys": {"zero_optimization.stage": 2, …}, "resumes": true | false}. The keys are added to
the JSON of `BASE`. CASES.json.out gets for each:

* losses: of every step;
* resumed: if it resumes, of the last steps, by an engine with the same JSON that loaded the checkpoint of step `HALF`;
* continued: if it resumes, of the last steps, by an engine with the JSON of the stage and precision alone;
* printed: what the first engine printed on rank 0;
* files: names of what it wrote into its working directory, on rank 0.
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_tools.samples.samplers import CurriculumSampler, Cursor, SampleKind
from ds_train.checkpoints.restore import fresh_engine, load
from ds_train.checkpoints.state import TrainState
from ds_train.config.deepspeed_json import EngineConfig
from ds_train.config.layout import Layout
from ds_train.model.causal_lm import build_model
from ds_train.ranks.collectives import broadcast_object, init_distributed, report_communication
from ds_train.ranks.entry import run_entry
from ds_train.ranks.world import World, world_from_env
from ds_train.step.engine import Engine, set_learning_rate, train_step
from ds_train.step.losses import PackedLM
from ds_train.step.stream import RankBatch, RankBatchBuilder
from tests.support.engine_configs import GONE, changed, resolve
from tests.support.tiny_models import stream_reader, tiny_config

STEPS, HALF, SAMPLES, SEQ_LEN, LR = 4, 2, 8, 256, 2e-3
BASE = {
    "train_batch_size": SAMPLES,
    "train_micro_batch_size_per_gpu": 1,
    "optimizer": {"type": "AdamW", "params": {"lr": LR, "torch_adam": True, "fused": True}},
    "scheduler": GONE,
    "bf16": GONE,
    "zero_optimization": {"stage": 1, "reduce_bucket_size": 20_000, "allgather_bucket_size": 20_000},
}
_OF_LAYOUT = ("zero_optimization.stage", "bf16")


def main() -> int:
    path = Path(next(argument for argument in sys.argv[1:] if not argument.startswith("--")))
    world = world_from_env()
    init_distributed(world)
    batches = list(rank_batches(world))
    measured = [measure(case["keys"], batches, world, case["resumes"]) for case in json.loads(path.read_text())]
    if world.is_main:
        path.with_name(f"{path.name}.out").write_text(json.dumps(measured))
    return 0


def rank_batches(world: World) -> Iterator[RankBatch]:
    builder = RankBatchBuilder({SampleKind.STREAM: stream_reader()}, layout(world), world.rank, SEQ_LEN)
    cursor = Cursor(stage=2)
    for step in range(1, STEPS + 1):
        plan = CurriculumSampler(SAMPLES).plan(cursor, step)
        yield builder.build(plan)
        cursor = plan.next_cursor


def layout(world: World) -> Layout:
    return Layout(world.size, 1, SAMPLES)


def measure(keys: dict[str, Any], batches: list[RankBatch], world: World, resumes: bool) -> dict[str, Any]:
    checkpoints = broadcast_object(tempfile.mkdtemp())
    with working_directory() as directory, printed_text() as printed:
        engine, config = build(keys, world)
        losses = train(engine, batches[:HALF], world)
        engine.save_checkpoint(checkpoints, tag="half", save_latest=False, client_state={})
        losses += train(engine, batches[HALF:], world)
        report_communication()
    saved = TrainState(
        1, world.size, 1, 1, SAMPLES, zero_stage=config.zero_stage, precision=config.precision, step=HALF
    )
    result = {
        "losses": losses,
        "printed": printed.read_text(),
        "files": sorted(path.name for path in directory.iterdir()),
    }
    plain = {name: value for name, value in keys.items() if name in _OF_LAYOUT}
    for name, of_keys in (("resumed", keys), ("continued", plain)) if resumes else ():
        engine, _ = build(of_keys, world)
        load(engine, Path(checkpoints) / "half", saved, world)
        result[name] = train(engine, batches[HALF:], world)
    return result


def build(keys: dict[str, Any], world: World) -> tuple[Engine, EngineConfig]:
    """An engine as training builds it: with rank 0's weights, and arbitrary ones until then."""
    config = resolve(changed(*BASE.items(), *keys.items()), world_size=world.size)
    source = model(seed=1) if world.is_main else None
    return fresh_engine(model(seed=2), config.deepspeed, source), config


def model(seed: int) -> PackedLM:
    return PackedLM(build_model(tiny_config("gpt_neox", positions=1024), seed=seed))


def train(engine: Engine, batches: list[RankBatch], world: World) -> list[float]:
    losses = []
    for batch in batches:
        set_learning_rate(engine, LR)
        losses.append(train_step(engine, batch, layout(world), "any", lambda: (0,)).loss)
    return losses


@contextmanager
def printed_text() -> Iterator[Path]:
    """Send all that this process prints, also by its file descriptor, to a file."""
    path = Path(tempfile.mkstemp()[1])
    sys.stdout.flush()
    before = os.dup(1)
    with path.open("w") as file:
        os.dup2(file.fileno(), 1)
    try:
        yield path
    finally:
        sys.stdout.flush()
        os.dup2(before, 1)


@contextmanager
def working_directory() -> Iterator[Path]:
    before, directory = Path.cwd(), Path(tempfile.mkdtemp())
    os.chdir(directory)
    try:
        yield directory
    finally:
        os.chdir(before)


if __name__ == "__main__":
    run_entry(main)
