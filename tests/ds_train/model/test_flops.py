"""Operations of training against what torch counts."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PretrainedConfig

from ds_train.model.causal_lm import build_model, load_model_config
from ds_train.model.flops import recomputation_flops, training_flops
from ds_train.model.recomputation import checkpoint_activations
from tests.support.tiny_models import tiny_config

ARCHITECTURES = pytest.mark.parametrize("architecture", ["gpt_neox", "llama", "qwen3"])
LENGTHS = pytest.mark.parametrize("length", [8, 64])


def _counted(config: PretrainedConfig, length: int, every: int = 0) -> int:
    """Products only, as is usual. Eager attention computes all pairs of tokens."""
    model = build_model(config, seed=1)
    checkpoint_activations(model, every)
    ids = torch.zeros(1, length, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    return counter.get_total_flops()


@ARCHITECTURES
@LENGTHS
def test_as_many_as_torch_counts(architecture: str, length: int) -> None:
    """Half of the pairs count."""
    config = tiny_config(architecture, attention="eager")
    flops = training_flops(config)
    counted = _counted(config, length) - flops.per_pair * length**2
    assert counted == pytest.approx(flops.of_documents([length]), rel=0.05)  # biases and norms are parameters too


@ARCHITECTURES
@LENGTHS
@pytest.mark.parametrize("every", [1, 2])
def test_recomputation_adds_as_many_as_torch_counts(architecture: str, length: int, every: int) -> None:
    config = tiny_config(architecture, attention="eager")
    added = recomputation_flops(config, every)
    counted = _counted(config, length, every) - _counted(config, length) - added.per_pair * length**2
    assert counted == pytest.approx(added.of_documents([length]), rel=0.01)


def test_documents_add_up() -> None:
    flops = training_flops(load_model_config("pythia-160m"))
    assert flops.per_token == 6 * (162_322_944 - 50_304 * 768) and flops.per_pair == 6 * 12 * 768
    assert flops.of_documents([3, 5]) == flops.of(8, 34) == 8 * flops.per_token + 34 * flops.per_pair


def test_without_recomputation_nothing_is_added() -> None:
    config = load_model_config("pythia-160m")
    assert recomputation_flops(config, 0).of(10**9, 10**9) == 0
    whole, half = (recomputation_flops(config, every) for every in (1, 2))
    assert (whole.per_token, whole.per_pair) == (2 * half.per_token, 2 * half.per_pair)
    assert 0.15 < whole.per_token / training_flops(config).per_token < 0.16
