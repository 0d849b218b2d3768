"""Losses under bf16 as DeepSpeed casts a model: close to fp32, without fp32 copies of all logits."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from deepspeed import DeepSpeedEngine
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from data_tools.samples.documents import example_documents
from ds_train.step.losses import PackedLM
from ds_train.step.micro_batch import pack
from tests.support.packed_models import mixed_samples, packed_logits, tiny_model
from tests.support.tiny_models import ARCHITECTURES, VOCAB_SIZE, random_example

EVERY_ARCHITECTURE = pytest.mark.parametrize("architecture", ARCHITECTURES)


def in_bf16(model: PackedLM) -> PackedLM:
    """Cast in place with DeepSpeed's own method; a plain ``.to(torch.bfloat16)`` would round the rotary frequencies."""
    DeepSpeedEngine._cast_module_mixed_precision(SimpleNamespace(module=model), torch.bfloat16, None, False)
    return model


class LargestFp32(TorchDispatchMode):
    """Remembers the largest fp32 tensor that any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.num_elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        result = function(*arguments, **(named or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float32:
                self.num_elements = max(self.num_elements, leaf.numel())
        return result


@EVERY_ARCHITECTURE
def test_no_fp32_logits_of_the_whole_row(architecture, monkeypatch):
    """Under bf16 neither forward nor backward holds fp32 values for all logits at once."""
    monkeypatch.setattr(
        "ds_train.step.losses._BLOCK_ELEMENTS", 8 * VOCAB_SIZE
    )  # a block holds a whole tiny row otherwise
    model = in_bf16(tiny_model(architecture))
    rng = np.random.default_rng(8)
    samples = [example_documents(random_example(rng), loss="weighted") for _ in range(12)]
    batch = pack(samples)
    assert packed_logits(model, batch).dtype == torch.bfloat16
    with LargestFp32() as largest:
        loss_sum, _, _ = model(batch)
        loss_sum.backward()
    assert loss_sum.dtype == torch.float32
    assert largest.num_elements > 0
    assert largest.num_elements < len(batch.targets) * VOCAB_SIZE


@EVERY_ARCHITECTURE
def test_bf16_loss_is_close_to_the_fp32_one(architecture):
    model, samples = tiny_model(architecture), mixed_samples()
    batch = pack(samples)
    exact = model(batch)[0].item()
    rounded = in_bf16(model)(batch)[0].item()
    assert rounded == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama"])
def test_rotary_frequencies_stay_fp32_under_bf16(architecture):
    model = in_bf16(tiny_model(architecture))
    assert all(parameter.dtype == torch.bfloat16 for parameter in model.parameters())
    frequencies = [buffer for name, buffer in model.named_buffers() if name.endswith("inv_freq")]
    assert frequencies and all(buffer.dtype == torch.float32 for buffer in frequencies)
