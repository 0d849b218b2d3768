"""What a phase provides to the one training loop."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from data_tools.samples.readers import Reader
from data_tools.samples.samplers import SampleKind, Sampler
from ds_train.checkpoints.state import TrainState
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
        """Whether to evaluate after this step; after the last one the loop does so in any case."""
        ...

    def evaluate(self, engine: Engine, state: TrainState, before_batch: Callable[[], None]) -> dict[str, Any]:
        """This phase's columns of an evaluation row; ``before_batch`` is called before each batch. Collective."""
        ...


@dataclass(frozen=True)
class Cadence:
    """When a run logs, saves and ends, in optimizer steps."""

    log_every: int
    save_every: int
    max_steps: int | None
    stop_step: int | None

    def is_over(self, step: int) -> bool:
        return self.max_steps is not None and step >= self.max_steps


@dataclass(frozen=True)
class PhaseParts:
    """What a phase contributes to a run.

    Attributes:
        phase, cadence: used by the loop.
        sampler: chooses the samples of each global batch.
        readers: read the samples of each kind.
        first_stage: curriculum stage of a fresh start; 0 without a curriculum.
        fingerprints: what a resumed checkpoint must match, in addition to flags and what all phases share.
        summary: rows for the summary at the start, name → description.
    """

    phase: Phase
    cadence: Cadence
    sampler: Sampler
    readers: dict[SampleKind, Reader]
    first_stage: int
    fingerprints: dict[str, str]
    summary: dict[str, str]
