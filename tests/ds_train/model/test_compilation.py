"""Compiled layers give the numbers of others, for any lengths by one graph; without a compiler they run as they are."""

import logging

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import CONFIG_MAPPING

from data_tools.base.errors import UserError
from ds_train.model.causal_lm import build_model
from ds_train.model.compilation import compile_layers, num_compiled
from ds_train.step.losses import PackedLM
from ds_train.step.micro_batch import pack
from tests.support.every_model import small_configuration
from tests.support.packed_models import mixed_samples
from tests.support.tiny_models import tiny_config

CPU = torch.device("cpu")
TRACED = "aot_eager"  # all but the compiler, which takes minutes


def _numbers(model: PackedLM, seed: int) -> torch.Tensor:
    """Loss and all gradients of a micro-batch, which has fewer documents for larger seeds."""
    model.zero_grad()
    loss = model(pack(mixed_samples(seed)[seed:]))[0]
    loss.backward()
    return torch.cat([number.detach().flatten() for number in (loss, *(p.grad for p in model.parameters()))])


def _compare(architecture: str, attention: str, backend: str, one_document_a_row: bool = False) -> None:
    torch._dynamo.reset()
    counters.clear()
    config = tiny_config(architecture, attention=attention)
    plain, compiled = (PackedLM(build_model(config, seed=1), one_document_a_row=one_document_a_row) for _ in range(2))
    assert compile_layers(compiled.causal_lm, CPU, backend) and num_compiled(compiled.causal_lm) == 2
    assert num_compiled(plain.causal_lm) == 0
    graphs = []
    for seed in range(4):
        found, expected = _numbers(compiled, seed), _numbers(plain, seed)
        assert (found - expected).norm() <= 1e-5 * expected.norm()
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 1 and len({*graphs}) == 1, "other lengths need other graphs"


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama", "gpt2", "qwen3"])
def test_numbers_are_the_same_and_one_graph_serves_all_lengths(architecture: str) -> None:
    _compare(architecture, "packed", TRACED)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_other_attention_is_compiled_too(attention: str) -> None:
    _compare("llama", attention, TRACED, one_document_a_row=True)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["gpt_neox", "llama"])
def test_the_compiler_itself_gives_the_numbers(architecture: str) -> None:
    _compare(architecture, "packed", "inductor")


def test_without_a_compiler_layers_run_as_they_are(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    torch._dynamo.reset()
    model = PackedLM(build_model(tiny_config("llama", attention="packed"), seed=1))

    def without_compiler(*_: object) -> None:
        raise RuntimeError("no C++ compiler")

    with caplog.at_level(logging.WARNING):
        assert not compile_layers(model.causal_lm, CPU, without_compiler)  # type: ignore[arg-type]
    assert "this machine cannot compile" in caplog.text and "no C++ compiler" in caplog.text
    assert num_compiled(model.causal_lm) == 0
    _numbers(model, 0)


def test_a_model_without_marked_layers_is_refused() -> None:
    config = small_configuration(CONFIG_MAPPING["gpt_neox_japanese"], "gpt_neox_japanese")
    with pytest.raises(UserError, match="gpt_neox_japanese has no layers that transformers marks"):
        compile_layers(build_model(config, seed=1), CPU, TRACED)
