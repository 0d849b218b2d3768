"""Predicts from shapes alone how much memory a model takes on each rank.

The memory of each ZeRO stage follows DeepSpeed 0.19's source; a test compares real engines. DeepSpeed's own estimators
(``estimate_zero2_model_states_mem_needs`` and the like) do not know stage 1, count half-precision gradients in addition
to the fp32 ones in which stages 2 and 3 accumulate, and leave out buckets and gathered weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig

from data_tools.base.errors import UserError
from ds_train.model.causal_lm import model_without_weights
from ds_train.model.recomputation import recomputed_layers
from ds_train.model.small_config import head_sizes, size_of

GIB = 2**30
_MOMENTS = 8  # bytes: Adam's two, in fp32
_MASTER = 4  # bytes: the fp32 weights that ZeRO's optimizers update
# DeepSpeed's defaults (elements) for keys that the JSON leaves out.
BUCKET, MAX_LIVE, PREFETCH = 500_000_000, 1_000_000_000, 50_000_000
_ALLREDUCE_BUCKET = 500_000_000  # the engine's own, for stage 0; no setting
RUNTIME = int(1.5 * GIB)  # CUDA context, NCCL, cuBLAS workspaces and fragmentation: experience, not arithmetic
HOST_RUNTIME = GIB // 2  # a process with torch and DeepSpeed and nothing to train


@dataclass(frozen=True)
class ModelShape:
    """The shape of a model, as far as a prediction needs it.

    Attributes:
        num_parameters: shared ones counted once.
        hidden, intermediate, num_layers, num_heads, vocab_size: of the configuration; without attention 0 heads.
        gated: whether the feed-forward part multiplies two projections (Llama) or has one (GPT-NeoX).
        query_width, key_width, value_width: of all heads; keys that several queries share are counted once.
        rms_norms, query_norms: whether norms are RMSNorms, and whether queries and keys have some (Qwen3).
    """

    num_parameters: int
    hidden: int
    intermediate: int
    num_layers: int
    num_heads: int
    vocab_size: int
    gated: bool
    query_width: int
    key_width: int
    value_width: int
    rms_norms: bool
    query_norms: bool


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one rank: `host` in the node's memory, the rest on the accelerator.

    Attributes:
        weights, gradients, optimizer: model states between two micro-batches of a step.
        buffers: communication buckets and, in stage 3, weights gathered for computing.
        activations: what backward needs of one micro-batch, logits included.
        runtime: what a process takes without a model; on a CPU this is in the node's memory like all else.
    """

    weights: int
    gradients: int
    optimizer: int
    buffers: int
    activations: int
    host: int
    runtime: int = RUNTIME

    @property
    def device(self) -> int:
        """Peak memory of the accelerator, including the runtime."""
        return self.weights + self.gradients + self.optimizer + self.buffers + self.activations + self.runtime


def model_shape(config: PretrainedConfig) -> ModelShape:
    """Read the shape from a model on the meta device, which allocates no weights.

    Raises:
        UserError: its configuration has no width, layers or vocabulary.
    """
    parameters = dict(model_without_weights(config).named_parameters())  # lists a shared parameter once
    sizes = {name: size_of(config, name) for name in ("hidden_size", "num_hidden_layers", "vocab_size")}
    if unknown := [name for name, size in sizes.items() if not size]:
        raise UserError(f"a model of type {config.model_type}: its config.json has no {', '.join(unknown)}.")
    num_heads = size_of(config, "num_attention_heads")
    query, value = head_sizes(config) if num_heads else (0, 0)
    norms = [name for name in parameters if "norm" in name or "ln_" in name]
    return ModelShape(
        num_parameters=sum(parameter.numel() for parameter in parameters.values()),
        hidden=sizes["hidden_size"],
        intermediate=size_of(config, "intermediate_size") or size_of(config, "n_inner") or 4 * sizes["hidden_size"],
        num_layers=sizes["num_hidden_layers"],
        num_heads=num_heads,
        vocab_size=sizes["vocab_size"],
        gated=any("gate" in name for name in parameters),
        query_width=num_heads * query,
        key_width=(size_of(config, "num_key_value_heads") or num_heads) * query,
        value_width=num_heads * value,
        rms_norms=not any(name.endswith("bias") for name in norms),
        query_norms=any(".q_norm" in name or ".q_layernorm" in name for name in norms),
    )


def predict(
    shape: ModelShape,
    zero: dict[str, Any],
    *,
    half: bool,
    num_ranks: int,
    row_tokens: int,
    num_rows: int = 1,
    attention: str = "packed",
    recompute_every: int = 0,
    group_sizes: Sequence[int] = (),
) -> RankMemory:
    """Memory of a rank for a ``zero_optimization`` block.

    Bytes per parameter on each of N ranks, half precision with fp32 accumulation (fp32 in parentheses):

    ======  ==========  ===========================================================  =========
    stage   weights     gradients                                                    optimizer
    ======  ==========  ===========================================================  =========
    0       – (4)       – (4)                                                        – (8)
    1       2 (4)       6 = half ones and fp32 accumulators, both whole (4, whole)   12/N
    2       2 (4)       4/N                                                          12/N
    3       2/N (4/N)   4/N                                                          12/N
    ======  ==========  ===========================================================  =========

    Offloading the optimizer moves its 12/N and the gradients' share to the host, and adds a half-precision and a
    second fp32 copy of the gradients there; stage 1 keeps whole fp32 accumulators on the device.

    Args:
        zero: the block; missing settings have DeepSpeed's defaults.
        half: bf16 or fp16.
        row_tokens, num_rows: of a micro-batch; the longest row has micro batch × seq_len where documents share one.
        attention, recompute_every: see `activations`.
        group_sizes: elements of each group of parameters with settings of its own; empty if there is one group.
    """
    # On the accelerator, without offloading.
    stage, p, width = int(zero.get("stage", 0)), shape.num_parameters, 2 if half else 4
    share = num_ranks if stage > 0 else 1
    optimizer = (_MOMENTS + (_MASTER if stage > 0 else 0)) * p // share
    weights = width * p // (share if stage == 3 else 1)
    gradients = 4 * p // (share if stage >= 2 else 1)

    # What offloading moves to the host.
    host = 0
    if _is_offloaded(zero, "offload_optimizer") and stage > 0:
        extra = {1: 4 + width, 2: 8 + width, 3: 8}[stage]  # measured: see the test
        host, optimizer = optimizer + extra * p // share, 0
        gradients = gradients if stage == 1 else 0
    elif stage == 1 and half:
        gradients += width * p
    if _is_offloaded(zero, "offload_param") and stage == 3:
        host, weights = host + weights, 0
    return RankMemory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        buffers=_buffers(zero, stage, p, width, num_ranks, half, group_sizes or (p,)),
        activations=num_rows * activations(shape, row_tokens, width, attention, recompute_every),
        host=host,
    )


def _is_offloaded(zero: dict[str, Any], what: str) -> bool:
    return (zero.get(what) or {}).get("device", "none") != "none"


def _buffers(
    zero: dict[str, Any],
    stage: int,
    num_parameters: int,
    width: int,
    num_ranks: int,
    half: bool,
    group_sizes: Sequence[int],
) -> int:
    """Communication buckets, which have the JSON's size even for a small model; stage 3 also gathers weights.

    Gradients are sent in fp32 (``communication_data_type``). Stage 1 in half precision sends each group's fp32
    accumulators as one tensor, and several groups as one flat copy; the others send a copy of a bucket. The bucket is
    fp32 too, except in stage 2, where it has the width of the weights.
    """
    if stage == 1 and half and not _is_offloaded(zero, "offload_optimizer"):
        return 4 * _largest_flat_copy(group_sizes)
    if stage == 0:  # the engine all-reduces a flat copy of the gradients, in parts of this size
        return 4 * min(num_parameters, _ALLREDUCE_BUCKET) if num_ranks > 1 else 0
    bucket_size = int(zero.get("reduce_bucket_size", BUCKET))
    bucket = bucket_size if zero.get("contiguous_gradients", True) else 0
    count = 2 if zero.get("overlap_comm") and stage < 3 else 1
    total = count * bucket * (width if stage == 2 else 4)
    total += 4 * min(num_parameters, bucket_size)
    if stage == 3:
        live = int(zero.get("stage3_max_live_parameters", MAX_LIVE))
        live += int(zero.get("stage3_prefetch_bucket_size", PREFETCH))
        total += width * min(num_parameters, live)
    return total


def _largest_flat_copy(sizes: Sequence[int]) -> int:
    """Elements of the largest copy of several tensors that the engine sends as one; it sends a single one in place."""
    largest = together = count = 0
    for size in sizes:
        together, count = together + size, count + 1
        largest = max(largest, together if count > 1 else 0)
        if together > _ALLREDUCE_BUCKET:
            together = count = 0
    return largest


def activations(shape: ModelShape, row_tokens: int, width: int, attention: str, recompute_every: int = 0) -> int:
    """Bytes that the forward of one row keeps for backward, and its logits with their gradient.

    A layer keeps (4 h + 4 q + 2 v + k f) numbers per token, where q and v are the widths of all queries and values. It
    is Korthikanti et al. (arXiv 2205.05198, equation 1: 34 h bytes with dropout masks and the 4 h of a plain feed-
    forward part, attention matrices apart) without dropout, plus the rotated queries and keys; k is 2, or 4 where the
    feed-forward part is gated. Models with RMSNorm compute queries and keys apart, so only the rotated ones are kept.
    But each of their norms keeps an fp32 copy and a normalized one. For documents packed into one row, sdpa adds a mask
    of T² per layer, eager attention two more per head, packed and flash_attention nothing. The cross entropy makes no
    fp32 copy of the logits (see losses.py), but a gradient of their size.

    Of every N-th layer (``recompute_every``) only the input is kept until the backward reaches it. The peak is at the
    logits, or where such a layer has all its activations again, with the gradients inside its feed-forward part; then
    the layers after it are done.
    """
    if shape.rms_norms:
        of_norms, of_attention = 8 * shape.hidden, 2 * shape.query_width + 2 * shape.value_width
    else:
        of_norms, of_attention = 4 * shape.hidden, 4 * shape.query_width + 2 * shape.value_width
    if shape.query_norms:
        of_norms += 3 * (shape.query_width + shape.key_width)
    of_mlp = (4 if shape.gated else 2) * shape.intermediate
    per_layer = row_tokens * (of_norms + of_attention + of_mlp)
    if attention in ("sdpa", "eager"):
        per_layer += row_tokens**2 * (1 + 2 * shape.num_heads if attention == "eager" else 1)
    kept = [per_layer] * shape.num_layers
    recomputed = recomputed_layers(shape.num_layers, recompute_every)
    for number in recomputed:
        kept[number] = row_tokens * shape.hidden
    of_recomputed = per_layer + row_tokens * of_mlp // 2
    peaks = [sum(kept) + 2 * row_tokens * shape.vocab_size]
    peaks += [sum(kept[: number + 1]) + of_recomputed for number in recomputed]
    return width * (max(peaks) + 3 * row_tokens * shape.hidden)


def checkpoint_bytes(num_parameters: int, *, stage: int, half: bool) -> int:
    """Size of a checkpoint over all ranks: the model's weights, fp32 master weights (ZeRO), two moments."""
    return num_parameters * ((2 if half else 4) + _MOMENTS + (_MASTER if stage > 0 else 0))
