"""Tiny models over packed rows, and samples of every kind for them."""

import numpy as np
import torch

from data_tools.samples.documents import Document, example_documents
from data_tools.samples.readers import c4_document
from ds_train.model.causal_lm import build_model
from ds_train.step.losses import PackedLM
from ds_train.step.micro_batch import MicroBatch
from tests.support.tiny_models import random_example, random_ids, tiny_config


def tiny_model(architecture: str, attention: str = "sdpa") -> PackedLM:
    return PackedLM(build_model(tiny_config(architecture, attention=attention), seed=1))


def mixed_samples(seed: int = 0) -> list[list[Document]]:
    """Synthetic samples of all losses and a C4 block, of uneven lengths."""
    rng = np.random.default_rng(seed)
    samples = [
        example_documents(random_example(rng, num_answers=n % 3 + 1), loss=loss, trained=n % 3, scored="any")
        for n, loss in enumerate(["weighted", "lm", "answer", "weighted", "lm", "weighted", "weighted"])
    ]
    samples.insert(3, [c4_document(np.array(random_ids(rng, 40), np.int64))])
    return samples


def documents_of(samples: list[list[Document]]) -> list[Document]:
    return [document for sample in samples for document in sample]


def packed_logits(model: PackedLM, batch: MicroBatch) -> torch.Tensor:
    """What the language-model head gives in a forward of the micro-batch: (needed targets, vocab)."""
    seen: list[torch.Tensor] = []
    head = model.causal_lm.get_output_embeddings()
    hook = head.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    model(batch)
    hook.remove()
    (logits,) = seen
    return logits.flatten(0, 1)
