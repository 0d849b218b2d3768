"""How exactly a run computes: TF32 on CPUs, and what --deterministic asks for."""

import os
from collections import defaultdict
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.modeling_flash_attention_utils import _process_flash_attention_kwargs

from ds_train.config.trainer_flags import RunFlags
from ds_train.run.precision import repeat_exactly, set_precision


@pytest.fixture(autouse=True)
def _same_kernels_for_every_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("CUBLAS_WORKSPACE_CONFIG", "FLASH_ATTENTION_DETERMINISTIC"):
        monkeypatch.delenv(name, raising=False)
    fills = torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fills


def test_a_cpu_has_no_tf32(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs: Any = SimpleNamespace(
        run_flags=RunFlags(scratch_dir="s", tf32=True), engine=SimpleNamespace(precision="fp32")
    )
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    set_precision(inputs, torch.device("cuda"))
    assert not caplog.text and not torch.backends.cudnn.allow_tf32
    set_precision(inputs, torch.device("cpu"))
    assert "--tf32 has no effect on CPUs" in caplog.text


def test_kernels_that_differ_from_time_to_time_are_not_used() -> None:
    repeat_exactly()
    assert torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory, "of every buffer, which nobody reads"
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_the_package_flash_attn_is_asked_for_a_backward_that_repeats() -> None:
    supported = defaultdict(bool, deterministic=True)
    assert _process_flash_attention_kwargs(4, 4, is_causal=True, supports_mapping=supported)["deterministic"] is False
    repeat_exactly()
    assert _process_flash_attention_kwargs(4, 4, is_causal=True, supports_mapping=supported)["deterministic"] is True


def test_a_size_of_the_workspace_that_is_given_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    repeat_exactly()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
