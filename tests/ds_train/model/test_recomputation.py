"""Recomputed activations give the numbers of kept ones, to the last bit; models that cannot do it are refused."""

import pytest
import torch
from transformers import CONFIG_MAPPING
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXMLP

from data_tools.base.errors import UserError
from ds_train.model.causal_lm import build_model
from ds_train.model.recomputation import (
    check_recomputation,
    checkpoint_activations,
    checkpointable_layers,
    recomputed_layers,
)
from ds_train.step.losses import PackedLM
from ds_train.step.micro_batch import pack
from tests.support.every_model import small_configuration
from tests.support.packed_models import mixed_samples
from tests.support.tiny_models import tiny_config

BATCH = pack([*mixed_samples(0), *mixed_samples(1)])


def _numbers(architecture: str, every: int, *, dtype: torch.dtype = torch.float32, **options: bool) -> list:
    """Loss, sums, flags and all gradients of a micro-batch."""
    model = build_model(tiny_config(architecture, attention=options.pop("attention", "packed")), seed=1)
    checkpoint_activations(model, every)
    if options.pop("frozen", False):
        model.get_input_embeddings().weight.requires_grad_(False)
    packed = PackedLM(model, **options).to(dtype)
    torch.manual_seed(0)
    loss, *results = packed(BATCH)
    loss.backward()
    return [loss.detach(), *results, *(p.grad for p in packed.parameters() if p.grad is not None)]


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama", "gpt2", "qwen3"])
@pytest.mark.parametrize(
    "options",
    [
        {}, {"dtype": torch.bfloat16}, {"one_document_a_row": True}, {"attention": "sdpa"}, {"attention": "eager"},
        {"frozen": True},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("every", [1, 2])
def test_loss_and_gradients_are_the_same_bits(architecture: str, options: dict, every: int) -> None:
    found, expected = (_numbers(architecture, n, **options) for n in (every, 0))
    assert len(found) == len(expected) > 10
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_dropout_draws_the_same_numbers_again() -> None:
    config = tiny_config("gpt_neox", attention="eager")
    config.hidden_dropout = config.attention_dropout = 0.3
    losses = []
    for every, seed in ((0, 0), (1, 0), (1, 1)):
        model = build_model(config, seed=1)
        checkpoint_activations(model, every)
        torch.manual_seed(seed)
        loss = PackedLM(model)(BATCH)[0]
        loss.backward()
        losses.append([loss.item(), *(p.grad.sum().item() for p in model.parameters())])
    assert losses[0] == losses[1] != losses[2]


def test_every_nth_layer_from_the_first() -> None:
    config = tiny_config("llama")
    config.num_hidden_layers = 5
    model = build_model(config, seed=1)
    for every, expected in ((1, [0, 1, 2, 3, 4]), (2, [0, 2, 4]), (3, [0, 3]), (9, [0])):
        checkpoint_activations(model, every)
        layers = checkpointable_layers(model)
        assert [n for n, layer in enumerate(layers) if layer.gradient_checkpointing] == expected
        assert [*recomputed_layers(5, every)] == expected
    assert not recomputed_layers(5, 0)


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama", "gpt2", "qwen3"])
def test_models_that_can_are_accepted(architecture: str) -> None:
    check_recomputation(tiny_config(architecture, attention="packed"))


@pytest.mark.parametrize(
    ("model_type", "why"),
    [("gpt_neox_japanese", "transformers has no checkpointing"), ("git", "8 of its 14 layers are not called")],
)
def test_models_that_cannot_are_refused(model_type: str, why: str) -> None:
    config = small_configuration(CONFIG_MAPPING[model_type], model_type)
    with pytest.raises(UserError, match=rf"{model_type} cannot recompute its activations \({why}.*--micro_batch"):
        check_recomputation(config)


def test_changed_gradients_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reentrant checkpoint, for instance, loses those of what a layer gets by keyword."""
    forward = GPTNeoXMLP.forward
    calls: list[int] = []

    def changing(self: GPTNeoXMLP, states: torch.Tensor) -> torch.Tensor:
        calls.append(0)
        return forward(self, states) * (1 + 1e-3 * (len(calls) > 2))  # the second run of the two layers

    monkeypatch.setattr(GPTNeoXMLP, "forward", changing)
    with pytest.raises(UserError, match="its gradients would change"):
        check_recomputation(tiny_config("gpt_neox"))
