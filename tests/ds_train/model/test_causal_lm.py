"""Models as training needs them: no dropout, enough positions, weights from the seed and nothing else."""

import json
import logging
import os
import random

import huggingface_hub
import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPTNeoXConfig, OPTConfig, PhiConfig, PretrainedConfig

from data_tools.base.errors import UserError
from data_tools.samples.readers import c4_document
from ds_train.model.causal_lm import (
    build_model,
    empty_model,
    hub_id,
    is_preset,
    load_model,
    load_model_config,
    prepare_config,
    preset_names,
)
from ds_train.step.losses import PackedLM
from ds_train.step.micro_batch import pack
from tests.support import tiny
from tests.support.bad_values import Touching
from tests.support.tiny_models import ARCHITECTURES, VOCAB_SIZE, tiny_config

DROPPING = {
    "gpt2": lambda: GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=VOCAB_SIZE),
    "gpt_neox": lambda: GPTNeoXConfig(hidden_dropout=0.1, attention_dropout=0.2, classifier_dropout=0.3),
    "opt": lambda: OPTConfig(dropout=0.1, attention_dropout=0.1, layerdrop=0.2),
    "phi": lambda: PhiConfig(embd_pdrop=0.1, resid_pdrop=0.1, attention_dropout=0.1),
}


def prepare(config: PretrainedConfig, **changes) -> PretrainedConfig:
    given = {"seq_len": 64, "vocab_size": VOCAB_SIZE, "keep_dropout": False, "scratch": True, **changes}
    return prepare_config(config, **given)


def dropouts(config: PretrainedConfig) -> dict[str, float]:
    return {name: value for name, value in config.to_dict().items() if "drop" in name and isinstance(value, float)}


@pytest.mark.parametrize("kind", DROPPING)
def test_dropout_is_set_to_zero_and_reported(kind, caplog):
    config = DROPPING[kind]()
    before = {name for name, value in dropouts(config).items() if value}
    assert len(before) >= 3 and (kind != "gpt_neox" or "classifier_dropout" in before)
    with caplog.at_level(logging.INFO):
        prepare(config)
    assert set(dropouts(config).values()) == {0.0}
    assert {name for name in before if name in caplog.text} == before - {"classifier_dropout"}


@pytest.mark.parametrize("kind", DROPPING)
def test_keep_dropout_keeps_it_and_warns(kind, caplog):
    config = DROPPING[kind]()
    before = dropouts(config)
    with caplog.at_level(logging.INFO):
        prepare(config, keep_dropout=True)
    assert dropouts(config) == before
    assert [r.levelname for r in caplog.records if "keep_dropout" in r.message] == ["WARNING"]


def test_a_training_forward_without_dropout_is_repeatable():
    model = PackedLM(build_model(prepare(DROPPING["gpt2"]()), seed=0))
    assert model.training and not any(isinstance(m, torch.nn.Dropout) and m.p for m in model.modules())
    batch = pack([[c4_document(np.arange(20))]])
    assert model(batch)[0].item() == model(batch)[0].item()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_positions_grow_with_seq_len_for_random_weights(architecture, caplog):
    config = prepare(tiny_config(architecture, positions=32), seq_len=100)
    assert config.max_position_embeddings == 100
    assert "32" in caplog.text and "100" in caplog.text
    model = PackedLM(build_model(config, seed=0))
    assert torch.isfinite(model(pack([[c4_document(np.arange(101) % VOCAB_SIZE)]]))[0])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_positions_that_are_enough_stay(architecture):
    assert prepare(tiny_config(architecture, positions=64), seq_len=64).max_position_embeddings == 64
    assert prepare(tiny_config(architecture, positions=64), seq_len=10, scratch=False).max_position_embeddings == 64


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama"])
def test_rotary_positions_of_pretrained_weights_may_grow(architecture):
    assert prepare(tiny_config(architecture, positions=32), seq_len=100, scratch=False).max_position_embeddings == 100


def test_learned_positions_of_pretrained_weights_may_not_grow():
    with pytest.raises(UserError, match=r"seq_len 100.*32.*--init scratch"):
        prepare(tiny_config("gpt2", positions=32), seq_len=100, scratch=False)


def test_a_vocabulary_that_is_too_small_is_an_error():
    prepare(tiny_config("gpt_neox"), vocab_size=VOCAB_SIZE)
    prepare(tiny_config("gpt_neox"), vocab_size=VOCAB_SIZE - 10)  # Pythia's is padded beyond its tokenizer
    with pytest.raises(UserError, match=f"tokenizer has {VOCAB_SIZE + 1} ids.*only {VOCAB_SIZE}"):
        prepare(tiny_config("gpt_neox"), vocab_size=VOCAB_SIZE + 1)


def test_there_is_no_cache():
    assert build_model(prepare(tiny_config("gpt_neox")), seed=0).config.use_cache is False


def global_state() -> list:
    return [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]


def weights(seed: int, architecture: str = "gpt_neox") -> dict[str, torch.Tensor]:
    return dict(build_model(tiny_config(architecture), seed).named_parameters())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_depend_on_the_seed_alone(architecture):
    torch.manual_seed(1)
    one = weights(5, architecture)
    torch.manual_seed(2)
    torch.rand(7)
    random.seed(2)
    same, other = weights(5, architecture), weights(6, architecture)
    assert all(torch.equal(one[name], same[name]) for name in one)
    random_ones = [name for name in one if one[name].dim() > 1]
    assert random_ones and not any(torch.equal(one[name], other[name]) for name in random_ones)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_empty_model_is_the_built_one_but_for_its_weights(architecture):
    built, empty = build_model(tiny_config(architecture), 3), empty_model(tiny_config(architecture), torch.bfloat16)
    assert {name: p.shape for name, p in empty.named_parameters()} == {
        name: p.shape for name, p in built.named_parameters()
    }
    assert {p.dtype for p in empty.parameters()} == {torch.bfloat16}
    buffers = dict(empty.named_buffers())
    assert buffers.keys() == dict(built.named_buffers()).keys()
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in built.named_buffers())


def test_building_leaves_the_global_generators_alone():
    torch.manual_seed(3)
    before = global_state()
    build_model(tiny_config("gpt_neox"), seed=5)
    assert global_state() == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_fp32_whatever_the_config_says(dtype):
    config = tiny_config("llama")
    config.dtype = dtype
    assert {p.dtype for p in build_model(config, seed=0).parameters()} == {torch.float32}
    assert torch.get_default_dtype() == torch.float32


def test_pretrained_weights_are_loaded_in_fp32(tmp_path):
    saved = build_model(tiny_config("gpt2"), seed=7)
    saved.to(torch.bfloat16).save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), prepare(load_model_config(str(tmp_path)), scratch=False))
    assert loaded.training
    found = dict(loaded.named_parameters())
    for name, parameter in saved.named_parameters():
        assert found[name].dtype == torch.float32 and torch.equal(found[name], parameter.float())


def test_safetensors_are_preferred_and_other_files_run_nothing(tmp_path):
    model = build_model(tiny_config("llama"), seed=3)
    model.save_pretrained(tmp_path)
    torch.save({"lm_head.weight": Touching(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    assert torch.equal(load_model(str(tmp_path), model.config).lm_head.weight, model.lm_head.weight)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"weights of .* cannot be loaded: UnpicklingError"):
        load_model(str(tmp_path), model.config)
    assert not (tmp_path / "ran").exists()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert torch.equal(load_model(str(tmp_path), model.config).lm_head.weight, model.lm_head.weight)


def test_a_directory_without_weights_is_an_error(tmp_path):
    tiny_config("gpt2").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(str(tmp_path), load_model_config(str(tmp_path)))


def test_presets_are_listed_and_opened():
    names = preset_names()
    assert names == sorted(names) and {"pythia-tiny", "pythia-14m", "pythia-160m", "pythia-12b"} <= set(names)
    assert is_preset("pythia-160m") and not is_preset("pythia-160")
    tiny = load_model_config("pythia-tiny")
    assert tiny.model_type == "gpt_neox"
    assert sum(parameter.numel() for parameter in build_model(tiny, seed=0).parameters()) < 5_000_000


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("qwen3-0.6b", "Qwen/Qwen3-0.6B"),
        ("pythia-160m", "EleutherAI/pythia-160m"),
        ("some/model", "some/model"),
        ("/data/model", "/data/model"),
    ],
)
def test_presets_stand_for_published_models(name, published):
    assert hub_id(name) == published


@pytest.mark.parametrize("make", ["missing", "empty", "broken", "foreign"])
def test_a_name_that_cannot_be_loaded_lists_the_presets(make, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    name = "pythia-16m" if make == "missing" else str(tmp_path)
    if make == "broken":
        (tmp_path / "config.json").write_text("{")
    if make == "foreign":
        (tmp_path / "config.json").write_text('{"model_type": "no_such_model"}')
    with pytest.raises(UserError, match=rf"--model_name {name}.*pythia-160m"):
        load_model_config(name)


def _edit(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 0}, {"hidden_size": -3}, {"hidden_size": "x"}, {"num_attention_heads": 0},
        {"num_attention_heads": 5}, {"num_hidden_layers": 1.5}, {"vocab_size": None}, {"rotary_pct": "x"},
        {"hidden_act": "nope"}, {"model_type": 3}, {"max_position_embeddings": "x"},
    ],
)  # fmt: skip
def test_directories_with_bad_numbers(tmp_path, change):
    tiny.write_model(tmp_path / "model")
    _edit(tmp_path / "model", **change)
    with pytest.raises(UserError, match=r"not loadable as a local directory|type gpt_neox cannot be built"):
        build_model(load_model_config(str(tmp_path / "model")), seed=1)


@pytest.mark.parametrize("content", ["[]", "3", "null", "{", ""])
def test_configurations_that_are_none(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match="not loadable as a local directory"):
        load_model_config(str(tmp_path))


@pytest.mark.parametrize("size", [0, 5, 100, 40_000])
def test_weights_cut_short(tmp_path, size):
    tiny.write_model(tmp_path / "model")
    config = load_model_config(str(tmp_path / "model"))
    build_model(config, seed=1).save_pretrained(tmp_path / "saved")
    os.truncate(tmp_path / "saved" / "model.safetensors", size)
    with pytest.raises(UserError, match="saved cannot be loaded: SafetensorError"):
        load_model(str(tmp_path / "saved"), config)


def test_attention_that_does_not_exist(tmp_path):
    tiny.write_model(tmp_path / "model")
    config = load_model_config(str(tmp_path / "model"))
    config._attn_implementation = "bogus"
    with pytest.raises(UserError, match=r"type gpt_neox cannot be built .*bogus"):
        build_model(config, seed=1)
