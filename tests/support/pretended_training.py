"""The training loop around a pretended engine, stream and checkpoints: what happens, in order, without a model."""

import copy
import itertools
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data_tools.samples.samplers import CurriculumSampler, MixinShare, MixtureSampler, SampleKind
from ds_train.checkpoints.state import PFLOP, TrainState
from ds_train.config.layout import Layout
from ds_train.config.schedule import Schedule
from ds_train.model.flops import TrainingFlops
from ds_train.phases import pptrain, pretrain
from ds_train.phases.curriculum import Curriculum
from ds_train.phases.evaluation import HeldOut, HeldOutResult
from ds_train.phases.pptrain import PPTrain
from ds_train.phases.pretrain import Pretrain
from ds_train.phases.text_packs import TextPacks
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
        return SimpleNamespace(plan=plan, overflows=[], computed=np.array([8, 34]))


class KeptStates:
    """Checkpoints in memory."""

    def __init__(self, events, committed) -> None:
        self.saved: dict[int, TrainState] = {}
        self.events, self.committed = events, committed

    def save(self, engine, state, milestones, is_last) -> None:
        if state.step != self.committed:
            self.committed = state.step
            self.saved[state.step] = copy.deepcopy(state)
            self.events.append(("save", state.step))
            if milestones:
                self.events.append(("kept", state.step, *milestones))

    def wait(self) -> bool:
        self.events.append(("wait",))
        return True

    def close(self) -> None:
        self.events.append(("close",))


class KilledError(Exception):
    pass


def pretended_result(plan, requests) -> StepResult:
    """A step whose numbers depend on its samples only; seven of eight samples are right."""
    mixin = int((plan.sources == SampleKind.MIXIN).sum())
    return StepResult(
        plan=plan,
        loss=float(plan.indices.sum() % 97) / 10 + 0.5,
        c4_loss=1.5 if mixin < GLOBAL_BATCH else None,
        synthetic_loss=2.5 if mixin else None,
        flags=(plan.indices % 8 != 3).astype(int).tolist(),
        tokens=np.array([100 * (GLOBAL_BATCH - mixin), 90 * mixin]),
        computed=np.array([1000, 5000]),
        num_overflows=1,
        num_forwards=1,
        requests=requests,
        grad_norm=None,
    )


def pretended_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Run the loop; returns the exit code, the checkpoints, and what happened in order."""

    def run(phase_name="pptrain", state=None, kill_at=None, signal_at=None, eval_every=None, curriculum=CURRICULUM,
            **cadence):  # fmt: skip
        """``signal_at`` counts the polls for a signal: one before each optimizer step and each evaluation batch."""
        events: list[tuple] = []
        polls = itertools.count(1)

        def check_stop() -> None:
            if next(polls) == signal_at:
                raise StopTraining(ExitCode.PREEMPTED, "a signal")

        heldout, at_stage = (HeldOut([], np.empty(0, np.int64), 0) for _ in range(2))

        def evaluate(engine, examples, *, before_batch, **kwargs):
            if examples is at_stage:
                return result
            for _ in range(3):  # batches
                before_batch(1)
            events.append(("evaluate",))
            return result

        def train_step(engine, batch, layout, accuracy, own_requests):
            if batch.plan.step == kill_at:
                raise KilledError
            events.append(("update", batch.plan.step))
            return pretended_result(batch.plan, own_requests())

        monkeypatch.setattr(loop, "train_step", train_step)
        monkeypatch.setattr(loop, "set_learning_rate", lambda engine, lr: events.append(("lr", lr)))
        result = HeldOutResult(0.7, np.array([True, False]), np.array([False, False]))
        for module in (pptrain, pretrain):
            monkeypatch.setattr(module, "evaluate_heldout", evaluate)
        monkeypatch.setattr(pretrain, "evaluate_c4", lambda *a, **k: None)

        world = World(0, 0, 1)
        phase = PPTrain(curriculum, heldout, lambda stage: at_stage, world, GLOBAL_BATCH, "any", eval_every)
        sampler = CurriculumSampler(GLOBAL_BATCH)
        if phase_name == "pretrain":
            text = TextPacks({"c4": SimpleNamespace(num_blocks=MIXTURE.num_c4_blocks)})
            phase, sampler = Pretrain(12, 5, heldout, text, world, GLOBAL_BATCH), MIXTURE
        for name in ("record", "promote"):
            method = getattr(phase, name)
            setattr(phase, name, lambda *args, name=name, method=method: (events.append((name,)), method(*args))[1])
        layout = Layout(1, GLOBAL_BATCH, GLOBAL_BATCH)
        checkpoints = KeptStates(events, state.step if state else 0)
        given = {"log_every": 1, "save_every": 4, "max_steps": 12 if phase_name == "pretrain" else None,
                 "stop_step": None, **cadence}  # fmt: skip
        fresh = TrainState(1, 1, GLOBAL_BATCH, 1, GLOBAL_BATCH, 1, "bf16", stage=1 if phase_name == "pptrain" else 0)
        stop = SimpleNamespace(check=check_stop, own=list, agree=list, obey=lambda _: check_stop())
        watchdog = SimpleNamespace(progress=lambda doing, is_long=False: None)
        engine = SimpleNamespace(
            eval=lambda: None, train=lambda: None, monitor=SimpleNamespace(enabled=False), device=torch.device("cpu")
        )
        made = Run(
            world=world, layout=layout, schedule=Schedule(1.0, warmup_steps=4), flops=TrainingFlops(PFLOP // 500, 0),
            recomputation=TrainingFlops(PFLOP // 1000, 0),
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
