"""The runs of an experiment, which are in DIR/CONDITION/seed_N; its first phases have names that begin with pptrain.

Of one that varies a flag they are in DIR/CONDITION/FLAG=VALUE/seed_N.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

_FIRST_PHASE, _ON_C4 = "pptrain", "_on_c4"
_MIN_ROWS = 2

Runs = dict[str, list[Path]]  # directories of each condition, or of each of its values, one a seed


def runs_with_curves(directory: Path) -> Runs:
    """Runs of pretrain that have a curve; one that has just begun has its start and perhaps one more evaluation."""
    return {name: runs for name, runs in _runs(directory, "eval.jsonl").items() if not name.startswith(_FIRST_PHASE)}


def pptrain_runs(directory: Path) -> Runs:
    """Runs of pptrain that have rows in their logs."""
    found = _runs(directory, "train.jsonl")
    return {name: runs for name, runs in found.items() if name.startswith(_FIRST_PHASE) and not name.endswith(_ON_C4)}


def _runs(directory: Path, log_name: str) -> Runs:
    found: Runs = {}
    for run in sorted([*directory.glob("*/seed_*"), *directory.glob("*/*=*/seed_*")]):
        log = run / "logs" / log_name
        if log.exists() and log.read_bytes().count(b"\n") > _MIN_ROWS:
            found.setdefault(str(run.parent.relative_to(directory)), []).append(run)
    return found


def sharing_a_seed(runs: Mapping[str, Sequence[Path]], base: str) -> list[str]:
    """The conditions, other than the baseline, that have a run of one of the baseline's seeds."""
    seeds = {run.name for run in runs[base]}
    return [name for name, of_name in runs.items() if name != base and any(run.name in seeds for run in of_name)]


def by_condition(runs: Runs) -> Runs:
    """The runs of all values of a condition under its name."""
    found: Runs = {}
    for name, of_name in runs.items():
        found.setdefault(name.partition("/")[0], []).extend(of_name)
    return found


def rises(metric: str) -> bool:
    """Whether more of a metric is better, as of an accuracy."""
    return "acc" in metric.split("_")
