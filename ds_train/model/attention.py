"""Attention over documents packed end to end in one row: each attends to itself only, without a mask.

A mask takes memory quadratic in the row, and every token would be compared with all others of its row. Here a row costs
what its documents cost. Registered with transformers as ``packed``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from inspect import signature
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from data_tools.base.errors import UserError
from ds_train.model.small_config import head_sizes

PACKED = "packed"
_ELSEWHERE = ("softcap", "s_aux", "position_bias", "sliding_window")  # additions of some models, not supported


@dataclass(frozen=True)
class DocumentLengths:
    """Tokens of each document, in an object that a compiled layer passes on unread."""

    values: Sequence[int]


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: torch.Tensor | None = None,
    document_lengths: DocumentLengths | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each document, with the signature that transformers calls.

    Args:
        query: (rows, heads, T, head size); key and value may have fewer heads, each for a group of query heads.
        cu_seq_lens_q: (documents + 1,) int32, where each document begins in the concatenated rows, and the end of all.
        document_lengths: numbers of the host, which no layer has to fetch from a GPU.

    Returns:
        (rows, T, heads, head size), and no attention weights.
    """
    unsupported = [name for name in _ELSEWHERE if kwargs.get(name) is not None]
    if not getattr(module, "is_causal", True):
        unsupported.append("later tokens")
    if cu_seq_lens_q is None or document_lengths is None or attention_mask is not None or unsupported:
        problem = f"its attention needs {', '.join(unsupported)}" if unsupported else "it does not pass on keywords"
        raise UserError(f"{type(module).__name__} cannot use packed attention ({problem}); use another.")

    lengths = document_lengths.values
    # One call where rows are documents, or where a kernel takes several lengths; else one call per document.
    rows_are_documents = len(lengths) == query.shape[0]
    grouped = query.shape[1] != key.shape[1]
    options: dict[str, Any] = {"scale": scaling, "dropout_p": dropout, "is_causal": True, "enable_gqa": grouped}
    if rows_are_documents:
        return scaled_dot_product_attention(query, key, value, **options).transpose(1, 2).contiguous(), None
    if dropout == 0 and why_no_kernel(query.device, query.dtype, query.shape[-1], value.shape[-1]) is None:
        return _by_kernel(query, key, value, cu_seq_lens_q, max(lengths), scaling), None
    by_document = zip(*(x.split(lengths, dim=2) for x in (query, key, value)), strict=True)
    parts = [scaled_dot_product_attention(*document, **options).transpose(1, 2) for document in by_document]
    return torch.cat(parts, dim=1), None


@cache
def why_no_kernel(device: torch.device, dtype: torch.dtype, head_size: int, value_size: int) -> str | None:
    """Why torch's variable-length flash attention cannot take all documents in one call; None if it can.

    The limits are those of torch's ``mha_varlen_fwd`` and, for the backward, of its ``sdp_utils.cpp``.
    """
    if device.type != "cuda":
        return "on a CPU"
    if dtype not in (torch.bfloat16, torch.float16):
        return "in fp32"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return "before Ampere"
    if head_size != value_size:
        return f"values of size {value_size}, not {head_size}"
    if head_size % 8 or head_size > 256:
        return f"head size {head_size} is not a multiple of 8 up to 256"
    if 192 < head_size <= 224 and ((8, 6) <= capability <= (8, 9) or capability >= (12, 0)):
        return f"head size {head_size} has no backward on this GPU"
    return None


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
    if problem := why_no_kernel(device, dtype, *head_sizes(config)):
        return f"attention by document, torch's scaled dot product ({problem})"
    return "attention by document, torch's varlen kernel"
