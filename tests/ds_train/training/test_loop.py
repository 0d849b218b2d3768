"""The training loop around a pretended engine: order within a step, logs, promotion, stopping and continuing."""

from dataclasses import replace

import numpy as np
import pytest

from ds_train.checkpoints.retention import Milestones
from ds_train.ranks.signals import ExitCode
from ds_train.training import loop
from tests.support.comparing import comparable
from tests.support.launching import read_log
from tests.support.pretended_training import CURRICULUM, GLOBAL_BATCH, pretended_launch
from tests.support.runs import EVAL_FIELDS


@pytest.fixture
def launch(tmp_path, monkeypatch):
    return pretended_launch(tmp_path, monkeypatch)


def rows(tmp_path, phase: str, name: str, *, timed: bool = True) -> list[dict]:
    found = read_log(tmp_path / phase, name)
    return found if timed else comparable(found)


def test_a_curriculum_is_run_to_its_end_and_saved(launch, tmp_path):
    code, saved, _ = launch()
    assert code == ExitCode.FINISHED
    last = saved[max(saved)]
    assert last.finished and last.stage == 4
    # Windows of 20 flags, 8 a step: full after 3 steps; stages 1, 3, 4.
    assert last.step == 9 and last.consumed_index == 72
    evaluations = [(row["step"], row["stage"], row["alpha"]) for row in rows(tmp_path, "pptrain", "eval")]
    assert evaluations == [(0, 1, 0.25), (3, 3, 0.75), (6, 4, 1.0), (9, 4, 1.0)]
    assert [row["mastered"] for row in rows(tmp_path, "pptrain", "eval")] == [False, True, True, True]
    stages = [row["stage"] for row in rows(tmp_path, "pptrain", "train")]
    assert stages == [1, 1, 1, 3, 3, 3, 4, 4, 4]  # the row of a promoting step tells the stage before it


def test_checkpoints_are_waited_for_and_closed(launch):
    """Their threads and group would outlive the run otherwise."""
    for options in ({}, {"signal_at": 8}, {"stop_step": 5}):
        _, _, events = launch(**options)
        assert events[-2:] == [("wait",), ("close",)], options


def test_order_within_a_step(launch):
    _, _, events = launch(save_every=3)
    at = events.index(("update", 3))
    names = [event[0] for event in events[at - 1 : at + 6]]
    assert names == ["lr", "update", "record", "promote", "evaluate", "save", "restart"]
    assert events[0] == ("evaluate",)


def test_after_a_promotion_the_next_sample_is_of_the_new_stage(launch):
    _, _, events = launch()
    restarts = [event for event in events if event[0] == "restart"]
    assert restarts == [("restart", 0, 0, 1), ("restart", 3, 24, 3), ("restart", 6, 48, 4)]


def test_learning_rates_are_those_of_the_steps(launch, tmp_path):
    _, _, events = launch()
    used = [event[1] for event in events if event[0] == "lr"]
    assert used == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1]
    assert [row["lr"] for row in rows(tmp_path, "pptrain", "train")] == used


def test_columns_of_pptrain(launch, tmp_path):
    launch()
    for row in rows(tmp_path, "pptrain", "train"):
        columns = ["step", "loss", "lr", "curr_acc", "stage", "alpha", "lookahead", "timestamp"]
        assert list(row)[: len(columns)] == columns
    for row in rows(tmp_path, "pptrain", "eval"):
        assert set(row) == EVAL_FIELDS["pptrain"]
        assert (row["heldout_acc"], row["heldout_loss"], row["num_examples"]) == (0.5, 0.7, 2)


def test_columns_of_pretrain(launch, tmp_path):
    code, saved, _ = launch("pretrain")
    assert code == ExitCode.FINISHED and max(saved) == 12 and saved[12].finished
    tokens = np.zeros(2)
    found = rows(tmp_path, "pretrain", "train")
    for row in found:
        assert list(row)[:9] == [
            "step", "loss", "lr", "c4_loss", "mixin_loss", "c4_count", "mixin_count", "mixin_fraction", "timestamp",
        ]  # fmt: skip
        assert row["c4_count"] + row["mixin_count"] == GLOBAL_BATCH
        assert (row["mixin_loss"] is None) == (row["mixin_count"] == 0)
        tokens += [100 * row["c4_count"], 90 * row["mixin_count"]]
        assert row["mixin_fraction"] == pytest.approx(tokens[1] / tokens.sum())
        assert row["tokens"] == tokens.sum()
    assert any(row["mixin_loss"] is None for row in found) and any(row["mixin_loss"] for row in found)
    evaluations = rows(tmp_path, "pretrain", "eval")
    assert [row["step"] for row in evaluations] == [0, 5, 10, 12]
    for row in evaluations:
        assert set(row) == EVAL_FIELDS["pretrain"]


def test_mfu_counts_what_the_steps_trained_on(launch, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "peak_flops", lambda device: 1e-3)
    launch("pretrain")
    for row in rows(tmp_path, "pretrain", "train"):
        assert row["mfu"] > 0 and row["hfu"] == pytest.approx(1.5 * row["mfu"]), "half of it is computed twice"


def undisturbed(launch, tmp_path, phase):
    """Checkpoints and log rows of a whole run, whose logs are then removed."""
    _, whole, _ = launch(phase)
    expected = [rows(tmp_path, phase, name, timed=False) for name in ("train", "eval")]
    for name in ("train", "eval"):
        (tmp_path / phase / "logs" / f"{name}.jsonl").unlink()
    return whole, expected


@pytest.mark.parametrize("phase", ["pptrain", "pretrain"])
@pytest.mark.parametrize("kill_at", range(1, 10))
def test_a_killed_run_continues_as_if_it_had_not_been(launch, tmp_path, phase, kill_at):
    whole, expected = undisturbed(launch, tmp_path, phase)

    _, saved, _ = launch(phase, kill_at=kill_at)
    code, after, _ = launch(phase, state=saved[max(saved)] if saved else None)
    assert code == ExitCode.FINISHED
    assert after[max(after)] == whole[max(whole)]
    assert [rows(tmp_path, phase, name, timed=False) for name in ("train", "eval")] == expected


@pytest.mark.parametrize("kill_at", range(2, 28, 5))
def test_steps_of_a_stage_are_counted_over_a_kill(launch, tmp_path, kill_at):
    curriculum = replace(CURRICULUM, min_stage_steps=7)  # checked every 3
    _, saved, _ = launch(curriculum=curriculum, kill_at=kill_at)
    launch(curriculum=curriculum, state=saved[max(saved)] if saved else None)
    evaluations = [(row["step"], row["stage"]) for row in rows(tmp_path, "pptrain", "eval")]
    assert evaluations == [(0, 1), (9, 3), (18, 4), (27, 4)]


@pytest.mark.parametrize("phase", ["pptrain", "pretrain"])
@pytest.mark.parametrize("stop", [1, 3, 4, 7])
def test_a_stopped_run_continues_with_the_schedule_unchanged(launch, tmp_path, phase, stop):
    whole, expected = undisturbed(launch, tmp_path, phase)

    code, saved, _ = launch(phase, stop_step=stop)
    assert code == ExitCode.STOPPED and max(saved) == stop
    code, after, _ = launch(phase, state=saved[stop])
    assert code == ExitCode.FINISHED and after[max(after)] == whole[max(whole)]
    assert [rows(tmp_path, phase, name, timed=False) for name in ("train", "eval")] == expected


@pytest.mark.parametrize("phase", ["pptrain", "pretrain"])
@pytest.mark.parametrize("signal_at", range(1, 22))
def test_a_signal_at_any_poll_loses_no_step_and_repeats_no_row(launch, tmp_path, phase, signal_at):
    whole, expected = undisturbed(launch, tmp_path, phase)

    code, saved, events = launch(phase, signal_at=signal_at)
    assert code == ExitCode.PREEMPTED
    updates = [step for name, step, *_ in (event for event in events if event[0] == "update")]
    assert max(saved, default=0) == max(updates, default=0)  # the step it was in is saved, and nothing before is lost
    code, after, events = launch(phase, state=saved[max(saved)] if saved else None)
    # The evaluation of the very last step may be all that was left to do: then no further checkpoint is written.
    last = after[max(after)] if after else replace(saved[max(saved)], evaluation_pending=False)
    assert code == ExitCode.FINISHED and last == whole[max(whole)]
    assert updates + [step for name, step, *_ in (e for e in events if e[0] == "update")] == list(
        range(1, max(whole) + 1)
    )
    assert [rows(tmp_path, phase, name, timed=False) for name in ("train", "eval")] == expected


def test_an_evaluation_cut_short_is_pending(launch):
    _, saved, _ = launch(signal_at=8)  # polls: 3 of the evaluation at step 0, steps 1 to 3, the evaluation at step 3
    assert saved[3].evaluation_pending and saved[3].stage == 3
    _, _, events = launch(state=saved[3])
    assert [event[0] for event in events[:3]] == ["evaluate", "restart", "lr"]


def test_a_finished_run_is_left_alone(launch):
    _, saved, _ = launch()
    code, again, events = launch(state=saved[max(saved)])
    assert code == ExitCode.FINISHED and not again
    assert not [event for event in events if event[0] in ("update", "evaluate")]


def test_max_steps_end_a_curriculum_early_with_a_checkpoint(launch):
    code, saved, _ = launch(max_steps=5)
    assert code == ExitCode.FINISHED and max(saved) == 5
    assert not saved[5].finished and saved[5].stage == 3


def test_compute_and_device_hours_are_logged_and_kept_over_a_resume(launch, tmp_path):
    """The pretended model takes 2 PFLOPs a step."""
    _, saved, _ = launch("pretrain", stop_step=5)
    _, after, _ = launch("pretrain", state=saved[5])
    found = rows(tmp_path, "pretrain", "train")
    assert [row["pflops"] for row in found] == [2 * row["step"] for row in found]
    hours = [row["gpu_hours"] for row in found]
    assert hours == sorted(hours) and after[12].gpu_hours > saved[5].gpu_hours > 0


@pytest.mark.parametrize(("limit", "last"), [({"max_tokens": 2400}, 3), ({"max_pflops": 6.5}, 4), ({}, 9)])
def test_a_limit_ends_a_run_as_max_steps_do(launch, tmp_path, limit, last):
    """8 samples of 100 tokens and 2 PFLOPs a step: the step that reaches the limit is the last one."""
    code, saved, _ = launch(log_every=5, **limit)
    assert code == ExitCode.FINISHED and max(saved) == last
    assert rows(tmp_path, "pptrain", "train")[-1]["step"] == rows(tmp_path, "pptrain", "eval")[-1]["step"] == last
    code, again, events = launch(state=saved[last], **limit)
    assert code == ExitCode.FINISHED and not again and ("update", last + 1) not in events


def test_checkpoints_are_saved_and_kept_at_milestones(launch):
    """2 PFLOPs a step; stage 1 is mastered at step 3, stage 3 at step 6, stage 4 at the end."""
    marks = Milestones(steps=[2, 4], pflops=[7.5, 14.0, 500], stages=[1, 4])
    _, saved, events = launch(milestones=marks)
    kept = [event[1:] for event in events if event[0] == "kept"]
    assert kept == [
        (2, "step 2"), (3, "stage 1 mastered"), (4, "step 4", "7.5 PFLOPs"), (7, "14 PFLOPs"), (9, "stage 4 mastered")
    ]  # fmt: skip
    assert sorted(saved) == [2, 3, 4, 7, 8, 9], "the cadence stays"


def test_a_limit_that_is_raised_lets_a_run_continue(launch):
    _, whole, _ = launch()
    _, saved, _ = launch(max_tokens=1600)
    code, after, _ = launch(state=saved[2])
    assert code == ExitCode.FINISHED and after[9] == whole[9]


def test_logs_are_written_at_their_cadence(launch, tmp_path):
    launch("pretrain", log_every=5)
    assert [row["step"] for row in rows(tmp_path, "pretrain", "train")] == [5, 10, 12], "the last step is logged"
    launch(log_every=5)
    found = rows(tmp_path, "pptrain", "train")
    assert [(row["step"], row["stage"]) for row in found] == [(5, 3), (9, 4)]
    assert found[-1]["curr_acc"] is not None, "before the promotion that ended the run"


def test_pptrain_evaluates_at_its_cadence_and_at_its_end_without_changing_what_it_trains(launch, tmp_path):
    _, plain, events = launch(max_steps=8)
    _, evaluated, _ = launch(max_steps=8, eval_every=2)
    found = [(row["step"], row["mastered"]) for row in rows(tmp_path, "pptrain", "eval")]
    assert found == [(0, False), (2, False), (3, True), (4, False), (6, True), (8, False)]
    assert evaluated == plain and events.count(("evaluate",)) == 4, "at both ends and after both promotions"


def test_both_phases_evaluate_at_chosen_steps_besides_their_cadence(launch, tmp_path):
    launch("pretrain", eval_at=[1, 2, 4, 5, 40])
    assert [row["step"] for row in rows(tmp_path, "pretrain", "eval")] == [0, 1, 2, 4, 5, 10, 12]
    _, plain, _ = launch()
    _, evaluated, _ = launch(eval_at=[1, 3])
    assert [row["step"] for row in rows(tmp_path, "pptrain", "eval")] == [0, 1, 3, 6, 9] and evaluated == plain
