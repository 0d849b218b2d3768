"""Compare two runs by their logs: the first step at which they differ, and what differs.

    python -m ds_train.audit RUN_A RUN_B --loss_tolerance 1e-6

Compares the rows of logs/train.jsonl that both have: the samples consumed so far (``ledger``, a rolling hash of their
ids), curriculum stage, learning rate, loss (within a tolerance). The exit code is 0 if they agree, else 1.
"""

import json
import math
from dataclasses import Field, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from data_tools.base.command_line import CommandParser, of_kind
from data_tools.base.errors import UserError, is_number, run_command
from data_tools.base.text_table import pluralize
from data_tools.runs.logs import Row, read_logs
from data_tools.runs.settings import flat, load_settings
from data_tools.runs.tails import last_rows
from ds_train.config.flags import role_of
from ds_train.config.run_file import RUN_FILE
from ds_train.config.trainer_flags import GROUPS

_NAMES = {"ledger": "samples", "stage": "stage", "lr": "learning rate", "loss": "loss"}
# Blocks and keys of the DeepSpeed JSON that may differ between equal trajectories.
_NEUTRAL_BLOCKS = frozenset(
    """train_micro_batch_size_per_gpu gradient_accumulation_steps zero_optimization checkpoint activation_checkpointing
    aio compile comms_logger flops_profiler tensorboard wandb csv_monitor comet steps_per_print wall_clock_breakdown
    memory_breakdown dump_state log_level""".split()
)


@dataclass(frozen=True)
class Comparison:
    """One column of both logs over their common steps.

    Attributes:
        first: the first common step at which it differs, None if it never does.
        values: both runs' values at that step.
        largest: the largest absolute difference and its step; infinite where one run has no number.
    """

    first: int | None
    values: tuple[Any, Any]
    largest: tuple[float, int]


def main(argv: list[str] | None = None) -> int:
    parser = CommandParser(description=__doc__)
    parser.add_argument("runs", metavar="RUN", nargs=2, type=Path, help="run directory")
    parser.add_argument(
        "--loss_tolerance",
        type=of_kind("number in [0, 1e9]"),
        default=1e-6,
        help="losses may differ by this much; 0: not at all (default 1e-6, what another order of sums does in fp32)",
    )
    args = parser.parse_args(argv)
    rows, others = logs = [{row["step"]: row for row in read_logs(run)[0]} for run in args.runs]
    steps = sorted(rows.keys() & others.keys())
    if not steps:
        raise UserError(
            f"{args.runs[0]} and {args.runs[1]} have no common step in their logs ({_extent(rows)}; "
            f"{_extent(others)}); log both at the same --log_every."
        )
    # What is compared.
    settings = [_settings(run) for run in args.runs]
    for label, run, log, setting in zip("AB", args.runs, logs, settings, strict=True):
        print(f"{label}  {run}: {_extent(log)}{_layout(run, setting)}")
    print(f"settings that differ: {'; '.join(_differing(settings[0], settings[1])) or 'none'}")
    print(f"common steps: {len(steps)} ({steps[0]} to {steps[-1]})")
    # Where each column first differs, and the verdict.
    results = compare(rows, others, steps, args.loss_tolerance)
    for column, result in results.items():
        print(f"  {_NAMES[column]:<14}{_described(column, result, args.loss_tolerance)}")
    print(_verdict(results, steps))
    if [column for column, result in results.items() if result.first is not None] == ["loss"]:
        print(
            f"Only the losses differ. Another layout or bf16 rounds differently; --loss_tolerance allows more than "
            f"{args.loss_tolerance:g}."
        )
    return int(any(result.first is not None for result in results.values()))


def compare(
    rows: dict[int, Row], others: dict[int, Row], steps: list[int], loss_tolerance: float
) -> dict[str, Comparison]:
    """Compare the columns that both logs have.

    Raises:
        UserError: one log has a column that the other lacks: the runs are of different phases or versions.
    """
    columns = [[name for name in _NAMES if name in log[steps[0]]] for log in (rows, others)]
    if columns[0] != columns[1] or "ledger" not in columns[0]:
        raise UserError(
            f"the runs cannot be compared: their logs have the columns {columns[0]} and {columns[1]}. Both must be of "
            "pptrain or both of pretrain, and have a ledger of their samples."
        )
    results = {}
    for column in columns[0]:
        tolerance = loss_tolerance if column == "loss" else 0
        pairs = {step: (rows[step].get(column), others[step].get(column)) for step in steps}
        distances = {step: _distance(*pair) for step, pair in pairs.items()}
        first = next((step for step in steps if distances[step] > tolerance), None)
        at = max(steps, key=distances.__getitem__)
        results[column] = Comparison(first, pairs[first] if first else (None, None), (distances[at], at))
    return results


def _distance(value: Any, other: Any) -> float:
    """The distance of two logged values. Ledgers, and nulls or NaN for numbers that were not finite, give 0 or inf."""
    both_nan = value != value and other != other
    if value == other or both_nan:
        return 0.0
    return abs(value - other) if is_number(value) and is_number(other) else math.inf


def _described(column: str, result: Comparison, loss_tolerance: float) -> str:
    distance, step = result.largest
    most = f"; largest difference {distance:.2g}, at step {step}" if column == "loss" and distance else ""
    if result.first is None:
        return f"equal{f' within {loss_tolerance:g}' if most else ''}{most}"
    values = "" if column == "ledger" else f" ({' | '.join(json.dumps(value) for value in result.values)})"
    return f"first differs at step {result.first}{values}{most}"


def _verdict(results: dict[str, Comparison], steps: list[int]) -> str:
    """The earliest difference, and the steps in which it must have arisen: rows are log_every steps apart."""
    found = [result.first for result in results.values() if result.first is not None]
    if not found:
        return "The runs are equal at all common steps."
    first = min(found)
    before = next(a for a, b in pairwise([0, *steps]) if b == first)  # the last step at which they agree
    where = f"step {first}" if before == first - 1 else f"steps {before + 1} to {first}"
    differing = ", ".join(_NAMES[column] for column, result in results.items() if result.first == first)
    return f"The runs first differ in {where}: {differing}."


def _extent(rows: dict[int, Row]) -> str:
    return f"{pluralize(len(rows), 'row')}, steps {min(rows)} to {max(rows)}"


def _settings(run: Path) -> dict[str, Any]:
    """The settings of a run: the DeepSpeed JSON in effect, flattened, and the flags."""
    return dict(flat(load_settings(run / "deepspeed.json"))) | load_settings(run / RUN_FILE)


def _layout(run: Path, settings: dict[str, Any]) -> str:
    """Ranks of the last launch, micro batch and ZeRO stage, as far as they are known."""
    launches = last_rows(run / "launches.jsonl")
    found = [pluralize(launches[-1]["ranks"], "rank")] if launches and "ranks" in launches[-1] else []
    if micro_batch := settings.get("train_micro_batch_size_per_gpu"):
        found += [f"micro batch {micro_batch}", f"ZeRO {settings.get('zero_optimization.stage', 0)}"]
    return f"; {', '.join(found)}" if found else ""


def _is_neutral(flag: Field) -> bool:
    """Whether equal trajectories may differ in this flag. Flags that override the JSON are compared there."""
    return role_of(flag) != "trajectory" or bool(flag.metadata["json_key"]) or flag.name == "deepspeed_config"


def _differing(settings: dict[str, Any], others: dict[str, Any]) -> list[str]:
    """Settings whose values differ between the runs, except those that cannot change a trajectory."""
    if not settings or not others:
        return ["unknown: a run has neither deepspeed.json nor run.yaml"]
    neutral = {
        item.name for groups in GROUPS.values() for group in groups for item in fields(group) if _is_neutral(item)
    }
    names = [name for name in settings | others if name not in neutral and name.split(".")[0] not in _NEUTRAL_BLOCKS]
    pairs = [(name, settings.get(name), others.get(name)) for name in names]
    return [f"{name} {json.dumps(a)} | {json.dumps(b)}" for name, a, b in pairs if a != b]


if __name__ == "__main__":
    run_command(main)
