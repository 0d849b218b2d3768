"""Attention by document: what it asks of the device, and which kernel it takes."""

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM, DeepseekV3Config

from ds_train.model.attention import DocumentLengths, describe_attention, packed_attention, why_no_kernel
from ds_train.model.rows import DocumentRows, RowReader
from tests.support.tiny_models import ARCHITECTURES, tiny_config

CPU, GPU = torch.device("cpu"), torch.device("cuda")
A100, RTX_4090, H100, RTX_5090 = (8, 0), (8, 9), (9, 0), (12, 0)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("one_in_each", [False, True], ids=["one row", "rows"])
def test_no_layer_reads_lengths_back_from_the_device(architecture, one_in_each):
    """On the meta device tensors have no values: whoever asks for one fails. A GPU would have to finish its work."""
    config = tiny_config(architecture, attention="packed")
    with torch.device("meta"):
        reader = RowReader(AutoModelForCausalLM.from_config(config))
    on_host = DocumentRows.end_to_end([np.arange(length) for length in (3, 5, 2)])
    tensors = {name: getattr(on_host, name).to("meta") for name in ("input_ids", "position_ids", "cu_seq_lens")}
    rows = DocumentRows(**tensors, lengths=on_host.lengths)
    logits = reader.logits(rows.one_in_each() if one_in_each else rows)
    assert logits.shape == (10, config.vocab_size)


@pytest.mark.parametrize(
    ("capability", "dtype", "sizes", "reason"),
    [
        (A100, torch.bfloat16, (64, 64), None),
        (H100, torch.float16, (256, 256), None),
        (H100, torch.bfloat16, (208, 208), None),
        (H100, torch.float32, (64, 64), "in fp32"),
        ((7, 5), torch.float16, (64, 64), "before Ampere"),
        (H100, torch.bfloat16, (20, 20), "head size 20 is not a multiple of 8 up to 256"),
        (H100, torch.bfloat16, (512, 512), "head size 512 is not a multiple of 8 up to 256"),
        (H100, torch.bfloat16, (192, 128), "values of size 128, not 192"),
        (RTX_4090, torch.bfloat16, (208, 208), "head size 208 has no backward on this GPU"),
        (RTX_5090, torch.bfloat16, (208, 208), "head size 208 has no backward on this GPU"),
        (RTX_4090, torch.bfloat16, (256, 256), None),
    ],
)
def test_the_kernel_is_taken_within_its_limits(capability, dtype, sizes, reason, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert why_no_kernel.__wrapped__(GPU, dtype, *sizes) == reason


def test_the_summary_says_why_another_kernel_is_taken(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: H100)
    config = tiny_config("llama", attention="packed")
    assert describe_attention(config, GPU, torch.bfloat16) == "attention by document, torch's varlen kernel"
    config.head_dim = 20
    assert describe_attention(config, GPU, torch.bfloat16).endswith("(head size 20 is not a multiple of 8 up to 256)")
    assert describe_attention(config, CPU, torch.float32).endswith("scaled dot product (on a CPU)")
    latent = DeepseekV3Config(qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128)
    latent._attn_implementation = "packed"
    assert describe_attention(latent, GPU, torch.bfloat16).endswith("(values of size 128, not 192)")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(
    ("heads", "groups", "head_size"),
    [(4, 4, 20), (4, 4, 32), (12, 12, 64), (4, 4, 80), (8, 2, 128), (2, 2, 256)],
)
def test_documents_attend_in_bf16_as_in_fp32(heads, groups, head_size):
    """Output and gradients of one packed row against one call in fp32 for each document."""
    torch.manual_seed(0)
    lengths = (1, 7, 130, 513, 900)
    shapes = [(1, count, sum(lengths), head_size) for count in (heads, groups, groups)]
    inputs = [torch.randn(shape, device=GPU) for shape in shapes]
    starts = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device=GPU)

    def ours(*tensors):
        bounds = {"cu_seq_lens_q": starts, "document_lengths": DocumentLengths(lengths)}
        return packed_attention(torch.nn.Module(), *tensors, None, scaling=0.1, **bounds)[0]

    def reference(*tensors):
        documents = zip(*(tensor.split(lengths, dim=2) for tensor in tensors), strict=True)
        options = {"scale": 0.1, "is_causal": True, "enable_gqa": True}
        return torch.cat([scaled_dot_product_attention(*d, **options).transpose(1, 2) for d in documents], dim=1)

    found, expected = (_with_gradients(*how, inputs) for how in ((ours, torch.bfloat16), (reference, torch.float32)))
    for one, other in zip(found, expected, strict=True):
        assert (one.double() - other.double()).norm() < 2e-2 * other.double().norm()


def _with_gradients(form, dtype, inputs):
    tensors = [tensor.to(dtype, copy=True).requires_grad_() for tensor in inputs]
    out = form(*tensors)
    out.backward(torch.linspace(-1, 1, out.numel(), device=out.device, dtype=dtype).view_as(out))
    return [out, *(tensor.grad for tensor in tensors)]
