"""Builds a run from checked inputs and trains it. Both phases use it."""

import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data_tools.base.errors import UserError
from data_tools.base.files import exclusive
from ds_train.checkpoints.manifest import choose_checkpoint, set_aside
from ds_train.checkpoints.mirror import Mirror
from ds_train.checkpoints.rank_rng import seed_rng
from ds_train.checkpoints.resume import ONE_A_ROW
from ds_train.checkpoints.retention import Retention
from ds_train.checkpoints.save import Checkpoints
from ds_train.checkpoints.state import TrainState
from ds_train.checkpoints.verification import with_all_ranks
from ds_train.config.flags import compared_values
from ds_train.config.optimizers import needs_gpu
from ds_train.model.causal_lm import save_description
from ds_train.model.flash import check_flash_here
from ds_train.model.flops import recomputation_flops, training_flops
from ds_train.model.footprint import model_shape
from ds_train.ranks.collectives import check_num_nodes, device_of, on_main, report_communication, take_device
from ds_train.ranks.judge import Patience
from ds_train.ranks.signals import ExitCode, StopRequests, StopTraining
from ds_train.ranks.watchdog import RankLostError, Watchdog, supervision
from ds_train.run.fingerprints import common_fingerprints, versions
from ds_train.run.inputs import CommonInputs
from ds_train.run.memory import check_same_micro_batch
from ds_train.run.precision import choose_kernels, repeat_exactly, set_precision
from ds_train.run.record import (
    LaunchRecord,
    note_other_weights,
    record_exit,
    set_foreign_logs_aside,
)
from ds_train.run.start import fresh_start, restored_start
from ds_train.run.summary import startup_summary
from ds_train.step.probe import check_isolation
from ds_train.step.stream import RankBatchBuilder, Stream
from ds_train.training.loop import Run, train
from ds_train.training.mirroring import Mirroring
from ds_train.training.mlflow_run import MlflowRun
from ds_train.training.monitors import join_wandb
from ds_train.training.notices import Notices
from ds_train.training.phase import Cadence, PhaseParts
from ds_train.training.profile import StepProfile, profiled_steps, record_memory

logger = logging.getLogger(__name__)

# The longest wait for the last upload; a job that is preempted has little time left.
_LAST_UPLOAD_S = {ExitCode.FINISHED: 600.0, ExitCode.STOPPED: 600.0}
_LAST_UPLOAD_OTHERWISE_S = 30.0


@dataclass(frozen=True)
class CheckedRun:
    """A run whose inputs are checked, and of which nothing is built yet.

    Attributes:
        all_flags: the parsed flag dataclasses, to be recorded in the run directory.
        sources: where each given flag comes from.
        num_workers: loader processes per rank.
        defaults: what the phase takes for its flags that are not given.
        make_setup: builds the phase's parts; called after the process group exists and before the model does.
    """

    inputs: CommonInputs
    all_flags: Sequence[Any]
    sources: dict[str, str]
    num_workers: int
    defaults: dict[str, Any]
    make_setup: Callable[[], PhaseParts]


def launch(prepared: CheckedRun) -> ExitCode:
    """Join the process group, build the run, restore the newest checkpoint, train."""
    inputs = prepared.inputs
    world, flags = inputs.world, inputs.run_flags
    settings = LaunchRecord(prepared.all_flags, prepared.sources, inputs.engine, inputs.defaults | prepared.defaults)

    # Settings, shown or applied.
    if flags.print_config:
        if world.is_main:
            print(settings.shown())
        return ExitCode.FINISHED
    for line in inputs.engine.overrides:
        logger.info(line)
    if device_of(world).type == "cpu" and (problem := needs_gpu(inputs.engine.deepspeed)):
        raise UserError(problem)
    check_flash_here(inputs.model_config._attn_implementation, device_of(world))
    set_precision(inputs, device_of(world))
    if flags.deterministic:
        repeat_exactly()

    if flags.profile_steps:
        record_memory(inputs.run_directory, world, device_of(world))

    # Fork the workers before any thread exists. Then join the process group, and set up all that can stop the run.
    run, code = None, ExitCode.ERROR
    command = flags.notify if world.is_main else None
    notices = Notices.of(command, inputs.phase, inputs.run_directory, inputs.run_name)
    try:
        with ExitStack() as stack:
            stream = stack.enter_context(Stream(prepared.num_workers, take_device(world)))
            watchdog = stack.enter_context(supervision(world, Patience(stalled_s=flags.hang_timeout_s)))
            watchdog.at_end = notices.lost
            check_num_nodes(world, flags.num_nodes)
            check_same_micro_batch(inputs.engine.layout.micro_batch)
            stop = StopRequests(inputs.run_directory, world.is_main, device_of(world), flags.max_hours)
            on_main(world, lambda: stack.enter_context(_run_lock(inputs.run_directory)))

            # Build and train. A request to stop can arrive during either.
            try:
                run = _build_run(inputs, prepared.make_setup(), settings, stream, stop, watchdog)
                run.notices, run.mlflow = notices, _mlflow(inputs)
                train(run)
                code = ExitCode.FINISHED
            except StopTraining as stopped:
                stop.consume()
                _report_stop(stopped, run.state.step if run else 0)
                code = stopped.exit_code
            except RuntimeError as error:
                if lost := stream.lost_worker():
                    raise RankLostError(lost) from error
                raise
            report_communication()
    finally:  # only now it is known that this rank ends by itself, and not with one that is gone
        if run and world.is_main:
            record_exit(inputs.run_directory, run.state.step, code)
            run.mirroring.end(_LAST_UPLOAD_S.get(code, _LAST_UPLOAD_OTHERWISE_S))
        notices.ended(run.state.step if run else 0, code, sys.exc_info()[1])
    return code


def _report_stop(stopped: StopTraining, step: int) -> None:
    where = f"after step {step:,}, which is saved" if step else "before training began"
    logger.warning("stopped %s: %s. Exit code %d; %s continues", where, stopped, stopped.exit_code, stopped.repeat)


def _build_run(
    inputs: CommonInputs,
    setup: PhaseParts,
    settings: LaunchRecord,
    stream: Stream,
    stop: StopRequests,
    watchdog: Watchdog,
) -> Run:
    # Rank 0 chooses a checkpoint of this run, or that of the run that it branches from, or none.
    world, layout, flags = inputs.world, inputs.engine.layout, inputs.run_flags
    watchdog.progress("choosing a checkpoint", is_long=True)
    mirroring = _mirroring(inputs)
    own = _own_checkpoint(inputs, mirroring)
    chosen = own or setup.branch_from
    state = fresh_state(inputs, setup, settings.all_flags)
    stop.check()
    if world.is_main and inputs.engine.deepspeed.get("wandb", {}).get("enabled"):
        join_wandb(inputs.run_directory, inputs.run_name, is_resumed=own is not None)

    # Build the engine, with the checkpoint's state or with initial weights.
    watchdog.progress("building the engine", is_long=True)
    seed_rng(flags.seed, world.rank)
    if chosen:
        engine, state = restored_start(inputs, chosen, state, is_branch=not own)
        logger.info("%s %s at step %d", "resumed from" if own else "branched from", chosen, state.step)
        note_other_weights(state.initial_weights, setup.weights_place)
    else:
        engine, state.initial_weights = fresh_start(inputs)
    check_isolation(engine, engine.module, engine.device)
    choose_kernels(inputs, engine)

    # Every check has passed: from here on the run directory changes.
    on_main(world, lambda: _enter_directory(inputs, settings, state, own))
    logger.info("%s", startup_summary(inputs, setup, engine, state, chosen))
    stream.supply(setup.sampler, _batch_builder(inputs, setup))
    return Run(
        world=world,
        layout=layout,
        schedule=inputs.engine.schedule,
        flops=training_flops(inputs.model_config),
        recomputation=recomputation_flops(inputs.model_config, inputs.engine.recompute_every),
        cadence=setup.cadence,
        engine=engine,
        stream=stream,
        phase=setup.phase,
        state=state,
        checkpoints=_checkpoints(inputs, setup.cadence, mirroring, state.step if own else 0),
        directory=inputs.run_directory,
        stop=stop,
        watchdog=watchdog,
        mirroring=mirroring,
        skip_nonfinite=flags.skip_nonfinite,
        profile=_profile(inputs, watchdog),
    )


def _mirroring(inputs: CommonInputs) -> Mirroring:
    """What rank 0 copies of the run directory, and where to."""
    flags = inputs.run_flags
    url = f"{flags.mirror.rstrip('/')}/{inputs.run_name}" if flags.mirror else None
    mirror = Mirror(url) if url and inputs.world.is_main else None
    return Mirroring(mirror, inputs.run_directory, flags.mirror_every, flags.keep_every)


def _own_checkpoint(inputs: CommonInputs, mirroring: Mirroring) -> Path | None:
    """The checkpoint of this run to continue from, fetched where this machine has none. Collective."""
    flags = inputs.run_flags
    on_main(inputs.world, lambda: mirroring.fetch(flags.resume_from or flags.resume))
    directory = inputs.run_directory / "checkpoints"
    return with_all_ranks(inputs.world, partial(choose_checkpoint, directory, flags.resume, flags.resume_from))


def _profile(inputs: CommonInputs, watchdog: Watchdog) -> StepProfile:
    """What rank 0 traces of its steps."""
    steps = inputs.run_flags.profile_steps
    return StepProfile(
        profiled_steps(steps) if steps and inputs.world.is_main else None, inputs.run_directory, watchdog
    )


def _mlflow(inputs: CommonInputs) -> MlflowRun | None:
    experiment = inputs.run_flags.mlflow
    if experiment is None or not inputs.world.is_main:
        return None
    return MlflowRun(experiment, inputs.phase, inputs.run_directory, inputs.run_name)


def _batch_builder(inputs: CommonInputs, setup: PhaseParts) -> RankBatchBuilder:
    rank, seq_len = inputs.world.rank, inputs.model_flags.seq_len
    return RankBatchBuilder(
        setup.readers, inputs.engine.layout, rank, seq_len, one_document_a_row=inputs.one_document_a_row
    )


def _checkpoints(inputs: CommonInputs, cadence: Cadence, mirroring: Mirroring, last_saved_step: int) -> Checkpoints:
    return Checkpoints(
        inputs.run_directory / "checkpoints",
        inputs.world,
        describe=lambda target: save_description(target, inputs.model_config, inputs.tokenizer),
        retention=_retention(inputs, cadence),
        sync=inputs.run_flags.sync_save,
        committed=mirroring.committed,
        last_saved_step=last_saved_step,
    )


def _retention(inputs: CommonInputs, cadence: Cadence) -> Retention:
    flags = inputs.run_flags
    if flags.keep_every % cadence.save_every and inputs.world.is_main:
        logger.warning(
            "--keep_every %d keeps only what is saved: steps that are multiples of --save_every %d, too",
            flags.keep_every, cadence.save_every,
        )  # fmt: skip
    return Retention(inputs.run_directory / "checkpoints", flags.keep_last, flags.keep_every)


def _enter_directory(inputs: CommonInputs, settings: LaunchRecord, state: TrainState, own: Path | None) -> None:
    """Move aside what the run directory holds of another course of the run, and record this launch.

    Args:
        own: the checkpoint of this run that it continues, if there is one.
    """
    if own or inputs.run_flags.resume == "none":
        set_aside(inputs.run_directory, state.step if own else -1)
    else:
        set_foreign_logs_aside(inputs.run_directory)
    settings.record(inputs.run_directory, inputs.world, state, model_shape(inputs.model_config).num_parameters)


def fresh_state(inputs: CommonInputs, setup: PhaseParts, all_flags: Iterable[Any]) -> TrainState:
    """The state before the first step; a checkpoint is compared with it."""
    layout = inputs.engine.layout
    return TrainState(
        seed=inputs.run_flags.seed,
        world_size=layout.world_size,
        micro_batch=layout.micro_batch,
        grad_accum=layout.grad_accum,
        global_batch=layout.global_batch,
        zero_stage=inputs.engine.zero_stage,
        precision=inputs.engine.precision,
        stage=setup.first_stage,
        fingerprints=setup.fingerprints
        | compared_values(all_flags)
        | common_fingerprints(inputs.engine, inputs.model_config, inputs.tokenizer, inputs.model_flags.seq_len)
        | {"documents": ONE_A_ROW if inputs.one_document_a_row else "end to end"},
        versions=versions(),
    )


def _run_lock(run_directory: Path) -> AbstractContextManager[None]:
    return exclusive(run_directory, "wait for it to end, stop it, or start another run with --run_name")
