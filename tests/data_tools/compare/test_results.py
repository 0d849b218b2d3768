"""The command: files, words, and what it refuses."""

import csv
import json

import numpy as np
import pytest

from data_tools.base.errors import UserError
from data_tools.compare.__main__ import main
from data_tools.compare.comparison import compare
from data_tools.compare.conditions import read_condition
from data_tools.compare.drawing import draw_comparison
from tests.support.runs import write_run


@pytest.fixture
def grid(tmp_path):
    """Three conditions × three seeds: B, A twice as fast, and X, which starts ahead and ends behind."""
    for name, speed, end in (("B", 1.0, 2.5), ("A", 2.0, 2.5), ("X", 4.0, 3.0)):
        for seed in (1, 2, 3):
            steps = range(250, 10_001, 250)
            losses = [end + 30 * (step * speed * (1 + seed / 100)) ** -0.4 for step in steps]
            train = [{"step": step, "loss": 1.0, "tokens": 100 * step, "mixin_fraction": 0.0} for step in steps]
            rows = [{"step": step, "heldout_c4_loss": loss} for step, loss in zip(steps, losses, strict=True)]
            settings = f"seed: {seed}\ntotal_steps: 10000\n"
            write_run(tmp_path / name / f"seed_{seed}", train, rows, settings=settings)
    return tmp_path


def runs(grid, name):
    return [str(grid / name / f"seed_{seed}") for seed in (1, 2, 3)]


def test_command(grid, capsys):
    out = grid / "out" / "deep"
    a_first, *a_rest = runs(grid, "A")
    main(["--base", *runs(grid, "B"), "--run", f"warm={a_first}", *a_rest, "--run", *runs(grid, "X"),
          "--target", "1.0", "--out", str(out)])  # fmt: skip
    text = capsys.readouterr().out
    assert "warm reaches B's final heldout_c4_loss (3.248) with fewer c4_tokens, 500,000 against 1M" in text
    assert "speed-up 2 (2 … 2) (3 seeds, 95 % interval)." in text
    assert "X never reaches B's final" in text and "(B leads after)" in text
    assert sorted(path.name for path in out.iterdir()) == ["comparison.csv", "comparison.json", "comparison.png"]
    rows = list(csv.DictReader((out / "comparison.csv").open()))
    assert len(rows) == 2 * 5 * 3 and {row["run"] for row in rows} == {"warm", "X"}
    assert float(rows[0]["speed_up"]) == pytest.approx(2, rel=0.01)
    assert [row["run_needs"] for row in rows if row["target"] == "given"] == [""] * 6
    content = json.loads((out / "comparison.json").read_text())
    warm, lost = content["comparisons"]
    assert content["axis"] == "c4_tokens" and warm["verdict"] in text and warm["crossings"] == []
    assert warm["targets"][-1]["speed_up"]["mean"] is None
    assert len(lost["crossings"]) == 1 and lost["final"]["low"] > 0


def test_picture(grid):
    names = ("B", "A", "X")
    conditions = [read_condition(name, [*map(grid.joinpath, runs(grid, name))], "heldout_c4_loss", "steps", False)
                  for name in names]  # fmt: skip
    found = [compare(conditions[0], other) for other in conditions[1:]]
    axes = draw_comparison(conditions, found, "heldout_c4_loss", "steps").axes[0]
    lines = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
    assert lines.keys() == {*names}
    base = [run.curve.values for run in conditions[0].runs.values()]
    assert lines["B"].get_ydata() == pytest.approx(np.mean(base, axis=0))
    assert len([line for line in axes.lines if line.get_gid() == "seed"]) == 9
    assert len([band for band in axes.collections if band.get_gid() == "band"]) == 3
    (mark,) = [line for line in axes.lines if line.get_gid() == "crossing"]
    assert mark.get_xdata()[0] == pytest.approx(found[1].crossings[0].position)
    assert axes.get_xlabel() == "steps"


def test_one_run_each_without_a_name(grid, capsys):
    main(["--base", runs(grid, "B")[0], "--run", runs(grid, "A")[0], "--axis", "steps", "--out", str(grid / "out")])
    text = capsys.readouterr().out
    assert "Note: 1 seed: no interval." in text and "A reaches B's final" in text


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--axis", "c4_tokens", "--charge_pptrain"], "adds nothing to --axis c4_tokens; give --axis tokens"),
        (["--axis", "steps", "--charge_pptrain"], "adds nothing to --axis steps"),
        (["--axis", "pflops"], "no column pflops"),
        (["--metric", "heldout_loss"], "its logs have heldout_c4_loss, loss, mixin_fraction, tokens"),
        (["--target", "nan"], "--target nan is no level"),
        (["--run", "A=elsewhere"], "two conditions are called A"),
        (["--run", "elsewhere"], "elsewhere/logs/train.jsonl cannot be read"),
    ],
)
def test_refusals_write_nothing(grid, flags, message):
    out = grid / "out"
    with pytest.raises(UserError, match=message):
        main(["--base", *runs(grid, "B"), "--run", *runs(grid, "A"), *flags, "--out", str(out)])
    assert not out.exists()
