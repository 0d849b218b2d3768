"""The controls of pptrain: what each changes and what it leaves as it is, in real runs on one and two ranks."""

from pathlib import Path
from typing import Any

import pytest

from tests.support import tiny
from tests.support.launching import read_log, run_all

STEPS = 12
COMMON = f"--max_steps {STEPS} --curr_window 16 --curr_threshold 0.4 --curr_check_every 2 --global_batch 8 --lr 2e-3"
TOLERANCE = 1e-6
LAYOUTS = {"one": (1, 8), "accumulated": (1, 1), "two": (2, 2)}  # ranks, micro batch
LOSSES = ("weighted", "answer", "lm")
ELSEWHERE = [("weighted", "accumulated"), ("weighted", "two")]  # test_layout_independence.py
NEVER = "--curr_threshold 1"


def _run(scratch: Path, name: str, flags: str = "", micro_batch: int = 8, **outcome: Any) -> dict[str, Any]:
    argv = [*tiny.flags(scratch), *COMMON.split(), "--micro_batch", str(micro_batch), "--run_name", name]
    return {"phase": "pptrain", "argv": [*argv, *flags.split()], **outcome}


@pytest.fixture(scope="module")
def scratch(tiny_scratch: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs, trained: one launch a number of ranks."""
    replay = f"--curriculum replay --replay_run {tiny_scratch / 'weighted_one'}"
    losses = {
        ranks: [
            _run(tiny_scratch, f"{loss}_{layout}", f"--loss {loss}", micro_batch)
            for loss in LOSSES
            for layout, (on_ranks, micro_batch) in LAYOUTS.items()
            if on_ranks == ranks and (loss, layout) not in ELSEWHERE
        ]
        for ranks in (1, 2)
    }
    others = [
        _run(tiny_scratch, "replay", f"{replay} {NEVER} --loss lm --lr 1e-4 --micro_batch 4"),
        _run(tiny_scratch, "replay_shuffled", f"{replay} --answers shuffled --stop_step 5", code=86),
        _run(tiny_scratch, "replay_shuffled", f"{replay} --answers shuffled"),
        _run(tiny_scratch, "replay_shuffled", "--answers shuffled", error="replay"),
        _run(tiny_scratch, "other_seed", f"{replay} --seed 2", error="saw other data (seed 1337 there, 2 here)"),
        _run(tiny_scratch, "none", "--curriculum none"),
        _run(tiny_scratch, "last_stage", "--start_stage 8"),
    ]
    directory = tmp_path_factory.mktemp("runs")
    run_all([*losses[1], *others], directory, 1)
    run_all(losses[2], directory, 2)
    return tiny_scratch


def _columns(run: Path, *names: str) -> list[tuple]:
    return [tuple(row[name] for name in names) for row in read_log(run)]


@pytest.mark.launch
@pytest.mark.parametrize("loss", ["answer", "lm"])
@pytest.mark.parametrize("layout", ["accumulated", "two"])
def test_losses_do_not_depend_on_the_layout(scratch: Path, loss: str, layout: str) -> None:
    ours, reference = scratch / f"{loss}_{layout}", scratch / f"{loss}_one"
    exact = "step", "ledger", "tokens", "pflops", "stage", "curr_acc"
    assert _columns(ours, *exact) == _columns(reference, *exact)
    for log, column in (("train", "loss"), ("eval", "heldout_loss")):
        values, expected = ([row[column] for row in read_log(run, log)] for run in (ours, reference))
        assert values == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.launch
def test_losses_differ_from_one_another(scratch: Path) -> None:
    first = {loss: read_log(scratch / f"{loss}_one")[0]["loss"] for loss in LOSSES}
    assert first["lm"] > first["weighted"] > first["answer"] or first["lm"] < first["weighted"] < first["answer"]
    assert len({read_log(scratch / f"{loss}_one", "eval")[0]["heldout_loss"] for loss in LOSSES}) == 1


@pytest.mark.launch
@pytest.mark.parametrize("name", ["replay", "replay_shuffled"])
def test_a_replay_has_the_ledger_of_the_run_replayed(scratch: Path, name: str) -> None:
    replayed = _columns(scratch / "weighted_one", "step", "stage", "ledger")
    assert replayed[-1][1] >= 3, "the test needs two promotions"
    assert _columns(scratch / name, "step", "stage", "ledger") == replayed
    assert _columns(scratch / name, "loss") != _columns(scratch / "weighted_one", "loss")


@pytest.mark.launch
def test_without_a_curriculum_a_run_is_the_gated_one_of_the_last_stage(scratch: Path) -> None:
    columns = "step", "stage", "alpha", "ledger", "loss", "curr_acc"
    assert _columns(scratch / "none", *columns) == _columns(scratch / "last_stage", *columns)
    assert read_log(scratch / "none")[0]["alpha"] == 1
