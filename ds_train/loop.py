"""The only training loop."""

import logging
import time
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Protocol

from data_tools.errors import UserError
from ds_train.checkpoint import Checkpoints
from ds_train.distributed import World
from ds_train.engine import Engine, StepResult, set_learning_rate, train_step
from ds_train.layout import Layout
from ds_train.metrics import JsonlLog, Throughput, progress_line, send_to_monitor
from ds_train.nonfinite import NonFinite
from ds_train.readers import Overflow
from ds_train.schedule import Schedule
from ds_train.state import TrainState
from ds_train.stream import Stream

logger = logging.getLogger(__name__)

_OVERFLOWS_IN_FULL = 5


class ExitCode(IntEnum):
    FINISHED = 0
    STOPPED = 86


class Phase(Protocol):
    """What pptrain and pretrain decide for themselves."""

    name: str
    accuracy: str

    def record(self, state: TrainState, result: StepResult) -> None:
        """Take the step's accuracy flags into the state."""

    def train_columns(self, state: TrainState, result: StepResult) -> dict[str, Any]:
        """This phase's columns of a train row, before a promotion."""
        ...

    def promote(self, state: TrainState) -> bool:
        """Apply the promotion rule; True when the stage changed and prefetched samples are void."""
        ...

    def is_finished(self, state: TrainState) -> bool: ...

    def wants_evaluation(self, state: TrainState, promoted: bool) -> bool: ...

    def evaluate(self, engine: Engine, state: TrainState) -> dict[str, Any]:
        """This phase's columns of an evaluation row. Collective."""
        ...


@dataclass(frozen=True)
class Cadence:
    """In optimizer steps."""

    log_every: int
    save_every: int
    max_steps: int | None
    stop_step: int | None

    def is_over(self, step: int) -> bool:
        return self.max_steps is not None and step >= self.max_steps


@dataclass
class Run:
    """Everything a training loop needs, assembled by an entry point."""

    world: World
    layout: Layout
    schedule: Schedule
    cadence: Cadence
    engine: Engine
    stream: Stream
    phase: Phase
    state: TrainState
    checkpoints: Checkpoints
    directory: Path
    skip_nonfinite: int = 0  # optimizer steps that may be skipped, over the whole run


def train(run: Run) -> ExitCode:
    """Train until the phase is finished or a stop is asked for; ends with a checkpoint either way.

    Order within a step: update, flags, promotion, evaluation, save.
    """
    state, phase, cadence = run.state, run.phase, run.cadence
    logs = {name: JsonlLog(run.directory / "logs" / f"{name}.jsonl", run.world.is_main) for name in ("train", "eval")}
    for log in logs.values():
        log.rewind(state.step or -1)  # a fresh start evaluates again at step 0
    throughput, overflow_report = Throughput(), OverflowReport(state.overflows)
    if state.step == 0:
        _evaluate(run, logs["eval"])
    run.stream.restart(state.cursor, state.step)
    if state.finished or cadence.is_over(state.step):
        logger.info("nothing to do: step %d is the end of this run", state.step)
    while not (state.finished or cadence.is_over(state.step)):
        if cadence.stop_step is not None and state.step >= cadence.stop_step:
            overflow_report.summary(state.overflows)
            return ExitCode.STOPPED
        started = time.perf_counter()
        batch = run.stream.next()
        throughput.waited(time.perf_counter() - started)
        overflow_report.seen(batch.overflows)

        lr = run.schedule.lr(batch.plan.step)
        set_learning_rate(run.engine, lr)
        result = train_step(run.engine, batch, run.layout, phase.accuracy)
        _advance(state, result)
        if result.nonfinite:
            _skip_or_stop(run, result, result.nonfinite)
        throughput.trained(int(result.tokens.sum()))

        phase.record(state, result)
        if state.step % cadence.log_every == 0:
            columns = phase.train_columns(state, result)
            row = {"step": state.step, "loss": result.loss, "lr": lr, **columns, "timestamp": time.time()}
            row |= {
                "tokens": state.tokens,
                "grad_norm": result.grad_norm,
                "skipped_steps": state.skipped_steps,
                "ledger": state.ledger,
                **throughput.report(),
            }
            _write(run, logs["train"], "train", row)
        promoted = phase.promote(state)
        state.finished |= phase.is_finished(state)
        is_last = state.finished or cadence.is_over(state.step) or state.step == cadence.stop_step
        if phase.wants_evaluation(state, promoted):
            _evaluate(run, logs["eval"])
        if state.step % cadence.save_every == 0 or is_last:
            saved = run.checkpoints.save(run.engine, state)
            if is_last and not saved:
                raise UserError(f"the last checkpoint, of step {state.step}, could not be saved (see above).")
        if promoted and not is_last:
            run.stream.restart(state.cursor, state.step)
    overflow_report.summary(state.overflows)
    return ExitCode.FINISHED


def _advance(state: TrainState, result: StepResult) -> None:
    """The state after an optimizer step, before its accuracy flags are looked at."""
    state.step = result.plan.step
    state.move_to(result.plan.next_cursor)
    state.ledger = result.plan.extended_ledger(state.ledger)
    state.tokens += int(result.tokens.sum())
    state.mixin_tokens += int(result.tokens[1])
    state.overflows += result.num_overflows


def _skip_or_stop(run: Run, result: StepResult, nonfinite: NonFinite) -> None:
    """Count a step that updated nothing, and keep what it was made of; one too many ends the run on every rank."""
    state = run.state
    state.skipped_steps += 1
    said = nonfinite.describe(result.plan, run.layout)
    path = run.directory / f"nonfinite_step_{state.step:08d}.json"
    if run.world.is_main:
        values = {"loss": str(result.loss), "grad_norm": str(result.grad_norm)}  # JSON knows no nan
        try:
            nonfinite.dump(path, result.plan, run.layout, values)
        except OSError as error:  # must not keep the other ranks waiting
            logger.error("cannot write %s: %s", path, error.strerror)
    if state.skipped_steps > run.skip_nonfinite:
        raise UserError(
            f"{said}. Stopped before the update; older checkpoints are as good as they were. {path} lists all samples "
            f"of the step. Look at them, lower --lr, or resume with --skip_nonfinite {state.skipped_steps} to go on "
            "without this step."
        )
    if run.world.is_main:
        logger.warning(
            "%s. No update (skipped steps: %d of %d); see %s", said, state.skipped_steps, run.skip_nonfinite, path
        )


def _evaluate(run: Run, log: JsonlLog) -> None:
    run.engine.eval()
    row = {"step": run.state.step, **run.phase.evaluate(run.engine, run.state), "timestamp": time.time()}
    run.engine.train()
    _write(run, log, "eval", row)


def _write(run: Run, log: JsonlLog, kind: str, row: dict[str, Any]) -> None:
    log.append(row)
    if run.world.is_main:
        logger.info("%s  %s", kind, progress_line(row))
    send_to_monitor(run.engine.monitor, f"{run.phase.name}/{kind}", row)


class OverflowReport:
    """Warns about candidates longer than seq_len: the first few in full, then a count."""

    def __init__(self, before: int) -> None:
        self._before = before
        self._num_shown = 0

    def seen(self, overflows: list[Overflow]) -> None:
        for overflow in overflows[: _OVERFLOWS_IN_FULL - self._num_shown]:
            self._num_shown += 1
            logger.warning(
                "sample %d attempt %d has %d tokens, more than seq_len; the next attempt takes its place",
                overflow.index, overflow.attempt, overflow.num_tokens,
            )  # fmt: skip

    def summary(self, total: int) -> None:
        if total > self._before:
            logger.warning(
                "%d candidates were longer than seq_len and were replaced (%d in all)", total - self._before, total
            )
