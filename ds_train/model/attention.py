"""Attention over documents packed end to end in one row: each attends to itself only, without a mask.

A mask takes memory quadratic in the row, and every token would be compared with all others of its row. Here a row costs
what its documents cost. Registered with transformers as ``packed``.
"""

from inspect import signature
from itertools import pairwise
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from data_tools.base.errors import UserError

PACKED = "packed"
_ELSEWHERE = ("softcap", "s_aux", "position_bias", "sliding_window")  # additions of some models, not supported


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each document, with the signature that transformers calls.

    Args:
        query: (rows, heads, T, head size); key and value may have fewer heads, each for a group of query heads.
        cu_seq_lens_q: (documents + 1,) int32, where each document begins in the concatenated rows, and the end of all.
        max_length_q: the longest document.

    Returns:
        (rows, T, heads, head size), and no attention weights.
    """
    unsupported = [name for name in _ELSEWHERE if kwargs.get(name) is not None]
    if not getattr(module, "is_causal", True):
        unsupported.append("later tokens")
    if cu_seq_lens_q is None or max_length_q is None or attention_mask is not None or unsupported:
        problem = f"its attention needs {', '.join(unsupported)}" if unsupported else "it does not pass on keywords"
        raise UserError(f"{type(module).__name__} cannot use packed attention ({problem}); use another.")

    # One call where rows are documents, or where a kernel takes several lengths; else one call per document.
    rows_are_documents = len(cu_seq_lens_q) - 1 == query.shape[0]
    grouped = query.shape[1] != key.shape[1]
    options: dict[str, Any] = {"scale": scaling, "dropout_p": dropout, "is_causal": True, "enable_gqa": grouped}
    if rows_are_documents:
        return scaled_dot_product_attention(query, key, value, **options).transpose(1, 2).contiguous(), None
    if _has_kernel(query, dropout) and query.shape[-1] == value.shape[-1]:
        return _by_kernel(query, key, value, cu_seq_lens_q, max_length_q, scaling), None
    starts = cu_seq_lens_q.tolist()
    parts = [
        scaled_dot_product_attention(query[:, :, start:end], key[:, :, start:end], value[:, :, start:end], **options)
        for start, end in pairwise(starts)
    ]
    return torch.cat([part.transpose(1, 2) for part in parts], dim=1), None


def _has_kernel(query: torch.Tensor, dropout: float) -> bool:
    """Whether torch's variable-length flash attention can take all documents in one call."""
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.shape[-1] <= 256
        and dropout == 0
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def _by_kernel(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, starts: torch.Tensor, longest: int, scale: float | None
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    if scale is not None:  # every version of the kernel scales by 1 / √(head size)
        query = query * (scale * query.shape[-1] ** 0.5)
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))  # (T, heads, head size)
    has_windows = "window_size" in signature(varlen_attn).parameters
    causal: dict[str, Any] = {"window_size": (-1, 0)} if has_windows else {"is_causal": True}
    out = varlen_attn(q, k, v, starts, starts, longest, longest, **causal)
    assert isinstance(out, torch.Tensor)  # a pair only if auxiliary results are requested
    return out[None]


AttentionInterface.register(PACKED, packed_attention)


def attention_candidates(config: PretrainedConfig) -> list[str]:
    """The attention implementations that a model's class offers, the cheapest for packed rows first."""
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    windows = getattr(config, "sliding_window", None) or set(getattr(config, "layer_types", None) or ()) - {
        "full_attention"
    }
    is_packable = getattr(model_class, "_supports_attention_backend", False) and not windows
    has_sdpa = getattr(model_class, "_supports_sdpa", False)
    return [PACKED] * is_packable + ["sdpa"] * has_sdpa + ["eager"]


def describe_attention(config: PretrainedConfig, device: torch.device, dtype: torch.dtype) -> str:
    """Describe the attention that a model will use on a device."""
    chosen = config._attn_implementation
    if chosen != PACKED:
        return f"attention {chosen}"
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    query = torch.empty(1, 1, 1, head_size, dtype=dtype, device=device)
    return "attention by document, torch's " + ("varlen kernel" if _has_kernel(query, 0.0) else "scaled dot product")
