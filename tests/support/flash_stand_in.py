"""Stands in for the packages of flash attention, which need a GPU: functions of their signature that run on CPUs."""

import sys
from importlib import metadata
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import modeling_flash_attention_utils as of_transformers

from ds_train.model.flash import FLASH


class FlashStandIn:
    """The functions that transformers takes from a package, and what was called.

    Attributes:
        lengths: documents of each call that takes them end to end, in tokens.
        rows: rows of each other call.
    """

    def __init__(self) -> None:
        self.lengths: list[list[int]] = []
        self.rows: list[int] = []

    def flash_attn_func(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout_p: float = 0.0,
        softmax_scale: float | None = None, causal: bool = False, window_size: tuple[int, int] = (-1, -1),
        softcap: float = 0.0, deterministic: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        """(rows, T, heads, head size); fewer key heads are shared by groups of query heads."""
        self.rows.append(len(q))
        return _attend(q, k, v, softmax_scale, causal, window_size, softcap)

    def flash_attn_varlen_func(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens_q: torch.Tensor, cu_seqlens_k: torch.Tensor,
        max_seqlen_q: int, max_seqlen_k: int, dropout_p: float = 0.0, softmax_scale: float | None = None,
        causal: bool = False, window_size: tuple[int, int] = (-1, -1), softcap: float = 0.0,
        deterministic: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        """(T, heads, head size) of documents end to end. The bounds are of the kernel's type, as it requires."""
        assert cu_seqlens_q is cu_seqlens_k and cu_seqlens_q.dtype == torch.int32
        assert type(max_seqlen_q) is type(max_seqlen_k) is int, "a tensor would have to come from the GPU"
        if q.is_meta:
            return torch.empty_like(q)
        lengths = cu_seqlens_q.diff().tolist()
        assert sum(lengths) == len(q) and max(lengths) == max_seqlen_q == max_seqlen_k
        self.lengths.append(lengths)
        documents = zip(*(x[None].split(lengths, dim=1) for x in (q, k, v)), strict=True)
        return torch.cat([_attend(*one, softmax_scale, causal, window_size, softcap)[0] for one in documents])


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None, causal: bool, window: tuple[int, int],
    softcap: float,
) -> torch.Tensor:  # fmt: skip
    """By its definition, in fp32. The window counts tokens to the left and to the right of a query's own."""
    groups = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(groups, dim=2) for x in (k, v))
    scores = torch.einsum("rthd,rshd->rhts", q.float(), k.float()) * (scale or q.shape[-1] ** -0.5)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    positions = torch.arange(q.shape[1])
    distance = positions[:, None] - positions
    seen = distance >= 0 if causal else distance > -(10**9)
    if window[0] >= 0:
        seen &= distance <= window[0]
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("rhts,rshd->rthd", weights, v.float()).to(q.dtype)


def install(monkeypatch: pytest.MonkeyPatch, attention: str) -> FlashStandIn:
    """Make transformers find a package of this implementation, and use the stand-in for it."""
    package, stand_in, version = FLASH[attention], FlashStandIn(), int(attention[-1])
    module = ModuleType(package.module)
    functions: dict[str, Any] = {
        "flash_attn_func": stand_in.flash_attn_func,
        "flash_attn_varlen_func": stand_in.flash_attn_varlen_func,
        "flash_attn_with_kvcache": stand_in.flash_attn_func,
    }
    vars(module).update(functions)
    monkeypatch.setitem(sys.modules, package.module, module)
    padding: Any = SimpleNamespace(pad_input=None, unpad_input=None)
    monkeypatch.setitem(sys.modules, "flash_attn.bert_padding", padding)
    monkeypatch.setattr(of_transformers, f"is_flash_attn_{version}_available", lambda **_: True)
    matrix = of_transformers.FLASH_ATTENTION_COMPATIBILITY_MATRIX
    monkeypatch.setitem(matrix[version], "general_availability_check", lambda **_: True)
    monkeypatch.setattr(of_transformers, "_loaded_implementation", None)
    versions = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "3.0" if name == package.distribution else versions(name))
    return stand_in
