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


def test_an_experiment_is_compared_as_a_whole(grid, capsys):
    """All conditions against B, or another one; first phases are none."""
    (grid / "pptrain_on_c4").symlink_to(grid / "A")
    (grid / "data" / "seed_1").mkdir(parents=True)
    write_run(grid / "begun" / "seed_1", [], [{"step": 0, "heldout_c4_loss": 9.0}], settings="seed: 1\n")
    for base, others in (([], {"A", "X"}), (["--base", "X"], {"A", "B"})):
        main(["--experiment", str(grid), *base, "--out", str(grid / "out")])
        rows = list(csv.DictReader((grid / "out" / "comparison.csv").open()))
        assert {row["run"] for row in rows} == others and {row["base"] for row in rows} == {*(base[1:] or ["B"])}
        assert {row["seed"] for row in rows} == {"1", "2", "3"}
    capsys.readouterr()


def test_an_experiment_that_is_not_finished(grid, capsys):
    """What has no seed in common with the baseline yet is left out, and so is what --conditions does not name."""
    (grid / "alone" / "seed_9").parent.mkdir()
    (grid / "alone" / "seed_9").symlink_to(grid / "A" / "seed_1")
    main(["--experiment", str(grid), "--conditions", "X", "--out", str(grid / "out")])
    assert "Note: alone has no run of a seed of B's and is left out." in capsys.readouterr().out
    rows = list(csv.DictReader((grid / "out" / "comparison.csv").open()))
    assert {(row["base"], row["run"]) for row in rows} == {("B", "X")}
    for flags, message in (
        (["--experiment", str(grid), "--conditions", "C"], "--conditions C: .*there are B, A, X"),
        (["--experiment", str(grid), "--base", "alone"], "no other condition has a seed of alone's yet"),
        (["--base", *runs(grid, "B"), "--run", *runs(grid, "A"), "--conditions", "A"], "--experiment DIR, which is"),
    ):
        with pytest.raises(UserError, match=message):
            main(flags)


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


def climb(directory, seed, costs):
    """A run of pptrain that masters stage s, of lookahead 2 s, at costs[s - 1]."""
    train = [{"step": 10 * n, "stage": n, "alpha": n / 99, "lookahead": 2 * n, "pflops": cost}
             for n, cost in enumerate(costs, 1)]  # fmt: skip
    rows = [{"step": 10 * n, "stage": n + 1, "alpha": (n + 1) / 99, "mastered": n > 0} for n in range(len(costs) + 1)]
    return write_run(directory, train, rows, settings=f"seed: {seed}\n")


def test_scaling(tmp_path, capsys):
    """Two seeds share a fit; a run with two promotions has none."""
    for seed in (1, 2):
        climb(tmp_path / "wide" / f"seed_{seed}", seed, [5.0 * n**2.5 * (1 + seed / 50) for n in range(1, 9)])
    few = climb(tmp_path / "few", 1, [1.0, 2.0])
    wide = [str(tmp_path / "wide" / f"seed_{seed}") for seed in (1, 2)]
    main(["--scaling", "--run", *wide, "--run", str(few), "--out", str(tmp_path / "out")])
    text = capsys.readouterr().out
    assert "wide, 16 promotions" in text and "Exponent of the power law of pflops: 0.4" in text
    assert "few: 2 promotions: too few promotions to fit" in text and "Note" not in text
    rows = list(csv.reader((tmp_path / "out" / "scaling.csv").open()))
    assert len(rows) == 1 + 16 + 2 and rows[1] == ["wide", "2.0", "5.1"]
    first, second = json.loads((tmp_path / "out" / "scaling.json").read_text())["runs"]
    assert first["fits"][0]["form"] == "power law" and first["exponent"]["low"] < 0.4 < first["exponent"]["high"]
    assert second == {"name": "few", "fits": [], "exponent": None, "stages": None}
    assert first["stages"]["step"] == 2 and len(first["stages"]["costs"]) == 14
    assert (tmp_path / "out" / "scaling.png").stat().st_size > 1000


def test_stages_stand_for_lookaheads_that_a_log_lacks(tmp_path, capsys):
    rows = [{"step": 10 * n, "stage": n, "alpha": n / 9, "tokens": 100 * n**2} for n in range(1, 9)]
    evaluations = [{"step": 10 * n, "stage": n + 1, "alpha": (n + 1) / 9, "mastered": n > 0} for n in range(8)]
    run = write_run(tmp_path / "old", rows, evaluations)
    main(["--scaling", "--run", str(run), "--axis", "tokens", "--out", str(tmp_path / "out")])
    text = capsys.readouterr().out
    assert "old, 7 promotions" in text and "its stages stand for lookaheads" in text
    with pytest.raises(UserError, match=r"--axis pflops: .*no column pflops"):
        main(["--scaling", "--run", str(run), "--out", str(tmp_path / "out")])


def test_a_run_without_a_promotion(tmp_path, capsys):
    train = [{"step": 10, "stage": 1, "alpha": 0.1, "tokens": 100}]
    run = write_run(tmp_path / "new", train, [{"step": 0, "stage": 1, "alpha": 0.1}])
    main(["--scaling", "--run", str(run), "--axis", "tokens", "--out", str(tmp_path / "out")])
    assert "new: 0 promotions: too few promotions to fit" in capsys.readouterr().out


def test_scaling_is_of_pptrain(grid):
    with pytest.raises(UserError, match="has no stages; give runs of pptrain"):
        main(["--scaling", "--run", *runs(grid, "A"), "--axis", "tokens"])
    with pytest.raises(UserError, match="--base is missing"):
        main(["--run", *runs(grid, "A")])


@pytest.mark.parametrize("flag", [["--target", "3"], ["--metric", "loss"], ["--axis", "tokens", "--charge_pptrain"]])
def test_scaling_refuses_what_is_for_curves(grid, flag):
    with pytest.raises(UserError, match=f"{flag[-2] if len(flag) == 2 else flag[-1]} is for curves"):
        main(["--scaling", "--run", *runs(grid, "A"), *flag, "--out", str(grid / "out")])
    assert not (grid / "out").exists()
