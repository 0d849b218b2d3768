"""No number that decides training is added up, over ranks or over micro-batches, in half precision."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.launching import launch

OFFLOADED = {"offload_optimizer": {"device": "cpu", "pin_memory": False}}
CASES: list[dict[str, Any]] = [
    {"zero": {"stage": 0}, "half": False},
    *({"zero": {"stage": stage}, "half": half} for stage in (1, 2, 3) for half in (False, True)),
    *({"zero": {"stage": stage, **OFFLOADED}, "half": True} for stage in (1, 2, 3)),
    {"zero": {"stage": 2, "overlap_comm": True}, "half": True},
    {"zero": {"stage": 2, "contiguous_gradients": False}, "half": True},
    {"zero": {"stage": 3, "reduce_scatter": False}, "half": True},
]
UNDONE: list[dict[str, Any]] = [
    {"zero": {"stage": 1}, "half": True, "instead": {"communication_data_type": "bf16"}},
    {"zero": {"stage": 3}, "half": True, "instead": {"communication_data_type": "bf16"}},
    {"zero": {"stage": 2}, "half": True, "instead": {"zero_optimization": {"reduce_scatter": True}}},
    {"zero": {"stage": 2}, "half": True, "instead": {"data_types": {"grad_accum_dtype": "bf16"}}},
]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    path = tmp_path_factory.mktemp("sums") / "cases.json"
    path.write_text(json.dumps(CASES + UNDONE))
    done = launch("tests/system/launched_sums.py", str(path), num_ranks=3)
    assert done.returncode == 0, done.stdout[-3000:]
    return json.loads(Path(f"{path}.out").read_text())


@pytest.mark.launch
def test_gradients_are_the_exact_sums_to_the_precision_of_fp32(measured: list[dict[str, Any]]) -> None:
    for case, found in zip(CASES, measured, strict=False):
        assert found["error"] < 5e-7, case
        assert {"torch.float32"} <= set(found["added"]) <= {"torch.float32", "torch.float64"}, case
        weights = "torch.bfloat16" if case["half"] else "torch.float32"
        assert set(found["copied"]) <= {weights, "torch.float64"}, case  # weights, and what we exchange ourselves


@pytest.mark.launch
def test_half_precision_would_be_noticed(measured: list[dict[str, Any]]) -> None:
    for case, found in zip(UNDONE, measured[len(CASES) :], strict=True):
        assert found["error"] > 1e-4, case


@pytest.mark.launch
def test_every_stage_sums_the_same(measured: list[dict[str, Any]]) -> None:
    for half, tolerance in ((False, 1e-6), (True, 1e-4)):
        same = [found for case, found in zip(CASES, measured, strict=False) if case["half"] == half]
        assert [each["loss"] for each in same] == pytest.approx([same[0]["loss"]] * len(same), rel=tolerance)
        assert [each["norm"] for each in same] == pytest.approx([same[0]["norm"]] * len(same), rel=10 * tolerance)
