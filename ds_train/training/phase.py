"""What pptrain and pretrain each bring to the one training loop."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from data_tools.samples.readers import Reader
from data_tools.samples.samplers import SampleKind, Sampler
from ds_train.checkpoints.state import TrainState
from ds_train.step.engine import Engine, StepResult
from ds_train.training.metrics import Row


class Phase(Protocol):
    """What pptrain and pretrain decide for themselves."""

    name: str
    accuracy: str

    def record(self, state: TrainState, result: StepResult) -> None:
        """Take the step's accuracy flags into the state."""

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

    def wants_evaluation(self, state: TrainState, promoted: bool) -> bool: ...

    def evaluate(self, engine: Engine, state: TrainState, before_batch: Callable[[], None]) -> dict[str, Any]:
        """This phase's columns of an evaluation row; ``before_batch`` is called before each batch. Collective."""
        ...


@dataclass(frozen=True)
class Cadence:
    """In optimizer steps."""

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
        phase, cadence: see the loop.
        sampler, readers: which samples, and how each source's are read.
        first_stage: curriculum stage of a fresh start, 0 for none.
        fingerprints: what a checkpoint must agree with, besides what all phases share.
        summary: what the run will do and on what, for people; name and description.
    """

    phase: Phase
    cadence: Cadence
    sampler: Sampler
    readers: dict[SampleKind, Reader]
    first_stage: int
    fingerprints: dict[str, str]
    summary: dict[str, str]
