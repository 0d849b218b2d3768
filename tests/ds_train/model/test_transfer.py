"""What is copied, fresh and frozen, by name; `tests/system/test_transfer.py` trains it in every layout."""

import logging
import re
from typing import get_args

import pytest
import torch
from transformers import GPT2Config, LlamaConfig, MambaConfig, PretrainedConfig, PreTrainedModel, ZambaConfig

from data_tools.base.errors import Problems, UserError
from ds_train.config.phase_flags import Part
from ds_train.model.causal_lm import build_model, model_without_weights
from ds_train.model.parts import PARTS
from ds_train.model.transfer import ALL, AS_IT_IS, Transfer
from tests.support.every_model import small_configuration
from tests.support.tiny_models import ARCHITECTURES, tiny_config

# Choices of parts, and a pattern of the names of their tensors. GPT-2's head is its table of tokens.
CHOICES = {
    "all": "",
    "attention": r"\.attention\.|\.self_attn\.|\.attn\.",
    "mlp attention": r"\.mlp\.|\.attention\.|\.self_attn\.|\.attn\.",
    "blocks": r"\.\d\.",
    "norms": r"norm|\.ln_",
    "norms head": r"norm|\.ln_|lm_head|wte",
    "embeddings": "embed_in|embed_tokens|wte|wpe",
}
TIED_LLAMA = LlamaConfig(**tiny_config("llama").to_dict() | {"tie_word_embeddings": True})


def _chosen(copied: str = ALL, embeddings: str = "rows", frozen: str = "") -> Transfer:
    return Transfer.of_flags(copied.split(), embeddings, frozen.split())


def _started(transfer: Transfer, config: PretrainedConfig) -> tuple[PreTrainedModel, PreTrainedModel, PreTrainedModel]:
    """A model that starts with weights of a source, the source, and a fresh model."""
    source, fresh = build_model(config, seed=1), build_model(config, seed=2)
    for parameter in source.parameters():
        parameter.data += 0.01  # norms and biases are equal in all fresh models
    return transfer.initial_model(source, lambda: build_model(config, seed=2)), source, fresh


def _refusal(transfer: Transfer, config: PretrainedConfig, has_weights: bool = True) -> str:
    problems = Problems()
    transfer.check(model_without_weights(config), problems, has_weights=has_weights)
    with pytest.raises(UserError) as raised:
        problems.raise_if_any()
    return str(raised.value)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("parts", CHOICES)
def test_tensors_of_the_chosen_parts_are_copied_or_frozen_and_no_others(parts: str, architecture: str) -> None:
    model, source, fresh = _started(_chosen(parts), tiny_config(architecture))
    _chosen(frozen=parts).freeze(model)
    copied, random = dict(source.named_parameters()), dict(fresh.named_parameters())
    for name, parameter in model.named_parameters():
        is_chosen = bool(re.search(CHOICES[parts], name))
        assert torch.equal(parameter, (copied if is_chosen else random)[name]), name
        assert not torch.equal(copied[name], random[name]) and parameter.requires_grad != is_chosen


@pytest.mark.parametrize("copied", ["all", "embeddings"])
@pytest.mark.parametrize("config", [tiny_config("gpt_neox"), TIED_LLAMA, tiny_config("gpt2")])
def test_mean_embeddings_give_each_token_the_mean_of_the_transferred_rows(
    copied: str, config: PretrainedConfig
) -> None:
    model, source, _ = _started(_chosen(copied, "mean"), config)
    mean = source.get_input_embeddings().weight.mean(0)
    assert (model.get_input_embeddings().weight - mean).abs().max() < 1e-6
    is_tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert is_tied == (config.model_type != "gpt_neox")
    if isinstance(config, GPT2Config):
        assert torch.equal(model.transformer.wpe.weight, source.transformer.wpe.weight), "positions are no tokens"


def test_a_tied_tensor_belongs_to_the_embeddings_and_to_the_head() -> None:
    for part in ("embeddings", "head"):
        described = _chosen("blocks norms", frozen=part).describe(model_without_weights(TIED_LLAMA))
        assert described == {
            "copied": "19 tensors (8 attention, 6 mlp, 5 norms), 18,592 parameters",
            "fresh": "1 tensor (1 embeddings and head), 2,048 parameters",
            "frozen": "1 tensor (1 embeddings and head), 2,048 parameters",
        }
    assert AS_IT_IS.describe(model_without_weights(TIED_LLAMA))["fresh"] == "nothing"


def test_the_order_and_number_of_names_do_not_matter() -> None:
    assert _chosen("mlp attention mlp", frozen="head norms") == _chosen("attention mlp", frozen="norms head")
    assert _chosen("mlp all") == _chosen() == Transfer.of_flags(None, "rows", None) == AS_IT_IS
    assert AS_IT_IS.fingerprints == {"transfer": "all", "freeze": "nothing"}
    assert _chosen("embeddings mlp", "mean", "norms").fingerprints == {
        "transfer": "mlp embeddings with mean embeddings", "freeze": "norms",
    }  # fmt: skip


def test_the_flags_take_the_names_of_all_parts() -> None:
    assert get_args(Part) == (ALL, *PARTS)


@pytest.mark.parametrize(
    ("transfer", "config", "has_weights", "message"),
    [
        (_chosen("mlp"), MambaConfig(num_hidden_layers=2), True, "--transfer mlp: a model of type mamba has only"),
        (_chosen(frozen="all"), TIED_LLAMA, True, "--freeze all leaves nothing to train"),
        (_chosen(frozen="blocks norms head"), TIED_LLAMA, True, "--freeze blocks norms head leaves nothing to train"),
        (_chosen("blocks", "mean"), TIED_LLAMA, True, "--embeddings mean: --transfer leaves the embeddings out"),
        (_chosen("blocks"), TIED_LLAMA, False, "--transfer and --embeddings need weights to start from"),
        (_chosen(embeddings="mean"), TIED_LLAMA, False, "--transfer and --embeddings need weights to start from"),
    ],
)  # fmt: skip
def test_a_choice_that_cannot_be_is_refused(
    transfer: Transfer, config: PretrainedConfig, has_weights: bool, message: str
) -> None:
    assert message in _refusal(transfer, config, has_weights)


def test_what_is_of_no_kind_is_named(caplog: pytest.LogCaptureFixture) -> None:
    model = model_without_weights(small_configuration(ZambaConfig, "zamba"))
    with caplog.at_level(logging.WARNING):
        _chosen("attention mlp norms").check(model, Problems(), has_weights=True)
        _chosen("blocks").check(model, Problems(), has_weights=True)
    assert caplog.messages == ["--transfer: neither attention nor mlp, but of the blocks: model.layers.*.linear.weight"]
