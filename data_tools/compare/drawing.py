"""Draws conditions as curves: each seed pale, the mean over seeds, its 95 % band, and marks where curves cross."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data_tools.compare.comparison import Comparison
from data_tools.compare.conditions import Condition
from data_tools.compare.curves import common_positions
from data_tools.compare.estimates import MIN_SEEDS, half_width
from data_tools.compare.verdict import amount
from data_tools.runs.panels import Panel
from data_tools.runs.pictures import COLOURS, STYLE, canvas, legend_entry, set_scale

_CROSSING: Any = {"marker": "X", "markersize": 6, "markeredgecolor": "white", "linestyle": "", "zorder": 4}


def draw_comparison(conditions: Sequence[Condition], found: Sequence[Comparison], metric: str, axis: str) -> Figure:
    """Draw all conditions, the baseline first, with the crossings of each comparison in its condition's colour."""
    falls = found[0].falls
    panel = Panel("comparison", f"{metric} by {axis}", metric, "", scale="log" if falls else "from zero")
    coloured = list(zip(COLOURS, conditions, strict=False))
    handles = [legend_entry(condition.name, color=colour) for colour, condition in coloured]
    for (colour, condition), comparison in zip(coloured[1:], found, strict=True):
        if comparison.crossings:
            handles.append(legend_entry(f"{condition.name} crosses {comparison.base}", color=colour, **_CROSSING))
    with matplotlib.rc_context(STYLE):
        figure, axes, _ = canvas(panel, handles, 0)
        for colour, condition in coloured:
            _draw_condition(axes, condition, colour)
        base = conditions[0]
        for (colour, _), comparison in zip(coloured[1:], found, strict=True):
            for crossing in comparison.crossings:
                level = np.nanmean([run.curve.at(crossing.position) for run in base.runs.values()])
                axes.plot(crossing.position, level, color=colour, gid="crossing", **_CROSSING)
                axes.annotate(
                    amount(crossing.position), (crossing.position, level), (4, 5), textcoords="offset points",
                    fontsize=8, color="0.3",
                )  # fmt: skip
        axes.set_xlabel(axis)
        set_scale(axes, panel.scale, axis == "steps")
        return figure


def _draw_condition(axes: Axes, condition: Condition, colour: str) -> None:
    curves = [run.curve for run in condition.runs.values()]
    if len(curves) == 1:
        axes.plot(curves[0].positions, curves[0].values, color=colour, label=condition.name)
        return
    for curve in curves:
        axes.plot(curve.positions, curve.values, color=colour, linewidth=0.6, alpha=0.35, gid="seed")
    positions = common_positions(curves)
    if not len(positions):  # one ended before another began
        return
    values = np.array([curve.at(positions) for curve in curves])
    mean = values.mean(axis=0)
    axes.plot(positions, mean, color=colour, label=condition.name)
    if len(curves) >= MIN_SEEDS:
        half = half_width(values)
        axes.fill_between(positions, mean - half, mean + half, color=colour, alpha=0.15, linewidth=0, gid="band")
