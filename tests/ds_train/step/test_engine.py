"""The engine as DeepSpeed runs it, in this process: precision, learning rate, refusal of non-finite losses."""

import copy
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param

from data_tools.samples.samplers import CurriculumSampler, Cursor, SampleKind
from ds_train.checkpoints.restore import fresh_engine
from ds_train.config.deepspeed_json import default_json
from ds_train.config.layout import Layout
from ds_train.model.causal_lm import build_model
from ds_train.model.parts import without_decay
from ds_train.step.engine import Engine, StepResult, build_engine, set_learning_rate, train_step
from ds_train.step.losses import PackedLM
from ds_train.step.micro_batch import MicroBatch
from ds_train.step.nonfinite import NonFinite
from ds_train.step.stream import RankBatchBuilder
from tests.support.devices import waits
from tests.support.process_group import one_rank
from tests.support.tiny_models import stream_reader, tiny_config

LAYOUT = Layout(world_size=1, micro_batch=2, global_batch=4)
SEQ_LEN = 256  # the four samples have 924 inputs: two forwards


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    with one_rank():
        yield


def _engine(architecture: str = "gpt_neox", build=build_engine, **changes: object) -> Engine:
    config = json.loads(default_json("pptrain").read_text())
    del config["scheduler"]
    config |= {
        "train_batch_size": LAYOUT.global_batch,
        "train_micro_batch_size_per_gpu": LAYOUT.global_batch,
        **changes,
    }
    return build(PackedLM(build_model(tiny_config(architecture, positions=4096), seed=1)), config)


def _batch(step: int = 1):
    builder = RankBatchBuilder({SampleKind.STREAM: stream_reader()}, LAYOUT, rank=0, seq_len=SEQ_LEN)
    return builder.build(CurriculumSampler(LAYOUT.global_batch).plan(Cursor(stage=2), step))


def _train(engine: Engine, requests: Sequence[int] = (0, 0, 0)) -> StepResult:
    return train_step(engine, _batch(), LAYOUT, "any", lambda: requests)


@pytest.mark.parametrize("zero", [{"stage": 1}, {"stage": 2}, {"stage": 3}], ids=str)
def test_training_starts_from_unrounded_weights(zero: dict) -> None:
    model = build_model(tiny_config("gpt_neox", positions=4096), seed=1)
    expected = dict(PackedLM(model).named_parameters())
    engine = _engine(build=partial(fresh_engine, source=PackedLM(model)), zero_optimization=zero)
    for name, parameter in engine.module.named_parameters():
        assert torch.equal(safe_get_full_fp32_param(parameter), expected[name]), name
    _train(engine)


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_rotary_frequencies_stay_fp32_while_training_in_bf16(architecture: str, stage: int) -> None:
    expected = {
        name: buffer.clone()
        for name, buffer in PackedLM(build_model(tiny_config(architecture), seed=1)).named_buffers()
        if name.endswith("inv_freq")
    }
    engine = _engine(architecture, zero_optimization={"stage": stage})
    _train(engine)
    weights = {parameter.dtype for parameter in engine.module.parameters()}
    frequencies = {name: buffer for name, buffer in engine.module.named_buffers() if name.endswith("inv_freq")}
    assert weights == {torch.bfloat16}
    assert frequencies.keys() == expected.keys() and frequencies
    for name, buffer in frequencies.items():
        assert buffer.dtype == torch.float32
        assert torch.equal(buffer.cpu(), expected[name]), name


def _collectives() -> int:
    return dist.group.WORLD._get_sequence_number_for_group()


def test_a_step_waits_and_communicates_no_more_often_than_it_must() -> None:
    engine = _engine()
    _train(engine)
    before = _collectives()
    with waits(torch.device("cpu")) as found:
        _train(engine)
    assert _collectives() - before == 2, "ours; on one rank DeepSpeed has none"
    assert found == ["aten::_local_scalar_dense"] * 5, "all in DeepSpeed but the last, which reads the norm"


def test_step_uses_exactly_the_rate_that_was_set() -> None:
    engine = _engine(bf16={"enabled": False})
    before = copy.deepcopy(dict(engine.module.named_parameters()))
    set_learning_rate(engine, 0.0)
    _train(engine)
    assert all(torch.equal(p, before[name]) for name, p in engine.module.named_parameters())
    set_learning_rate(engine, 1e-3)
    _train(engine)
    moved = [(p - before[name]).abs().max().item() for name, p in engine.module.named_parameters()]
    # Adam moves a weight with a steady gradient by about the rate.
    assert 5e-4 < np.median(moved) < 1.5e-3


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_weight_decay_reaches_all_but_the_named_parameters(stage: int) -> None:
    def trained(decay: float, kinds: Sequence[str] = ()) -> dict[str, torch.Tensor]:
        def build(model: PackedLM, config: dict) -> Engine:
            config["optimizer"]["params"]["weight_decay"] = decay
            names = without_decay(model.causal_lm, kinds)
            for parameter in model.parameters():
                parameter.data += 0.1  # zeros would not decay
            return build_engine(PackedLM(model.causal_lm, no_decay=names), config)

        engine = _engine(build=build, bf16={"enabled": False}, zero_optimization={"stage": stage})
        _train(engine)
        parameters = engine.module.named_parameters()
        return {name: safe_get_full_fp32_param(p) if stage else p.detach() for name, p in parameters}

    mixed, decayed, free = trained(0.5, ["norms", "biases"]), trained(0.5), trained(0.0)
    for name, value in mixed.items():
        expected = (free if "norm" in name or name.endswith("bias") else decayed)[name]
        last_bits = 2e-7  # other groups, so another order of the sum below the gradient norm
        assert (value - expected).abs().max() <= last_bits < (free[name] - decayed[name]).abs().max(), name


@pytest.mark.parametrize("stage", [0, 1])
def test_loss_that_is_not_finite_updates_nothing(stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where every gradient is finite; see test_nonfinite.py for all layouts."""
    engine = _engine(bf16={"enabled": False}, zero_optimization={"stage": stage})
    before = copy.deepcopy(dict(engine.module.named_parameters()))
    forward = PackedLM.forward

    def with_bad_sum(model: PackedLM, micro_batch: MicroBatch) -> tuple:
        loss, source_sums, is_right = forward(model, micro_batch)
        return loss, source_sums * float("inf"), is_right

    monkeypatch.setattr(PackedLM, "forward", with_bad_sum)
    result = _train(engine)
    assert result.nonfinite == NonFinite("loss", [[0, 1, 2, 3]]) and result.flags == []
    assert all(torch.equal(p, before[name]) for name, p in engine.module.named_parameters())

    monkeypatch.undo()
    result = _train(engine)
    assert result.nonfinite is None and len(result.flags) == LAYOUT.global_batch
    assert result.grad_norm is not None and 0 < result.grad_norm < 100
    assert not any(torch.equal(p, before[name]) for name, p in engine.module.named_parameters() if p.dim() > 1)


def test_bad_gradient_that_does_not_come_back_updates_nothing() -> None:
    """The second look for its origin finds nothing then, and must not train on what it finds."""
    engine = _engine(bf16={"enabled": False})
    before = copy.deepcopy(dict(engine.module.named_parameters()))
    factors = iter([float("inf"), 1, 1, 1])
    hook = engine.module.causal_lm.get_input_embeddings().weight.register_hook(lambda grad: grad * next(factors))
    result = _train(engine)
    hook.remove()
    assert result.nonfinite == NonFinite("gradient norm", [[]])
    assert all(torch.equal(p, before[name]) for name, p in engine.module.named_parameters())
    assert next(factors, None) is None


def test_shipped_optimizer_is_torchs_fused_adamw() -> None:
    optimizer = _engine().basic_optimizer
    assert type(optimizer) is torch.optim.AdamW
    assert all(group["fused"] for group in optimizer.param_groups)


def test_json_files_differ_only_in_the_schedule() -> None:
    pptrain, pretrain = (json.loads(Path(default_json(phase)).read_text()) for phase in ("pptrain", "pretrain"))
    assert {k: v for k, v in pptrain.items() if k != "scheduler"} == {
        k: v for k, v in pretrain.items() if k != "scheduler"
    }
