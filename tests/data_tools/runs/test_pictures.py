"""What is drawn is what the logs say."""

import numpy as np
import pytest

from data_tools.runs.intervals import wilson_interval
from data_tools.runs.panels import PANELS
from data_tools.runs.pictures import COLOURS, as_png, draw, draw_lookahead, running_mean, thinned
from tests.support.runs import pptrain_rows, pretrain_rows, read_run, report, stage_rows

PANEL = {panel.name: panel for panel in PANELS}
CLIMB = {"train": pptrain_rows([4.0, 2.0, 3.0, 1.0], [1, 1, 2, 3]), "evaluations": stage_rows([0, 20, 30], [1, 2, 3])}
_LONG = 1000


def lines(axes):
    """Label → line, of those that are named."""
    return {line.get_label().strip(): line for line in axes.lines if not line.get_label().startswith("_")}


def points(line):
    return [tuple(np.round(point, 6).tolist()) for point in line.get_xydata()]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def marks(figure, kind):
    """Positions of marks in each lane of the strip."""
    strip = figure.axes[1]
    return {line.get_ydata()[0]: list(line.get_xdata()) for line in strip.lines
            if line.get_gid() == kind and len(line.get_xdata())}  # fmt: skip


@pytest.fixture
def climbing(tmp_path):
    """pptrain in four rows: two stages mastered, resumed at step 10."""
    return read_run(tmp_path / "climb", "climbing", launches=[0, 10], **CLIMB)


@pytest.fixture
def mixing(tmp_path):
    evaluations = [{"step": step, "heldout_acc": 0.5, "heldout_c4_loss": 5.0} for step in (0, 20)]
    return read_run(tmp_path / "mix", "mixing", train=pretrain_rows([6.0, 5.0]), evaluations=evaluations)


@pytest.mark.parametrize(
    ("axis", "label", "climbed", "mixed"),
    [
        ("step", "optimizer step", [10, 20, 30, 40], [10, 20]),
        ("tokens", "tokens (thousands)", [1, 2, 3, 4], [2, 4]),
        ("time", "training time without pauses (s)", [10, 20, 30, 40], [5, 10]),
    ],
)
def test_losses_of_two_runs_against_each_axis(climbing, mixing, axis, label, climbed, mixed):
    figure = draw(PANEL["loss"], [climbing, mixing], axis)
    axes, strip = figure.axes
    found = lines(axes)
    assert points(found["climbing"]) == list(zip(climbed, [4.0, 2.0, 3.0, 1.0], strict=True))
    assert points(found["mixing"]) == list(zip(mixed, [6.0, 5.0], strict=True))
    assert [found[name].get_color() for name in ("climbing", "mixing")] == list(COLOURS[:2])
    assert strip.get_xlabel() == label and axes.get_title(loc="left") == "Training loss"
    assert legend(figure) == ["climbing", "mixing", "stage mastered", "resumed"]


@pytest.mark.parametrize(
    ("of_step", "label", "drawn"),
    [(1e-8, "GFLOPs", [0.1, 0.2]), (1e-4, "TFLOPs", [1, 2]), (1, "PFLOPs", [10, 20]), (500, "EFLOPs", [5, 10])],
)
def test_runs_that_know_their_flops_are_drawn_against_them(tmp_path, climbing, of_step, label, drawn):
    rows = pretrain_rows([6.0, 5.0])
    for row in rows:
        row["pflops"] = of_step * row["step"]
    axes, *_ = draw(PANEL["loss"], [climbing, read_run(tmp_path / "new", "new", train=rows)], "pflops").axes
    assert axes.get_xlabel() == label and points(lines(axes)["new"]) == list(zip(drawn, [6, 5], strict=True))
    assert "climbing" not in lines(axes) and draw(PANEL["loss"], [climbing], "pflops") is None


def test_long_axes_take_larger_units(tmp_path):
    rows = pretrain_rows([6.0, 5.0])
    for row in rows:
        row["tokens"] *= 1_000_000
    figure = draw(PANEL["loss"], [read_run(tmp_path, train=rows)], "tokens")
    assert figure.axes[0].get_xlabel() == "tokens (billions)" and points(lines(figure.axes[0])["run"])[1] == (4, 5)
    figure = draw(PANEL["loss"], [read_run(tmp_path / "b", train=rows)], "time")
    assert figure.axes[0].get_xlabel().endswith("(h)")
    assert points(lines(figure.axes[0])["run"])[1][0] == round(4e9 / 400 / 3600, 6)


def test_marks_stand_under_the_curves_in_a_lane_of_their_run(climbing, mixing):
    figure = draw(PANEL["loss"], [mixing, climbing], "tokens")
    assert marks(figure, "stage mastered") == {0: [2, 3]} and marks(figure, "resumed") == {0: [1]}
    assert {line.get_color() for line in figure.axes[1].lines} == {COLOURS[1]}
    above, below = (axes.get_position() for axes in figure.axes)
    assert below.y1 <= above.y0 + 1e-9 and below.x0 == above.x0 and below.x1 == above.x1


def test_a_run_without_marks_needs_no_strip(mixing):
    figure = draw(PANEL["loss_by_source"], [mixing], "step")
    assert len(figure.axes) == 1 and legend(figure) == ["mixing", "C4", "synthetic"]


def test_sources_share_a_colour_and_differ_in_style(mixing):
    found = lines(draw(PANEL["loss_by_source"], [mixing], "step").axes[0])
    assert points(found["mixing C4"]) == [(10, 7), (20, 6)] and points(found["mixing synthetic"]) == [(10, 3)]
    assert len({line.get_color() for line in found.values()}) == 1
    assert found["mixing C4"].get_linestyle() != found["mixing synthetic"].get_linestyle()


def test_a_line_that_a_later_one_lies_on_is_wider(tmp_path):
    lengths = {"first": 3, "other": 3, "longer": 4}
    runs = [
        read_run(tmp_path / name, name, train=pptrain_rows([4.0, 3.0, 2.0, 1.0][:n])) for name, n in lengths.items()
    ]
    runs[1].train["lr"][0] = 0.0
    found = lines(draw(PANEL["learning_rate"], runs, "step").axes[0])
    widths = {name: line.get_linewidth() for name, line in found.items()}
    assert widths["first"] > widths["other"] == widths["longer"]


def test_a_panel_shows_the_runs_that_have_it_in_their_colours(climbing, mixing):
    figure = draw(PANEL["heldout_c4_loss"], [climbing, mixing], "step")
    assert set(lines(figure.axes[0])) == {"mixing"} and lines(figure.axes[0])["mixing"].get_color() == COLOURS[1]
    assert figure.axes[0].get_xlim()[1] > 40  # as far as the longest run, as in all panels
    assert draw(PANEL["heldout_c4_loss"], [climbing], "step") is None


def test_stage_is_a_stair_that_rises_after_the_row_before(climbing):
    figure = draw(PANEL["stage"], [climbing], "step")
    line = lines(figure.axes[0])["climbing"]
    assert points(line) == [(10, 1), (20, 1), (30, 2), (40, 3)] and line.get_drawstyle() == "steps-pre"
    assert all(tick == int(tick) for tick in figure.axes[0].get_yticks())


def test_the_window_is_drawn_below_its_threshold(climbing):
    figure = draw(PANEL["window_accuracy"], [climbing], "step", [0.98])
    assert [line.get_ydata()[0] for line in figure.axes[0].lines if line.get_linestyle() == ":"] == [0.98]
    assert "threshold 0.98" in legend(figure)
    low, high = figure.axes[0].get_ylim()
    assert low <= 0 and high >= 1


def test_evaluations_are_points(climbing):
    line = lines(draw(PANEL["heldout_accuracy"], [climbing], "tokens").axes[0])["climbing"]
    assert points(line) == [(0, 0), (2, 0.1), (3, 0.2)] and line.get_marker() == "o"


def test_accuracies_have_their_intervals(tmp_path, climbing):
    evaluations = [{"step": step, "heldout_acc": 0.5, "num_examples": size} for step, size in ((0, 10), (10, 1000))]
    run = read_run(tmp_path / "sizes", train=pptrain_rows([4.0]), evaluations=evaluations)
    (bars,) = draw(PANEL["heldout_accuracy"], [run], "step").axes[0].collections
    ends = [wilson_interval(size // 2, size) for size in (10, 1000)]
    assert np.allclose(
        bars.get_segments(), [[(x, low), (x, high)] for x, (low, high) in zip((0, 10), ends, strict=True)]
    )
    climbing.evaluations.pop("num_examples")
    (none,) = draw(PANEL["heldout_accuracy"], [climbing], "step").axes[0].collections
    assert not np.isfinite([segment for segment in none.get_segments() if len(segment)]).any()  # sizes unknown


def test_one_row_is_a_point(tmp_path):
    run = read_run(tmp_path, train=pptrain_rows([4.0]), evaluations=None)
    for name in ("loss", "stage", "learning_rate"):
        (line,) = lines(draw(PANEL[name], [run], "step").axes[0]).values()
        assert len(points(line)) == 1 and line.get_marker() == "o"
    assert draw(PANEL["heldout_accuracy"], [run], "step") is None


def test_many_rows_are_a_mean_over_pale_steps(tmp_path):
    values = np.where(np.arange(_LONG) % 2, 1.0, 3.0)
    values[500] = 50.0
    figure = draw(PANEL["loss"], [read_run(tmp_path, train=pptrain_rows(values.tolist()))], "step")
    pale, mean = figure.axes[0].lines
    assert pale.get_gid() == "single steps" and pale.get_alpha() < 0.5 and pale.get_ydata().tolist() == values.tolist()
    assert np.all(np.abs(mean.get_ydata()[100:400] - 2) < 0.1)
    assert legend(figure) == ["run", "single steps"]
    stages = draw(PANEL["stage"], [read_run(tmp_path / "b", train=pptrain_rows(values.tolist()))], "step")
    assert len(stages.axes[0].lines) == 1  # what is exact is not averaged


def test_a_mean_stays_close_to_its_steps_however_long_the_run(tmp_path):
    values = [1.0] * 5000
    values[2500] = 102.0
    mean = draw(PANEL["loss"], [read_run(tmp_path, train=pptrain_rows(values))], "step").axes[0].lines[1]
    assert mean.get_ydata().max() == pytest.approx(2)  # 101 more in 101 rows


@pytest.mark.parametrize(("count", "half"), [(1, 0), (7, 2), (50, 1), (40, 100)])
def test_running_mean_is_centred_but_at_the_end(count, half):
    values = np.random.default_rng(count).normal(size=count)
    expected = [values[n - reach : n + reach + 1].mean() for n in range(count) for reach in [min(half, n)]]
    np.testing.assert_allclose(running_mean(values, half), expected, atol=1e-12)


@pytest.mark.parametrize("count", [10, 99, 100, 101, 12_345])
def test_a_thinned_line_looks_the_same(count):
    positions, values = np.arange(count) * 3.0, np.random.default_rng(count).normal(size=count)
    x, y = thinned(positions, values, 100)
    assert len(x) <= 100 and np.all(np.diff(x) > 0)
    assert np.array_equal(values[(x / 3).astype(int)], y)  # points of the line itself
    assert (x[0], x[-1]) == (0, positions[-1]) and (y.min(), y.max()) == (values.min(), values.max())
    for first in range(0, count - 1000, 1000):  # extremes of every part
        part = y[(x >= 3 * first) & (x < 3 * (first + 1000))]
        assert part.max() > np.quantile(values[first : first + 1000], 0.99)


def test_no_line_of_a_long_run_has_more_points_than_can_be_seen(tmp_path):
    run = read_run(tmp_path, train=pptrain_rows(np.linspace(4, 1, 5000).tolist()))
    for panel in PANELS:
        if figure := draw(panel, [run], "step"):
            assert max(len(line.get_xdata()) for line in figure.axes[0].lines) <= 2000, panel.name


def test_names_are_shown_as_they_are_unless_they_are_too_long(tmp_path):
    names = ["_plain", "a$b$c", "x" * 100]
    runs = [read_run(tmp_path / str(n), name, train=pptrain_rows([4.0, 3.0])) for n, name in enumerate(names)]
    shown = set(legend(draw(PANEL["loss"], runs, "step")))
    assert {"_plain", r"a\$b\$c"} <= shown  # a backslash keeps a dollar from being read as mathematics
    (long,) = [text for text in shown if "…" in text]
    assert len(long) < 50


@pytest.mark.parametrize("name", ["{}", "run {} of several", "W" * 60 + "{}"])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_the_legend_stands_under_the_axes_within_the_picture(tmp_path, name, count):
    runs = [
        read_run(tmp_path / str(n), name.format(n), train=CLIMB["train"], evaluations=CLIMB["evaluations"])
        for n in range(count)
    ]
    figure = draw(PANEL["loss"], runs, "tokens")
    as_png(figure)
    legend_box, label_box = figure.legends[0].get_window_extent(), figure.axes[1].xaxis.label.get_window_extent()
    assert legend_box.x0 >= 0 and legend_box.x1 <= figure.bbox.x1
    assert legend_box.y0 >= -3 and legend_box.y1 <= label_box.y0 + 3  # an empty border may overlap
    assert label_box.y1 < figure.axes[1].get_window_extent().y0


def test_lookahead_with_intervals_and_without():
    reports = [
        ("first", COLOURS[0], report("a", [0.9, 0.5, 0.0], half_width=0.1)),
        ("second", COLOURS[1], report("b", [0.4, 0.2])),
    ]
    axes = draw_lookahead(reports).axes[0]
    first, second = axes.containers
    line, _, (bars,) = first.lines
    assert np.round(line.get_xdata()).tolist() == [0, 1, 2] and line.get_ydata().tolist() == [0.9, 0.5, 0.0]
    ends = [np.round(segment[:, 1], 6).tolist() for segment in bars.get_segments()]
    assert ends == [[0.8, 1.0], [0.4, 0.6], [0.0, 0.1]]
    assert second.lines[0].get_ydata().tolist() == [0.4, 0.2] and not second.has_yerr
    assert legend(axes.figure) == ["first", "second"]


def test_equal_runs_give_equal_pictures(climbing):
    first, again = (as_png(draw(PANEL["loss"], [climbing], "step")) for _ in range(2))
    assert first == again and first.startswith(b"\x89PNG")
