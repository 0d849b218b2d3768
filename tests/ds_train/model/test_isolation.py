"""Which rows a class needs is found by trying, and what is tried can fail."""

import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BloomConfig,
    FalconConfig,
    GPTNeoConfig,
    JambaConfig,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PhimoeConfig,
    PretrainedConfig,
)

from data_tools.base.errors import UserError
from ds_train.model.isolation import TOLERANCE, Influence, measure_influence, settle_rows
from ds_train.model.small_config import small_config

VOCAB = 32
EXACT = TOLERANCE[torch.float32]


def running_sums(documents: Sequence[np.ndarray]) -> list[torch.Tensor]:
    """A model that is as it should be: each token's logits come from the tokens of its document up to it."""
    embedded = torch.nn.functional.one_hot
    return [embedded(torch.from_numpy(tokens), VOCAB).cumsum(0).float() for tokens in documents]


def across_bounds(documents: Sequence[np.ndarray]) -> list[torch.Tensor]:
    (joined,) = running_sums([np.concatenate(documents)])
    return list(joined.split([len(tokens) for tokens in documents]))


def first_token_of_the_row(documents: Sequence[np.ndarray]) -> list[torch.Tensor]:
    """A convolution's leak: only the token after a bound sees anything of the other document."""
    logits = running_sums(documents)
    for before, here in zip(documents, logits[1:], strict=False):
        here[0, before[-1]] += 0.5
    return logits


def later_tokens(documents: Sequence[np.ndarray]) -> list[torch.Tensor]:
    return [logits + logits[-1:] for logits in running_sums(documents)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_measured_can_fail(dtype):
    def measured(logits_of) -> Influence:
        return measure_influence(lambda documents: [x.to(dtype) for x in logits_of(documents)], VOCAB)

    assert measured(running_sums) == Influence(0.0, 0.0)
    assert measured(across_bounds).of_others > 0.1
    assert measured(later_tokens).of_later > 0.1
    if dtype == torch.float32:  # in half precision the token in the middle counts
        assert measured(first_token_of_the_row).of_others > 0.1


CHOICES: list[tuple[PretrainedConfig, str, bool]] = [
    (LlamaConfig(), "packed", False),
    (MistralConfig(), "sdpa", False),  # windows
    (GPTNeoConfig(), "eager", False),  # has no sdpa
    (FalconConfig(alibi=True), "sdpa", True),
    (BloomConfig(), "eager", True),
    (MambaConfig(), "eager", True),
    (JambaConfig(), "sdpa", True),
    (Lfm2Config(num_hidden_layers=2, layer_types=["conv", "full_attention"]), "sdpa", True),
]


@pytest.mark.parametrize(
    ("config", "attention", "one_document_a_row"), CHOICES, ids=lambda x: getattr(x, "model_type", "")
)
def test_rows_and_attention_that_are_right(config, attention, one_document_a_row):
    config.use_cache = False
    assert settle_rows(config, "auto", keep_dropout=True) is one_document_a_row
    assert config._attn_implementation == attention


@pytest.mark.parametrize("attention", ["eager", "sdpa", "packed"])
def test_attention_that_is_asked_for_is_used(attention):
    config = LlamaConfig(use_cache=False)
    assert settle_rows(config, attention, keep_dropout=True) is False
    assert config._attn_implementation == attention


def test_what_no_rows_make_right_is_refused():
    with pytest.raises(UserError, match=r"type bert is not causal: .*is_decoder"):
        settle_rows(BertConfig(use_cache=False), "auto", keep_dropout=True)
    phimoe = PhimoeConfig(use_cache=False)
    with pytest.raises(UserError, match=r"type phimoe draws random numbers in training.*--keep_dropout"):
        settle_rows(phimoe, "auto", keep_dropout=False)


def test_trying_leaves_generators_and_threads_alone():
    torch.manual_seed(3)
    before = [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]
    threads = torch.get_num_threads()
    settle_rows(LlamaConfig(use_cache=False, attention_dropout=0.1), "auto", keep_dropout=True)
    assert [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()] == before
    assert torch.get_num_threads() == threads


def test_small_configurations_keep_every_kind_of_layer():
    kinds = ["conv"] * 20 + ["full_attention"]
    config = Lfm2Config(num_hidden_layers=21, layer_types=kinds, hidden_size=4096)
    small = small_config(config)
    assert small.layer_types == ["conv"] * 7 + ["full_attention"] and small.num_hidden_layers == 8
    assert (small.hidden_size, config.hidden_size, config.layer_types) == (64, 4096, kinds)
