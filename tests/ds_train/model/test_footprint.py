"""Operations of training, against what torch counts."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ds_train.model.causal_lm import build_model, load_model_config
from ds_train.model.footprint import peak_flops, training_flops
from ds_train.training.metrics import Throughput
from tests.support.tiny_models import tiny_config


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


def test_mfu_is_reported_where_the_peak_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert peak_flops(torch.device("cpu")) is None and "mfu" not in Throughput().report()
    for name, expected in (("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H200", 989e12), ("Tesla T4", None)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, name=name: name)
        assert peak_flops(torch.device("cuda")) == expected
    times = iter([0.0, 2.0, 2.0])
    monkeypatch.setattr("ds_train.training.metrics.time.perf_counter", lambda: next(times))
    throughput = Throughput(peak=100.0)
    throughput.trained(10, 80.0)
    row = throughput.report()
    assert row["mfu"] == 0.4 and row["tokens_per_second"] == 5.0
