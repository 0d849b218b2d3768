"""The start-up probe through a built engine: it finds a leak, passes a model without, changes nothing."""

import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from transformers import FalconConfig, PretrainedConfig

from data_tools.base.errors import UserError
from data_tools.samples.documents import Document, example_documents
from ds_train.config.deepspeed_json import default_json
from ds_train.model.causal_lm import build_model
from ds_train.step.engine import Engine, build_engine
from ds_train.step.losses import PackedLM
from ds_train.step.micro_batch import pack
from ds_train.step.probe import check_isolation
from tests.support.process_group import one_rank
from tests.support.tiny_models import VOCAB_SIZE, random_example, tiny_config


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    with one_rank():
        yield


def falcon() -> PretrainedConfig:
    sizes = {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return FalconConfig(**sizes, alibi=True, use_cache=False, attention_dropout=0.0, hidden_dropout=0.0)


def engine_of(config: PretrainedConfig, stage: int, bf16: bool) -> Engine:
    settings = json.loads(default_json("pptrain").read_text())
    del settings["scheduler"]
    settings |= {"train_batch_size": 2, "bf16": {"enabled": bf16}, "zero_optimization": {"stage": stage}}
    return build_engine(PackedLM(build_model(config, seed=1)), settings)


@pytest.mark.parametrize(("stage", "bf16"), [(0, False), (1, True), (2, False), (3, False), (3, True)])
def test_rows_that_the_built_model_needs(stage: int, bf16: bool) -> None:
    for config, needs_rows in ((falcon(), True), (tiny_config("gpt_neox"), False), (tiny_config("gpt2"), False)):
        engine = engine_of(config, stage, bf16)
        torch.manual_seed(5)
        before = torch.get_rng_state()
        check_isolation(engine, engine.module, engine.device)
        assert engine.module.one_document_a_row is needs_rows, config.model_type
        assert torch.equal(torch.get_rng_state(), before)
        assert engine.training and engine.module.training
        assert engine.micro_steps == engine.global_steps == 0


def test_a_model_that_is_not_causal_is_refused() -> None:
    class Bidirectional(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = build_model(tiny_config("gpt_neox"), seed=0)
            self.config = self.inner.config

        def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> object:
            output = self.inner(input_ids=input_ids, use_cache=use_cache)
            output.logits = output.logits + output.logits.flip(1)
            return output

    model = PackedLM(Bidirectional())  # type: ignore[arg-type]
    with pytest.raises(UserError, match="is not causal"):
        check_isolation(model, model, torch.device("cpu"))


def test_a_model_that_cannot_run_on_text_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    model = PackedLM(build_model(tiny_config("gpt_neox"), seed=0))
    monkeypatch.setattr(model.causal_lm, "forward", lambda **_: 1 / 0)
    with pytest.raises(UserError, match=r"type gpt_neox cannot run on text .ZeroDivisionError"):
        check_isolation(model, model, torch.device("cpu"))


def test_attention_without_gradients_is_refused() -> None:
    """Before the probe, which it would pass: torch compiles it for inference."""
    model = PackedLM(build_model(tiny_config("gpt_neox"), seed=0))
    model.causal_lm.config._attn_implementation = "flex_attention"
    with pytest.raises(UserError, match="flex_attention cannot train on CPUs"):
        check_isolation(model, model, torch.device("cpu"))


def samples() -> list[list[Document]]:
    rng = np.random.default_rng(0)
    return [example_documents(random_example(rng, 1 + n % 3), loss="answer", scored="any") for n in range(8)]


@pytest.mark.parametrize("one_document_a_row", [True, False])
def test_losses_and_flags_do_not_depend_on_the_micro_batch(one_document_a_row: bool) -> None:
    """Of a model with ALiBi they do, without rows of their own."""
    model = PackedLM(build_model(falcon(), seed=1), one_document_a_row=one_document_a_row)
    batches = [[pack([sample]) for sample in samples()], [pack(samples()[:4]), pack(samples()[4:])]]
    alone, together = ([model(batch) for batch in micro_batches] for micro_batches in batches)
    sums = [sum(source_sums.sum().item() for _, source_sums, _ in results) for results in (alone, together)]
    assert (abs(sums[0] - sums[1]) < 1e-4) is one_document_a_row
    if one_document_a_row:
        assert torch.equal(torch.cat([r[2] for r in alone]), torch.cat([r[2] for r in together]))
