"""The best value of each condition: which is picked, and what is said of it."""

import json
from pathlib import Path

import pytest

from data_tools.base.errors import UserError
from data_tools.compare.__main__ import main
from data_tools.compare.grid import runs_with_curves
from data_tools.compare.picks import pick_best, picks_text
from tests.support.runs import write_run

ENDS = {"A/lr=1e-4": 2.6, "A/lr=5e-4": 2.4, "B/lr=1e-4": 2.9, "B/lr=5e-4": 3.1}


def write_grid(directory: Path, ends: dict[str, float], seeds: tuple[int, ...] = (1, 2, 3), total: int = 2000) -> Path:
    """Runs that end at these losses; of seed 1 the better value is the other one."""
    for name, end in ends.items():
        for seed in seeds:
            steps = range(100, 2001, 100)
            shift = {1: 0.15 * (1 if end in (2.4, 2.9) else -1)}.get(seed, 0.0)
            rows = [{"step": step, "heldout_c4_loss": end + shift + 10 / step, "x_acc": end / 10} for step in steps]
            train = [{"step": step, "loss": 1.0, "tokens": 100 * step, "mixin_fraction": 0.0} for step in steps]
            write_run(directory / name / f"seed_{seed}", train, rows, settings=f"seed: {seed}\ntotal_steps: {total}\n")
    return directory


def test_the_value_that_ends_best_on_average_is_picked(tmp_path: Path) -> None:
    found, picks = pick_best(runs_with_curves(write_grid(tmp_path, ENDS)), "heldout_c4_loss")
    values = {name: {run.parent.name for run in runs} for name, runs in found.items()}
    assert values == {"A": {"lr=5e-4"}, "B": {"lr=1e-4"}}
    a, b = picks
    assert (a.value, b.value, a.is_final, a.seeds) == ("lr=5e-4", "lr=1e-4", True, ["seed_1", "seed_2", "seed_3"])
    assert a.results == pytest.approx({"lr=1e-4": 2.555, "lr=5e-4": 2.455})


def test_of_an_accuracy_more_is_better(tmp_path: Path) -> None:
    _, picks = pick_best(runs_with_curves(write_grid(tmp_path, ENDS)), "x_acc")
    assert [pick.value for pick in picks] == ["lr=1e-4", "lr=5e-4"]


def test_only_seeds_that_all_values_have_decide(tmp_path: Path) -> None:
    write_grid(tmp_path, {"A/lr=1e-4": 2.6}, seeds=(1, 2))
    write_grid(tmp_path, {"A/lr=5e-4": 2.4}, seeds=(1, 4))
    write_grid(tmp_path, {"C": 2.4, "A/lr=1": 9.0}, seeds=(1,))
    found, (pick,) = pick_best(runs_with_curves(tmp_path), "heldout_c4_loss")
    assert (pick.value, pick.seeds) == ("lr=1e-4", ["seed_1"]) and "(1 seed)" in picks_text([pick], "loss")
    assert len(found["A"]) == 2 and len(found["C"]) == 1
    write_grid(tmp_path, {"A/lr=2": 2.0}, seeds=(7,))
    with pytest.raises(UserError, match=r"the values of A .* have no seed in common yet"):
        pick_best(runs_with_curves(tmp_path), "heldout_c4_loss")
    assert pick_best(runs_with_curves(tmp_path), "heldout_c4_loss", only=["C"])[1] == []


def test_compare_says_what_was_picked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid, out = write_grid(tmp_path / "grid", ENDS, total=3000), tmp_path / "out"
    main(["--experiment", str(grid), "--out", str(out)])
    text = capsys.readouterr().out
    assert "A: lr=5e-4 is picked, heldout_c4_loss 2.4550 at the end (3 seeds); lr=1e-4 2.5550." in text
    assert "Note: A: some of these runs still train" in text and "so its results are optimistic" in text
    content = json.loads((out / "comparison.json").read_text())
    assert [pick["value"] for pick in content["picked"]] == ["lr=5e-4", "lr=1e-4"]
    (one,) = content["comparisons"]
    assert (one["base"], one["name"], one["seeds"]) == ("B", "A", [1, 2, 3])
    assert one["final"]["mean"] == pytest.approx(2.455 - 2.955, abs=1e-6)


def test_without_varied_flags_nothing_is_picked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--experiment", str(write_grid(tmp_path / "g", {"A": 2.4, "B": 2.9})), "--out", str(tmp_path / "out")])
    assert "picked" not in capsys.readouterr().out
    assert "picked" not in json.loads((tmp_path / "out" / "comparison.json").read_text())
