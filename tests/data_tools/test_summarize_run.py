"""The summary of a run says what its logs say."""

import json
import re
import subprocess
import sys

import pytest

from data_tools import summarize_run
from data_tools.base.errors import UserError

PPTRAIN_TRAIN = [
    {"step": 10, "loss": 7.0, "curr_acc": 0.1, "stage": 1, "alpha": 0.125, "tokens": 1000, "tokens_per_second": 500},
    {"step": 20, "loss": 1.0, "curr_acc": 0.985, "stage": 1, "alpha": 0.125, "tokens": 2000, "tokens_per_second": 250},
    {"step": 30, "loss": 2.0, "curr_acc": None, "stage": 2, "alpha": 0.25, "tokens": 3000, "tokens_per_second": 250},
]  # fmt: skip
PPTRAIN_EVAL = [
    {"step": 0, "stage": 1, "alpha": 0.125, "heldout_acc": 0.0, "heldout_loss": 7.25, "num_examples": 9},
    {"step": 20, "stage": 2, "alpha": 0.25, "heldout_acc": 0.5, "heldout_loss": 4.5, "num_examples": 9},
]
PRETRAIN_TRAIN = [
    {"step": 10, "loss": 8.0, "c4_loss": 9.0, "mixin_loss": None, "mixin_fraction": 0.0},
    {"step": 20, "loss": 6.0, "c4_loss": 6.5, "mixin_loss": 3.0, "mixin_fraction": 0.125},
]
PRETRAIN_EVAL = [
    {"step": 0, "heldout_acc": 0.25, "heldout_loss": 4.0, "heldout_c4_loss": 8.5, "num_examples": 9},
    {"step": 20, "heldout_acc": 0.125, "heldout_loss": 3.0, "heldout_c4_loss": 6.25, "num_examples": 9},
]


def write_run(directory, train, evaluations):
    (directory / "logs").mkdir(parents=True)
    for name, rows in (("train", train), ("eval", evaluations)):
        (directory / "logs" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def report(checkpoint, **changes):
    rows = [{"lookahead": n, "num_examples": 3, "accuracy_any": n / 4, "accuracy_first": 0.0} for n in (0, 2)]
    return {"checkpoint": checkpoint, "split": "test", "num_examples": 6, "loss": 2.5, "accuracy_any": 0.375,
            "accuracy_first": 0.0, "c4_loss": None, "by_lookahead": rows} | changes  # fmt: skip


def test_pptrain_shows_promotions_with_the_accuracy_that_earned_them(tmp_path):
    assert summarize_run.summarize_run(write_run(tmp_path / "pptrain", PPTRAIN_TRAIN, PPTRAIN_EVAL)) == (
        "pptrain: 30 steps, 3,000 tokens in 10 s (300 tokens/s)\n"
        "  training loss 7.000 → 3.333\n"
        "  stage 1 (alpha 0.125) mastered at step 20, window accuracy 0.985\n"
        "  last: stage 2 (alpha 0.250), window accuracy –\n"
        "  held-out problems of full difficulty (last at step 20): accuracy 0.000 → 0.500, weighted loss 7.250 → 4.500"
    )


def test_the_last_stage_mastered_is_a_promotion_too(tmp_path):
    end = {"step": 30, "stage": 2, "alpha": 0.25, "heldout_acc": 1.0, "heldout_loss": 0.5, "num_examples": 9}
    text = summarize_run.summarize_run(write_run(tmp_path, PPTRAIN_TRAIN, [*PPTRAIN_EVAL, end]))
    assert "stage 2 (alpha 0.250) mastered at step 30" in text


def test_pretrain_shows_both_losses_and_held_out_c4(tmp_path):
    assert summarize_run.summarize_run(write_run(tmp_path / "pretrain", PRETRAIN_TRAIN, PRETRAIN_EVAL)) == (
        "pretrain: 20 steps\n"
        "  training loss 8.000 → 7.000\n"
        "  of which C4 9.000 → 7.750, synthetic 3.000 → 3.000\n"
        "  synthetic share of tokens 0.125\n"
        "  held-out C4 loss 8.500 → 6.250\n"
        "  held-out problems of full difficulty (last at step 20): accuracy 0.250 → 0.125, weighted loss 4.000 → 3.000"
    )


def test_a_row_being_written_is_left_out(tmp_path):
    run = write_run(tmp_path, PPTRAIN_TRAIN, [])
    with (run / "logs" / "train.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')
    assert ": 30 steps" in summarize_run.summarize_run(run)


def test_evaluations_stand_side_by_side():
    first = report("runs/demo/pptrain/checkpoints/step_00000700", c4_loss=8.25)
    second = report("exported/", by_lookahead=report("")["by_lookahead"][:1])
    table = [
        re.split(r"\s{2,}", line.strip()) for line in summarize_run.tabulate_evaluations([first, second]).splitlines()
    ]
    assert table[0] == ["pptrain/step_00000700", "exported"]
    assert ["C4 validation loss", "8.250", "–"] in table
    assert ["accuracy, any valid answer", "0.375", "0.375"] in table
    assert ["any valid, lookahead 2", "0.500", "–"] in table


@pytest.mark.parametrize("content", [None, "", "no json\n"])
def test_a_directory_that_is_no_run_is_an_error(tmp_path, content):
    if content is not None:
        write_run(tmp_path, [], [])
        (tmp_path / "logs" / "train.jsonl").write_text(content)
    with pytest.raises(UserError, match=r"train\.jsonl"):
        summarize_run.summarize_run(tmp_path)


def test_command(tmp_path, capsys):
    run = write_run(tmp_path / "a", PPTRAIN_TRAIN, PPTRAIN_EVAL)
    (tmp_path / "e.json").write_text(json.dumps(report("r")))
    summarize_run.main([str(run), "--evaluation", str(tmp_path / "e.json")])
    assert capsys.readouterr().out.startswith("a: 30 steps") and not capsys.readouterr().err
    with pytest.raises(UserError, match="nothing to summarize"):
        summarize_run.main([])
    with pytest.raises(UserError, match=r"missing\.json"):
        summarize_run.main(["--evaluation", str(tmp_path / "missing.json")])


def test_needs_neither_torch_nor_transformers():
    code = "import data_tools.summarize_run, sys; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
