"""The peaks of accelerators by the names that torch gives them."""

import pytest
import torch

from ds_train.model.peaks import PEAK_FLOPS, peak_flops, peak_of
from ds_train.training.metrics import Throughput


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA H20", 148),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
        ("NVIDIA L40S", 362),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA A10", 125),
        ("AMD Instinct MI300X", 1307),
        ("AMD Instinct MI300A", 981),
        # Others whose names begin alike, and a seventh of a GPU.
        ("NVIDIA A10G", None),
        ("NVIDIA L40", None),
        ("Tesla T4", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
    ],
)
def test_a_name_is_told_from_those_that_begin_alike(name: str, tflops: float | None) -> None:
    assert peak_of(name) == (tflops and tflops * 1e12)


def test_an_entry_is_found_before_a_shorter_one_of_its_words() -> None:
    assert all(peak_of(name) == peak for name, peak in PEAK_FLOPS.items())


def test_mfu_is_reported_where_the_peak_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert peak_flops(torch.device("cpu")) is None and "mfu" not in Throughput().report()
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert peak_flops(torch.device("cuda")) == 989e12
    times = iter([0.0, 2.0, 2.0])
    monkeypatch.setattr("ds_train.training.metrics.time.perf_counter", lambda: next(times))
    throughput = Throughput(peak=100.0)
    throughput.trained(10, 80.0)
    row = throughput.report()
    assert row["mfu"] == 0.4 and row["tokens_per_second"] == 5.0
    assert "hfu" not in row


def test_hfu_counts_what_is_recomputed_besides(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 2.0, 2.0, 4.0, 4.0])
    monkeypatch.setattr("ds_train.training.metrics.time.perf_counter", lambda: next(times))
    throughput = Throughput(peak=100.0)
    throughput.trained(10, 80.0, 20.0)
    row = throughput.report()
    assert (row["mfu"], row["hfu"]) == (0.4, 0.5)
    throughput.trained(10, 80.0)
    assert "hfu" not in throughput.report()
