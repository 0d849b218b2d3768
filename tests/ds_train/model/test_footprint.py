"""Operations of training, against what torch counts."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ds_train.model.causal_lm import build_model, load_model_config
from ds_train.model.footprint import training_flops
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
