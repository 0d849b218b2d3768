"""Operations of training against what torch counts, and memory against what DeepSpeed's engines hold."""

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ds_train.model import footprint
from ds_train.model.causal_lm import build_model, load_model_config
from ds_train.model.footprint import model_shape, predict, training_flops
from tests.support.launching import launch
from tests.support.tiny_models import tiny_config
from tests.system.launched_memory import model_config

_ALIGNMENT = 64  # bytes of padding in what DeepSpeed sends


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama", "qwen3"])
@pytest.mark.parametrize("length", [8, 64])
def test_as_many_as_torch_counts(architecture: str, length: int) -> None:
    """Eager attention computes all pairs, of which half count, and torch counts products only, as is usual."""
    config = tiny_config(architecture, attention="eager")
    model = build_model(config, seed=1)
    ids = torch.zeros(1, length, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    flops = training_flops(config)
    counted = counter.get_total_flops() - flops.per_pair * length**2
    assert counted == pytest.approx(flops.of_documents([length]), rel=0.05)  # biases and norms are parameters too


def test_documents_add_up() -> None:
    flops = training_flops(load_model_config("pythia-160m"))
    assert flops.per_token == 6 * (162_322_944 - 50_304 * 768) and flops.per_pair == 6 * 12 * 768
    assert flops.of_documents([3, 5]) == flops.of(8, 34) == 8 * flops.per_token + 34 * flops.per_pair


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
