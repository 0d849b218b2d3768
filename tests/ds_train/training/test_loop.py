"""The training loop around a pretended engine: order within a step, logs, promotion, stopping and continuing."""

import copy
import itertools
import json
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data_tools.samples.samplers import CurriculumSampler, MixinShare, MixtureSampler, SampleKind
from ds_train.checkpoints.state import TrainState
from ds_train.config.layout import Layout
from ds_train.config.schedule import Schedule
from ds_train.model.footprint import TrainingFlops
from ds_train.phases import pptrain, pretrain
from ds_train.phases.curriculum import Curriculum
from ds_train.phases.evaluation import HeldOut, HeldOutResult
from ds_train.phases.pptrain import PPTrain
from ds_train.phases.pretrain import Pretrain
from ds_train.ranks.signals import ExitCode, StopTraining
from ds_train.ranks.world import World
from ds_train.step.engine import StepResult
from ds_train.training import loop
from ds_train.training.loop import Cadence, Run, train

GLOBAL_BATCH = 8
CURRICULUM = Curriculum(max_stage=4, window=20, threshold=0.8, check_every=3, stage_step=2)
SHARE = MixinShare(0.1, 0.1, "constant", 12)
MIXTURE = MixtureSampler(GLOBAL_BATCH, 5, SHARE, num_c4_blocks=1000, num_mixin_blocks=7, mixin_fill=0.9)


class PlanStream:
    """Hands out plans; `restart` is what the loop says, as for the real stream."""

    def __init__(self, sampler, events) -> None:
        self.sampler, self.events = sampler, events

    def restart(self, cursor, step) -> None:
        self.cursor, self.step = cursor, step
        self.events.append(("restart", step, cursor.consumed_index, cursor.stage))

    def next(self):
        self.step += 1
        plan = self.sampler.plan(self.cursor, self.step)
        self.cursor = plan.next_cursor
        return SimpleNamespace(plan=plan, overflows=[], micro_batches=[SimpleNamespace(lengths=[3, 5])])


class KeptStates:
    """Checkpoints in memory."""

    def __init__(self, events, committed) -> None:
        self.saved: dict[int, TrainState] = {}
        self.events, self.committed = events, committed

    def save(self, engine, state) -> None:
        if state.step != self.committed:
            self.committed = state.step
            self.saved[state.step] = copy.deepcopy(state)
            self.events.append(("save", state.step))

    def wait(self) -> bool:
        self.events.append(("wait",))
        return True

    def close(self) -> None:
        self.events.append(("close",))


class KilledError(Exception):
    pass


def pretended_result(plan) -> StepResult:
    """A step whose numbers depend on its samples only; seven of eight samples are right."""
    mixin = int((plan.sources == SampleKind.MIXIN).sum())
    return StepResult(
        plan=plan,
        loss=float(plan.indices.sum() % 97) / 10 + 0.5,
        c4_loss=1.5 if mixin < GLOBAL_BATCH else None,
        synthetic_loss=2.5 if mixin else None,
        flags=(plan.indices % 8 != 3).astype(int).tolist(),
        tokens=np.array([100 * (GLOBAL_BATCH - mixin), 90 * mixin]),
        num_overflows=1,
        grad_norm=None,
    )


@pytest.fixture
def launch(tmp_path, monkeypatch):
    """Run the loop; returns the exit code, the checkpoints, and what happened in order."""

    def run(phase_name="pptrain", state=None, kill_at=None, signal_at=None, **cadence):
        """``signal_at`` counts the polls for a signal: one before each optimizer step and each evaluation batch."""
        events: list[tuple] = []
        polls = itertools.count(1)

        def check_stop() -> None:
            if next(polls) == signal_at:
                raise StopTraining(ExitCode.PREEMPTED, "a signal")

        def evaluate(*args, before_batch, **kwargs):
            for _ in range(3):  # batches
                before_batch()
            events.append(("evaluate",))
            return result

        def train_step(engine, batch, layout, accuracy):
            if batch.plan.step == kill_at:
                raise KilledError
            events.append(("update", batch.plan.step))
            return pretended_result(batch.plan)

        monkeypatch.setattr(loop, "train_step", train_step)
        monkeypatch.setattr(loop, "set_learning_rate", lambda engine, lr: events.append(("lr", lr)))
        result = HeldOutResult(0.7, np.array([True, False]), np.array([False, False]))
        for module in (pptrain, pretrain):
            monkeypatch.setattr(module, "evaluate_heldout", evaluate)
        monkeypatch.setattr(pretrain, "evaluate_c4", lambda *a, **k: None)

        world, heldout = World(0, 0, 1), HeldOut([], np.empty(0, np.int64), 0)
        phase = PPTrain(CURRICULUM, heldout, world, GLOBAL_BATCH, "any")
        sampler = CurriculumSampler(GLOBAL_BATCH)
        if phase_name == "pretrain":
            blocks = SimpleNamespace(num_blocks=MIXTURE.num_c4_blocks)
            phase, sampler = Pretrain(12, 5, heldout, blocks, world, GLOBAL_BATCH), MIXTURE
        for name in ("record", "promote"):
            method = getattr(phase, name)
            setattr(phase, name, lambda *args, name=name, method=method: (events.append((name,)), method(*args))[1])
        layout = Layout(1, GLOBAL_BATCH, 1)
        checkpoints = KeptStates(events, state.step if state else 0)
        given = {"log_every": 1, "save_every": 4, "max_steps": 12 if phase_name == "pretrain" else None,
                 "stop_step": None, **cadence}  # fmt: skip
        fresh = TrainState(1, 1, GLOBAL_BATCH, 1, GLOBAL_BATCH, 1, "bf16", stage=1 if phase_name == "pptrain" else 0)
        stop = SimpleNamespace(check=check_stop)
        watchdog = SimpleNamespace(progress=lambda doing, is_long=False: None)
        engine = SimpleNamespace(
            eval=lambda: None, train=lambda: None, monitor=SimpleNamespace(enabled=False), device=torch.device("cpu")
        )
        made = Run(
            world=world, layout=layout, schedule=Schedule(1.0, warmup_steps=4), flops=TrainingFlops(1.0, 0.0),
            cadence=Cadence(**given), engine=engine, stream=PlanStream(sampler, events), phase=phase,
            state=copy.deepcopy(state) or fresh,
            checkpoints=checkpoints, directory=tmp_path / phase_name, stop=stop, watchdog=watchdog,
        )  # fmt: skip
        code = None
        with suppress(KilledError):
            try:
                train(made)
                code = ExitCode.FINISHED
            except StopTraining as stopped:
                code = stopped.exit_code
        return code, checkpoints.saved, events

    return run


def rows(tmp_path, phase: str, name: str, *, timed: bool = True) -> list[dict]:
    lines = (tmp_path / phase / "logs" / f"{name}.jsonl").read_text().splitlines()
    timings = () if timed else ("timestamp", "tokens_per_second", "data_wait_fraction", "peak_memory_gb")
    return [{key: value for key, value in json.loads(line).items() if key not in timings} for line in lines]


def test_a_curriculum_is_run_to_its_end_and_saved(launch, tmp_path):
    code, saved, _ = launch()
    assert code == ExitCode.FINISHED
    last = saved[max(saved)]
    assert last.finished and last.stage == 4
    # Windows of 20 flags, 8 a step: full after 3 steps; stages 1, 3, 4.
    assert last.step == 9 and last.consumed_index == 72
    evaluations = [(row["step"], row["stage"], row["alpha"]) for row in rows(tmp_path, "pptrain", "eval")]
    assert evaluations == [(0, 1, 0.25), (3, 3, 0.75), (6, 4, 1.0), (9, 4, 1.0)]
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
        assert list(row)[:7] == ["step", "loss", "lr", "curr_acc", "stage", "alpha", "timestamp"]
    for row in rows(tmp_path, "pptrain", "eval"):
        assert set(row) == {"step", "stage", "alpha", "heldout_acc", "heldout_loss", "num_examples", "timestamp"}
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
        assert set(row) == {
            "step", "heldout_acc", "heldout_loss", "heldout_c4_loss", "num_examples", "timestamp"
        }  # fmt: skip


def test_mfu_counts_what_the_steps_trained_on(launch, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "peak_flops", lambda device: 1e-3)
    launch("pretrain")
    assert all(row["mfu"] > 0 for row in rows(tmp_path, "pretrain", "train"))


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


def test_logs_are_written_at_their_cadence(launch, tmp_path):
    launch("pretrain", log_every=5)
    assert [row["step"] for row in rows(tmp_path, "pretrain", "train")] == [5, 10]
