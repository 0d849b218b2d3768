"""Flash attention of packages: documents apart, the numbers of eager attention, and clear refusals without it."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import Gemma2Config, MambaConfig, MistralConfig, PretrainedConfig

from data_tools.base.errors import UserError
from ds_train.model.causal_lm import build_model, model_without_weights
from ds_train.model.flash import FLASH, check_flash, check_flash_here
from ds_train.model.isolation import settle_rows
from ds_train.model.rows import DocumentRows, RowReader
from ds_train.step.losses import PackedLM
from ds_train.step.micro_batch import pack
from ds_train.step.probe import check_isolation
from tests.support.flash_stand_in import FlashStandIn, install
from tests.support.packed_models import mixed_samples
from tests.support.process_group import one_rank
from tests.support.tiny_models import tiny_config

BATCH = pack([*mixed_samples(0), *mixed_samples(1)])
CPU, GPU = torch.device("cpu"), torch.device("cuda")
_SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 64, "head_dim": 8, "use_cache": False, "sliding_window": 7, "initializer_range": 0.3,
}  # fmt: skip
CONFIGS: dict[str, PretrainedConfig] = {
    **{name: tiny_config(name) for name in ("gpt_neox", "llama", "gpt2", "qwen3")},
    "mistral": MistralConfig(**_SIZES),  # every layer has a window
    "gemma2": Gemma2Config(**_SIZES),  # every second one has, and scores are capped
}


@pytest.fixture(params=FLASH)
def attention(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, attention: str) -> FlashStandIn:
    return install(monkeypatch, attention)


def _numbers(config: PretrainedConfig, attention: str, dtype: torch.dtype, one_document_a_row: bool) -> torch.Tensor:
    """Loss and all gradients of a micro-batch, in fp32."""
    config._attn_implementation = attention
    model = PackedLM(build_model(config, seed=1), one_document_a_row=one_document_a_row).to(dtype)
    loss = model(BATCH)[0]
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return torch.cat([number.detach().float().flatten() for number in (loss, *gradients)])


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("one_document_a_row", [False, True], ids=["one row", "rows"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_numbers_are_those_of_eager_attention(
    stand_in: FlashStandIn, attention: str, name: str, one_document_a_row: bool, dtype: torch.dtype
) -> None:
    if name == "gpt2" and dtype == torch.float32:
        pytest.skip("transformers looks for a linear layer's type, and GPT-2 has none; a run in fp32 is refused anyway")
    config = CONFIGS[name]
    found = _numbers(config, attention, dtype, one_document_a_row)
    if one_document_a_row:
        assert stand_in.rows == [len(BATCH.lengths)] * 2 and not stand_in.lengths
    else:
        assert stand_in.lengths == [[*BATCH.lengths]] * 2 and not stand_in.rows
    exact = _numbers(config, "eager", torch.float32, True)  # by itself each document is right
    rounding = 1e-5 * exact.norm()
    if dtype == torch.bfloat16:
        rounding = 2 * (_numbers(config, "eager", dtype, True) - exact).norm()
    assert 0 < rounding < 0.1 * exact.norm() and (found - exact).norm() <= rounding


def test_a_full_batch_of_blocks_has_rows_and_bounds(stand_in: FlashStandIn, attention: str) -> None:
    config = tiny_config("llama", attention=attention)
    rows = DocumentRows.end_to_end([np.arange(1, 9)] * 3)
    blocks = DocumentRows(rows.input_ids.view(3, 8), rows.position_ids.view(3, 8), rows.cu_seq_lens, rows.lengths)
    reader = RowReader(build_model(config, seed=1))
    assert torch.allclose(reader.logits(blocks), reader.logits(rows), atol=1e-5)
    assert stand_in.lengths == [[8, 8, 8]] * 4


def test_rows_are_chosen_by_other_attention_and_the_model_shows_it(stand_in: FlashStandIn, attention: str) -> None:
    """No small model runs on a CPU with the true package; the probe runs the model itself."""
    config = tiny_config("llama")
    assert settle_rows(config, attention, keep_dropout=False) is False and not stand_in.lengths
    assert config._attn_implementation == attention
    model = PackedLM(build_model(config, seed=1))
    with one_rank():
        check_isolation(model, model, CPU)
    assert not model.one_document_a_row and stand_in.lengths
    rows_apart = MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=64, state_size=8)
    assert settle_rows(rows_apart, attention, keep_dropout=False) is True


def test_shapes_need_no_package(attention: str) -> None:
    """preflight runs on login nodes."""
    config = tiny_config("llama", attention=attention)
    assert model_without_weights(config).config._attn_implementation == "eager"
    assert config._attn_implementation == attention
    with pytest.raises(UserError, match="cannot be built"):
        build_model(config, seed=1)


@pytest.mark.parametrize(
    ("config", "precision", "reason"),
    [
        (
            CONFIGS["llama"],
            "bf16",
            r"the package flash-attn\S* is not installed; .*(pip install|hopper)",
        ),
        (CONFIGS["llama"], "fp32", "it computes in half precision, not in fp32; give --mixed_precision bf16, or leave"),
        (MambaConfig(), "bf16", "transformers has none for a model of type mamba"),
        (MistralConfig(head_dim=512), "bf16", "heads have 512 numbers, more than 256"),
    ],
)
def test_what_cannot_use_it_is_refused(attention: str, config: PretrainedConfig, precision: str, reason: str) -> None:
    with pytest.raises(UserError, match=rf"--attn_implementation {attention}: {reason}"):
        check_flash(config, attention, precision)
    check_flash(config, "packed", precision)


def test_kept_dropout_needs_a_version_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config("llama")
    config.attention_dropout = 0.1
    for attention in FLASH:
        install(monkeypatch, attention)
    check_flash(config, "flash_attention_2", "bf16")
    with pytest.raises(UserError, match="flash_attention_3: it has no dropout, which --keep_dropout leaves on"):
        check_flash(config, "flash_attention_3", "bf16")


def test_what_can_use_it_is_accepted(stand_in: FlashStandIn, attention: str) -> None:
    check_flash(CONFIGS["gemma2"], attention, "bf16")


def test_the_device_must_fit(attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_flash_here("packed", CPU)
    with pytest.raises(UserError, match="it needs a GPU, and this rank trains on a CPU"):
        check_flash_here(attention, CPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(UserError, match=r"it needs compute capability [89]\.0, and this GPU has 7\.5"):
        check_flash_here(attention, GPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with pytest.raises(UserError, match=r"cannot be imported \(.*install the one for torch"):
        check_flash_here(attention, GPU)
    install(monkeypatch, attention)
    check_flash_here(attention, GPU)
