"""The accuracy-gated curriculum: the rule by which the stage advances, computed exactly, in integers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import count

from scipy.special import bdtrc

from data_tools.base.errors import UserError
from data_tools.base.text_table import pluralize

# A window is too small if a model whose accuracy is `_SHORTFALL` below the threshold passes one of `_NUM_CHECKS` checks
# with a probability above `_TOLERATED`.
_SHORTFALL, _NUM_CHECKS, _TOLERATED = 0.02, 20, 0.05


@dataclass(frozen=True)
class Replay:
    """The promotions of another run, in place of the rule.

    Attributes:
        steps: the optimizer steps at which it was promoted.
        last_step: the last one that it has trained; it may be promoted later.
    """

    steps: tuple[int, ...]
    last_step: int


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
        min_stage_steps: optimizer steps that each stage is trained at least.
        replay: replaces the rule, if given.
    """

    max_stage: int
    window: int = 200
    threshold: float = 0.98
    check_every: int = 10
    start_stage: int = 1
    stage_step: int = 1
    min_stage_steps: int = 0
    replay: Replay | None = None

    def __post_init__(self) -> None:
        if self.start_stage > self.max_stage:
            raise UserError(
                f"--start_stage {self.start_stage} is beyond the last stage {self.max_stage} (--max_lookahead); "
                f"choose 1 … {self.max_stage}."
            )

    def __str__(self) -> str:
        stages = f"stages {self.start_stage} … {self.max_stage}"
        if self.replay:
            times = pluralize(len(self.replay.steps), "promotion")
            return f"{stages}; {times} as in the run replayed, which is known to step {self.replay.last_step:,}"
        at_least = f", after {self.min_stage_steps:,} steps at least" if self.min_stage_steps else ""
        return f"{stages}; the next one once {self.threshold:.0%} of the last {self.window} answers are right{at_least}"

    @property
    def required(self) -> int:
        """Correct flags needed in a full window, from the threshold's decimal digits: 0.98 is exactly 98/100."""
        return math.ceil(Fraction(str(self.threshold)) * self.window)

    def alpha(self, stage: int) -> float:
        return stage / self.max_stage

    def extended(self, flags: Sequence[int], new: Sequence[int]) -> list[int]:
        """The window after a step's flags, oldest first, at most ``window`` long."""
        return [*flags, *new][-self.window :]

    def is_mastered(self, step: int, flags: Sequence[int], stage_steps: int) -> bool:
        """Whether the promotion rule holds at this optimizer step (from 1), after ``stage_steps`` of the stage."""
        if self.replay:
            return step in self.replay.steps
        is_checked = step % self.check_every == 0 and stage_steps >= self.min_stage_steps
        return is_checked and len(flags) == self.window and sum(flags) >= self.required

    def fewest_steps(self, global_batch: int) -> int:
        """Optimizer steps after which all stages can be mastered; of a replay, those of the other run."""
        if self.replay:
            return self.replay.last_step
        of_stage = max(-(-self.window // global_batch), self.min_stage_steps)
        return len(self.stages) * -(-of_stage // self.check_every) * self.check_every

    def chance_to_pass(self, accuracy: float) -> float:
        """The probability that the rule holds for a full window of independent answers, each right with ``accuracy``.

        This is the tail of a binomial distribution.
        """
        return float(bdtrc(self.required - 1, self.window, accuracy))

    def warnings(self, global_batch: int) -> list[str]:
        """What is wrong with the size of the window, in sentences."""
        if self.replay:
            return []
        found = []
        if self.window < global_batch:
            found.append(
                f"--curr_window {self.window:,} is smaller than the global batch: of its {global_batch:,} answers each "
                "check counts the last ones only"
            )
        accuracy = max(0.0, self.threshold - _SHORTFALL)
        once, ever = self._odds(accuracy)
        if ever > _TOLERATED:
            sizes = (replace(self, window=self.window * 2**doublings) for doublings in count(1))
            larger = next(size for size in sizes if size._odds(accuracy)[1] <= _TOLERATED)
            found.append(
                f"--curr_window {self.window:,} promotes by chance: a model whose true accuracy is {accuracy:.3g} "
                f"passes a check at --curr_threshold {self.threshold:g} in {once:.2%} of cases, and one of "
                f"{_NUM_CHECKS} checks in {ever:.1%}. With a window of {larger.window:,} it passes a check in "
                f"{larger._odds(accuracy)[0]:.2%}"
            )
        return found

    def _odds(self, accuracy: float) -> tuple[float, float]:
        """The chance to pass one check, and at least one of `_NUM_CHECKS` that share no answers."""
        once = self.chance_to_pass(accuracy)
        return once, 1 - (1 - once) ** _NUM_CHECKS

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
