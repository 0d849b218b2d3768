"""Optimizers of the JSON: each accepted one trains as torch's does and resumes bitwise; the others are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.config import DEEPSPEED_OPTIMIZERS

from data_tools.base.errors import UserError
from ds_train.config import optimizers
from ds_train.config.optimizers import OF_DEEPSPEED, OF_TORCH, needs_gpu
from tests.support.engine_configs import changed, resolve
from tests.support.launching import launch
from tests.system.launched_optimizers import RATES

LR = max(RATES)
BF16_MUON = [("zero_optimization.stage", 1), ("gradient_clipping", 1.0)]
FP32 = ("bf16", {"enabled": False})
OFFLOADED = ("zero_optimization.offload_optimizer", {"device": "cpu"})


def _optimizer(kind: str, **params: Any) -> tuple[str, Any]:
    own = {"torch_adam": True} if kind.lower() in ("adam", "adamw", "muon") else {}
    return "optimizer", {"type": kind, "params": {"lr": LR, **own, **params}}


def test_every_optimizer_of_deepspeed_and_torch_is_accepted_or_refused_with_a_reason() -> None:
    classes = [entry for entry in vars(torch.optim).values() if isinstance(entry, type)]
    of_torch = {entry.__name__ for entry in classes if issubclass(entry, torch.optim.Optimizer)} - {"Optimizer"}
    accepted = {name.lower() for name in (*OF_TORCH, *OF_DEEPSPEED)}
    assert {name.lower() for name in {*of_torch, *DEEPSPEED_OPTIMIZERS}} == accepted | set(optimizers._REFUSED)
    for name in optimizers._REFUSED:
        with pytest.raises(UserError, match=f"optimizer.type is '{name}': .* Use AdamW"):
            resolve(changed(_optimizer(name)))


@pytest.mark.parametrize("kind", OF_TORCH[2:])
def test_an_optimizer_that_deepspeed_has_not_tested_needs_its_consent(kind: str) -> None:
    with pytest.raises(UserError, match="zero_allow_untested_optimizer is true"):
        resolve(changed(_optimizer(kind)))
    resolve(changed(_optimizer(kind), ("zero_allow_untested_optimizer", True)))
    resolve(changed(_optimizer(kind), FP32, ("zero_optimization.stage", 0)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([_optimizer("AdamW", bias_correction=False)], "optimizer.params.bias_correction"),
        ([_optimizer("AdamW", fp32_optimizer_states=False)], "optimizer.params.fp32_optimizer_states"),
        ([_optimizer("AdamW", torch_adam=False, fused=True)], "optimizer.params.fused.* is not known"),
        ([_optimizer("AdamW", torch_adam=False), OFFLOADED], "does not resume bitwise.*torch_adam and fused"),
        ([_optimizer("AdamW", fused=True, foreach=True)], "cannot be used with AdamW: RuntimeError: .*fused"),
        ([_optimizer("Lion", eps=1e-8)], "optimizer.params.eps"),
        ([_optimizer("SGD", nesterov=True), ("zero_allow_untested_optimizer", True)], "Nesterov momentum requires"),
        ([_optimizer("Rprop", etas=[0.5])], "optimizer.params.etas"),
        ([_optimizer("Muon", nesterov=True)], "optimizer.params.nesterov"),
        ([_optimizer("Muon", ns_method="newton")], "optimizer.params.ns_method is 'newton', expected gram or standard"),
        ([_optimizer("Muon", muon_lr=-1)], "optimizer.params.muon_lr is -1"),
        ([_optimizer("Muon"), ("zero_optimization.stage", 2)], "adds up in half precision"),
        ([_optimizer("Muon"), OFFLOADED], "adds up in half precision"),
        ([_optimizer("Muon"), ("zero_optimization.stage", 3)], "clips the finished update"),
        ([_optimizer("Muon"), FP32], "clips the finished update"),
        ([_optimizer("Muon"), ("zero_optimization.stage", 3), ("gradient_clipping", 0)], "reduce_scatter false"),
        ([("optimizer.legacy_fusion", True)], "optimizer.legacy_fusion"),
    ],
)  # fmt: skip
def test_what_would_not_train_as_asked_is_refused(changes: list[tuple[str, Any]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve(changed(*changes))


def test_kernels_of_deepspeed_on_cpus_are_refused_before_they_are_compiled() -> None:
    assert needs_gpu(resolve(changed(_optimizer("AdamW"))).deepspeed) is None
    for change in (_optimizer("adam", torch_adam=False), _optimizer("muon", torch_adam=False)):
        assert "does not resume bitwise; set optimizer.params.torch_adam" in str(
            needs_gpu(resolve(changed(change)).deepspeed)
        )
    assert "no kernel on CPUs" in str(needs_gpu(resolve(changed(_optimizer("Lion"))).deepspeed))
    assert needs_gpu(resolve(changed(_optimizer("Lion"), OFFLOADED)).deepspeed) is None


def _cases() -> list[dict[str, Any]]:
    """Each optimizer of torch at ZeRO 1 and 2, two also at 0 and 3, with values other than the defaults; Muon."""

    def case(kind: str, stage: int, precision: str = "fp32", clipping: float = 1.0, **params: Any) -> dict[str, Any]:
        zero = {"zero": {"reduce_scatter": False}} if kind == "Muon" and stage == 3 else {}
        optimizer = _optimizer(kind, **params)[1]
        return {"optimizer": optimizer, "stage": stage, "precision": precision, "clipping": clipping, **zero}

    more = {
        "Adam": {"adam_w_mode": False, "weight_decay": 0.1}, "AdamW": {"fused": True, "amsgrad": True},
        "SGD": {"momentum": 0.9, "nesterov": True}, "RMSprop": {"centered": True, "momentum": 0.5},
        "NAdam": {"momentum_decay": 0.01}, "RAdam": {"betas": [0.8, 0.9]}, "Adamax": {"eps": 1e-6},
        "Adadelta": {"rho": 0.8}, "ASGD": {"lambd": 1e-3}, "Rprop": {"etas": [0.4, 1.3]},
    }  # fmt: skip
    cases = [case(kind, stage, **more[kind]) for kind in OF_TORCH for stage in (1, 2)]
    cases += [case(kind, stage, **more[kind]) for kind in ("AdamW", "SGD") for stage in (0, 3)]
    cases += [case("Muon", stage, clipping=0.0, adam_lr=LR / 4) for stage in (0, 1, 2, 3)]
    return [*cases, case("Muon", 1, "bf16", adam_lr=LR / 4), case("Muon", 1, "bf16", muon_lr=0.0)]


def _run(cases: list[dict[str, Any]], directory: Path) -> list[tuple[dict, dict]]:
    """Each case and what was measured of it on two ranks."""
    path = directory / "cases.json"
    path.write_text(json.dumps(cases))
    done = launch("tests/system/launched_optimizers.py", str(path), num_ranks=2)
    assert done.returncode == 0, done.stdout[-3000:]
    return list(zip(cases, json.loads(Path(f"{path}.out").read_text()), strict=True))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[dict, dict]]:
    return _run(_cases(), tmp_path_factory.mktemp("optimizers"))


@pytest.mark.launch
class TestOnTwoRanks:
    def test_they_train_as_torchs_do(self, trained: list[tuple[dict, dict]]) -> None:
        for case, measured in trained:
            if measured["expected"]:
                assert measured["losses"] == pytest.approx(measured["expected"], rel=2e-6), case
        assert sum(measured["expected"] is not None for _, measured in trained) == 2 * len(OF_TORCH) + 4

    def test_muon_is_the_same_at_each_stage(self, trained: list[tuple[dict, dict]]) -> None:
        reference, *others = [m for case, m in trained if case["optimizer"]["type"] == "Muon" and not case["clipping"]]
        assert len(others) == 3
        for measured in others:
            assert measured["losses"] == pytest.approx(reference["losses"], rel=2e-6)

    def test_they_resume_bitwise(self, trained: list[tuple[dict, dict]]) -> None:
        assert [case for case, measured in trained if measured["resumed"] != 0] == []

    def test_each_group_keeps_its_proportion_to_the_schedule(self, trained: list[tuple[dict, dict]]) -> None:
        """Also in an engine that has loaded a checkpoint of another rate."""
        for case, measured in trained:
            of_muon = {"muon": case["optimizer"]["params"].get("muon_lr", LR),
                       "adam": case["optimizer"]["params"].get("adam_lr", LR)}  # fmt: skip
            kinds = ["muon", "adam", "adam"] if case["optimizer"]["type"] == "Muon" else ["muon", "muon"]
            expected = [of_muon[kind] / LR * RATES[-1] for kind in kinds]
            assert measured["rates"] == pytest.approx(expected, rel=1e-12), case

    def test_a_rate_of_zero_moves_nothing(self, trained: list[tuple[dict, dict]]) -> None:
        for case, measured in trained:
            matrices, others = measured["moved"]
            assert others > 0 and (matrices == 0) == ("muon_lr" in case["optimizer"]["params"]), case


@pytest.mark.slow
@pytest.mark.launch
def test_offloaded_lion_is_the_same_at_each_stage_and_resumes_bitwise(tmp_path: Path) -> None:
    """DeepSpeed compiles its kernel, which takes minutes."""
    offloaded = {"offload_optimizer": {"device": "cpu", "pin_memory": False}}
    common = {"optimizer": _optimizer("Lion")[1], "precision": "fp32", "clipping": 1.0, "zero": offloaded}
    measured = [measured for _, measured in _run([common | {"stage": stage} for stage in (1, 2, 3)], tmp_path)]
    for each in measured:
        assert each["losses"] == pytest.approx(measured[0]["losses"], rel=2e-6)
        assert each["resumed"] == 0 and each["rates"] == [RATES[-1]] * 2
        assert min(each["moved"]) > 0
