"""What a run says of itself at its start."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ds_train.config.schedule import Schedule
from ds_train.ranks import collectives
from ds_train.run.summary import starting_point

STEP = Path("/runs/pretrain/checkpoints/step_00000007")


@pytest.mark.parametrize(
    ("weights", "init", "chosen", "expected"),
    [
        (None, "scratch", None, "fresh, from random weights"),
        (None, "pretrained", None, "at step 0, from the pretrained weights of gpt2"),
        (Path("/runs/pptrain"), "scratch", None, "at step 0, from the weights of /runs/pptrain"),
        (None, "scratch", STEP, f"after step 7, from {STEP}"),
        (Path("/runs/pptrain"), "scratch", STEP, f"after step 7, from {STEP}"),
    ],
)
def test_the_start_names_the_origin_of_the_weights(weights, init, chosen, expected):
    inputs = SimpleNamespace(
        weights=weights and SimpleNamespace(path=weights), model_flags=SimpleNamespace(init=init), model_name="gpt2"
    )
    assert starting_point(inputs, 7 if chosen else 0, chosen) == expected


def test_the_schedule_is_described_to_its_end():
    assert str(Schedule(5e-4, warmup_steps=1000)) == "0.0005 after 1,000 warm-up steps, then constant"
    cosine = Schedule(5e-4, warmup_steps=10, decay="cosine", min_lr=5e-5, total_steps=10_000)
    assert str(cosine) == "0.0005 after 10 warm-up steps, then a cosine to 5e-05 at step 10,000"
    assert str(Schedule(1.0, decay="linear", total_steps=9)).endswith("then linear to 0 at step 9")


@pytest.mark.parametrize(
    ("words", "precision", "emulated"),
    [
        ("flags : fpu avx2 avx512f", "bf16", True), ("flags : fpu avx512_bf16", "bf16", False),
        ("flags : amx_bf16 amx_tile", "bf16", False), ("Features : asimd bf16", "bf16", False),
        ("flags : fpu avx512_bf16", "fp16", True), ("flags : fpu", "fp32", False),
    ],
)  # fmt: skip
def test_a_cpu_without_16_bit_arithmetic_emulates_it(words, precision, emulated, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(f"processor : 0\n{words}\n")
    monkeypatch.setattr(collectives, "_CPU_INFO", tmp_path / "cpuinfo")
    assert collectives.is_emulated(precision, torch.device("cpu")) == emulated
    assert not collectives.is_emulated(precision, torch.device("cuda"))
