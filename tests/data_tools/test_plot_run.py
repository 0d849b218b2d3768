"""The command: pictures as files, the page that holds them, and what it refuses."""

import html
import json
import re

import pytest

from data_tools import plot_run
from data_tools.base.errors import UserError
from data_tools.runs.logs import AXES
from data_tools.runs.pictures import COLOURS
from tests.support.holding import holder_of
from tests.support.runs import pptrain_rows, pretrain_rows, report, stage_rows, write_run


@pytest.fixture
def two_runs(tmp_path):
    """Directories of a pptrain and a pretrain run."""
    climb = write_run(
        tmp_path / "x" / "pptrain", pptrain_rows([4.0, 2.0, 3.0, 1.0], [1, 1, 2, 3]),
        stage_rows([0, 20, 30], [1, 2, 3]), [0, 10], "seed: 1\ncurr_threshold: 0.98\n",
    )  # fmt: skip
    mix = write_run(
        tmp_path / "x" / "pretrain",
        pretrain_rows([6.0, 5.0]),
        [{"step": 20, "heldout_code_loss": 3.0}],
        settings="seed: 2\n",
    )
    return climb, mix


def cells(page, row):
    """The cells of a table's row."""
    found = re.search(rf"<tr><th>{re.escape(row)}</th>(.*?)</tr>", page)
    return [html.unescape(cell.replace("<wbr>", "")) for cell in re.findall(r"<td>(.*?)</td>", found[1])]


def test_command(tmp_path, two_runs, capsys):
    evaluation = tmp_path / "test.json"
    checkpoint = str(two_runs[1] / "checkpoints" / "step_00000020")
    evaluation.write_text(json.dumps(report(checkpoint, [0.9, 0.1], half_width=0.05)))
    out = tmp_path / "out" / "deep"
    plot_run.main([*map(str, two_runs), "--out", str(out), "--evaluation", str(evaluation)])
    names = {path.stem for path in out.glob("*.png")}
    by_axis = {axis: {name for name in names if name.endswith(f"_by_{axis}")} for axis in AXES}
    for axis in ("step", "tokens", "time"):
        assert {f"{panel}_by_{axis}" for panel in ("loss", "stage", "loss_by_source")} <= by_axis[axis]
    assert "loss_by_source_by_c4_tokens" in names and "stage_by_c4_tokens" not in names and not by_axis["pflops"]
    assert "accuracy_by_lookahead" in names and "heldout_c4_loss_by_step" not in names
    assert "heldout_code_loss_by_c4_tokens" in names
    page = (out / "report.html").read_text().replace("<wbr>", "")
    assert (
        page.count("<img ") == len(names) and f"{len(names)} pictures of pptrain, pretrain" in capsys.readouterr().out
    )
    assert not [path for path in out.iterdir() if path.suffix not in (".png", ".html")]
    # One file that needs no other: nothing is named that would have to be fetched.
    assert set(re.findall(r'(?:src|href)="(.{10})', page)) == {"data:image"} and "url(" not in page
    assert cells(page, "optimizer steps") == ["40", "20"] and cells(page, "tokens") == ["4,000", "4,000"]
    assert cells(page, "launches") == ["2", "1"] and cells(page, "stage") == ["3 of 8", "–"]
    assert cells(page, "training loss, mean of 5 rows") == ["2.500", "5.500"]
    assert cells(page, "held-out code loss") == ["–", "3.000"]
    assert cells(page, "best held-out accuracy") == ["0.200 at step 30", "–"]
    assert cells(page, "seed") == ["1", "2"] and "curr_threshold" not in page
    assert cells(page, "accuracy, any valid answer") == ["0.500"]
    assert cells(page, "its 95 % interval") == ["0.450 – 0.550"] and "95 % interval of that" not in page


def test_a_run_that_has_just_begun(tmp_path, monkeypatch):
    """One row, no evaluation, and a directory of another program: logs and nothing else."""
    monkeypatch.setattr(plot_run, "as_png", lambda figure: b"")
    runs = [
        write_run(tmp_path / "a", pptrain_rows([4.0]), None),
        write_run(tmp_path / "b", [{"step": 1, "loss": None}]),
    ]
    for path in (runs[1] / "run.yaml", runs[1] / "launches.jsonl"):
        path.unlink()
    plot_run.main([*map(str, runs), "--out", str(tmp_path / "out")])
    page = (tmp_path / "out" / "report.html").read_text()
    assert cells(page, "optimizer steps") == ["10", "1"] and cells(page, "training loss, mean of 5 rows") == [
        "4.000",
        "–",
    ]
    assert cells(page, "training time") == ["0:00:10", "–"] and cells(page, "launches") == ["1", "–"]
    assert "held-out" not in re.sub("<figcaption>.*?</figcaption>", "", page) and "Settings that differ" not in page


def test_a_threshold_of_the_run_file_is_drawn(two_runs, monkeypatch, tmp_path):
    seen = {}
    monkeypatch.setattr(plot_run, "draw", lambda panel, runs, axis, levels: seen.update({panel.name: levels}))
    plot_run.main([*map(str, two_runs), "--out", str(tmp_path)])
    assert seen["window_accuracy"] == [0.98] and seen["loss"] == []


def test_an_evaluation_has_the_colour_of_its_run(two_runs, monkeypatch, tmp_path):
    files = []
    for n, checkpoint in enumerate(
        [two_runs[1] / "checkpoints" / "step_1", two_runs[1] / "checkpoints" / "step_2", two_runs[0], "elsewhere"]
    ):
        files.append(tmp_path / f"{n}.json")
        files[-1].write_text(json.dumps(report(str(checkpoint), [1.0])))
    seen = []
    monkeypatch.setattr(plot_run, "draw_lookahead", seen.extend)
    monkeypatch.setattr(plot_run, "as_png", lambda figure: b"")
    plot_run.main([*map(str, two_runs), "--out", str(tmp_path), "--evaluation", *map(str, files)])
    assert [(name, colour) for name, colour, _ in seen] == [
        ("pretrain/step_1, test", COLOURS[1]), ("pretrain/step_2, test", COLOURS[2]), ("pptrain, test", COLOURS[0]),
        ("elsewhere, test", COLOURS[3]),
    ]  # fmt: skip


def test_names_of_the_page_are_text(two_runs, tmp_path, monkeypatch):
    monkeypatch.setattr(plot_run, "as_png", lambda figure: b"")
    plot_run.main([*map(str, two_runs), "--names", "<b>bold", 'a"b', "--out", str(tmp_path)])
    page = (tmp_path / "report.html").read_text()
    assert "<b>" not in page and "&lt;b&gt;bold" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{a}", "{b}", "--names", "one"], "1 --names for 2 runs"),
        (["{a}", "{b}", "--names", "one", "one"], "given twice"),
        (["{a}", "{a}"], "given twice"),
        (["{a}"] * 9, "9 runs"),
        (["{a}", "--evaluation", *["x.json"] * 9], "9 evaluations"),
        (["{a}", "{a}/missing"], r"missing/logs/train\.jsonl cannot be read"),
        (["{a}", "--evaluation", "{a}/logs/train.jsonl"], "--evaluation"),
        (["{a}", "--out", "{a}/run.yaml"], "--out .*run.yaml is a file; give a directory"),
    ],
)
def test_bad_arguments_are_one_error_each(two_runs, tmp_path, arguments, message):
    first, second = two_runs
    given = [argument.format(a=first, b=second) for argument in arguments]
    if "--out" not in given:
        given += ["--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match=message):
        plot_run.main(given)
    assert not (tmp_path / "out").exists()


def test_watching_draws_again_until_no_run_is_going(two_runs, tmp_path, monkeypatch, capsys):
    pages = []
    holder = holder_of(two_runs[1])  # of the two runs one is still going

    def sleep(seconds):
        assert seconds == 5
        pages.append((tmp_path / "out" / "report.html").read_text())
        if len(pages) == 2:
            holder.kill()
            holder.wait()
            with (two_runs[1] / "logs" / "train.jsonl").open("a") as log:
                log.write(json.dumps({**pretrain_rows([6.0, 5.0, 4.0])[-1]}) + "\n")

    monkeypatch.setattr(plot_run.time, "sleep", sleep)
    plot_run.main([*map(str, two_runs), "--out", str(tmp_path / "out"), "--watch", "5"])
    assert len(pages) == 2 and all("location.reload" in page and "5 * 1000" in page for page in pages)
    last = (tmp_path / "out" / "report.html").read_text()
    assert "location.reload" not in last and "refresh" not in last, "what is over stays as it is"
    assert [cells(page, "optimizer steps")[1] for page in (*pages, last)] == ["20", "20", "30"], "the last page has all"
    assert [line.endswith("again in 5 s") for line in capsys.readouterr().out.splitlines()] == [True, True, False]


def test_watching_what_has_ended_draws_it_once(two_runs, tmp_path, monkeypatch):
    monkeypatch.setattr(plot_run.time, "sleep", None)
    plot_run.main([str(two_runs[0]), "--out", str(tmp_path / "out"), "--watch"])
    assert "location.reload" not in (tmp_path / "out" / "report.html").read_text()
