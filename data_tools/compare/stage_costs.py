"""What one more lookahead costs at each length, and from which length on another size of stages is the cheaper one."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from data_tools.compare.promotions import Promotions

_MIN_STAGES = 3  # a line through two points says nothing about its own error


@dataclass(frozen=True)
class StageCosts:
    """Costs of a condition's stages after the first, which teaches the task itself.

    Attributes:
        step: by how much a stage raises the lookahead (median).
        lookaheads: (stages,) geometric middle of the lookaheads between which a stage led.
        costs: (stages,) what it took for each lookahead that it added.
    """

    name: str
    step: float
    lookaheads: np.ndarray
    costs: np.ndarray


def stage_costs(found: Promotions) -> StageCosts | None:
    """The costs of stages between promotions of one run; None for fewer than three of them."""
    parts = []
    for run in np.unique(found.runs):
        of_run = found.runs == run
        lookaheads, costs = found.lookaheads[of_run], found.costs[of_run]
        added = np.diff(lookaheads)
        middles = np.sqrt(lookaheads[1:] * lookaheads[:-1])
        parts.append(np.stack([added, middles, np.diff(costs)])[:, added > 0])
    added, middles, costs = np.concatenate(parts, axis=1) if parts else np.empty((3, 0))
    if len(added) < _MIN_STAGES:
        return None
    return StageCosts(found.name, float(np.median(added)), middles, costs / added)


def stage_cost_notes(every: list[StageCosts], axis: str) -> list[str]:
    """For each two conditions of different steps, in a sentence, at which lookahead the other one becomes cheaper."""
    return [_compared(one, other, axis) for one, other in combinations(every, 2) if one.step != other.step]


def _compared(one: StageCosts, other: StageCosts, axis: str) -> str:
    finer, coarser = sorted((one, other), key=lambda costs: costs.step)
    names = f"{finer.name} (stages of {finer.step:g}) and {coarser.name} (stages of {coarser.step:g})"
    low = max(finer.lookaheads.min(), coarser.lookaheads.min())
    high = min(finer.lookaheads.max(), coarser.lookaheads.max())
    if low >= high:
        return f"{names} have no lookaheads in common."
    ratios = _cost_at(finer, np.array([low, high])) / _cost_at(coarser, np.array([low, high]))
    found = (
        f"{axis} per lookahead, {names}: the finer cost {ratios[0]:.2g} times as much at {low:.3g}, "
        f"{ratios[1]:.2g} times at {high:.3g}"
    )
    first, last = np.log(ratios)
    if first * last >= 0:
        return f"{found}; they do not cross between."
    share = first / (first - last)  # the difference of two lines is a line
    return f"{found}; they cross at {low ** (1 - share) * high**share:.3g}."


def _cost_at(stages: StageCosts, lookaheads: np.ndarray) -> np.ndarray:
    """The power law through a condition's stages, by least squares of logarithms."""
    slope, constant = np.polyfit(np.log(stages.lookaheads), np.log(stages.costs), 1)
    return np.exp(constant + slope * np.log(lookaheads))
