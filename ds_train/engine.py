"""The only ``deepspeed.initialize``, and the one optimizer step made with it."""

import math
from dataclasses import dataclass
from typing import Any

import deepspeed
import numpy as np
import torch
from deepspeed import DeepSpeedEngine as Engine

from ds_train.distributed import gather_in_rank_order, sum_over_ranks
from ds_train.layout import Layout
from ds_train.losses import C4, SYNTHETIC, Flags, PackedLM
from ds_train.samplers import GlobalBatchPlan
from ds_train.stream import RankBatch


def build_engine(model: PackedLM, config: dict[str, Any]) -> Engine:
    """Wrap the model for the DeepSpeed JSON ``config`` (which holds no scheduler: see `set_learning_rate`)."""
    engine, *_ = deepspeed.initialize(
        model=model, model_parameters=list(model.parameters()), config=config, dist_init_required=False
    )
    return engine


def set_learning_rate(engine: Engine, lr: float) -> None:
    """The learning rate of the coming step: set, not scheduled, so it depends on the step and nothing else."""
    for group in engine.optimizer.param_groups:
        group["lr"] = lr


@dataclass(frozen=True)
class StepResult:
    """What an optimizer step did, the same on every rank.

    Attributes:
        plan: the samples it trained on.
        loss: sum(w · nll) / sum(w) over the global batch.
        c4_loss, synthetic_loss: the same over the targets of one source, None where there were none.
        flags: (global_batch,) accuracy flags (0/1) in global sample order.
        tokens: (2,) real targets of C4 and of synthetic documents.
        num_overflows: candidates that were longer than seq_len.
        grad_norm: global gradient norm before clipping, None where DeepSpeed does not compute it.
    """

    plan: GlobalBatchPlan
    loss: float
    c4_loss: float | None
    synthetic_loss: float | None
    flags: list[int]
    tokens: np.ndarray
    num_overflows: int
    grad_norm: float | None


def train_step(engine: Engine, batch: RankBatch, layout: Layout, accuracy: str) -> StepResult:
    """One optimizer step over a global batch, whatever its layout.

    The loss is normalised by the weight of the whole global batch, which is known before its first backward.
    DeepSpeed divides by the accumulation steps and averages over ranks; both are multiplied back.

    Args:
        accuracy: which flag the curriculum counts, ``any`` or ``first``.

    Raises:
        FloatingPointError: the loss is not finite; the weights have not been updated.
    """
    device = engine.device
    counts = torch.tensor([*batch.weights, *batch.tokens, len(batch.overflows)], dtype=torch.float64, device=device)
    weights, tokens, num_overflows = sum_over_ranks(counts).cpu().split([2, 2, 1])
    scale = layout.grad_accum * layout.world_size / weights.sum().item()
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    flags = Flags.none(batch.num_examples, device)
    for number, cpu_batch in enumerate(batch.micro_batches, 1):
        micro_batch = cpu_batch.to(device)
        loss_sum, source_sums, is_right = engine(micro_batch)
        engine.backward(loss_sum * scale)
        sums += source_sums
        flags.add(micro_batch, is_right)
        if number == len(batch.micro_batches):
            _require_finite(sum_over_ranks(sums), batch.plan.step)
        engine.step()
    chosen = flags.by_any if accuracy == "any" else flags.by_first
    c4_sum, synthetic_sum = sums.tolist()
    grad_norm = engine.get_global_grad_norm()
    return StepResult(
        plan=batch.plan,
        loss=(c4_sum + synthetic_sum) / weights.sum().item(),
        c4_loss=_ratio(c4_sum, weights[C4].item()),
        synthetic_loss=_ratio(synthetic_sum, weights[SYNTHETIC].item()),
        flags=gather_in_rank_order(chosen.to(torch.uint8)).tolist(),
        tokens=tokens.numpy().astype(np.int64),
        num_overflows=int(num_overflows),
        grad_norm=None if grad_norm is None else float(grad_norm),
    )


def _ratio(total: float, weight: float) -> float | None:
    return total / weight if weight else None


def _require_finite(sums: torch.Tensor, step: int) -> None:
    if not all(map(math.isfinite, sums.tolist())):
        raise FloatingPointError(f"the loss of step {step} is not finite; stopped before the update")
