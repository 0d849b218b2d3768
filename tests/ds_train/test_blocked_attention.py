"""Blocked attention is attention: values and gradients against double precision, and as good as torch's kernel."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from ds_train import blocked_attention as module
from ds_train.blocked_attention import blocked_attention, can_block

SHAPES = [
    (1, 1, 1, 8), (12, 12, 40, 64), (4, 4, 128, 64), (8, 2, 129, 32), (3, 3, 300, 80), (6, 1, 513, 16),
    (2, 1, 1100, 16),
]  # fmt: skip
needs_onednn = pytest.mark.skipif(
    not can_block(torch.empty(0, dtype=torch.bfloat16), 0.0), reason="oneDNN has no bf16 on this CPU"
)


def _inputs(num_heads: int, num_key_heads: int, length: int, head_size: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    heads = (num_heads, num_key_heads, num_key_heads, num_heads)  # query, key, value, the result's gradient
    return [2 * torch.randn(n, length, head_size, generator=generator).bfloat16() for n in heads]


def _results(attention, inputs: list[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    """The output, and the gradients of query, key and value, in double precision."""
    *leaves, gradient = (x.to(dtype).clone() for x in inputs)
    for leaf in leaves:
        leaf.requires_grad_()
    out = attention(*leaves)
    out.backward(gradient)
    return [x.detach().double() for x in (out, *(leaf.grad for leaf in leaves))]


def _kernel(scale: float | None):
    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, enable_gqa=True, scale=scale)[0]

    return attention


@needs_onednn
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_as_near_to_double_precision_as_torchs_kernel(shape: tuple[int, ...], scale: float | None) -> None:
    inputs = _inputs(*shape)
    exact = _results(_kernel(scale), inputs, torch.float64)
    kernel = _results(_kernel(scale), inputs, torch.bfloat16)
    ours = _results(lambda *qkv: blocked_attention(*qkv, scale), inputs, torch.bfloat16)
    for name, found, theirs, expected in zip(("out", "dq", "dk", "dv"), ours, kernel, exact, strict=True):
        size = expected.norm() + 1e-3
        assert (found - expected).norm() / size < 1.5 * (theirs - expected).norm() / size + 1e-3, name
        assert (found - expected).norm() / size < 8e-3, name


@needs_onednn
def test_heads_in_groups_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = _inputs(6, 6, 300, 32)
    together = _results(blocked_attention, inputs, torch.bfloat16)
    monkeypatch.setattr(module, "_SCORES_BYTES", 1)  # one head at a time
    for one, other in zip(_results(blocked_attention, inputs, torch.bfloat16), together, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.fixture
def products():
    """torch's setting for fp32 products, at ``ieee`` for the test."""
    settings = torch.backends.mkldnn.matmul
    before, settings.fp32_precision = settings.fp32_precision, "ieee"
    yield settings
    settings.fp32_precision = before


@needs_onednn
def test_the_setting_for_products_is_put_back(products) -> None:
    blocked_attention(*_inputs(2, 2, 10, 8)[:3])
    assert products.fp32_precision == "ieee"
    with pytest.raises(RuntimeError):
        blocked_attention(*_inputs(2, 2, 10, 8)[:2], torch.ones(2, 9, 8).bfloat16())
    assert products.fp32_precision == "ieee"


def test_it_is_only_for_what_it_is_made_for() -> None:
    assert not can_block(torch.empty(1), 0.0)  # fp32
    assert not can_block(torch.empty(1, dtype=torch.bfloat16), 0.1)  # dropout
    assert not can_block(torch.empty(1, dtype=torch.bfloat16, device="meta"), 0.0)
