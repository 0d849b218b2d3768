"""A comparison as files: one CSV row for each condition, target and seed; and JSON with everything that was found."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from math import isfinite
from typing import Any

from data_tools.compare.comparison import Comparison
from data_tools.compare.picks import Pick
from data_tools.compare.verdict import verdict

_COLUMNS = ("base", "run", "seed", "metric", "axis", "target", "level", "base_needs", "run_needs", "speed_up")


def as_csv(found: Sequence[Comparison], metric: str, axis: str) -> str:
    """The needs of each seed; an empty cell is "never"."""
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow(_COLUMNS)
    for comparison in found:
        for target in comparison.targets:
            of_seeds = (comparison.seeds, target.levels, target.base_needs, target.run_needs, target.ratios.tolist())
            for seed, *numbers in zip(*of_seeds, strict=True):
                cells = [number if isfinite(number) else "" for number in numbers]
                table.writerow([comparison.base, comparison.name, seed, metric, axis, target.name, *cells])
    return file.getvalue()


def as_json(found: Sequence[Comparison], metric: str, axis: str, charged: bool, picks: Sequence[Pick] = ()) -> str:
    """All numbers; null is "never" or "not known"."""
    comparisons = [
        asdict(comparison)
        | {"targets": [asdict(target) | {"speed_up": asdict(target.speed_up)} for target in comparison.targets]}
        | {"verdict": verdict(comparison, metric, axis)}
        for comparison in found
    ]
    content = {"metric": metric, "axis": axis, "charge_pptrain": charged, "comparisons": comparisons}
    content |= {"picked": [asdict(pick) for pick in picks]} if picks else {}
    return json.dumps(without_nan(content), indent=2, ensure_ascii=False) + "\n"


def without_nan(value: Any) -> Any:
    """A value for JSON, with null for what is not finite."""
    if isinstance(value, dict):
        return {name: without_nan(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not isfinite(value) else value
