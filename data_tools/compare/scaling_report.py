"""Mastered lookahead against what was spent: a table of fits, a log-log picture, CSV and JSON."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterSciNotation, LogLocator, NullFormatter, ScalarFormatter

from data_tools.base.text_table import aligned, pluralize
from data_tools.compare.promotions import Promotions
from data_tools.compare.results import without_nan
from data_tools.compare.scaling import FORMS, MIN_PROMOTIONS, exponent, fit_forms
from data_tools.compare.stage_costs import stage_costs
from data_tools.runs.panels import Panel
from data_tools.runs.pictures import COLOURS, STYLE, canvas, legend_entry

_NUM_POINTS = 200  # of a fitted line


def scaling_text(found: Promotions, axis: str) -> str:
    """The fits of a condition, the best first; or that there are too few promotions."""
    number = pluralize(len(found.costs), "promotion")
    fits = fit_forms(found.costs, found.lookaheads)
    if not fits:
        return f"{found.name}: {number}: too few promotions to fit; {MIN_PROMOTIONS} different ones are needed."
    rows = [[f"{found.name}, {number}", "formula", "R²", "AICc", "parameters"]]
    for fit in fits:
        values = ", ".join(f"{name} {value:.4g}" for name, value in fit.parameters.items())
        aicc = f"{fit.aicc:.1f}" if np.isfinite(fit.aicc) else "too few"
        rows.append([fit.form, FORMS[fit.form].text, f"{fit.r_squared:.4f}", aicc, values])
    slope = exponent(found.costs, found.lookaheads)
    lines = [aligned(rows), f"Exponent of the power law of {axis}: {slope.text('.3f')} (95 %, bootstrap)."]
    if found.is_nominal:
        lines.append("Note: a log has no column lookahead; its stages stand for lookaheads.")
    return "\n".join(lines)


def draw_scaling(every: Sequence[Promotions], axis: str) -> Figure:
    """Promotions as points and the best fit of each condition as a line, both axes logarithmic."""
    panel = Panel("scaling", f"Mastered lookahead by {axis}", "lookahead", "", scale="log")
    with matplotlib.rc_context(STYLE):
        fits = [fit_forms(found.costs, found.lookaheads)[:1] for found in every]
        handles = [
            legend_entry(f"{found.name}{f', {best[0].form}' if best else ''}", color=colour, marker="o")
            for colour, found, best in zip(COLOURS, every, fits, strict=False)
        ]
        figure, axes, _ = canvas(panel, handles, 0)
        for colour, found, best in zip(COLOURS, every, fits, strict=False):
            axes.plot(found.costs, found.lookaheads, "o", color=colour, label=found.name)
            for fit in best:
                costs = np.geomspace(found.costs[0], found.costs[-1], _NUM_POINTS)
                values = FORMS[fit.form].predict(np.array([*fit.parameters.values()]), costs)
                axes.plot(costs, values, color=colour, linewidth=0.9, gid="fit")
        axes.set_xlabel(f"{axis}, log scale")
        if any(len(found.costs) for found in every):  # Matplotlib refuses logarithms of nothing
            axes.set_xscale("log")
            axes.set_yscale("log", base=2)
            axes.yaxis.set_major_formatter(ScalarFormatter())
            axes.xaxis.set_major_locator(LogLocator(10))
            axes.xaxis.set_major_formatter(LogFormatterSciNotation())
            axes.xaxis.set_minor_formatter(NullFormatter())
        return figure


def scaling_csv(every: Sequence[Promotions], axis: str) -> str:
    """A row for each promotion."""
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow(["run", "lookahead", axis])
    for found in every:
        for cost, lookahead in zip(found.costs.tolist(), found.lookaheads.tolist(), strict=True):
            table.writerow([found.name, lookahead, cost])
    return file.getvalue()


def scaling_json(every: Sequence[Promotions], axis: str) -> str:
    """All fits, an empty list where there are too few promotions; and what each lookahead cost within the stages."""
    content = []
    for found in every:
        fits = fit_forms(found.costs, found.lookaheads)
        slope = asdict(exponent(found.costs, found.lookaheads)) if fits else None
        stages = stage_costs(found)
        costs = stages and {
            "step": stages.step, "lookaheads": stages.lookaheads.tolist(), "costs": stages.costs.tolist()
        }  # fmt: skip
        content.append({"name": found.name, "fits": [asdict(fit) for fit in fits], "exponent": slope, "stages": costs})
    return json.dumps(without_nan({"axis": axis, "runs": content}), indent=2, ensure_ascii=False) + "\n"
