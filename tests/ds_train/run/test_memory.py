"""A micro batch that is chosen by memory is the largest that preflight predicts to fit."""

import json
from pathlib import Path

import pytest

from data_tools.base.errors import UserError
from ds_train.config.deepspeed_json import EngineConfig
from ds_train.model.footprint import GIB
from ds_train.phases import pretrain
from ds_train.ranks.world import World
from ds_train.run import memory
from ds_train.run.memory import check_same_micro_batch, fitting, rank_memory
from tests.support import tiny
from tests.support.engine_configs import BASE, resolve
from tests.support.process_group import own_process_group
from tests.support.tiny_models import tiny_config

SEQ_LEN = 128
CONFIG = tiny_config("gpt_neox")


def on_a_gpu_of(gpu_bytes: float, *, one_document_a_row: bool = False, **flags) -> EngineConfig:
    world = World(0, 0, 2, gpu_bytes=int(gpu_bytes))
    engine = resolve(BASE, world_size=2, **({"micro_batch": "auto"} | flags))
    return fitting(engine, CONFIG, SEQ_LEN, world, one_document_a_row=one_document_a_row)


def predicted(engine: EngineConfig, *, one_document_a_row: bool) -> int:
    shape = memory.model_shape(CONFIG)
    how = {"stage": engine.zero_stage, "on_cpu": False, "one_document_a_row": one_document_a_row}
    return rank_memory(engine, CONFIG, shape, SEQ_LEN, **how).device


@pytest.mark.parametrize("one_document_a_row", [False, True])
def test_the_largest_that_fits_is_taken(one_document_a_row: bool) -> None:
    five, six = (
        predicted(on_a_gpu_of(80 * GIB, micro_batch=size), one_document_a_row=one_document_a_row) for size in (5, 6)
    )
    for limit, expected in ((five + 1, 5), (six - 1, 5), (six + 1, 6)):
        chosen = on_a_gpu_of(limit / 0.95 + 1, one_document_a_row=one_document_a_row)
        assert chosen.layout.micro_batch == chosen.effective["train_micro_batch_size_per_gpu"] == expected
        assert (chosen.layout.global_batch, chosen.layout.grad_accum) == (32, -(-16 // expected))
        assert any(line.startswith(f"--micro_batch auto becomes {expected}: ") for line in chosen.overrides)


def test_a_forward_is_not_larger_than_the_samples_of_a_rank() -> None:
    chosen = on_a_gpu_of(80 * GIB, global_batch=9)
    assert (chosen.layout.micro_batch, chosen.layout.grad_accum) == (5, 1)


def test_a_given_micro_batch_is_not_touched() -> None:
    assert on_a_gpu_of(1, micro_batch=4).layout.micro_batch == 4


def test_where_nothing_fits_the_message_says_what_would_help() -> None:
    with pytest.raises(UserError, match=r"one sample of 128 tokens is predicted to take .* --zero_stage"):
        on_a_gpu_of(GIB)


def test_auto_needs_a_global_batch_and_no_accumulation() -> None:
    with pytest.raises(UserError, match="--grad_accum 2 and --micro_batch auto both decide"):
        on_a_gpu_of(80 * GIB, grad_accum=2)
    without = {key: value for key, value in BASE.items() if key != "train_batch_size"}
    with pytest.raises(UserError, match="the batch is not determined"):
        resolve(without, micro_batch="auto")


def test_ranks_with_different_gpus_are_told_what_fits_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "gather_objects", lambda size: [size, 6, 3, 6])
    with pytest.raises(UserError, match=r"the micro batch is 3 on rank 2, but 6 on rank 0.*Give --micro_batch 3"):
        check_same_micro_batch(6)
    monkeypatch.setattr(memory, "gather_objects", lambda size: [size, size])
    check_same_micro_batch(6)


def test_a_run_records_what_was_chosen(tiny_scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU the machine's memory counts, which holds all samples of so small a model."""
    flags = "--global_batch 6 --micro_batch auto --num_workers 0 --total_steps 1 --run_name auto".split()
    with own_process_group():
        assert pretrain.main([*tiny.flags(tiny_scratch), *flags, "--pptrain_checkpoint", "none"]) == 0
    sizes = json.loads((tiny_scratch / "auto" / "deepspeed.json").read_text())
    assert sizes["train_micro_batch_size_per_gpu"] == 6 and sizes["gradient_accumulation_steps"] == 1
    assert "micro_batch: 6  # command line" in (tiny_scratch / "auto" / "run.yaml").read_text().splitlines()
    monkeypatch.setattr(memory, "total_host_bytes", lambda: GIB // 4)
    with pytest.raises(UserError, match="--micro_batch auto: one sample"):
        pretrain.prepare([*tiny.flags(tiny_scratch), *flags, "--pptrain_checkpoint", "none"], World(0, 0, 1))
