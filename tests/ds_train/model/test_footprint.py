"""Memory against what DeepSpeed's engines hold, and what a forward and backward take."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PretrainedConfig

from data_tools.samples.documents import Document
from ds_train.model import footprint
from ds_train.model.causal_lm import build_model, load_model_config
from ds_train.model.flops import recomputation_flops, training_flops
from ds_train.model.footprint import activations, model_shape, predict
from ds_train.model.recomputation import checkpoint_activations
from ds_train.step import losses
from ds_train.step.losses import PackedLM
from ds_train.step.micro_batch import pack
from tests.support.launching import launch
from tests.support.markdown import tables
from tests.support.paths import REPOSITORY
from tests.support.peak_memory import PeakMemory
from tests.support.tiny_models import tiny_config
from tests.system.launched_memory import model_config

_ALIGNMENT = 64  # bytes of padding in what DeepSpeed sends


def _sent_copy(case: dict) -> int:
    """Of the predicted buffers, what is alive only while gradients are sent."""
    num_parameters = model_shape(model_config()).num_parameters
    if case["zero"]["stage"] == 1 and case["half"] and "offload_optimizer" not in case["zero"]:
        return 4 * num_parameters * ("no_decay" in case)  # one group is sent in place, two as one copy
    return 4 * min(num_parameters, case["zero"]["reduce_bucket_size"])


def _share(case: dict, num_ranks: int) -> int:
    """What the prediction says is alive between two micro-batches."""
    shape = model_shape(model_config())
    without = 512 * 128 if "no_decay" in case else 0
    sizes = (shape.num_parameters - without, without) if without else ()
    found = predict(shape, case["zero"], half=case["half"], num_ranks=num_ranks, row_tokens=20, group_sizes=sizes)
    stage, offloaded = case["zero"]["stage"], "offload_optimizer" in case["zero"]
    stays = stage == 3 or (stage == 1 and (not case["half"] or offloaded))  # other stages free their buckets
    gathered = (
        0 if num_ranks > 1 or stage < 3 else shape.num_parameters * (2 if case["half"] else 4)
    )  # nothing to gather
    buffers = found.buffers - gathered - _sent_copy(case)
    return found.weights + found.gradients + found.optimizer + found.host + stays * buffers


@pytest.mark.launch
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_engines_hold_what_is_predicted(num_ranks: int, tmp_path: Path) -> None:
    bucket = {"reduce_bucket_size": 301_000}
    offload = {"offload_optimizer": {"device": "cpu"}}
    settings = [(1, {}, True), (2, {}, True), (3, {}, True), (1, {}, False), (2, offload, True)]
    cases = [{"zero": {"stage": stage} | bucket | more, "half": half} for stage, more, half in settings]
    cases.append(cases[0] | {"no_decay": ["embeddings"]})
    if num_ranks == 1:  # the same code, less is sharded
        cases = cases[::2]
    path = tmp_path / "cases.json"
    path.write_text(json.dumps(cases))
    done = launch("tests/system/launched_memory.py", str(path), num_ranks=num_ranks)
    assert done.returncode == 0, done.stdout[-3000:]
    room = 2 * 512 * 128 * 4  # temporary copies of the largest parameter; less than a byte for each of all parameters
    for case, measured in zip(cases, json.loads((tmp_path / "cases.json.out").read_text()), strict=True):
        predicted = _share(case, num_ranks)
        assert predicted <= measured["bytes"] <= predicted + room, (case, measured["bytes"] - predicted)
        assert measured["copied"] <= _sent_copy(case) + _ALIGNMENT, case
        assert "no_decay" not in case or measured["copied"] >= _sent_copy(case), case


def test_a_group_that_fills_a_bucket_is_sent_in_place() -> None:
    shape, limit = model_shape(model_config()), footprint._ALLREDUCE_BUCKET

    def copied(*sizes: int) -> int:
        found = predict(shape, {"stage": 1}, half=True, num_ranks=8, row_tokens=1, group_sizes=sizes)
        return found.buffers // 4

    assert [copied(), copied(limit + 1, 9), copied(limit, 9)] == [0, 0, limit + 9]
    assert copied(5, limit + 1, 7) == limit + 6


def _widened(architecture: str) -> PretrainedConfig:
    """Eight layers whose activations are much more than the blocks of the cross entropy."""
    config = tiny_config(architecture, positions=512)
    sizes = {"num_hidden_layers": 8, "hidden_size": 128, "intermediate_size": 512, "vocab_size": 512, "head_dim": 32}
    widened = type(config)(**{**config.to_dict(), **sizes, "layer_types": None})
    widened._attn_implementation = "packed"
    return widened


def _peak(config: PretrainedConfig, every: int) -> int:
    """Bytes of a forward and backward of two packed documents in bf16, without weights and their gradients."""
    model = build_model(config, seed=0)
    checkpoint_activations(model, every)
    packed = PackedLM(model).bfloat16()
    for parameter in packed.parameters():
        parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in packed.parameters() if parameter.grad is not None]
    batch = pack([[Document(np.arange(n + 1) % 60, np.ones(n, np.float32))] for n in (300, 212)])
    with PeakMemory([*packed.parameters(), *packed.buffers(), *gradients]) as memory:
        packed(batch)[0].backward()
    return memory.peak


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama", "qwen3"])
def test_recomputed_activations_take_what_is_predicted(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From all layers kept to none."""
    monkeypatch.setattr(losses, "_BLOCK_ELEMENTS", 1 << 12)  # a block in fp32 is not predicted
    config = _widened(architecture)
    kept = _peak(config, 0)
    for every in (0, 1, 2, 3, 8):
        measured = _peak(config, every)
        predicted = activations(model_shape(config), 512, 2, "packed", every)
        print(f"{architecture}, every {every}: predicted {predicted:,}, measured {measured:,}")
        assert predicted == pytest.approx(measured, rel=0.06), every
        assert every == 0 or measured < kept
    assert _peak(config, 1) < 0.25 * kept


def test_the_page_shows_what_is_predicted() -> None:
    (rows,) = (table for table in tables(REPOSITORY / "ds_train" / "README.md") if table[0][-1] == "FLOPs that 1 adds")
    for name, *figures, share in rows[1:]:
        config = load_model_config(name)
        shape, blocks = model_shape(config), [2048, 2048]
        predicted = [activations(shape, sum(blocks), 2, "packed", every) / footprint.GIB for every in (0, 2, 1)]
        assert figures == [f"{gib:.2f}" for gib in predicted]
        added = recomputation_flops(config, 1).of_documents(blocks) / training_flops(config).of_documents(blocks)
        assert share == f"{100 * added:.0f} %"
