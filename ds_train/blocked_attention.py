"""Causal attention of one document in bf16 on a CPU, a block of queries at a time.

torch's kernel for this spends most of its time in bf16 products that are far slower than oneDNN's, which matmul uses.
Here all products are matmuls; scores and softmax are in fp32 as there, a few MiB at a time, which stay in a cache.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_SCORES_BYTES = 4 << 20  # of a block, for as many heads as fit
_LONG = 1024  # tokens, above which larger blocks of queries are faster


def can_block(query: torch.Tensor, dropout: float) -> bool:
    """Whether `blocked_attention` is for this device and type."""
    return (
        query.device.type == "cpu"
        and query.dtype == torch.bfloat16
        and dropout == 0
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def blocked_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None = None
) -> torch.Tensor:
    """softmax(scale · q kᵀ) v where each query sees the keys up to its own.

    Args:
        query: (heads, n, head size) bf16; key and value may have fewer heads, each for a group of query heads.
        scale: 1 / √(head size) where it is None.

    Returns:
        (heads, n, head size) bf16.
    """
    key, value = (x.repeat_interleave(query.shape[0] // x.shape[0], dim=0) for x in (key, value))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return _BlockedAttention.apply(query.contiguous(), key.contiguous(), value.contiguous(), scale)


class _BlockedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.scale = scale
        out = torch.empty_like(query)
        half = _Buffer(query, query.dtype)
        with _fast_fp32_products():
            for heads, rows, weights in _weights(query, key, scale):
                out[heads, rows] = half.filled(weights) @ value[heads, : rows.stop]
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        of_query, of_key, of_value = torch.empty_like(query), *(torch.zeros(x.shape) for x in (key, value))
        scaled_key = key * ctx.scale
        half = _Buffer(query, query.dtype)
        with _fast_fp32_products():
            for heads, rows, weights in _weights(query, key, ctx.scale):
                seen = slice(rows.stop)
                own = gradient[heads, rows].contiguous()
                of_value[heads, seen] += half.filled(weights).transpose(1, 2) @ own
                of_weights = (own @ value[heads, seen].transpose(1, 2)).float()
                of_scores = half.filled(torch._softmax_backward_data(of_weights, weights, -1, torch.float32))
                of_query[heads, rows] = of_scores @ scaled_key[heads, seen]
                of_key[heads, seen] += of_scores.transpose(1, 2) @ query[heads, rows]
        return of_query, (of_key * ctx.scale).to(key.dtype), of_value.to(value.dtype), None


def _weights(query: torch.Tensor, key: torch.Tensor, scale: float) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """Attention weights of a block: its heads, its queries, and (heads, queries, keys up to the last of them) fp32.

    They lie in one buffer, so each block's are void when the next one is taken.
    """
    num_heads, length, _ = query.shape
    query, key = query.float() * scale, key.float()
    scores, queries = _Buffer(query, torch.float32), _queries_at_once(length)
    future = torch.full((queries, queries), -torch.inf).triu(1)
    for first_head in range(0, num_heads, _heads_at_once(query)):
        heads = slice(first_head, min(num_heads, first_head + _heads_at_once(query)))
        for start in range(0, length, queries):
            rows = slice(start, min(length, start + queries))
            size = rows.stop - start
            block = scores.view(heads.stop - heads.start, size, rows.stop)
            torch.bmm(query[heads, rows], key[heads, : rows.stop].transpose(1, 2), out=block)
            block[:, :, start:] += future[:size, :size]
            yield heads, rows, torch.softmax(block, -1, out=block)


def _queries_at_once(length: int) -> int:
    return min(length, 128 if length <= _LONG else 256)


def _heads_at_once(query: torch.Tensor) -> int:
    num_heads, length, _ = query.shape
    return max(1, min(num_heads, _SCORES_BYTES // (4 * length * _queries_at_once(length))))


class _Buffer:
    """Room for one value per (head, query, key) of a block."""

    def __init__(self, query: torch.Tensor, dtype: torch.dtype) -> None:
        length = query.shape[1]
        self._values = torch.empty(_heads_at_once(query) * _queries_at_once(length) * length, dtype=dtype)

    def view(self, *shape: int) -> torch.Tensor:
        return self._values[: torch.Size(shape).numel()].view(shape)

    def filled(self, source: torch.Tensor) -> torch.Tensor:
        """A copy of ``source`` in the buffer."""
        return self.view(*source.shape).copy_(source)


@contextmanager
def _fast_fp32_products() -> Iterator[None]:
    """Let oneDNN do fp32 products too, where torch can be told so.

    It may then round factors to bf16 (with AMX); scores lose nothing by it: queries and keys come as bf16.
    """
    settings: Any = getattr(torch.backends.mkldnn, "matmul", None)
    if settings is None:
        yield
        return
    before, settings.fp32_precision = settings.fp32_precision, "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before
