"""The accuracy-gated curriculum: the rule by which the stage advances, computed exactly, in integers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from data_tools.base.errors import UserError


@dataclass(frozen=True)
class Curriculum:
    """Stages start_stage … max_stage. A full window of accuracy flags with enough correct ones advances the stage.

    Attributes:
        max_stage: the last stage (alpha 1); training ends when it is mastered.
        window: number of latest accuracy flags that the rule looks at, in global sample order.
        threshold: required accuracy; compared in integers (0.98 of 200 is 196).
        check_every: the rule is applied at optimizer steps divisible by this.
        start_stage: first stage.
        stage_step: stages gained by a promotion; the last one is clamped so that max_stage is always trained.
    """

    max_stage: int
    window: int = 200
    threshold: float = 0.98
    check_every: int = 10
    start_stage: int = 1
    stage_step: int = 1

    def __post_init__(self) -> None:
        if self.start_stage > self.max_stage:
            raise UserError(
                f"--start_stage {self.start_stage} is beyond the last stage {self.max_stage} (--max_lookahead); "
                f"choose 1 … {self.max_stage}."
            )

    @property
    def required(self) -> int:
        """Correct flags needed in a full window, from the threshold's decimal digits: 0.98 is exactly 98/100."""
        return math.ceil(Fraction(str(self.threshold)) * self.window)

    def alpha(self, stage: int) -> float:
        return stage / self.max_stage

    def extended(self, flags: Sequence[int], new: Sequence[int]) -> list[int]:
        """The window after a step's flags, oldest first, at most ``window`` long."""
        return [*flags, *new][-self.window :]

    def is_mastered(self, step: int, flags: Sequence[int]) -> bool:
        """Whether the promotion rule holds at this optimizer step (from 1)."""
        return step % self.check_every == 0 and len(flags) == self.window and sum(flags) >= self.required

    @property
    def stages(self) -> list[int]:
        """All that are trained, in order."""
        return [*range(self.start_stage, self.max_stage, self.stage_step), self.max_stage]

    def named_stages(self, names: Sequence[str]) -> list[int]:
        """The stages of ``--keep_stages``: all, or by number."""
        stages = {str(stage): stage for stage in self.stages}
        if unknown := [name for name in names if name not in (*stages, "all")]:
            raise UserError(
                f"--keep_stages {unknown[0]}: no stage of this curriculum; give all, or {' '.join(stages)}."
            )
        return self.stages if "all" in names else [stages[name] for name in names]

    def next_stage(self, stage: int) -> int | None:
        """The stage after a promotion, or None when the last one was mastered."""
        return None if stage >= self.max_stage else min(stage + self.stage_step, self.max_stage)
