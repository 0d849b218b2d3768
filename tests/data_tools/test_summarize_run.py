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


def table(text):
    """Its lines as first cell → other cells."""
    rows = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines() if line]
    return {row[0]: row[1:] for row in rows}


def test_pptrain_shows_promotions_with_the_accuracy_that_earned_them(tmp_path):
    shown = table(summarize_run.summarize_runs([write_run(tmp_path / "pptrain", PPTRAIN_TRAIN, PPTRAIN_EVAL)]))
    assert shown["optimizer steps"] == ["30"] and shown["tokens"] == ["3,000"]
    assert shown["training time"] == ["0:00:10"] and shown["tokens per second"] == ["300"]
    assert shown["training loss at first"] == ["7.000"] and shown["training loss, mean of 5 rows"] == ["3.333"]
    assert shown["stage"] == ["2 of 8"]
    assert shown["held-out accuracy at first"] == ["0.000"] and shown["held-out accuracy"] == ["0.500"]
    assert shown["95 % interval of the last"] == ["0.189 – 0.733"], "of 4 right among 9"
    assert shown["stage mastered"] == ["alpha", "at step", "steps", "tokens", "hours", "window accuracy"]
    assert shown["1"] == ["0.125", "20", "20", "2,000", "0.002", "0.985"] and "2" not in shown


def test_the_last_stage_mastered_is_a_promotion_too(tmp_path):
    end = PPTRAIN_EVAL[-1] | {"step": 30, "mastered": True}
    shown = table(summarize_run.summarize_runs([write_run(tmp_path / "a", PPTRAIN_TRAIN, [*PPTRAIN_EVAL, end])]))
    assert shown["2"] == ["0.250", "30", "10", "1,000", "0.001", "–"]
    end["mastered"] = False
    shown = table(summarize_run.summarize_runs([write_run(tmp_path / "b", PPTRAIN_TRAIN, [*PPTRAIN_EVAL, end])]))
    assert "2" not in shown, "the last evaluation of a run is no promotion"


def test_what_each_stage_took(tmp_path):
    rows = [row | {"pflops": row["step"] * 1.5, "lookahead": 2 * row["stage"] - 1} for row in PPTRAIN_TRAIN]
    end = PPTRAIN_EVAL[-1] | {"step": 30, "mastered": True}
    run = write_run(tmp_path / "a", rows, [*PPTRAIN_EVAL, end])
    (run / "deepspeed.json").write_text('{"train_batch_size": 64}')
    shown = table(summarize_run.summarize_runs([run]))
    assert shown["stage mastered"] == [
        "alpha", "lookahead", "at step", "steps", "examples", "tokens", "PFLOPs", "hours", "window accuracy",
    ]  # fmt: skip
    assert shown["1"] == ["0.125", "1", "20", "20", "1,280", "2,000", "30", "0.002", "0.985"]
    assert shown["2"] == ["0.250", "3", "30", "10", "640", "1,000", "15", "0.001", "–"]


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"path": ""}, "random"), ({"path": "/s/first/checkpoints/step_20", "stage": 8}, "first/step_20, stage 8"),
        ({"path": "gpt2", "stage": None}, "gpt2"), (None, None),
    ],
)  # fmt: skip
def test_compute_and_origin_of_a_run(tmp_path, weights, words):
    counts = {"pflops": 0.125, "gpu_hours": 1500.4}
    run = write_run(tmp_path, [PPTRAIN_TRAIN[0], *(row | counts for row in PPTRAIN_TRAIN[1:])], [])
    launch = {"step": 0, "timestamp": 1e9, "parameters": 10**12} | ({"initial_weights": weights} if weights else {})
    (run / "launches.jsonl").write_text(json.dumps(launch) + "\n")
    shown = table(summarize_run.summarize_runs([run]))
    assert shown["PFLOPs"] == ["0.125 since step 10"] and shown["device hours"] == ["1,500 since step 10"]
    assert shown["PFLOPs as 6 × parameters × tokens"] == ["18"]  # of 3,000 tokens
    assert shown.get("initial weights") == (words and [words])


def test_a_long_command_does_not_widen_the_table(tmp_path):
    run = write_run(tmp_path, PPTRAIN_TRAIN, [])
    launch = {"step": 0, "timestamp": 1e9, "command": "pptrain.py " + "--flag value " * 100}
    (run / "launches.jsonl").write_text(json.dumps(launch) + "\n")
    text = summarize_run.summarize_runs([run])
    assert "pptrain.py --flag value" in text and max(map(len, text.splitlines())) < 120


def test_runs_stand_side_by_side_and_pretrain_shows_both_losses(tmp_path):
    runs = [
        write_run(tmp_path / "pptrain", PPTRAIN_TRAIN, PPTRAIN_EVAL),
        write_run(tmp_path / "pretrain", PRETRAIN_TRAIN, PRETRAIN_EVAL),
    ]
    shown = table(summarize_run.summarize_runs(runs))
    assert shown["pptrain"] == ["pretrain"]  # the heading
    assert shown["training loss, mean of 5 rows"] == ["3.333", "7.000"]
    assert shown["… on C4"] == ["–", "7.750"] and shown["… on synthetic blocks"] == ["–", "3.000"]
    assert shown["synthetic share of tokens"] == ["–", "0.125"]
    assert shown["held-out C4 loss at first"] == ["–", "8.500"] and shown["held-out C4 loss"] == ["–", "6.250"]
    assert shown["stage mastered, pptrain"][:2] == ["alpha", "at step"]


def test_further_packs_have_their_held_out_losses(tmp_path):
    evaluations = [row | {"heldout_my-code_loss": 4 + n} for n, row in enumerate(PRETRAIN_EVAL)]
    runs = [
        write_run(tmp_path / "one", PRETRAIN_TRAIN, PRETRAIN_EVAL),
        write_run(tmp_path / "two", PRETRAIN_TRAIN, evaluations),
    ]
    shown = table(summarize_run.summarize_runs(runs))
    assert shown["held-out my-code loss"] == ["–", f"{3 + len(PRETRAIN_EVAL):.3f}"]


def test_a_row_being_written_is_left_out(tmp_path):
    run = write_run(tmp_path, PPTRAIN_TRAIN, [])
    with (run / "logs" / "train.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')
    assert table(summarize_run.summarize_runs([run]))["optimizer steps"] == ["30"]


def test_evaluations_stand_side_by_side(tmp_path):
    first = report("runs/demo/pptrain/checkpoints/step_00000700", c4_loss=8.25)
    second = report("exported/", by_lookahead=report("")["by_lookahead"][:1])
    paths = [tmp_path / "first.json", tmp_path / "second.json"]
    for path, content in zip(paths, (first, second), strict=True):
        path.write_text(json.dumps(content))
    shown = table(summarize_run.summarize_evaluations(paths))
    assert shown["pptrain/step_00000700"] == ["exported"]  # the heading
    assert shown["C4 validation loss"] == ["8.250", "–"]
    assert shown["accuracy, any valid answer"] == ["0.375", "0.375"]
    assert shown["any valid, lookahead 2"] == ["0.500", "–"]


@pytest.mark.parametrize("content", [None, "", "no json\n"])
def test_a_directory_that_is_no_run_is_an_error(tmp_path, content):
    if content is not None:
        write_run(tmp_path, [], [])
        (tmp_path / "logs" / "train.jsonl").write_text(content)
    with pytest.raises(UserError, match=r"train\.jsonl"):
        summarize_run.summarize_runs([tmp_path])


def test_command(tmp_path, capsys):
    run = write_run(tmp_path / "a", PPTRAIN_TRAIN, PPTRAIN_EVAL)
    (tmp_path / "e.json").write_text(json.dumps(report("r")))
    summarize_run.main([str(run), "--evaluation", str(tmp_path / "e.json")])
    shown = table(capsys.readouterr().out)
    assert shown["optimizer steps"] == ["30"] and shown["problems"] == ["6"]
    with pytest.raises(UserError, match="nothing to summarize"):
        summarize_run.main([])
    with pytest.raises(UserError, match=r"missing\.json"):
        summarize_run.main(["--evaluation", str(tmp_path / "missing.json")])


def test_needs_neither_torch_nor_transformers():
    code = "import data_tools.summarize_run, sys; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
