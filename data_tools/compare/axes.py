"""What a run has spent at each step: the axes of a comparison, and the cost of the pre-pretraining before it."""

from pathlib import Path
from typing import Any

import numpy as np

from data_tools.base.errors import UserError
from data_tools.runs.logs import RunLogs

AXES = ("c4_tokens", "tokens", "steps", "pflops", "gpu_hours")
CHARGEABLE = ("tokens", "pflops", "gpu_hours")  # pre-pretraining has no C4 tokens, and steps of another batch


def positions_on(logs: RunLogs, axis: str, steps: np.ndarray) -> np.ndarray:
    """Positions of steps on one of `AXES`, (steps,).

    Between rows of the log they are interpolated. More than one interval of rows after its end they are NaN.

    Raises:
        UserError: the log lacks the column.
    """
    if axis == "steps":
        return np.asarray(steps, float)
    needed = ("tokens", "mixin_fraction") if axis == "c4_tokens" else (axis,)
    missing = [name for name in needed if name not in logs.train]
    if missing:
        raise UserError(
            f"--axis {axis}: {logs.directory}/logs/train.jsonl has no column {missing[0]}; choose another of "
            f"{' '.join(name for name in AXES if name != axis)}."
        )
    amounts = logs.train[needed[0]]
    if axis == "c4_tokens":
        amounts = amounts * (1 - logs.train["mixin_fraction"])
    known = np.isfinite(amounts)
    if axis in ("pflops", "gpu_hours") and not known[0]:  # a run of version 0.1 that was resumed
        raise UserError(
            f"--axis {axis}: {logs.directory} began before it was counted, and counts from a later step; choose "
            f"another of {' '.join(name for name in AXES if name != axis)}."
        )
    rows, amounts = np.append(0, logs.train["step"][known]), np.append(0, amounts[known])
    # A run may be evaluated between two rows of the log: its pace continues up to where the next one would be.
    pace = amounts[-1] / max(rows[-1], 1)
    later = np.where(steps <= 2 * rows[-1] - rows[-2:-1], amounts[-1] + pace * (steps - rows[-1]), np.nan)
    return np.where(steps > rows[-1], later, np.interp(steps, rows, amounts))


def pptrain_cost(logs: RunLogs, flags: dict[str, Any], axis: str) -> float:
    """What the pre-pretraining took up to the weights that a run started from, on one of `CHARGEABLE`; 0 without any.

    Raises:
        UserError: the run that the weights are from, or its column, is not there.
    """
    given = str(flags.get("pptrain_checkpoint") or "none")
    if given == "none":
        return 0.0
    weights = Path(given)
    first_phase = str(flags.get("pptrain_run") or "pptrain")
    if given == "latest":
        places = [Path(str(flags.get("scratch_dir") or "")) / first_phase, logs.directory.parent / first_phase]
    else:
        of_run = weights.parents[1] if weights.name.startswith("step_") and len(weights.parents) > 1 else weights
        own = logs.directory.absolute()
        # The others where both runs were moved, beside each other or as CONDITION[/FLAG=VALUE]/seed_N.
        grid = own.parents[2 if "=" in own.parent.name else 1]
        places = [of_run, own.parent / of_run.name, grid.joinpath(*of_run.parts[-2:])]
        places = [place for place in places if place != own]
    found = next((place for place in places if (place / "logs" / "train.jsonl").exists()), None)
    if found is None:
        raise UserError(
            f"{logs.directory} started from {given}, whose run is not at {' or '.join(map(str, places))}; its cost is "
            "not known. Restore that run, or leave --charge_pptrain out."
        )
    before = RunLogs.read(found, first_phase)
    named = weights.name.removeprefix("step_")
    step = int(named) if weights.name.startswith("step_") and named.isdigit() else before.last_step
    return float(positions_on(before, axis, np.array([step]))[0])
