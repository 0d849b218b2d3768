"""Reads the promotions of runs: which lookahead was mastered, and what had been spent by then."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_tools.base.errors import UserError
from data_tools.compare.axes import positions_on
from data_tools.runs.logs import RunLogs


@dataclass(frozen=True)
class Promotions:
    """Those of a condition's runs, all seeds together, by rising cost.

    Attributes:
        costs: (promotions,) spent up to each, on an axis.
        lookaheads: (promotions,) the longest lookahead of the stage that was mastered.
        runs: (promotions,) which of the condition's runs it is of.
        is_nominal: whether lookaheads are stage numbers, because a log has no column ``lookahead``.
    """

    name: str
    costs: np.ndarray
    lookaheads: np.ndarray
    runs: np.ndarray
    is_nominal: bool


def read_promotions(name: str, directories: Sequence[Path], axis: str) -> Promotions:
    """Read the promotions of runs of pptrain.

    Args:
        axis: one of `axes.AXES`.

    Raises:
        UserError: a run has no curriculum, or its log lacks the axis.
    """
    every, is_nominal = [np.empty((0, 3))], False
    for number, directory in enumerate(directories):
        logs = RunLogs.read(directory, name)
        if "stage" not in logs.train:
            raise UserError(f"{directory} has no stages; give runs of pptrain, whose promotions are compared.")
        stages, steps = logs.mastered[:, 0], logs.mastered_at
        lookaheads = stages
        if "lookahead" in logs.train:
            of_stage = dict(zip(logs.train["stage"], logs.train["lookahead"], strict=True))
            lookaheads = np.array([of_stage.get(stage, np.nan) for stage in stages])
        is_nominal = is_nominal or "lookahead" not in logs.train
        costs = positions_on(logs, axis, steps)
        every.append(np.stack([costs, lookaheads, np.full(len(costs), number)], axis=1))
    found = np.concatenate(every)
    found = found[np.isfinite(found).all(axis=1) & (found[:, :2] > 0).all(axis=1)]
    found = found[np.argsort(found[:, 0], kind="stable")]
    costs, lookaheads, runs = found.T
    return Promotions(name, costs, lookaheads, runs, is_nominal)
