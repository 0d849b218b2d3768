"""What evaluate reports, from flags alone."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from data_tools.base.errors import UserError
from data_tools.corpus.tokenizer import load_tokenizer
from data_tools.runs.intervals import wilson_interval
from data_tools.search.splits import Splits
from ds_train import evaluate
from ds_train.phases import scores
from ds_train.phases.evaluation import HeldOut, HeldOutResult, heldout_examples

LOOKAHEAD = np.array([0, 2, 0, 2, 2, 5])
RESULT = HeldOutResult(1.5, np.array([1, 1, 1, 0, 0, 0], bool), np.array([1, 0, 1, 0, 0, 0], bool))


@pytest.fixture
def report() -> dict:
    return scores.summarize(RESULT, HeldOut([[]] * 6, LOOKAHEAD, 3))


def intervals(row: dict) -> dict[str, tuple[float, float]]:
    return {name: (row[f"{name}_low"], row[f"{name}_high"]) for name in ("accuracy_any", "accuracy_first")}


def test_accuracies_and_their_intervals(report: dict) -> None:
    assert (report["num_examples"], report["num_too_long"], report["loss"]) == (6, 3, 1.5)
    assert (report["accuracy_any"], report["accuracy_first"]) == (3 / 6, 2 / 6)
    assert intervals(report) == {"accuracy_any": wilson_interval(3, 6), "accuracy_first": wilson_interval(2, 6)}


def test_by_lookahead(report: dict) -> None:
    rows = {row["lookahead"]: row for row in report["by_lookahead"]}
    assert {lookahead: row["num_examples"] for lookahead, row in rows.items()} == {0: 2, 2: 3, 5: 1}
    assert {lookahead: row["accuracy_any"] for lookahead, row in rows.items()} == {0: 1.0, 2: 1 / 3, 5: 0.0}
    assert intervals(rows[2]) == {"accuracy_any": wilson_interval(1, 3), "accuracy_first": wilson_interval(0, 3)}


def test_examples_without_lookahead_are_in_the_totals_only(report: dict) -> None:
    of_other_task = scores.summarize(RESULT, HeldOut([[]] * 6, np.full(6, -1), 3))
    assert of_other_task == report | {"by_lookahead": []}
    assert scores.as_table(
        {"checkpoint": "run", "split": "test", "seq_len": 64, "dtype": "fp32", "c4_loss": None, **of_other_task}
    )


def test_table(report: dict) -> None:
    lines = scores.as_table(
        {"checkpoint": "run", "split": "test", "seq_len": 64, "dtype": "bf16", "c4_loss": 4.0, **report}
    ).splitlines()
    assert lines[1] == "weighted loss 1.5000   C4 validation loss 4.0000   in bf16"
    low, high = wilson_interval(1, 3)
    assert lines[-3].split() == f"2 3 0.3333 [{low:.4f}, {high:.4f}] 0.0000 [0.0000, 0.5615]".split()
    assert lines[-1].split()[:3] == ["all", "6", "0.5000"]


def test_bf16_is_for_gpus_that_compute_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert scores.default_dtype(torch.device("cpu")) == "fp32"
    for has_units, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has_units: has)
        assert scores.default_dtype(torch.device("cuda")) == expected


@pytest.mark.parametrize("name", ["seq_len", "num_examples", "micro_batch"])
def test_bad_numbers_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"--{name}: expected a whole number in .*got '0'"):
        evaluate.parse(["run", "--scratch_dir", "x", f"--{name}", "0"])


@pytest.mark.parametrize("output", [".", "missing/report.json"])
def test_a_report_that_cannot_be_written_is_refused_before_the_work(output: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--output .*: expected a file in a directory that exists"):
        evaluate.main(["run", "--scratch_dir", "x", "--output", str(tmp_path / output)])


def test_a_run_without_a_complete_checkpoint_is_reported_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="run has no complete checkpoint; train it up to a checkpoint"):
        evaluate.main([str(tmp_path / "run"), "--scratch_dir", str(tmp_path)])


def test_a_place_of_tasks_without_tasks_is_refused() -> None:
    with pytest.raises(UserError, match="--tasks_dir is where --tasks are looked for"):
        evaluate.main(["run", "--scratch_dir", "x", "--tasks_dir", "y"])


def test_another_number_of_ranks_is_refused() -> None:
    with pytest.raises(UserError, match="--num_ranks 2, but no launcher started 1"):
        evaluate.main(["run", "--scratch_dir", "x", "--num_ranks", "2"])


def test_a_subset_beyond_the_split_takes_all_and_says_so(tiny_scratch, caplog):
    rows = Splits(next((tiny_scratch / "data" / "nl_splits").iterdir())).rows("test")
    tokenizer = load_tokenizer(str(tiny_scratch / "tokenizer"))
    with caplog.at_level(logging.WARNING):
        found = heldout_examples(rows, tokenizer, seq_len=256, subset_size=21, seed=1)
    assert len(found.samples) == 20 and "holds 20 examples, not 21: all are used" in caplog.text
