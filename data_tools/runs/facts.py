"""The results of runs as text: the same facts for the terminal and for the page."""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from data_tools.runs.intervals import accuracy_intervals
from data_tools.runs.logs import LONGEST_S, Row, RunLogs, checkpoint_name
from data_tools.runs.settings import load_settings

ABSENT = "–"
_PACK_LOSS = re.compile("heldout_(.+)_loss")
_ROWS_AVERAGED = 5  # a single step's loss is noise


def run_facts(runs: Sequence[RunLogs]) -> dict[str, list[str]]:
    """Fact → its value in each run, without facts that no run has."""
    of_packs = {f"held-out {name} loss": _last(f"heldout_{name}_loss") for name in further_packs(runs)}
    return _known({label: [of(run) for run in runs] for label, of in (_FACTS | of_packs).items()})


def further_packs(runs: Sequence[RunLogs]) -> list[str]:
    """The packs besides c4 whose held-out loss a run has recorded, by name."""
    found = (_PACK_LOSS.fullmatch(column) for run in runs for column in run.evaluations)
    return sorted({match[1] for match in found if match} - {"c4"})


def mastered_stages(run: RunLogs) -> tuple[list[str], dict[str, list[str]]]:
    """What each mastered stage took: headings, and stage → its cells, without columns that are not known."""
    stages, alphas, steps = run.mastered.T
    from_start = np.append(0, steps)
    num_steps = np.diff(from_start)
    batch = load_settings(run.directory / "deepspeed.json").get("train_batch_size") or np.nan
    lookaheads = dict(zip(run.train["stage"], run.train["lookahead"], strict=True)) if "lookahead" in run.train else {}
    accuracies = dict(zip(*run.column("curr_acc", "step"), strict=True))
    spent = {axis: np.diff(run.positions(from_start, axis)) for axis in ("tokens", "pflops", "time")}
    columns = {
        "alpha": [f"{alpha:.3f}" for alpha in alphas],
        "lookahead": [_amount(lookaheads.get(stage)) for stage in stages],
        "at step": [_amount(step) for step in steps],
        "steps": [_amount(number) for number in num_steps],
        "examples": [_amount(number) for number in num_steps * batch],
        "tokens": [_amount(number) for number in spent["tokens"]],
        "PFLOPs": [_amount(number) for number in spent["pflops"]],
        "hours": [_number(seconds / 3600) for seconds in spent["time"]],
        "window accuracy": [_number(accuracies.get(step)) for step in steps],
    }
    known = _known(columns)
    return list(known), {f"{stage:.0f}": list(cells) for stage, *cells in zip(stages, *known.values(), strict=True)}


def evaluation_facts(reports: Sequence[Row]) -> dict[str, list[str]]:
    """Fact → its value in each report of ``evaluate.py``, without facts that none has."""
    return _known(
        {
            "split": [report["split"] for report in reports],
            "problems": [f"{report['num_examples']:,}" for report in reports],
            "accuracy, any valid answer": [_number(report["accuracy_any"]) for report in reports],
            "its 95 % interval": [_interval(report, "accuracy_any") for report in reports],
            "accuracy, first answer": [_number(report["accuracy_first"]) for report in reports],
            "95 % interval of that": [_interval(report, "accuracy_first") for report in reports],
            "weighted loss": [_number(report["loss"]) for report in reports],
            "C4 validation loss": [_number(report["c4_loss"]) for report in reports],
        }
    )


def accuracy_by_lookahead(reports: Sequence[Row]) -> dict[str, list[str]]:
    """Lookahead → the accuracy of each report of ``evaluate.py`` there."""
    by_lookahead = [{row["lookahead"]: row["accuracy_any"] for row in report["by_lookahead"]} for report in reports]
    return {str(n): [_number(rows.get(n)) for rows in by_lookahead] for n in sorted(set().union(*by_lookahead))}


def _known(rows: Mapping[str, list[str]]) -> dict[str, list[str]]:
    return {label: cells for label, cells in rows.items() if set(cells) != {ABSENT}}


def _interval(report: Row, name: str) -> str:
    low, high = (report.get(f"{name}_{end}") for end in ("low", "high"))
    return ABSENT if low is None or high is None else f"{low:.3f} – {high:.3f}"


def _number(value: float | None) -> str:
    return ABSENT if value is None or np.isnan(value) else f"{value:.3f}"


def _amount(value: float | None) -> str:
    """A number that may be of any size: 0.00123, 12.3, 4,567."""
    if value is None or np.isnan(value):
        return ABSENT
    return f"{value:,.0f}" if value >= 1000 or value == int(value) else f"{value:.3g}"


def _first(column: str) -> Callable[[RunLogs], str]:
    def of(run: RunLogs) -> str:
        values = run.column(column, "step")[1]
        return _number(values[0]) if len(values) else ABSENT

    return of


def _last(column: str, num_averaged: int = 1) -> Callable[[RunLogs], str]:
    def of(run: RunLogs) -> str:
        values = run.column(column, "step")[1]
        return _number(values[-num_averaged:].mean()) if len(values) else ABSENT

    return of


def _best(column: str, pick: Callable[[np.ndarray], Any]) -> Callable[[RunLogs], str]:
    def of(run: RunLogs) -> str:
        steps, values = run.column(column, "step")
        return f"{values[pick(values)]:.3f} at step {steps[pick(values)]:,.0f}" if len(values) else ABSENT

    return of


def _tokens(run: RunLogs) -> str:
    return f"{total:,.0f}" if np.isfinite(total := run.last_position("tokens")) else ABSENT


def _counted(column: str) -> Callable[[RunLogs], str]:
    """The last value of a column, and since which step it counts where a former version began the run."""

    def of(run: RunLogs) -> str:
        steps, values = run.column(column, "step")
        if not len(values):
            return ABSENT
        before = run.train["step"][run.train["step"] < steps[0]]
        return _amount(values[-1]) + (f" since step {before[-1]:,.0f}" if len(before) else "")

    return of


def _as_6nd(run: RunLogs) -> str:
    """What papers that approximate would give."""
    num_parameters = run.launches[-1].get("parameters") if run.launches else None
    return _amount(6 * num_parameters * run.last_position("tokens") / 1e15) if num_parameters else ABSENT


def _initial_weights(run: RunLogs) -> str:
    weights = run.launches[-1].get("initial_weights") if run.launches else None
    if weights is None:
        return ABSENT
    stage = f", stage {weights['stage']}" if weights.get("stage") else ""
    return checkpoint_name(weights["path"]) + stage if weights.get("path") else "random"


def _training_time(run: RunLogs) -> str:
    return str(timedelta(seconds=round(seconds))) if abs(seconds := run.last_position("time")) < LONGEST_S else ABSENT


def _speed(run: RunLogs) -> str:
    return f"{run.last_position('tokens') / seconds:,.0f}" if (seconds := run.last_position("time")) > 0 else ABSENT


def _wall_clock(run: RunLogs) -> str:
    written = run.column("timestamp", "step")[1]
    if not run.launches or not len(written):
        return ABSENT
    return str(timedelta(seconds=round(written[-1] - run.launches[0]["timestamp"])))


def _written(run: RunLogs) -> str:
    written = run.column("timestamp", "step")[1]
    return f"{datetime.fromtimestamp(written[-1], UTC):%Y-%m-%d %H:%M} UTC" if len(written) else ABSENT


def _accuracy_interval(run: RunLogs) -> str:
    """Of the last held-out accuracy, from its number of examples."""
    accuracies, sizes = (run.column(name, "step")[1] for name in ("heldout_acc", "num_examples"))
    if not len(accuracies) or len(accuracies) != len(sizes):
        return ABSENT
    low, high = accuracy_intervals(accuracies, sizes)[:, -1]
    return f"{low:.3f} – {high:.3f}"


def _of_last_launch(name: str) -> Callable[[RunLogs], str]:
    return lambda run: str(run.launches[-1].get(name) or ABSENT) if run.launches else ABSENT


def _stage(run: RunLogs) -> str:
    (_, stages), (_, alphas) = (run.column(column, "step") for column in ("stage", "alpha"))
    if not len(stages) or len(stages) != len(alphas) or alphas[-1] <= 0:
        return ABSENT
    return f"{stages[-1]:.0f} of {stages[-1] / alphas[-1]:.0f}"


_FACTS: dict[str, Callable[[RunLogs], str]] = {
    "optimizer steps": lambda run: f"{run.last_step:,}",
    "tokens": _tokens,
    "PFLOPs": _counted("pflops"),
    "PFLOPs as 6 × parameters × tokens": _as_6nd,
    "device hours": _counted("gpu_hours"),
    "training time": _training_time,
    "tokens per second": _speed,
    "since the first launch": _wall_clock,
    "launches": lambda run: str(len(run.launches) or ABSENT),
    "ranks": _of_last_launch("ranks"),
    "commit": _of_last_launch("git"),
    "command": _of_last_launch("command"),
    "last row": _written,
    "initial weights": _initial_weights,
    "training loss at first": _first("loss"),
    f"training loss, mean of {_ROWS_AVERAGED} rows": _last("loss", _ROWS_AVERAGED),
    "… on C4": _last("c4_loss", _ROWS_AVERAGED),
    "… on synthetic blocks": _last("mixin_loss", _ROWS_AVERAGED),
    "synthetic share of tokens": _last("mixin_fraction"),
    "stage": _stage,
    "window accuracy": _last("curr_acc"),
    "held-out accuracy at first": _first("heldout_acc"),
    "held-out accuracy": _last("heldout_acc"),
    "95 % interval of the last": _accuracy_interval,
    "best held-out accuracy": _best("heldout_acc", np.argmax),
    "held-out loss": _last("heldout_loss"),
    "lowest held-out loss": _best("heldout_loss", np.argmin),
    "held-out C4 loss at first": _first("heldout_c4_loss"),
    "held-out C4 loss": _last("heldout_c4_loss"),
    "lowest held-out C4 loss": _best("heldout_c4_loss", np.argmin),
}
