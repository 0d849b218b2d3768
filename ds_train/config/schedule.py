"""The learning rate of every optimizer step, as a pure function of the JSON's ``scheduler`` block.

Names and parameters are DeepSpeed's, except for ``WarmupStableDecay``, which it lacks. Step k (from 1) has one exact
learning rate. DeepSpeed's own warm-up classes train the first two steps at 0, never reach the peak, and carry state
through checkpoints.
"""

import math
from dataclasses import dataclass
from typing import Any

from data_tools.base.errors import UserError
from data_tools.base.kinds import complaint, is_of_kind

_WARMUP_KEYS = {"warmup_num_steps", "warmup_type"}
_KEYS = {
    "WarmupLR": _WARMUP_KEYS | {"warmup_min_lr", "warmup_max_lr"},
    "WarmupDecayLR": _WARMUP_KEYS | {"warmup_min_lr", "warmup_max_lr", "total_num_steps"},
    "WarmupCosineLR": _WARMUP_KEYS | {"warmup_min_ratio", "cos_min_ratio", "total_num_steps"},
}
_KEYS["WarmupStableDecay"] = _KEYS["WarmupDecayLR"] | {"decay_num_steps", "decay_type"}
_DECAY = {"WarmupLR": "constant", "WarmupDecayLR": "linear", "WarmupCosineLR": "cosine"}


@dataclass(frozen=True)
class Schedule:
    """Warm-up from ``start_lr`` to ``base_lr`` over ``warmup_steps``, then constant or a decay.

    Attributes:
        warmup_type: the fraction reached at step k of W: ``linear`` k / W, ``log`` log(1 + k) / log(1 + W).
        decay: ``constant``, or until total_steps ``linear`` (to 0), ``1-sqrt`` (to 0) or ``cosine`` (to ``min_lr``).
            1-sqrt is 1 - √(share of the decay that is done), of Hägele et al. 2024 (arXiv 2405.18392).
        decay_steps: length of the decay, after steps at ``base_lr``; 0: all steps after the warm-up.
    """

    base_lr: float
    start_lr: float = 0.0
    warmup_steps: int = 0
    warmup_type: str = "linear"
    decay: str = "constant"
    min_lr: float = 0.0
    total_steps: int = 0
    decay_steps: int = 0

    def __str__(self) -> str:
        form = {"linear": "linear to 0", "1-sqrt": "1-sqrt to 0", "cosine": f"a cosine to {self.min_lr:g}"}
        decay = f"then {form[self.decay]} at step {self.total_steps:,}" if self.decay in form else "then constant"
        until = f"until step {self.total_steps - self.decay_steps:,}, " if self.decay_steps else ""
        return f"{self.base_lr:g} after {self.warmup_steps:,} warm-up steps, {until}{decay}"

    def lr(self, step: int) -> float:
        """The learning rate of optimizer step ``step`` (from 1)."""
        if step < self.warmup_steps or (step == self.warmup_steps and self.decay == "constant"):
            linear = self.warmup_type == "linear"
            done = step / self.warmup_steps if linear else math.log1p(step) / math.log1p(self.warmup_steps)
            return self.start_lr + (self.base_lr - self.start_lr) * done
        if self.decay == "constant":
            return self.base_lr
        start = self.total_steps - self.decay_steps if self.decay_steps else self.warmup_steps
        progress = min(1.0, max(0, step - start) / max(1, self.total_steps - start))
        if self.decay == "linear":
            return self.base_lr * (1 - progress)
        if self.decay == "1-sqrt":
            return self.base_lr * (1 - math.sqrt(progress))
        return self.min_lr + (self.base_lr - self.min_lr) * (1 + math.cos(math.pi * progress)) / 2


def schedule_from_block(block: dict[str, Any] | None, base_lr: float, total_steps: int | None) -> Schedule:
    """Read a DeepSpeed ``scheduler`` block; defaults of absent parameters are DeepSpeed's.

    Args:
        block: ``{"type": …, "params": {…}}``, or None for a constant learning rate.
        base_lr: the optimizer's learning rate.
        total_steps: the run's length in optimizer steps, None if unknown.

    Raises:
        UserError: an unsupported type, an unknown parameter, or values that contradict one another.
    """
    if block is None:
        return Schedule(base_lr)
    kind, params = _checked_block(block)
    peak = params.get("warmup_max_lr", "auto")
    if peak not in ("auto", base_lr):
        raise UserError(
            f"scheduler.params.warmup_max_lr {peak} contradicts optimizer.params.lr {base_lr}; "
            'set warmup_max_lr to "auto" or to the same value.'
        )
    start_lr = params.get("warmup_min_lr", 0.0)
    if start_lr > base_lr:
        raise UserError(f"scheduler.params.warmup_min_lr {start_lr} is above optimizer.params.lr {base_lr}; lower it.")
    if kind == "WarmupCosineLR":
        start_lr = base_lr * params.get("warmup_min_ratio", 0.0)
    schedule = Schedule(
        base_lr=base_lr,
        start_lr=start_lr,
        warmup_steps=int(params.get("warmup_num_steps", 1000)),
        warmup_type=params.get("warmup_type", "log"),
        decay=_DECAY.get(kind) or params.get("decay_type", "linear"),
        min_lr=base_lr * params.get("cos_min_ratio", 0.0001),
        total_steps=0 if kind == "WarmupLR" else _total_steps(kind, params, total_steps),
        decay_steps=params.get("decay_num_steps", 0),
    )
    if kind == "WarmupStableDecay":
        _check_decay(schedule)
    return schedule


def _check_decay(schedule: Schedule) -> None:
    """Refuse a constant rate without a decay, or with one that would begin during the warm-up."""
    if not schedule.decay_steps:
        raise UserError("scheduler WarmupStableDecay lacks decay_num_steps; set it, or give --decay_steps.")
    if schedule.warmup_steps + schedule.decay_steps > schedule.total_steps:
        raise UserError(
            f"scheduler WarmupStableDecay: {schedule.warmup_steps} warm-up steps and {schedule.decay_steps} of decay "
            f"are more than the run's {schedule.total_steps}; set fewer, or train longer."
        )


def _checked_block(block: Any) -> tuple[str, dict[str, Any]]:
    """Type and parameters of a ``scheduler`` block, every value of the right kind."""
    if not isinstance(block, dict) or set(block) - {"type", "params"}:
        raise UserError(f'scheduler is {block!r}, expected {{"type": …, "params": {{…}}}} and nothing else.')
    kind, params = block.get("type"), block.get("params", {})
    if not isinstance(kind, str) or kind not in _KEYS:
        raise UserError(f"scheduler.type is {kind!r}, expected one of {', '.join(_KEYS)}.")
    if not isinstance(params, dict):
        raise UserError(f"scheduler.params is {params!r}, expected an object of parameters.")
    if unknown := set(params) - _KEYS[kind]:
        raise UserError(f"scheduler.params has unknown {sorted(unknown)}; {kind} takes {sorted(_KEYS[kind])}.")
    for key, value in params.items():
        if not is_of_kind(value, _KINDS[key]):
            raise UserError(complaint(f"scheduler.params.{key}", value, _KINDS[key]))
    return kind, params


_KINDS = {
    "warmup_num_steps": "whole number in [0, 1e9]",
    "warmup_type": "linear | log",
    "warmup_min_lr": "number in [0, 1e9]",
    "warmup_max_lr": "auto | number in (0, 1e9]",
    "warmup_min_ratio": "number in [0, 1]",
    "cos_min_ratio": "number in [0, 1]",
    "total_num_steps": "auto | whole number in [1, 1e9]",
    "decay_num_steps": "whole number in [1, 1e9]",
    "decay_type": "linear | 1-sqrt",
}


def _total_steps(kind: str, params: dict[str, Any], total_steps: int | None) -> int:
    asked = params.get("total_num_steps", "auto")
    if asked == "auto":
        if total_steps is None:
            raise UserError(
                f"scheduler {kind} needs the run's length; set scheduler.params.total_num_steps or --max_steps."
            )
        return total_steps
    if total_steps is not None and asked != total_steps:
        raise UserError(
            f"scheduler.params.total_num_steps {asked} contradicts the run's {total_steps} steps; "
            'set it to "auto" or make them equal.'
        )
    return int(asked)
