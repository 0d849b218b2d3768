"""The parts of a model, for every architecture that is accepted."""

import re
from collections import defaultdict

import pytest
from transformers import LlamaConfig, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from ds_train.model.causal_lm import causal_lm_config, model_without_weights
from ds_train.model.parts import PARTS, parts_of, without_decay
from tests.support.every_model import small_configuration
from tests.support.paths import REPOSITORY
from tests.support.tiny_models import tiny_config

NEOX = {
    "embeddings": "gpt_neox.embed_in.weight",
    "norms": "gpt_neox.final_layer_norm.weight gpt_neox.final_layer_norm.bias",
    "blocks norms": """input_layernorm.weight input_layernorm.bias post_attention_layernorm.weight
        post_attention_layernorm.bias""",
    "blocks attention": """attention.query_key_value.weight attention.query_key_value.bias attention.dense.weight
        attention.dense.bias""",
    "blocks mlp": """mlp.dense_h_to_4h.weight mlp.dense_h_to_4h.bias mlp.dense_4h_to_h.weight mlp.dense_4h_to_h.bias""",
    "head": "lm_head.weight",
}
LLAMA = {
    "embeddings": "model.embed_tokens.weight",
    "norms": "model.norm.weight",
    "blocks norms": "input_layernorm.weight post_attention_layernorm.weight",
    "blocks attention": """self_attn.q_proj.weight self_attn.k_proj.weight self_attn.v_proj.weight
        self_attn.o_proj.weight""",
    "blocks mlp": "mlp.gate_proj.weight mlp.up_proj.weight mlp.down_proj.weight",
    "head": "lm_head.weight",
}
TIED_LLAMA = {name: names for name, names in LLAMA.items() if name not in ("embeddings", "head")} | {
    "embeddings head": LLAMA["embeddings"]
}
GPT2 = {
    "embeddings": "transformer.wpe.weight",
    "embeddings head": "transformer.wte.weight",
    "norms": "transformer.ln_f.weight transformer.ln_f.bias",
    "blocks norms": "ln_1.weight ln_1.bias ln_2.weight ln_2.bias",
    "blocks attention": "attn.c_attn.weight attn.c_attn.bias attn.c_proj.weight attn.c_proj.bias",
    "blocks mlp": "mlp.c_fc.weight mlp.c_fc.bias mlp.c_proj.weight mlp.c_proj.bias",
}
# Of the 140 types that are accepted, those that have nothing of a part, and what is in blocks and of no kind.
LACKING = {"mlp": {"mamba", "mamba2", "falcon_mamba"}, "norms": {"olmo", "nanochat", "hrm_text"}}
OF_NO_KIND = {
    "doge", "deepseek_v4", "gemma3n", "gemma3n_text", "gemma4", "gemma4_text", "git", "hrm_text", "inkling2_text",
    "zamba", "zamba2", "zaya",
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (tiny_config("gpt_neox"), NEOX),
        (tiny_config("llama"), LLAMA),
        (LlamaConfig(**tiny_config("llama").to_dict() | {"tie_word_embeddings": True}), TIED_LLAMA),
        (tiny_config("gpt2"), GPT2),
    ],
)
def test_each_tensor_of_the_known_architectures(config: PretrainedConfig, expected: dict[str, str]) -> None:
    found = defaultdict(set)
    for name, parts in parts_of(model_without_weights(config)).items():
        found[" ".join(part for part in PARTS if part in parts)].add(re.sub(r"^.*\.\d+\.", "", name))
    assert found == {parts: {*names.split()} for parts, names in expected.items()}


def test_biases_norms_and_embeddings_may_be_without_weight_decay() -> None:
    model = model_without_weights(tiny_config("gpt2"))
    names = {name for name, _ in model.named_parameters()}
    assert without_decay(model, ["biases"]) == {name for name in names if name.endswith(".bias")}
    assert without_decay(model, ["norms"]) == {name for name in names if ".ln_" in name}
    assert without_decay(model, ["embeddings"]) == {"transformer.wte.weight", "transformer.wpe.weight"}
    assert len(without_decay(model, ["biases", "norms"])) == 18


def test_every_architecture_has_all_parts_but_for_these() -> None:
    page = (REPOSITORY / "ds_train" / "README.md").read_text()
    (refused,) = re.findall(r"^\| refused \| \d+ \| (.*) \|$", page, re.MULTILINE)
    accepted = {config_class.model_type for config_class in MODEL_FOR_CAUSAL_LM_MAPPING} - {*refused.split(", ")}
    lacking, of_no_kind = defaultdict(set), set()
    for model_type in accepted:
        config = causal_lm_config(small_configuration(CONFIG_MAPPING[model_type], model_type), model_type)
        parts = parts_of(model_without_weights(config)).values()
        for part in PARTS:
            if not any(part in of for of in parts):
                lacking[part].add(model_type)
        if any(of == {"blocks"} for of in parts):
            of_no_kind.add(model_type)
    assert (len(accepted), dict(lacking), of_no_kind) == (140, LACKING, OF_NO_KIND)
