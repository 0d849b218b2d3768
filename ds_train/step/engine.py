"""The only DeepSpeed engine, and the one optimizer step."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from functools import cache
from io import StringIO
from itertools import chain, repeat
from typing import Any

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine as Engine
from deepspeed.runtime.zero.linear import LinearFunctionForZeroStage3

from data_tools.base.errors import UserError
from data_tools.samples.samplers import GlobalBatchPlan
from ds_train.config.layout import Layout
from ds_train.model.causal_lm import DTYPES, cast_parameters
from ds_train.ranks.collectives import gather_objects, start_gathering
from ds_train.step.losses import AnswerCorrectness, PackedLM
from ds_train.step.micro_batch import C4, SYNTHETIC, MicroBatch, idle_micro_batch
from ds_train.step.nonfinite import NonFinite, drop_nonfinite_gradients
from ds_train.step.stream import RankBatch


def build_engine(model: PackedLM, config: dict[str, Any]) -> Engine:
    """Wrap the model in a DeepSpeed engine.

    Args:
        config: DeepSpeed's JSON, without a scheduler (see `set_learning_rate`).

    Raises:
        UserError: DeepSpeed refuses the JSON.
    """
    wants_memory = config.get("memory_breakdown", False)
    try:
        with nullcontext() if wants_memory else redirect_stdout(StringIO()):  # the bf16 optimizer always prints memory
            if config.get("zero_optimization", {}).get("stage") == 3:
                _cut_weights(model, config)
            engine, *_ = deepspeed.initialize(
                model=model, model_parameters=_parameter_groups(model), config=config, dist_init_required=False
            )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of any type: a missing compiler, an optimizer that cannot be sharded, bad values
        raise UserError(
            f"DeepSpeed cannot build an engine from this JSON: {type(error).__name__}: {str(error).strip()[:500]} "
            "Change the JSON; --debug shows the traceback."
        ) from error
    for buffer in model.buffers():  # which stay where they are if the weights are cut
        buffer.data = buffer.data.to(engine.device)
    if is_plain(engine):
        engine.optimizer.register_step_pre_hook(drop_nonfinite_gradients)
    # Taken before a checkpoint is loaded, which brings the rates of the step that it was saved after.
    lr = config["optimizer"]["params"]["lr"]
    engine.rate_factors = [group["lr"] / lr for group in engine.optimizer.param_groups]
    return engine


def _cut_weights(model: PackedLM, config: dict[str, Any]) -> None:
    """Leave this rank its share of each weight, before DeepSpeed moves all of them to the device at once."""
    precision = next((name for name in ("bf16", "fp16") if config.get(name, {}).get("enabled")), "fp32")
    cast_parameters(model, DTYPES[precision])
    deepspeed.zero.Init(module=model, config_dict_or_path=config)
    LinearFunctionForZeroStage3.forward = staticmethod(torch.ops.aten.linear)  # its own rounds before it adds a bias


def _parameter_groups(model: PackedLM) -> list[dict[str, Any]]:
    """What is trained, with and without weight decay. DeepSpeed takes no empty group."""
    groups: list[dict[str, Any]] = [{"params": []}, {"params": [], "weight_decay": 0.0}]
    for name, parameter in model.named_parameters():  # tied ones once
        if parameter.requires_grad:
            groups[name in model.no_decay]["params"].append(parameter)
    return [group for group in groups if group["params"]]


def set_learning_rate(engine: Engine, lr: float) -> None:
    """Set the learning rate of the next step. No scheduler keeps state, so the rate depends on the step only.

    A group with a rate of its own (of Muon) keeps its proportion to the JSON's ``optimizer.params.lr``.
    """
    for group, factor in zip(engine.optimizer.param_groups, engine.rate_factors, strict=True):
        group["lr"] = lr * factor


@dataclass(frozen=True)
class StepResult:
    """What an optimizer step did, the same on every rank.

    Attributes:
        plan: the samples it trained on.
        loss: sum(w · nll) / sum(w) over the global batch.
        c4_loss, synthetic_loss: the same over the targets of one source, None where there were none.
        flags: (global_batch,) accuracy flags (0/1) in global sample order.
        tokens: (2,) real targets of C4 and of synthetic documents.
        computed: (2,) tokens of all documents, and pairs of tokens of one document.
        num_overflows: candidates that were longer than seq_len.
        num_forwards: of each rank.
        requests: the largest of all ranks' ``own_requests``.
        grad_norm: global gradient norm before clipping; not finite where `nonfinite` is set.
        nonfinite: set when the loss or the gradient norm was not finite. Then nothing was updated and flags is empty.
    """

    plan: GlobalBatchPlan
    loss: float
    c4_loss: float | None
    synthetic_loss: float | None
    flags: list[int]
    tokens: np.ndarray
    computed: np.ndarray
    num_overflows: int
    num_forwards: int
    requests: list[int]
    grad_norm: float | None
    nonfinite: NonFinite | None = None


def train_step(
    engine: Engine, batch: RankBatch, layout: Layout, accuracy: str, own_requests: Callable[[], Sequence[int]]
) -> StepResult:
    """Train one global batch: forward, backward and update, with the same result in any layout.

    The loss is divided by the weight of the whole global batch. DeepSpeed averages gradients over ranks, which is
    multiplied back.

    DeepSpeed skips an update whose gradient norm is not finite, on all ranks. `_run_micro_batches` turns a loss that
    is not finite into such a norm. So a bad value on any rank updates nothing anywhere.

    The ranks exchange numbers twice, besides DeepSpeed: counts before the first backward, results after the update.

    Args:
        accuracy: which flag the curriculum counts, ``any`` or ``first``.
        own_requests: called after the update, gives some numbers; the largest of all ranks are returned.
    """
    device = engine.device
    counts = _start_counting(batch, device)  # the first forward hides the exchange

    # Forward, backward and update of this rank's micro-batches.
    sums_by_micro_batch: list[torch.Tensor] = []
    flags = AnswerCorrectness.none(batch.num_examples, device)

    def take(micro_batch: MicroBatch, source_sums: torch.Tensor, is_right: torch.Tensor) -> None:
        sums_by_micro_batch.append(source_sums)
        flags.add(micro_batch, is_right)

    _run_micro_batches(engine, batch, counts, take)
    counted, grad_norm = counts(), engine.get_global_grad_norm()

    # Exchange the results. A value that is not finite has prevented the update: find where it arose.
    own_sums = torch.stack(sums_by_micro_batch)  # (forward, source)
    own_flags = flags.by_any if accuracy == "any" else flags.by_first
    (c4_sum, synthetic_sum), requests, all_flags = _exchanged(own_sums.sum(0), own_requests(), own_flags, layout)
    nonfinite = None
    if not math.isfinite(c4_sum + synthetic_sum):
        nonfinite = NonFinite("loss", _suspects(batch, ~own_sums.isfinite().all(1)))
    elif not engine.was_step_applied() and not engine.fp16_enabled():  # in fp16 the loss scaler skips steps as well
        nonfinite = NonFinite("gradient norm", _suspects(batch, _nonfinite_gradients(engine, batch, counts)))

    # The result is the same on every rank.
    return StepResult(
        plan=batch.plan,
        loss=float((c4_sum + synthetic_sum) / counted.weights.sum()),
        c4_loss=_ratio(c4_sum, counted.weights[C4]),
        synthetic_loss=_ratio(synthetic_sum, counted.weights[SYNTHETIC]),
        flags=[] if nonfinite else all_flags,
        tokens=counted.tokens,
        computed=counted.computed,
        num_overflows=counted.num_overflows,
        num_forwards=counted.num_forwards,
        requests=requests,
        grad_norm=None if grad_norm is None else float(grad_norm),
        nonfinite=nonfinite,
    )


def _exchanged(
    sums: torch.Tensor, requests: Sequence[int], flags: torch.Tensor, layout: Layout
) -> tuple[list[float], list[int], list[int]]:
    """The sums over ranks, the largest of their requests, and their flags in global order. Collective."""
    padding = sums.new_zeros(layout.samples_of_largest_rank - len(flags))
    own = torch.cat([sums, sums.new_tensor(requests), flags.to(sums.dtype), padding])
    all_sums, all_requests, all_flags = start_gathering(own)().split(
        [len(sums), len(requests), layout.samples_of_largest_rank], dim=1
    )
    rows = enumerate(all_flags.int().tolist())
    in_order = [flag for rank, row in rows for flag in row[: layout.num_samples(rank)]]
    return all_sums.sum(0).tolist(), all_requests.amax(0).int().tolist(), in_order


@dataclass(frozen=True)
class _Counts:
    """Weights and counts of a global batch over all ranks; see `StepResult` for those without a description.

    Attributes:
        weights: (2,) float64, sum of loss weights of C4 and of synthetic targets.
        num_forwards: of the rank that has most.
    """

    weights: np.ndarray
    tokens: np.ndarray
    computed: np.ndarray
    num_overflows: int
    num_forwards: int


def _start_counting(batch: RankBatch, device: torch.device) -> Callable[[], _Counts]:
    """Start to exchange the counts of a global batch; the result waits for them. Collective."""
    own = [*batch.weights, *batch.tokens, *batch.computed, len(batch.overflows), len(batch.micro_batches)]
    finish = start_gathering(torch.tensor(own, dtype=torch.float64).to(device))  # float64 holds all exactly

    @cache
    def counts() -> _Counts:
        rows = finish().numpy()
        weights, tokens, computed, (num_overflows, _) = np.split(rows.sum(0), [2, 4, 6])
        return _Counts(
            weights, tokens.astype(np.int64), computed.astype(np.int64), int(num_overflows), int(rows[:, -1].max())
        )

    return counts


def _run_micro_batches(
    engine: Engine,
    batch: RankBatch,
    counts: Callable[[], _Counts],
    take: Callable[[MicroBatch, torch.Tensor, torch.Tensor], None],
) -> None:
    """Run forward, backward and update, and pass each micro-batch, its per-source loss sums and flags to ``take``.

    A rank without work of its own joins the forwards of others, as ZeRO 2 and 3 require.
    """
    engine.set_gradient_accumulation_boundary(False)
    cpu_batches = chain(batch.micro_batches, repeat(idle_micro_batch()))
    for number, cpu_batch in enumerate(cpu_batches, start=1):
        micro_batch = cpu_batch.to(engine.device)
        loss_sum, source_sums, is_right = engine(micro_batch)
        take(micro_batch, source_sums, is_right)
        num_forwards, scale = counts().num_forwards, dist.get_world_size() / counts().weights.sum()
        engine.set_gradient_accumulation_boundary(number == num_forwards)
        # A loss that is not finite could leave finite gradients. 0 · sum makes them NaN then, and adds 0 otherwise.
        engine.backward(loss_sum * (scale + (0 * source_sums.sum()).float()))
        if is_plain(engine) and number == num_forwards:
            _check_gradients(engine)
        engine.step()
        if number == num_forwards:
            return


def is_plain(engine: Engine) -> bool:
    """Whether the optimizer is torch's own (ZeRO 0 in fp32), which ignores the gradient norm, unlike DeepSpeed's."""
    return engine.optimizer is engine.basic_optimizer


def _check_gradients(engine: Engine) -> None:
    """Set the two attributes on a plain optimizer that the engine reads from DeepSpeed's."""
    norm = torch.nn.utils.get_total_norm(p.grad for p in engine.module.parameters() if p.grad is not None)
    engine.optimizer._global_grad_norm = norm
    engine.optimizer.overflow = not math.isfinite(norm)


def _nonfinite_gradients(engine: Engine, batch: RankBatch, counts: Callable[[], _Counts]) -> torch.Tensor:
    """Which forwards of this rank have a gradient of their own that is not finite: (num_forwards,) bool. Collective.

    The reduction spreads a bad value to all ranks. So the step runs once more, with hooks that inspect the gradients
    before the reduction. The hooks return NaN, so that this second pass updates nothing either.
    """
    found = torch.zeros(counts().num_forwards, dtype=torch.bool, device=engine.device)
    number = -1

    def count(*_: Any) -> None:
        nonlocal number
        number += 1

    def look(gradient: torch.Tensor) -> torch.Tensor:
        found[number] |= ~gradient.isfinite().all()
        return torch.full_like(gradient, math.nan)

    hooks = [parameter.register_hook(look) for parameter in engine.module.parameters() if parameter.requires_grad]
    _run_micro_batches(engine, batch, counts, count)
    for hook in hooks:
        hook.remove()
    return found


def _suspects(batch: RankBatch, is_bad: torch.Tensor) -> list[list[int]]:
    """For each rank the positions in the global batch of the samples in its bad micro-batches. Collective.

    Args:
        is_bad: (num_forwards,) bool, of this rank's forwards; those beyond its micro-batches hold no samples.
    """
    found = {n for positions, bad in zip(batch.positions, is_bad.tolist(), strict=False) if bad for n in positions}
    return gather_objects(sorted(found))


def _ratio(total: float, weight: float) -> float | None:
    return float(total / weight) if weight else None
