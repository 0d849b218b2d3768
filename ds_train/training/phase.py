"""What a phase provides to the one training loop."""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from data_tools.samples.readers import Reader
from data_tools.samples.samplers import Sampler
from ds_train.checkpoints.retention import Milestones
from ds_train.checkpoints.state import PFLOP, TrainState
from ds_train.config.trainer_flags import RunFlags
from ds_train.step.engine import Engine, StepResult
from ds_train.training.metrics import Row


class Phase(Protocol):
    """The decisions in which pptrain and pretrain differ."""

    name: str
    accuracy: str

    def record(self, state: TrainState, result: StepResult) -> None:
        """Add the step's accuracy flags to the state."""

    def train_columns(self, state: TrainState, result: StepResult) -> dict[str, Any]:
        """This phase's columns of a train row, before a promotion."""
        ...

    def status(self, row: Row) -> str:
        """A train row's columns of this phase, for the progress line."""
        ...

    def promote(self, state: TrainState) -> bool:
        """Apply the promotion rule; True when the stage changed and prefetched samples are void."""
        ...

    def is_finished(self, state: TrainState) -> bool: ...

    def wants_evaluation(self, state: TrainState, promoted: bool) -> bool:
        """Whether to evaluate after this step; at those of ``--eval_at`` and the last the loop does so in any case."""
        ...

    def evaluate(self, engine: Engine, state: TrainState, before_batch: Callable[[int], None]) -> dict[str, Any]:
        """This phase's columns of an evaluation row; ``before_batch`` is called before each batch. Collective."""
        ...


@dataclass(frozen=True)
class Cadence:
    """When a run logs, saves and is evaluated besides what its phase wants, in optimizer steps, and what limits it."""

    log_every: int
    save_every: int
    max_steps: int | None
    stop_step: int | None
    max_tokens: int | None = None
    max_pflops: float | None = None
    eval_at: Collection[int] = ()
    milestones: Milestones = field(default_factory=Milestones)

    @classmethod
    def of(cls, run: RunFlags, save_every: int, max_steps: int | None, keep_stages: Collection[int] = ()) -> "Cadence":
        """What the flags ask for.

        Args:
            save_every: where no flag sets it.
            keep_stages: where these are mastered, a checkpoint is kept.
        """
        limits = max_steps, run.stop_step, run.max_tokens, run.max_pflops
        milestones = Milestones(run.keep_steps or (), run.keep_pflops or (), keep_stages)
        return cls(run.log_every, run.save_every or save_every, *limits, run.eval_at or (), milestones)

    def most_kept(self, keep_last: int, keep_every: int) -> float:
        """How many checkpoints stay at most, by ``--keep_last`` and ``--keep_every``; infinite in an endless run."""
        kept: float = keep_last + len(self.milestones)
        if interval := keep_every if keep_last else self.save_every:
            kept += math.inf if self.max_steps is None else math.ceil(self.max_steps / interval)
        return kept

    def limit_reached(self, state: TrainState) -> str | None:
        """The limit that the run has reached, by name; None while it is within all."""
        reached = {
            "max_steps": self.max_steps is not None and state.step >= self.max_steps,
            "max_tokens": self.max_tokens is not None and state.tokens >= self.max_tokens,
            "max_pflops": self.max_pflops is not None and state.flops >= self.max_pflops * PFLOP,
        }
        return next((name for name, is_reached in reached.items() if is_reached), None)


@dataclass(frozen=True)
class PhaseParts:
    """What a phase contributes to a run.

    Attributes:
        phase, cadence: used by the loop.
        sampler: chooses the samples of each global batch.
        readers: read the samples of each source.
        first_stage: curriculum stage of a fresh start; 0 without a curriculum.
        fingerprints: what a resumed checkpoint must match, in addition to flags and what all phases share.
        summary: rows for the summary at the start, name → description.
        weights_place: the path of the weights that a fresh start would have today; None: the model's own or random.
        branch_from: checkpoint of another run that a fresh start continues (run/branch.py).
    """

    phase: Phase
    cadence: Cadence
    sampler: Sampler
    readers: Mapping[int, Reader]
    first_stage: int
    fingerprints: dict[str, str]
    summary: dict[str, str]
    weights_place: str | None = None
    branch_from: Path | None = None
