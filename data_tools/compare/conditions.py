"""Reads run directories as conditions: for each seed the curve of a metric, and what limits its meaning."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.base.errors import UserError
from data_tools.base.text_table import pluralize
from data_tools.compare.axes import positions_on, pptrain_cost
from data_tools.compare.curves import Curve
from data_tools.compare.grid import rises
from data_tools.runs.logs import RunLogs
from data_tools.runs.settings import load_settings

_DEFAULT_SEED = 1337
_ROUNDING = 1e-9
_DECAYING = ("WarmupDecayLR", "WarmupCosineLR", "WarmupStableDecay")


@dataclass(frozen=True)
class SeedRun:
    """One run of a condition.

    Attributes:
        curve: its metric against the axis.
        last_step: of its log.
        total_steps: that it is to have; None if its settings do not give it.
        decays: whether its learning rate falls to the end of its schedule.
        pptrain_tokens: of the pre-pretraining that it started from; 0 without any, NaN if that is not known.
        directory: of the run.
        branched_from: the checkpoint of another run that it branched off at, if it did.
    """

    curve: Curve
    last_step: int
    total_steps: int | None = None
    decays: bool = False
    pptrain_tokens: float = np.nan
    directory: Path = Path()
    branched_from: Path | None = None


@dataclass(frozen=True)
class Condition:
    """Runs that differ in their seed only: seed → run."""

    name: str
    runs: dict[int, SeedRun]


def read_condition(name: str, directories: Sequence[Path], metric: str, axis: str, charge_pptrain: bool) -> Condition:
    """Read the runs of a condition.

    Args:
        metric: a column of the logs.
        axis: one of `axes.AXES`.
        charge_pptrain: whether positions include what the pre-pretraining took.

    Raises:
        UserError: two runs have one seed, or a run lacks the metric, the axis or its pre-pretraining.
    """
    runs: dict[int, SeedRun] = {}
    for directory in directories:
        logs = RunLogs.read(directory, name)
        flags = load_settings(directory / "run.yaml")
        seed = flags.get("seed")
        seed = _DEFAULT_SEED if seed is None else int(seed)
        if seed in runs:
            raise UserError(
                f"{name} has two runs of seed {seed}, by their run.yaml; {directory} is one. Leave one out."
            )
        charge = pptrain_cost(logs, flags, axis) if charge_pptrain else 0.0
        curve = _curve(logs, metric, axis, charge)
        schedule = load_settings(directory / "deepspeed.json").get("scheduler") or {}
        runs[seed] = SeedRun(
            curve, logs.last_step, _total_steps(flags, schedule), schedule.get("type") in _DECAYING,
            _pptrain_tokens(logs, flags), directory.resolve(), _branch_point(flags),
        )  # fmt: skip
    return Condition(name, runs)


def _branch_point(flags: dict[str, Any]) -> Path | None:
    given = flags.get("branch_from")
    return Path(str(given)).resolve() if given else None


def _total_steps(flags: dict[str, Any], schedule: dict[str, Any]) -> int | None:
    total = (schedule.get("params") or {}).get("total_num_steps")
    total = total if isinstance(total, int) else flags.get("total_steps")
    return total if isinstance(total, int) else None


def _curve(logs: RunLogs, metric: str, axis: str, charge: float) -> Curve:
    steps, values = logs.column(metric, "step")
    if not len(steps):
        known = sorted((logs.train.keys() | logs.evaluations.keys()) - {"step", "timestamp"})
        raise UserError(f"--metric {metric}: {logs.directory} has no value of it; its logs have {', '.join(known)}.")
    positions = positions_on(logs, axis, steps) + charge
    kept = np.isfinite(positions) & (positions > 0)  # what a run had before its first step is no result of it
    positions, values = positions[kept], values[kept]
    # A step may spend nothing on an axis, such as one without a block of C4; but for rounding, that is.
    before = np.maximum.accumulate(np.append(0, positions[:-1]))
    kept = positions > before * (1 + _ROUNDING)
    if kept.sum() < 2:
        raise UserError(
            f"{logs.directory} has {pluralize(int(kept.sum()), 'value')} of {metric} after its start; two are needed."
        )
    return Curve(positions[kept], values[kept], charge, falls=not rises(metric))


def _pptrain_tokens(logs: RunLogs, flags: dict[str, Any]) -> float:
    try:
        return pptrain_cost(logs, flags, "tokens")
    except UserError:
        return np.nan
