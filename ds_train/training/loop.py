"""The only training loop."""

import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_tools.base.errors import UserError, file_problem
from ds_train.checkpoints.save import Checkpoints
from ds_train.checkpoints.state import PFLOP, TrainState
from ds_train.config.layout import Layout
from ds_train.config.schedule import Schedule
from ds_train.model.flops import TrainingFlops
from ds_train.model.peaks import peak_flops
from ds_train.ranks.signals import ExitCode, StopRequests, StopTraining
from ds_train.ranks.watchdog import Watchdog
from ds_train.ranks.world import World
from ds_train.step.engine import Engine, StepResult, set_learning_rate, train_step
from ds_train.step.nonfinite import NonFinite
from ds_train.step.stream import Stream
from ds_train.training.metrics import DeviceHours, JsonlLog, Row, Throughput
from ds_train.training.mirroring import Mirroring
from ds_train.training.mlflow_run import MlflowRun
from ds_train.training.monitors import Monitors
from ds_train.training.notices import Notices
from ds_train.training.overflows import OverflowReport
from ds_train.training.phase import Cadence, Phase
from ds_train.training.profile import StepProfile
from ds_train.training.progress import Progress

logger = logging.getLogger(__name__)

LOGS = ("train", "eval")


@dataclass
class Run:
    """Everything a training loop needs, assembled by an entry point."""

    world: World
    layout: Layout
    schedule: Schedule
    flops: TrainingFlops
    recomputation: TrainingFlops  # what activation checkpointing adds
    cadence: Cadence
    engine: Engine
    stream: Stream
    phase: Phase
    state: TrainState
    checkpoints: Checkpoints
    directory: Path
    stop: StopRequests
    watchdog: Watchdog
    skip_nonfinite: int = 0  # optimizer steps that may be skipped, over the whole run
    profile: StepProfile = field(default_factory=StepProfile)
    mirroring: Mirroring = field(default_factory=Mirroring)
    notices: Notices = field(default_factory=Notices)
    mlflow: MlflowRun | None = None


def train(run: Run) -> None:
    """Train until the phase is finished, or until a request to stop. Saves a checkpoint at the end in both cases.

    Raises:
        StopTraining: on all ranks, after a signal, a STOP file or ``stop_step``; the checkpoint is saved.
        UserError: the last checkpoint could not be saved, or a loss was not finite.
    """
    state = run.state
    progress = Progress(run.phase.name, state.step, run.cadence.max_steps, run.world.is_main)
    logs = _Logs(run, progress)
    overflow_report = OverflowReport(state.overflows)
    run.notices.started(state.step, run.world.size)
    try:
        # Before the first step, and where the last launch was stopped during an evaluation.
        if state.step == 0 or state.evaluation_pending:
            _evaluate(run, logs)

        # Steps, until the phase or the run is at its end. Each starts with a chance to stop.
        run.stream.restart(state.cursor, state.step)
        if _is_over(run):
            logger.info("nothing to do")
        requests = run.stop.agree()
        run.profile.begin(state.step)
        while not _is_over(run):
            _check_stop(run, requests)
            if state.step == run.profile.next_at:
                run.profile.advance(state.step)
            requests = _optimizer_step(run, logs, overflow_report)
        run.profile.end(state.step)
    except StopTraining:
        _save_last(run)
        raise
    except UserError:
        _await_save(run)  # a save may still be under way, and its checkpoint is good
        raise
    else:
        logger.info("%s", _why_over(run))
        _save_last(run)
    finally:
        run.profile.end(state.step)
        progress.close()
        logs.close()
        overflow_report.summary(state.overflows)


def _optimizer_step(run: Run, logs: "_Logs", overflow_report: OverflowReport) -> list[int]:
    """Do one optimizer step and what follows it, in this order: update, flags, promotion, evaluation, save.

    Returns:
        the requests to stop on which the ranks have agreed after the update.
    """
    state, phase, cadence = run.state, run.phase, run.cadence
    stage, flops = state.stage, state.flops
    # Wait for the batch that the loader workers have prefetched.
    run.watchdog.progress(f"step {state.step + 1}")
    started = time.perf_counter()
    batch = run.stream.next()
    logs.throughput.waited(time.perf_counter() - started)
    overflow_report.seen(batch.overflows)

    # Forward, backward and update; then advance the state, also past a step that updated nothing.
    lr = run.schedule.lr(batch.plan.step)
    set_learning_rate(run.engine, lr)
    result = train_step(run.engine, batch, run.layout, phase.accuracy, run.stop.own)
    _advance(state, result)
    if result.nonfinite:
        _skip_or_stop(run, result, result.nonfinite)
    state.flops += run.flops.of(*map(int, result.computed))
    state.gpu_hours += logs.device_hours.since_last()
    own = [*map(int, batch.computed)]
    logs.throughput.trained(int(result.tokens.sum()), run.flops.of(*own), run.recomputation.of(*own))
    losses = {"loss": result.loss, "c4_loss": result.c4_loss, "mixin_loss": result.synthetic_loss}
    logs.progress.step_done(losses)

    # The log row shows stage and accuracy before a promotion; evaluation and checkpoint come after it. The last step
    # is logged and evaluated in any case.
    phase.record(state, result)
    columns = phase.train_columns(state, result)
    promoted = phase.promote(state)
    if promoted:
        run.notices.promoted(state.step, stage, None if state.finished else state.stage)
    state.finished |= phase.is_finished(state)
    if state.step % cadence.log_every == 0 or _is_over(run):
        logs.write_train_row(run, result, lr, columns)
    if phase.wants_evaluation(state, promoted) or state.step in cadence.eval_at or _is_over(run):
        _evaluate(run, logs)
    milestones = cadence.milestones.reached(state.step, flops, state.flops, stage if promoted else None)
    if state.step % cadence.save_every == 0 or milestones:
        _save(run, milestones, is_last=_is_over(run))
    # Discard batches that were prefetched at the old stage.
    if promoted and not _is_over(run):
        run.stream.restart(state.cursor, state.step)
    return result.requests


def _is_over(run: Run) -> bool:
    return run.state.finished or run.cadence.limit_reached(run.state) is not None


def _why_over(run: Run) -> str:
    step, max_steps = run.state.step, run.cadence.max_steps
    if max_steps is not None and step > max_steps:
        return f"this run is already at step {step}, beyond the requested {max_steps} steps"
    limit = None if run.state.finished else run.cadence.limit_reached(run.state)
    return f"step {step} is the end of this run" + (f": it has reached --{limit}" if limit else "")


def _check_stop(run: Run, requests: Sequence[int]) -> None:
    run.stop.obey(requests)
    stop_step = run.cadence.stop_step
    if stop_step is not None and run.state.step >= stop_step:
        repeat = f"the same command without it, or with one beyond step {run.state.step},"
        raise StopTraining(ExitCode.STOPPED, f"--stop_step {stop_step}", repeat)


def _save(run: Run, milestones: Sequence[str] = (), *, is_last: bool = False) -> None:
    run.watchdog.progress(f"saving step {run.state.step}", is_long=True)
    run.checkpoints.save(run.engine, run.state, milestones, is_last=is_last)


def _save_last(run: Run) -> None:
    def is_saved() -> bool:
        _save(run, is_last=True)
        return _await_save(run)

    saved = is_saved() or is_saved()  # where the disk was full, the second attempt deletes an older checkpoint first
    run.checkpoints.close()
    if not saved:
        raise UserError(f"the last checkpoint, of step {run.state.step}, could not be saved (see above).")


def _await_save(run: Run) -> bool:
    run.watchdog.progress("waiting until the last checkpoint is written", is_long=True)
    return run.checkpoints.wait()


def _advance(state: TrainState, result: StepResult) -> None:
    """Move the state past an optimizer step; its accuracy flags are recorded later."""
    state.step = result.plan.step
    state.move_to(result.plan.next_cursor)
    state.ledger = result.plan.extended_ledger(state.ledger)
    state.tokens += int(result.tokens.sum())
    state.mixin_tokens += int(result.tokens[1])
    state.overflows += result.num_overflows


def _skip_or_stop(run: Run, result: StepResult, nonfinite: NonFinite) -> None:
    """Count a step that updated nothing and dump its samples; one too many ends the run on every rank."""
    state = run.state
    state.skipped_steps += 1
    description = nonfinite.describe(result.plan)
    path = run.directory / f"nonfinite_step_{state.step:08d}.json"
    if run.world.is_main:
        values = {"loss": str(result.loss), "grad_norm": str(result.grad_norm)}  # JSON knows no nan
        try:
            nonfinite.dump(path, result.plan, run.layout, values)
        except OSError as error:  # must not keep the other ranks waiting
            logger.error("cannot write %s", file_problem(error, path))
    if state.skipped_steps > run.skip_nonfinite:
        raise UserError(
            f"{description}. Stopped before the update, so older checkpoints stay good. {path} lists all samples of "
            f"the step. Inspect them, lower --lr, or resume with --skip_nonfinite {state.skipped_steps} to skip this "
            "step."
        )
    if run.world.is_main:
        logger.warning(
            "%s. No update (skipped steps: %d of %d); see %s",
            description, state.skipped_steps, run.skip_nonfinite, path,
        )  # fmt: skip


def _evaluate(run: Run, logs: "_Logs") -> None:
    """Evaluate and log. An evaluation that is interrupted stays pending in the state, for the next launch."""

    def before_batch(_: int) -> None:
        run.watchdog.progress(f"evaluation at step {run.state.step}")
        run.stop.check()

    run.state.evaluation_pending = True
    run.engine.eval()
    row = {"step": run.state.step, **run.phase.evaluate(run.engine, run.state, before_batch), "timestamp": time.time()}
    run.engine.train()
    run.state.evaluation_pending = False
    logs.write_evaluation(run, row)


class _Logs:
    """The two logs of a run and its monitors. Opening them drops rows after the checkpoint's step."""

    def __init__(self, run: Run, progress: Progress) -> None:
        self.progress = progress
        self._files = {name: JsonlLog(run.directory / "logs" / f"{name}.jsonl", run.world.is_main) for name in LOGS}
        self.throughput = Throughput(peak_flops(run.engine.device))
        self.device_hours = DeviceHours(run.world.size)
        state = run.state
        # An evaluation that is about to be repeated must not be logged twice.
        evaluates_again = state.step == 0 or state.evaluation_pending
        kept = {"train": state.step, "eval": state.step - 1 if evaluates_again else state.step}
        for name, file in self._files.items():
            file.rewind(kept[name])
        if run.mlflow:
            run.mlflow.begin(state.step)
        self._monitors = Monitors(run.engine.monitor, run.phase.name, run.directory, run.mlflow)
        self._monitors.rewind(kept)

    def write_train_row(self, run: Run, result: StepResult, lr: float, columns: Row) -> None:
        state = run.state
        row = {"step": state.step, "loss": result.loss, "lr": lr, **columns, "timestamp": time.time()}
        row |= {
            "tokens": state.tokens,
            "pflops": state.flops / PFLOP,
            "gpu_hours": round(state.gpu_hours, 8),
            "grad_norm": result.grad_norm,
            "skipped_steps": state.skipped_steps,
            "ledger": state.ledger,
            "forwards": result.num_forwards,
            **self.throughput.report(),
        }
        self.progress.row(row, run.phase.status)
        self._write(run, "train", row)

    def write_evaluation(self, run: Run, row: Row) -> None:
        self.progress.evaluation(row)
        self._write(run, "eval", row)

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._monitors.close(sys.exc_info()[1])

    def _write(self, run: Run, kind: str, row: Row) -> None:
        self._files[kind].append(row)
        self._monitors.send(kind, row)
