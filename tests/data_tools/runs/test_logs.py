"""What is read of a run is what it wrote: columns, positions on axes, launches, settings."""

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from data_tools.base.errors import UserError
from data_tools.runs.facts import accuracy_by_lookahead, evaluation_facts, run_facts
from data_tools.runs.logs import RunLogs, checkpoint_name, distinct_names, read_evaluation, read_logs
from data_tools.runs.settings import _FLAGS_IN_JSON, differing, read_settings
from ds_train.config.trainer_flags import GROUPS
from tests.support.bad_values import spoiled
from tests.support.runs import pptrain_rows, pretrain_rows, read_run, report, stage_rows, write_run


def test_a_column_holds_the_numbers_of_its_rows_and_nothing_else(tmp_path):
    run = read_run(tmp_path, train=pretrain_rows([4.0, 3.0, 2.0]))
    steps, losses = run.column("mixin_loss", "step")
    assert steps.tolist() == [10, 30] and losses.tolist() == [2.0, 1.0]
    assert [len(run.column(name, "step")[0]) for name in ("ledger", "heldout_acc", "no_such")] == [0, 0, 0]


def test_nan_is_no_value(tmp_path):
    run = read_run(tmp_path, train=pptrain_rows([4.0, float("nan"), 2.0]))
    assert run.column("loss", "step")[0].tolist() == [10, 30]


def test_train_rows_come_before_evaluations_where_both_have_a_column(tmp_path):
    run = read_run(tmp_path, train=pptrain_rows([4.0, 3.0]), evaluations=stage_rows([0, 10], [1, 2]))
    assert run.column("stage", "step")[1].tolist() == [1, 1]
    assert run.column("heldout_acc", "step")[0].tolist() == [0, 10]


def test_axes_count_from_the_start_and_between_rows_in_proportion(tmp_path):
    run = read_run(tmp_path, train=pptrain_rows([4.0, 3.0, 2.0]))
    steps = np.array([0.0, 5, 10, 25])
    assert run.positions(steps, "step").tolist() == [0, 5, 10, 25]
    assert run.positions(steps, "tokens").tolist() == [0, 500, 1000, 2500]
    assert run.positions(steps, "time").tolist() == [0, 5, 10, 25]
    assert (run.last_position("tokens"), run.last_position("time"), run.last_step) == (3000, 30, 30)


def test_c4_tokens_and_compute_are_axes(tmp_path):
    rows = pretrain_rows([4.0, 3.0, 2.0])
    for row in rows:
        row["pflops"] = row["step"] / 4
    run = read_run(tmp_path / "mix", train=rows)
    assert run.positions(np.array([5.0, 10, 30]), "c4_tokens").tolist() == pytest.approx([980, 1960, 5880])
    assert run.positions(np.array([5.0, 10, 30]), "pflops").tolist() == [1.25, 2.5, 7.5]
    assert np.isnan(read_run(tmp_path / "pptrain", train=pptrain_rows([4.0])).last_position("c4_tokens"))
    del rows[0]["pflops"]
    assert np.isnan(read_run(tmp_path / "counted_later", train=rows).last_position("pflops"))


def test_training_time_leaves_out_pauses(tmp_path):
    rows = pptrain_rows([4.0, 3.0, 2.0])
    rows[2] |= {"timestamp": rows[2]["timestamp"] + 1e6, "tokens_per_second": 50.0}
    assert read_run(tmp_path, train=rows).positions(np.array([10.0, 20, 30]), "time").tolist() == [10, 20, 40]


def test_a_row_without_tokens_lies_between_the_others(tmp_path):
    rows = pptrain_rows([4.0, 3.0, 2.0])
    rows[1]["tokens"] = None
    run = read_run(tmp_path / "a", train=rows)
    assert [run.positions(run.train["step"], axis).tolist() for axis in ("tokens", "time")] == [
        [1000, 2000, 3000], [10, 20, 30],
    ]  # fmt: skip
    for row in rows:
        row["tokens"] = None
    run = read_run(tmp_path / "b", train=rows)
    assert np.isnan([run.last_position(axis) for axis in ("tokens", "time")]).all()


def test_a_row_without_speed_takes_the_usual_one_and_a_run_without_has_no_time(tmp_path):
    rows = pptrain_rows([4.0, 3.0, 2.0])
    rows[1]["tokens_per_second"] = None
    assert read_run(tmp_path / "a", train=rows).last_position("time") == 30
    for row in rows:
        del row["tokens_per_second"]
    run = read_run(tmp_path / "b", train=rows)
    assert np.isnan(run.last_position("time")) and run.last_position("tokens") == 3000
    assert len(run.column("loss", "time")[0]) == 0 and len(run.column("loss", "tokens")[0]) == 3


@pytest.mark.parametrize(
    ("launches", "resumed"),
    [
        ([0], []),
        ([0, 10, 20], [10, 20]),
        ([0, 20, 10], [10]),  # resumed further back: what followed 20 is gone
        ([0, 10, 10], [10]),  # killed before its first checkpoint
        ([0, 10, 0, 20], [20]),  # started anew
        ([0, 30], [30]),
        ([0, 40], []),  # no row since
        ([], []),
    ],
)
def test_resumes(tmp_path, launches, resumed):
    run = read_run(tmp_path, train=pptrain_rows([4.0, 3.0, 2.0]), launches=launches)
    assert run.resumed_at.tolist() == resumed


def test_launches_count_from_the_last_start(tmp_path):
    assert len(read_run(tmp_path, train=pptrain_rows([4.0]), launches=[0, 10, 0, 20]).launches) == 2


def test_stages_are_mastered_where_the_stage_changes_and_the_last_one_at_the_end(tmp_path):
    """Other evaluations are at a cadence, or at the end of a run that reached its last step first."""
    rows = pptrain_rows([4.0, 3.0, 2.0])
    run = read_run(tmp_path / "a", train=rows, evaluations=stage_rows([0, 10, 20, 25, 30], [6, 7, 7, 8, 8]))
    assert run.mastered.tolist() == [[6, 6 / 8, 10], [7, 7 / 8, 25], [8, 1, 30]], "as former versions wrote it"
    mastered = [False, True, False, True, False]
    evaluations = stage_rows([0, 10, 20, 25, 30], [6, 7, 7, 8, 8])
    evaluations = [row | {"mastered": is_mastered} for row, is_mastered in zip(evaluations, mastered, strict=True)]
    assert read_run(tmp_path / "c", train=rows, evaluations=evaluations).mastered_at.tolist() == [10, 25]
    run = read_run(tmp_path / "d", train=rows, evaluations=stage_rows([0, 20, 30], [1, 1, 1]))
    assert len(run.mastered_at) == 0
    evaluations = [{"step": step, "heldout_acc": 0.5} for step in (0, 20)]
    assert len(read_run(tmp_path / "b", train=pretrain_rows([4.0]), evaluations=evaluations).mastered_at) == 0


@pytest.mark.parametrize("evaluations", [None, []])
def test_a_run_without_evaluations_yet(tmp_path, evaluations):
    run = read_run(tmp_path, train=pptrain_rows([4.0]), evaluations=evaluations)
    assert len(run.mastered_at) == 0 and run.last_step == 10


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    write_run(tmp_path, pptrain_rows([4.0, 3.0]))
    with (tmp_path / "logs" / "train.jsonl").open("ab") as file:
        file.write('{"step": 30, "note": "é'.encode()[:-1])
    assert RunLogs.read(tmp_path, "run").last_step == 20


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"), ("", "no rows yet"), ('{"step": 10', "no rows yet"),
        ('{"step": 1}\nno json\n', "line 2: not JSON"),
        ("[1]\n", "line 1"), ('{"step": 1}\n{"loss": 1}\n', "line 2"), ('{"step": "x"}\n', "line 1"),
    ],
)  # fmt: skip
def test_a_directory_that_is_no_run_is_an_error(tmp_path, content, message):
    (tmp_path / "logs").mkdir()
    if content is not None:
        (tmp_path / "logs" / "train.jsonl").write_text(content)
    with pytest.raises(UserError, match=rf"train\.jsonl.*{message}"):
        read_logs(tmp_path)


def test_of_a_run_that_is_too_short_for_a_row_it_is_said_what_there_is(tmp_path):
    """Stopped before --log_every steps."""
    (tmp_path / "launches.jsonl").write_text('{"step": 0}\n')
    expected = r"has no rows yet; the first comes after --log_every steps\. There is launches\.jsonl with 1 row"
    with pytest.raises(UserError, match=expected + r"\.$"):
        read_logs(tmp_path)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "eval.jsonl").write_text('{"step": 0}\n{"step": 4}\n')
    for step in (2, 4):
        (tmp_path / "checkpoints" / f"step_0000000{step}").mkdir(parents=True)
    with pytest.raises(UserError, match=expected + r", eval\.jsonl with 2 rows, checkpoint step_00000004\.$"):
        read_logs(tmp_path)


def test_runs_below_the_directory_that_is_no_run_are_named(tmp_path):
    for name in ("b", "a"):
        write_run(tmp_path / name, pptrain_rows([4.0]))
    with pytest.raises(UserError, match=rf"give the directory of a run, here {tmp_path}/a or {tmp_path}/b\."):
        read_logs(tmp_path)


def test_names_tell_directories_apart():
    assert distinct_names([Path("/a/x/pptrain"), Path("/b/x/pptrain"), Path("/a/x/pretrain")]) == [
        "a/x/pptrain", "b/x/pptrain", "pretrain",
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"/a/run is given twice"):
        distinct_names([Path("/a/run"), Path("/b"), Path("/a/x/../run")])


def test_checkpoints_are_named_by_run_and_step():
    assert checkpoint_name("/scratch/pptrain/checkpoints/step_00000750") == "pptrain/step_00000750"
    assert checkpoint_name("exported/") == "exported"


def test_evaluation_files(tmp_path):
    path = tmp_path / "e.json"
    for content in ("no json", "[]", '{"checkpoint": "a"}'):
        path.write_text(content)
        with pytest.raises(UserError, match=r"--evaluation .*e\.json"):
            read_evaluation(path)
    path.write_text(json.dumps(report("a", [1.0])))
    assert read_evaluation(path)["by_lookahead"][0]["accuracy_any"] == 1.0
    with pytest.raises(UserError, match=r"missing\.json"):
        read_evaluation(tmp_path / "missing.json")


def test_settings_that_differ_are_those_of_the_run_files_the_json_and_the_last_launch(tmp_path):
    settings = []
    for name, lr, ranks, more in (("a", 5e-4, 8, ""), ("b", 1e-3, 16, "lr: 0.001\nmixin_percent: 0.02\n")):
        run = write_run(tmp_path / name, pptrain_rows([1.0]), settings=f"seed: 1\nrun_name: {name}\nlr:\n{more}")
        (run / "deepspeed.json").write_text(json.dumps({"optimizer": {"params": {"lr": lr, "betas": [0.9, 0.999]}}}))
        git = "" if name == "a" else "0123456789abcdef with uncommitted changes"
        launch = {"ranks": ranks, "git": git, "versions": {"torch": "2.13"}}
        settings.append(read_settings(run, [{"ranks": 1}, launch]))
    assert differing(settings) == {
        "lr": ["0.0005", "0.001"],
        "deepspeed.optimizer.params.lr": ["0.0005", "0.001"],
        "ranks": ["8", "16"],
    }
    assert settings[1]["git"] == "0123456789 with uncommitted changes"


def test_flags_that_are_not_given_show_what_was_in_effect(tmp_path):
    write_run(tmp_path, pptrain_rows([1.0]), settings="save_every:\nglobal_batch:\nmax_steps:\n")
    (tmp_path / "deepspeed.json").write_text(json.dumps({"train_batch_size": 32}))
    settings = read_settings(tmp_path, [{"defaults": {"save_every": "200"}}])
    assert [settings[name] for name in ("save_every", "global_batch", "max_steps")] == ["200", "32", "not given"]
    keys = {item.name: item.metadata["json_key"] for group in GROUPS["pretrain"] for item in fields(group)}
    assert {name: keys[name] for name in _FLAGS_IN_JSON} == _FLAGS_IN_JSON


def test_a_flag_of_another_phase_is_no_difference_but_a_missing_block_of_the_json_is():
    pptrain, pretrain = {"seed": "1", "curr_window": "200"}, {"seed": "1", "total_steps": "100"}
    assert differing([pptrain, pretrain, {**pretrain, "total_steps": "200"}]) == {"total_steps": ["–", "100", "200"]}
    offload = {"seed": "1", "deepspeed.zero.offload": "cpu", "deepspeed.zero.stage": "2"}
    assert differing([offload, {"seed": "1", "deepspeed.zero.stage": "2"}]) == {"deepspeed.zero.offload": ["cpu", "–"]}
    assert differing([offload, {}]) == {}


def test_a_run_without_a_run_file_has_no_settings(tmp_path):
    assert read_settings(tmp_path, []) == {}
    (tmp_path / "run.yaml").write_text("a: [1")
    with pytest.raises(UserError, match=r"run\.yaml"):
        read_settings(tmp_path, [])


def test_logs_are_read_without_matplotlib_or_torch():
    code = "import data_tools.runs.logs, sys; sys.exit(bool({'matplotlib', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


ROW = {"step": 1, "loss": 1.0, "curr_acc": 0.5, "stage": 1, "alpha": 0.125, "timestamp": 1.7e9, "tokens": 10}
LAUNCH = {"step": 0, "timestamp": 1.7e9, "ranks": 1, "git": "abc", "versions": {"torch": "2"}}
EVALUATION = {
    "checkpoint": "pptrain/step_00000007", "split": "eval", "num_examples": 4, "loss": 1.5, "c4_loss": None,
    "accuracy_any": 0.5, "accuracy_first": 0.25,
    "by_lookahead": [{"lookahead": 1, "num_examples": 4, "accuracy_any": 0.5, "accuracy_first": 0.25}],
}  # fmt: skip


def _write(path: Path, *rows: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_values_of_other_types_are_no_numbers_or_one_message(tmp_path: Path) -> None:
    """Tables and settings of a run with any bad value in its logs, and of a bad evaluation."""
    log, launches, evaluation = (tmp_path / name for name in ("logs/train.jsonl", "launches.jsonl", "evaluation.json"))
    messages = 0
    for place, good in ((log, ROW), (launches, LAUNCH), (evaluation, EVALUATION)):
        for _, bad in spoiled(good, 150):
            _write(log, ROW, {**ROW, "step": 2})
            _write(launches, LAUNCH)
            _write(evaluation, EVALUATION)
            _write(place, *([] if place == evaluation else [good]), bad)
            try:
                run = RunLogs.read(tmp_path, "run")
                assert run_facts([run]) and read_settings(tmp_path, run.launches)
                report = read_evaluation(evaluation)
                assert evaluation_facts([report]) and accuracy_by_lookahead([report]) is not None
            except UserError as error:
                messages += 1
                assert str(tmp_path) in str(error)
    assert messages > 100
