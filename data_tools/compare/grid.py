"""The runs of an experiment, which are in DIR/CONDITION/seed_N; its first phases have names that begin with pptrain."""

from collections.abc import Mapping, Sequence
from pathlib import Path

_FIRST_PHASE, _ON_C4 = "pptrain", "_on_c4"
_MIN_ROWS = 2

Runs = dict[str, list[Path]]  # directories of each condition, one a seed


def runs_with_curves(directory: Path) -> Runs:
    """Runs of pretrain that have a curve; one that has just begun has its start and perhaps one more evaluation."""
    return {name: runs for name, runs in _runs(directory, "eval.jsonl").items() if not name.startswith(_FIRST_PHASE)}


def pptrain_runs(directory: Path) -> Runs:
    """Runs of pptrain that have rows in their logs."""
    found = _runs(directory, "train.jsonl")
    return {name: runs for name, runs in found.items() if name.startswith(_FIRST_PHASE) and not name.endswith(_ON_C4)}


def _runs(directory: Path, log_name: str) -> Runs:
    found: Runs = {}
    for run in sorted(directory.glob("*/seed_*")):
        log = run / "logs" / log_name
        if log.exists() and log.read_bytes().count(b"\n") > _MIN_ROWS:
            found.setdefault(run.parent.name, []).append(run)
    return found


def sharing_a_seed(runs: Mapping[str, Sequence[Path]], base: str) -> list[str]:
    """The conditions, other than the baseline, that have a run of one of the baseline's seeds."""
    seeds = {run.name for run in runs[base]}
    return [name for name, of_name in runs.items() if name != base and any(run.name in seeds for run in of_name)]
