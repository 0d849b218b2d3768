"""One HTML page about runs that contains all pictures, so that it can be mailed and opened without a network."""

import base64
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data_tools.runs.facts import evaluation_facts, mastered_stages, run_facts
from data_tools.runs.logs import Row, RunLogs

_AXIS_NAMES = {"step": "steps", "tokens": "tokens", "c4_tokens": "C4 tokens", "pflops": "FLOPs", "time": "time"}

_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1560px; padding: 1rem; background: #fff; color: #1a1a1a;
  font: 16px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.4rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; }
p { margin: .3rem 0; max-width: 46rem; }
.tables { display: flex; flex-wrap: wrap; column-gap: 4rem; }
.table { max-width: 100%; overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid #e4e4e4;
  min-width: 4.8rem; overflow-wrap: anywhere; }
th { font-weight: 600; }
tbody th { font-weight: 400; color: #555; overflow-wrap: normal; }
tr > :first-child { position: sticky; left: 0; background: #fff; }
.colour { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .4em; }
fieldset { position: sticky; top: 0; z-index: 1; margin: 1.6rem 0 0; padding: .5rem 0; border: 0; background: #fff;
  border-bottom: 1px solid #e4e4e4; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; }
legend { float: left; font-weight: 600; }
label { white-space: nowrap; }
td { max-width: 26rem; }
@media (max-width: 480px) { th, td { padding-right: .5rem; } }
.pictures { display: grid; gap: 1.4rem 1.6rem; margin-top: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 440px), 1fr)); }
figure { margin: 0; }
img { display: block; width: 100%; height: auto; }
figcaption { font-size: .85rem; color: #444; margin-top: .2rem; }
"""


@dataclass(frozen=True)
class Picture:
    """A picture of the page.

    Attributes:
        name: of its file, without the suffix.
        axis: one of ``run_logs.AXES``, whose pictures are shown together; empty: always shown.
        png: the file's content.
    """

    name: str
    title: str
    caption: str
    axis: str
    png: bytes


def report_page(
    runs: Sequence[RunLogs],
    colours: Sequence[str],
    settings: Mapping[str, Sequence[str]],
    evaluations: Sequence[tuple[str, Row]],
    pictures: Sequence[Picture],
    refresh_s: float | None = None,
) -> str:
    """The page as HTML.

    Args:
        colours: of the runs in the pictures.
        settings: those that differ between the runs → value in each.
        evaluations: name and content of each.
        refresh_s: seconds after which the open page loads itself again, with the same axis; None: it does not.
    """
    names = [run.name for run in runs]
    title = html.escape(", ".join(names))
    axes = list(dict.fromkeys(picture.axis for picture in pictures if picture.axis))
    hidden = "\n".join(f"body:has(#by-{axis}:checked) .axis:not(.{axis}) {{ display: none; }}" for axis in axes)
    parts = [
        f"<h1>{title}</h1>",
        '<div class="tables">',
        _table("The runs", names, run_facts(runs), colours),
        *(_table(f"Stages that {html.escape(run.name)} mastered", *mastered_stages(run)) for run in runs
          if len(run.mastered)),
        _evaluation_table(evaluations),
        f"</div>\n<section>\n{_switch(axes)}",
        '<div class="pictures">', *map(_figure, pictures), "</div>\n</section>",
        _table("Settings that differ", names, settings, colours) if settings else "",
    ]  # fmt: skip
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}</title>\n<style>{_STYLE}{hidden}\n</style>\n</head>\n<body>",
            *filter(None, parts),
            _RELOAD.replace("SECONDS", f"{refresh_s:g}") if refresh_s else "",
            "</body>\n</html>\n",
        ]
    )


_RELOAD = """<noscript><meta http-equiv="refresh" content="SECONDS"></noscript>
<script>
document.getElementById(sessionStorage.getItem("axis"))?.click();
setTimeout(() => {
  const chosen = document.querySelector("input[name=axis]:checked");
  if (chosen) sessionStorage.setItem("axis", chosen.id);
  location.reload();
}, SECONDS * 1000);
</script>"""

_NOTE = """<p>Pale lines are single steps; the line over them is their running mean (over 4 % of the rows, 101 rows at
most). In the strip under the curves, △ is where a later launch continued from a checkpoint and | where a stage of the
curriculum was mastered. Training time leaves out the pauses between launches and the steps that a kill undid.</p>"""


def _switch(axes: Sequence[str]) -> str:
    buttons = "".join(
        f'<label><input type="radio" name="axis" id="by-{axis}"{" checked" if axis == axes[0] else ""}> '
        f"{_AXIS_NAMES[axis]}</label>"
        for axis in axes
    )
    return f"<h2>Pictures</h2>\n{_NOTE}\n<fieldset><legend>Against</legend>{buttons}</fieldset>"


def _figure(picture: Picture) -> str:
    against = f" against {_AXIS_NAMES[picture.axis]}" if picture.axis else ""
    data = base64.b64encode(picture.png).decode()
    return (
        f'<figure class="{f"axis {picture.axis}" if picture.axis else "always"}">'
        f'<img alt="{html.escape(picture.title + against)}" src="data:image/png;base64,{data}">'
        + (f"<figcaption>{html.escape(picture.caption)}</figcaption>" if picture.caption else "")
        + "</figure>"
    )


def _table(
    title: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]], colours: Sequence[str] | None = None
) -> str:
    """A table with a heading."""
    dots = [f'<span class="colour" style="background: {colour}"></span>' for colour in colours or []]
    dots += [""] * (len(columns) - len(dots))
    head = "".join(f"<th>{dot}{_breakable(name)}</th>" for dot, name in zip(dots, columns, strict=True))
    body = "\n".join(
        f"<tr><th>{_breakable(label)}</th>{''.join(f'<td>{_breakable(cell)}</td>' for cell in cells)}</tr>"
        for label, cells in rows.items()
    )
    return (
        f'<div class="table"><h2>{title}</h2>\n<table>\n<thead><tr><th></th>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _breakable(text: str) -> str:
    """Text whose long names may be broken after their joints."""
    return re.sub(r"([/_]|(?<=[a-z])\.)", r"\1<wbr>", html.escape(text))


def _evaluation_table(evaluations: Sequence[tuple[str, Row]]) -> str:
    if not evaluations:
        return ""
    return _table("Evaluations", [name for name, _ in evaluations], evaluation_facts([row for _, row in evaluations]))
