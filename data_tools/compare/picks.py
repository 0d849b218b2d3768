"""Picks the best value of each condition of an experiment that varies a flag: its runs are in CONDITION/FLAG=VALUE."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_tools.base.errors import UserError
from data_tools.base.text_table import pluralize
from data_tools.compare.grid import Runs, rises
from data_tools.runs.logs import RunLogs
from data_tools.runs.settings import load_settings

METRIC = "heldout_c4_loss"
_UNVARIED = "no value"  # runs from before the experiment varied the flag


@dataclass(frozen=True)
class Pick:
    """The value that is best for a condition.

    Attributes:
        value: such as lr=1e-4.
        results: each value → the last value of the metric, mean over seeds.
        seeds: directories of the seeds that all values have.
        is_final: whether all of these runs have reached their last step.
    """

    condition: str
    value: str
    results: dict[str, float]
    seeds: list[str]
    is_final: bool


def pick_best(found: Runs, metric: str, only: Collection[str] | None = None) -> tuple[Runs, list[Pick]]:
    """Runs by condition, of its best value only; and what was picked, for conditions with several values.

    Args:
        only: the conditions that are of interest; default: all. Others have the runs of any value.

    Raises:
        UserError: the values of a condition have no seed in common, or a run has no value of the metric.
    """
    by_value: dict[str, dict[str, list[Path]]] = {}
    for name, runs in found.items():
        condition, _, value = name.partition("/")
        by_value.setdefault(condition, {})[value or _UNVARIED] = runs
    picks = {
        name: _pick(name, values, metric)
        for name, values in by_value.items()
        if len(values) > 1 and (only is None or name in only)
    }
    best = {
        name: values[picks[name].value if name in picks else next(iter(values))] for name, values in by_value.items()
    }
    return best, [*picks.values()]


def _pick(condition: str, values: Mapping[str, Sequence[Path]], metric: str) -> Pick:
    seeds = sorted(set.intersection(*({run.name for run in runs} for runs in values.values())))
    if not seeds:
        raise UserError(
            f"the values of {condition} ({', '.join(values)}) have no seed in common yet, so none can be picked; wait, "
            "or leave it out with --conditions."
        )
    results, is_final = {}, True
    for value, runs in values.items():
        logs = [RunLogs.read(run, condition) for run in runs if run.name in seeds]
        results[value] = float(np.mean([_last_value(one, metric) for one in logs]))
        is_final = is_final and all(one.last_step >= _total_steps(one.directory) for one in logs)
    best = max(results, key=lambda value: results[value] if rises(metric) else -results[value])
    return Pick(condition, best, results, seeds, is_final)


def _last_value(logs: RunLogs, metric: str) -> float:
    _, values = logs.column(metric, "step")
    if not len(values):
        raise UserError(f"--metric {metric}: {logs.directory} has no value of it.")
    return float(values[-1])


def _total_steps(run: Path) -> int:
    total = load_settings(run / "run.yaml").get("total_steps")
    return total if isinstance(total, int) else 0


def picks_text(picks: Sequence[Pick], metric: str) -> str:
    """What was picked, what the other values gave, and what that means for the conclusions."""
    lines = []
    for pick in picks:
        others = ", ".join(f"{value} {result:.4f}" for value, result in pick.results.items() if value != pick.value)
        lines.append(
            f"{pick.condition}: {pick.value} is picked, {metric} {pick.results[pick.value]:.4f} at the end "
            f"({pluralize(len(pick.seeds), 'seed')}); {others}."
        )
        if not pick.is_final:
            lines.append(
                f"Note: {pick.condition}: some of these runs still train; another value may be best in the end."
            )
    most = max(len(pick.results) for pick in picks)
    lines.append(
        f"Note: the best of {most} values was picked on the same held-out data and seeds that the comparison reads, so "
        "its results are optimistic. Train the picked values with other seeds to confirm a small difference."
    )
    return "\n".join(lines)
