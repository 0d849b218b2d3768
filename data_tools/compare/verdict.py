"""A comparison in words: a table of what each condition needs, and plain sentences about what follows."""

from collections.abc import Sequence

import numpy as np

from data_tools.base.text_table import aligned, pluralize
from data_tools.compare.comparison import Comparison, Target


def needs_table(comparison: Comparison, axis: str) -> str:
    """What both conditions need for each target; means over seeds with 95 % intervals."""
    header = [f"{axis} to reach", "level", comparison.base, comparison.name, "speed-up"]
    has_rate = any(np.isfinite(target.saved.mean) for target in comparison.targets)
    rows = [[*header, "C4 tokens saved per pptrain token"] if has_rate else header]
    for target in comparison.targets:
        row = [
            f"{comparison.base} at {target.name}" if target.name != "given" else "given",
            f"{np.mean(target.levels):.4g}", _needs(target.base_needs), _needs(target.run_needs),
            target.speed_up.text(".3g"),
        ]  # fmt: skip
        rows.append([*row, target.saved.text(".3g")] if has_rate else row)
    return aligned(rows)


def _needs(positions: Sequence[float]) -> str:
    num_never = int(np.isnan(positions).sum())
    if not num_never:
        return amount(float(np.mean(positions)))
    return "never" if num_never == len(positions) else f"never in {num_never} of {len(positions)}"


def amount(value: float) -> str:
    """``2,500``, ``1.31M``: four digits."""
    value = float(f"{value:.4g}")
    for size, letter in ((1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def verdict(comparison: Comparison, metric: str, axis: str) -> str:
    """What was found, in sentences; and that nothing follows, where that is so."""
    parts = [
        _about_need(comparison, metric, axis),
        _about_end(comparison, metric, axis),
        _about_crossings(comparison, axis),
    ]
    return " ".join(parts)


def _at_the_end(comparison: Comparison) -> Target:
    return next(target for target in comparison.targets if target.name.startswith("100 %"))


def _about_need(comparison: Comparison, metric: str, axis: str) -> str:
    target, name, base = _at_the_end(comparison), comparison.name, comparison.base
    what = f"{base}'s final {metric} ({np.mean(target.levels):.4g})"
    num_seeds = len(comparison.seeds)
    num_never = int(np.isnan(target.run_needs).sum())
    if num_never:
        share = f" in {num_never} of {num_seeds} seeds" if num_seeds > 1 else ""
        return f"{name} never reaches {what}{share}."
    if any(target.are_first_rows):
        return f"Both have {what} from their first row on: what it takes to reach it does not show."
    speed_up = target.speed_up
    of_seeds = f"{pluralize(num_seeds, 'seed')}{', 95 % interval' if speed_up.has_interval else ', no interval'}"
    if speed_up.has_interval and not speed_up.excludes(1):
        return (
            f"Whether {name} reaches {what} with fewer {axis} than {base} cannot be concluded: "
            f"speed-up {speed_up.text('.3g')} ({of_seeds})."
        )
    word = "as many" if speed_up.mean == 1 else "fewer" if speed_up.mean > 1 else "more"
    return (
        f"{name} reaches {what} with {word} {axis}, {amount(float(np.mean(target.run_needs)))} against "
        f"{amount(float(np.mean(target.base_needs)))}: speed-up {speed_up.text('.3g')} ({of_seeds})."
    )


def _about_end(comparison: Comparison, metric: str, axis: str) -> str:
    final = comparison.final
    where = f"At {amount(comparison.end)} {axis}, the last that all have"
    if final.has_interval and not final.excludes(0):
        return f"{where}, no difference in {metric} can be concluded: {final.text('+.4f')}."
    if final.mean == 0:
        return f"{where}, {metric} is equal."
    word = "better" if (final.mean < 0) == comparison.falls else "worse"
    return f"{where}, {comparison.name} is {word}: {metric} {final.text('+.4f')}."


def _about_crossings(comparison: Comparison, axis: str) -> str:
    if not comparison.crossings:
        return "The curves do not cross, as far as noise lets one see."
    listed = [
        f"{amount(crossing.position)} ({comparison.name if crossing.is_better_after else comparison.base} leads after)"
        for crossing in comparison.crossings
    ]
    return f"The curves cross at {axis} {' and '.join(listed)}."
