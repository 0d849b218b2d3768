"""Floating-point operations of training, and what a device does at most: model FLOP/s utilization (MFU).

MFU as in PaLM (Chowdhery et al. 2022, appendix B): operations that the model needs, without recomputation, over those
that the device could have done in the time. Of attention only the causal half is counted, inside documents.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from transformers import PretrainedConfig

from ds_train.memory import model_shape

# Dense bf16 FLOP/s by what the device's name contains (NVIDIA's data sheets, SXM and PCIe forms apart).
PEAK_FLOPS = {"H100 80GB HBM3": 989e12, "H100 SXM": 989e12, "H100 PCIe": 756e12, "H200": 989e12, "A100": 312e12}


@dataclass(frozen=True)
class TrainingFlops:
    """Operations of forward and backward together.

    Attributes:
        per_token: 6 for each parameter that a token is multiplied with, so not those of an input embedding.
        per_pair: of a document of n tokens, for each of its n² pairs: 6 × layers × hidden size.
    """

    per_token: float
    per_pair: float

    def of_documents(self, lengths: Iterable[int]) -> float:
        """Of documents with so many tokens each."""
        return sum(self.per_token * length + self.per_pair * length**2 for length in lengths)


def training_flops(config: PretrainedConfig) -> TrainingFlops:
    """Of a model, from its shapes alone."""
    shape = model_shape(config)
    embedding = 0 if config.tie_word_embeddings else shape.vocab_size * shape.hidden
    return TrainingFlops(6.0 * (shape.num_parameters - embedding), 6.0 * shape.num_layers * shape.hidden)


def peak_flops(device: torch.device) -> float | None:
    """What a device does at most in bf16, None where that is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for known, flops in PEAK_FLOPS.items() if known in name), None)
