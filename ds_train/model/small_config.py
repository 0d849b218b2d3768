"""A model of the same kind with few weights: what its class does is seen within a second."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

VOCAB_SIZE = 64
_NUM_LAYERS = 8  # hybrid models repeat a pattern of fewer layers
# Sizes by the names that transformers' configurations have for them. Heads times head size is the width, also of state
# space layers, which therefore expand nothing. Windows, and the chunks that recurrent layers compute in, are shorter
# than the documents that are tried.
_WIDTHS = {
    name: size
    for size, names in (
        (128, "attention_hidden_size"),
        (96, "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim d_ff dff d_inner n_inner ffn_hidden_size"),
        (96, "mlp_intermediate_size feed_forward_size dense_intermediate_size intermediate_size_mlp"),
        (64, "hidden_size d_model n_embd dim dim_model hidden_dim emb_dim embedding_dim embedding_size d_embed"),
        (64, "input_embedding_size output_embedding_size word_embed_proj_dim hidden_size_global mamba_d_ssm lru_width"),
        (32, "moe_intermediate_size shared_expert_intermediate_size shared_experts_intermediate_size"),
        (32, "shared_intermediate_size expert_ffn_hidden_size attention_head_dim"),
        (24, "qk_head_dim"),
        (
            16,
            "head_dim v_head_dim qk_rope_head_dim kv_lora_rank q_lora_rank index_head_dim mamba_d_head mamba_head_dim",
        ),
        (16, "mamba_headdim linear_key_head_dim linear_value_head_dim linear_head_dim state_size mamba_d_state"),
        (16, "ssm_state_size mamba_state_size chunk_size mamba_chunk_size"),
        (16, "sliding_window attention_window_size attention_chunk_size"),
        (8, "qk_nope_head_dim rotary_dim index_topk"),
        (4, "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads"),
        (4, "num_decoder_attention_heads num_encoder_attention_heads mamba_n_heads mamba_num_heads n_mamba_heads"),
        (4, "linear_num_value_heads linear_num_heads index_n_heads"),
        (2, "linear_num_key_heads"),
        (1, "expand mamba_expand"),
    )
    for name in names.split()
}
_LIMITS = {
    name: limit
    for limit, names in (
        (128, "max_position_embeddings n_positions max_seq_len n_ctx"),
        (VOCAB_SIZE, "vocab_size text_vocab_size vocab_size_per_layer_input encoder_hash_byte_group_vocab"),
        (_NUM_LAYERS, "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_blocks"),
        (_NUM_LAYERS, "num_decoder_layers num_encoder_layers"),
        (4, "num_experts num_local_experts n_routed_experts moe_num_experts"),
        (2, "num_key_value_heads n_groups mamba_n_groups n_group num_expert_group num_experts_per_tok"),
        (2, "num_experts_per_token moe_top_k moe_topk moe_k zero_expert_num"),
        (1, "topk_group"),
        (0, "num_kv_shared_layers"),
    )
    for name in names.split()
}


def small_config(config: PretrainedConfig) -> PretrainedConfig:
    """A copy whose sizes are small and whose kinds of layers are all there."""
    small = copy.deepcopy(config)
    num_layers = size_of(config, "num_hidden_layers")
    for name, value in list(vars(small).items()):
        if isinstance(value, PretrainedConfig):
            setattr(small, name, small_config(value))
        elif isinstance(value, list) and len(value) == num_layers:
            setattr(small, name, _of_fewer_layers(value))
        elif isinstance(value, dict):
            setattr(small, name, {key: _small(key, entry) for key, entry in value.items()})
        elif (new := _small(name, value)) != value:
            setattr(small, name, new)
    given = vars(config)
    if "num_key_value_heads" in given and given["num_key_value_heads"] == given.get("num_attention_heads"):
        small.num_key_value_heads = vars(small)["num_attention_heads"]  # a class may count on that
    return small


def size_of(config: PretrainedConfig, name: str) -> int:
    """A size of a configuration; 0 where it has none, or another in each layer."""
    try:
        size = getattr(config, name, None)
    except RuntimeError:  # transformers', for sizes that differ among layers
        return 0
    return size if isinstance(size, int) else 0


def head_sizes(config: PretrainedConfig) -> tuple[int, int]:
    """The size of a head's queries and keys, and that of its values, which differ in DeepSeek's latent attention."""
    usual = size_of(config, "head_dim") or config.hidden_size // config.num_attention_heads
    of_keys = size_of(config, "qk_nope_head_dim") + size_of(config, "qk_rope_head_dim") or usual
    return of_keys, size_of(config, "v_head_dim") or usual


def _small(name: Any, value: Any) -> Any:
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        return value
    if str(name).endswith("token_id"):
        return min(value, VOCAB_SIZE - 1)
    return _WIDTHS.get(name, min(value, _LIMITS.get(name, value)))


def _of_fewer_layers(values: list[Any]) -> list[Any]:
    """The first few entries, the last of them replaced by kinds that would be missing."""
    kept = values[:_NUM_LAYERS]
    missing = [value for n, value in enumerate(values) if value not in kept and value not in values[:n]]
    return kept[: len(kept) - len(missing)] + missing if len(missing) < len(kept) else kept


def small_model(config: PretrainedConfig, attention: str | None = None) -> PreTrainedModel:
    """A small model in fp32, its weights large enough that no initialisation hides what tokens do to one another.

    Args:
        attention: its implementation; by default that of the configuration.
    """
    small = small_config(config)
    if attention:
        small._attn_implementation = attention
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(small, dtype=torch.float32)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return model.train()


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread: more make small tensors slow, and very slow on a machine at work."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
