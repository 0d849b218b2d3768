"""Draws runs: columns of the logs of several runs against one axis, and accuracy by lookahead.

Resumes and mastered stages are marked in a strip under the curves, one lane per run, so that they hide nothing.
"""

import io
from collections.abc import Sequence
from functools import partial
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from PIL import Image  # comes with Matplotlib

from data_tools.runs.intervals import accuracy_intervals
from data_tools.runs.logs import Row, RunLogs
from data_tools.runs.panels import LOOKAHEAD, Panel

# Okabe and Ito's colours, which the colour-blind can distinguish, without yellow, which is too pale for a line.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_LINE_STYLES: tuple[Any, ...] = ("-", (0, (4, 1.5)))  # of a panel's columns
_LINE_POINTS = 1.4
STYLE: Any = {
    "font.size": 10.5, "axes.titlesize": 11.5, "axes.titlelocation": "left", "axes.titlepad": 8,
    "axes.labelcolor": "0.15", "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "0.4",
    "axes.axisbelow": True, "axes.grid": True, "grid.color": "0.9", "xtick.color": "0.3", "ytick.color": "0.3",
    "legend.frameon": False, "legend.fontsize": 9.5, "legend.columnspacing": 1, "legend.handlelength": 1.3,
    "lines.linewidth": _LINE_POINTS, "lines.markersize": 3.5, "lines.solid_joinstyle": "round",
}  # fmt: skip
# Inches: small, so that a picture stays legible in a narrow window; many dots, for wide ones.
_WIDTH, _LEFT, _RIGHT, _TOP, _PLOT, _LANE, _X_LABELS, _LEGEND_LINE = 4.8, 0.92, 0.16, 0.36, 2.4, 0.13, 0.54, 0.2
_DOTS_PER_INCH = 200
_NAME_CHARACTERS = 32  # that always fit into a legend
_MASTERED: Any = {"marker": "|", "markersize": 7, "markeredgewidth": 1.3, "gid": "stage mastered"}
_RESUMED: Any = {"marker": "^", "markersize": 4.5, "markerfacecolor": "white", "gid": "resumed"}
_MAX_POINTS = 2000  # of a line; a picture has fewer columns of dots
_MIN_SMOOTHED, _MAX_HALF = 50, 50  # values of a line that is drawn as a running mean; on either side in one
UNITS = {
    "step": ((1, "optimizer step"),),
    "tokens": ((1, "tokens"), (1e3, "tokens (thousands)"), (1e6, "tokens (millions)"), (1e9, "tokens (billions)")),
    "c4_tokens": ((1, "C4 tokens"), (1e3, "C4 tokens (thousands)"), (1e6, "C4 tokens (millions)"),
                  (1e9, "C4 tokens (billions)")),
    "pflops": ((1e-6, "GFLOPs"), (1e-3, "TFLOPs"), (1, "PFLOPs"), (1e3, "EFLOPs")),
    "time": ((1, "training time without pauses (s)"), (60, "training time without pauses (min)"),
             (3600, "training time without pauses (h)")),
}  # fmt: skip


def draw(panel: Panel, runs: Sequence[RunLogs], axis: str, thresholds: Sequence[float] = ()) -> Figure | None:
    """Draw a panel with all runs that have its columns; None if no run has any.

    Args:
        runs: at most one per colour; each has the same colour in all panels.
        axis: one of `logs.AXES`; it ends with the longest run, the same in all panels.
        thresholds: levels to draw.
    """
    shown = [
        (colour, run)
        for colour, run in zip(COLOURS, runs, strict=False)
        if any(len(run.column(column, axis)[0]) for column in panel.columns)
    ]
    if not shown:
        return None
    marked = [(colour, run) for colour, run in shown if len(run.resumed_at) or len(run.mastered_at)]
    end = float(np.nanmax([run.last_position(axis) for run in runs]))
    smallest, *larger = UNITS[axis]
    unit, x_label = [smallest, *(pair for pair in larger if end >= pair[0])][-1]
    with matplotlib.rc_context(STYLE):
        handles = [*_run_handles(panel, shown), *_mark_handles(marked, thresholds)]
        figure, axes, strip = canvas(panel, handles, len(marked))
        # Lines: runs differ by colour, columns by line style.
        lines = [
            (run, column, style, colour, *run.column(column, axis))
            for colour, run in shown
            for style, column in zip(_LINE_STYLES, panel.columns, strict=False)
        ]
        for number, (run, column, style, colour, positions, values) in enumerate(lines):
            look: dict[str, Any] = {"color": colour, "linestyle": style, "label": f"{run.name} {panel.columns[column]}"}
            if len(values) == 1 or column not in run.train:  # evaluations are few
                look["marker"] = "o"
            # A line that later ones would hide is drawn wider.
            num_hiding = sum(_agree((positions, values), line[-2:]) for line in lines[number + 1 :])
            look["linewidth"] = _LINE_POINTS * (1 + num_hiding)
            _draw_line(axes, panel, positions / unit, values, **look)
            if panel.interval_of and len(values):
                sizes = run.column(panel.interval_of, axis)[1]
                axes.vlines(positions / unit, *accuracy_intervals(values, sizes), color=colour, linewidth=0.9)
        # Thresholds, marks and axes.
        for threshold in thresholds:
            axes.axhline(threshold, color="0.3", linewidth=1.1, linestyle=":")
        for lane, (colour, run) in enumerate(marked):
            _draw_marks(strip, lane, run, axis, unit, colour)
        strip.set_xlabel(x_label)
        axes.set_xlim(-0.015 * end / unit, 1.015 * end / unit)
        set_scale(axes, panel.scale, axis == "step")
        return figure


def draw_lookahead(reports: Sequence[tuple[str, str, Row]]) -> Figure:
    """Draw the accuracy by lookahead of several evaluations, with intervals where their rows have them.

    Args:
        reports: name, colour and content of each.
    """
    with matplotlib.rc_context(STYLE):
        handles = [legend_entry(name, color=colour, marker="o") for name, colour, _ in reports]
        figure, axes, _ = canvas(LOOKAHEAD, handles, 0)
        for number, (name, colour, report) in enumerate(reports):
            rows = report["by_lookahead"]
            aside = 0.12 * (number - (len(reports) - 1) / 2)  # so that bars do not hide one another
            lookahead, accuracy, low, high = (
                np.array([row.get(key, np.nan) for row in rows], float)
                for key in ("lookahead", "accuracy_any", "accuracy_any_low", "accuracy_any_high")
            )
            bars = None if np.isnan([low, high]).any() else np.maximum([accuracy - low, high - accuracy], 0)
            axes.errorbar(lookahead + aside, accuracy, bars, fmt="o-", elinewidth=0.9, color=colour, label=name)
        axes.set_xlabel("lookahead (levels)")
        set_scale(axes, LOOKAHEAD.scale, True)
        return figure


def as_png(figure: Figure) -> bytes:
    """The figure as a PNG with a palette, a third of the size; equal figures give equal bytes."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    with io.BytesIO() as file:
        image.quantize(256, dither=Image.Dither.NONE).save(file, "PNG")
        return file.getvalue()


def running_mean(values: np.ndarray, half: int) -> np.ndarray:
    """(n,) float64, the mean over ``half`` values before and after each.

    Near the start, where losses fall, it takes no more values after than before; at the end, those that there are.
    """
    index = np.arange(len(values))
    before = np.minimum(half, index)
    after = np.minimum(before, index[::-1])
    sums = np.append(0, np.cumsum(values))
    return (sums[index + after + 1] - sums[index - before]) / (before + after + 1)


def thinned(positions: np.ndarray, values: np.ndarray, max_points: int) -> tuple[np.ndarray, np.ndarray]:
    """A line of at most ``max_points`` points that looks the same: the least and greatest value of each stretch."""
    if len(values) <= max_points:
        return positions, values
    length = -(-len(values) // ((max_points - 2) // 2))
    stretches = np.pad(values, (0, -len(values) % length), mode="edge").reshape(-1, length)
    starts = np.arange(len(stretches)) * length
    kept = np.concatenate([[0, len(values) - 1], starts + stretches.argmin(axis=1), starts + stretches.argmax(axis=1)])
    kept = np.unique(np.minimum(kept, len(values) - 1))
    return positions[kept], values[kept]


def canvas(panel: Panel, handles: Sequence[Line2D], num_lanes: int) -> tuple[Figure, Axes, Axes]:
    """A figure with title, legend, axes, and under them a strip with a lane for each run that has marks.

    Sizes are in inches: all axes are equal, and a picture is as high as its legend and lanes need.

    Returns:
        the figure, its axes, and the axes that carry the horizontal labels: the strip if there is one.
    """
    columns = _legend_columns(handles)
    strip_height = _LANE * num_lanes + 0.04 if num_lanes else 0
    bottom = _LEGEND_LINE * -(-len(handles) // columns) + 0.1 + _X_LABELS
    height = bottom + strip_height + _PLOT + _TOP
    figure = Figure(figsize=(_WIDTH, height), dpi=_DOTS_PER_INCH)
    place, width = _LEFT / _WIDTH, (_WIDTH - _LEFT - _RIGHT) / _WIDTH
    axes = figure.add_axes((place, (bottom + strip_height) / height, width, _PLOT / height))
    axes.set_title(panel.title)
    axes.set_ylabel(f"{panel.label}, log scale" if panel.scale == "log" else panel.label)
    axes.yaxis.set_label_coords(-0.19, 0.5)
    in_rows = [handle for column in range(columns) for handle in handles[column::columns]]  # a legend fills columns
    figure.legend(handles=in_rows, loc="lower left", bbox_to_anchor=(0.01, 0), ncols=columns)
    if not num_lanes:
        return figure, axes, axes
    strip = figure.add_axes((place, bottom / height, width, strip_height / height), sharex=axes)
    strip.patch.set_visible(False)
    strip.set_ylim(num_lanes - 0.5, -0.9)
    strip.set_yticks([])
    strip.grid(False)
    strip.spines[["left", "bottom"]].set_visible(False)
    strip.tick_params(axis="x", length=0)
    axes.tick_params(axis="x", labelbottom=False)
    return figure, axes, strip


def _legend_columns(handles: Sequence[Line2D]) -> int:
    """The number of legend columns that fit; a column is as wide as its widest entry."""
    font = FontProperties(size=STYLE["legend.fontsize"])
    beside = font.get_size() * (STYLE["legend.handlelength"] + STYLE["legend.columnspacing"] + 0.8)  # and a gap
    widths = [
        text_to_path.get_text_width_height_descent(str(handle.get_label()), font, ismath=False)[0] + beside
        for handle in handles
    ]
    room = 72 * _WIDTH
    fitting = [n for n in range(1, len(handles) + 1) if sum(max(widths[c::n]) for c in range(n)) <= room]
    return max(fitting, default=1)


def _draw_line(axes: Axes, panel: Panel, positions: np.ndarray, values: np.ndarray, **style: Any) -> None:
    if _is_smoothed(panel, values):
        pale = {"color": style["color"], "linewidth": 0.7, "alpha": 0.45, "zorder": 1}
        axes.plot(*thinned(positions, values, _MAX_POINTS), gid="single steps", **pale)
        values = running_mean(values, min(len(values) // 50, _MAX_HALF))
    # Stairs: a row is about the steps since the row before.
    drawing = "steps-pre" if panel.scale == "whole" else "default"
    axes.plot(*thinned(positions, values, _MAX_POINTS), drawstyle=drawing, **style)


def _agree(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> bool:
    """Whether two lines are equal as far as the shorter one goes, as schedules are."""
    length = min(len(one[1]), len(other[1]))
    return length > 0 and all(np.array_equal(a[:length], b[:length]) for a, b in zip(one, other, strict=True))


def _is_smoothed(panel: Panel, values: np.ndarray) -> bool:
    return panel.is_noisy and len(values) >= _MIN_SMOOTHED


def _draw_marks(strip: Axes, lane: int, run: RunLogs, axis: str, unit: float, colour: str) -> None:
    end = run.last_position(axis) / unit
    strip.plot([0, end], [lane, lane], color=colour, linewidth=0.8, alpha=0.5)
    for steps, look in ((run.mastered_at, _MASTERED), (run.resumed_at, _RESUMED)):
        positions = run.positions(steps, axis) / unit
        strip.plot(positions, np.full(len(positions), lane), color=colour, linestyle="", clip_on=False, **look)


def set_scale(axes: Axes, scale: str, is_whole: bool) -> None:
    """Set ends, ticks and numbers of both axes, after everything is drawn; the horizontal one may be whole numbers."""
    locator: Any = MaxNLocator(6, steps=(1, 2, 5, 10), integer=scale == "whole")
    if scale == "log":
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        if high > 8 * low:
            locator = LogLocator(subs=(1, 2, 5))
    elif scale == "unit":
        axes.set_ylim(-0.02, 1.02)
    else:
        axes.set_ylim(-0.02 * axes.get_ylim()[1])
    axes.yaxis.set_major_locator(locator)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=(1, 2, 2.5, 5, 10), integer=is_whole))
    for of_axis, (_, end) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        power = 1e6 if end >= 1e6 else 1e3 if end >= 1e4 else 1
        of_axis.set_major_formatter(FuncFormatter(partial(_number, power=power)))


def _number(value: float, _: int | None, power: float) -> str:
    """The label of a tick: 0.0005, 0.25, 1,500, 20k, 1.5M."""
    digits = f"{value / power:,.0f}" if abs(value / power) >= 1000 else f"{value / power:g}"
    return digits + {1e3: "k", 1e6: "M"}.get(power, "") if value else "0"


def _run_handles(panel: Panel, shown: Sequence[tuple[str, RunLogs]]) -> list[Line2D]:
    """Legend entries: runs by colour, columns by line style, and the pale line."""
    handles = [legend_entry(run.name, color=colour) for colour, run in shown]
    if len(panel.columns) > 1:
        styles = zip(_LINE_STYLES, panel.columns.values(), strict=False)
        handles += [legend_entry(words, color="0.4", linestyle=style) for style, words in styles if words]
    if any(_is_smoothed(panel, run.column(column, "step")[1]) for _, run in shown for column in panel.columns):
        handles.append(legend_entry("single steps", color="0.4", linewidth=0.7, alpha=0.6))
    return handles


def _mark_handles(marked: Sequence[tuple[str, RunLogs]], thresholds: Sequence[float]) -> list[Line2D]:
    handles = [legend_entry(f"threshold {level:g}", color="0.3", linewidth=1.1, linestyle=":") for level in thresholds]
    for steps, look in (("mastered_at", _MASTERED), ("resumed_at", _RESUMED)):
        if any(len(getattr(run, steps)) for _, run in marked):
            handles.append(legend_entry(str(look["gid"]), color="0.4", linestyle="", **look))
    return handles


def legend_entry(text: str, **look: Any) -> Line2D:
    """A legend entry; dollars of a name are escaped, which Matplotlib would read as math."""
    if len(text) > _NAME_CHARACTERS:
        text = f"{text[: _NAME_CHARACTERS // 2]}…{text[1 - _NAME_CHARACTERS // 2 :]}"
    return Line2D([], [], label=text.replace("$", r"\$"), **look)
