"""From flags to a run: everything is checked first, then built. Shared by both phases."""

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from data_tools.errors import UserError
from data_tools.tokenizer import TextTokenizer, load_tokenizer
from ds_train.checkpoint import Checkpoints, read_state
from ds_train.distributed import check_num_nodes, device_of, init_distributed, on_main, take_device
from ds_train.ds_config import EngineConfig, default_json, resolve_engine_config
from ds_train.elastic import adapted_state
from ds_train.engine import Engine
from ds_train.fingerprints import common_fingerprints, precision, versions
from ds_train.flags import ModelFlags, OverrideFlags, RunFlags
from ds_train.full_state import fresh_engine
from ds_train.global_rng import seed_rng
from ds_train.loop import Cadence, Phase, Run, train
from ds_train.losses import PackedLM
from ds_train.manifest import choose_checkpoint, set_aside
from ds_train.model import build_model, is_preset, load_model, load_model_config, prepare_config, save_description
from ds_train.preemption import ExitCode, StopRequests, StopTraining
from ds_train.problems import Problems
from ds_train.ranks import World, check_num_ranks
from ds_train.readers import Reader
from ds_train.restore import restored_engine
from ds_train.run_lock import run_lock
from ds_train.samplers import Sampler, Source
from ds_train.settings import Settings
from ds_train.state import TrainState
from ds_train.stream import RankBatchBuilder, Stream
from ds_train.watchdog import LONG_S, Watchdog, supervision
from ds_train.weights import Weights, model_with_weights

logger = logging.getLogger(__name__)

_DEFAULT_MODEL = "pythia-160m"


@dataclass(frozen=True)
class Inputs:
    """What both phases are given, checked and loaded before any process group or model exists."""

    world: World
    run_flags: RunFlags
    model_flags: ModelFlags
    run_directory: Path
    engine: EngineConfig
    tokenizer: TextTokenizer
    model_config: PretrainedConfig
    weights: Weights | None  # None: random, or the pretrained ones of model_flags


def check_inputs(
    phase: str,
    run: RunFlags,
    model: ModelFlags,
    overrides: OverrideFlags,
    problems: Problems,
    *,
    world: World,
    total_steps: int | None,
    min_lr_ratio: float | None = None,
    weights: Weights | None = None,
) -> Inputs | None:
    """Check and load what both phases share; None when something is wrong (said in ``problems``)."""
    before = len(problems)
    directory = Path(run.scratch_dir) / (run.run_name or phase)
    if directory.name != (run.run_name or phase):
        problems.add(f"--run_name {run.run_name} is not a plain directory name; runs lie directly under --scratch_dir.")
    else:
        with problems.collect():
            _require_writable(directory)
    may_be_zero = ("num_workers", "keep_last", "keep_every", "skip_nonfinite")
    for name in ("log_every", "save_every", "stop_step", *may_be_zero):
        value, least = getattr(run, name), 0 if name in may_be_zero else 1
        if value is not None and value < least:
            problems.add(f"--{name} is {value}, expected at least {least}.")
    problems.require(model.seq_len >= 2, f"--seq_len is {model.seq_len}, expected at least 2.")
    problems.require(run.hang_timeout_s > 0, f"--hang_timeout_s is {run.hang_timeout_s}, expected seconds > 0.")
    with problems.collect():
        check_num_ranks(world, run.num_ranks)
    source = overrides.deepspeed_config or str(default_json(phase))
    engine = resolve_engine_config(
        source, overrides, problems, world_size=world.size, total_steps=total_steps, min_lr_ratio=min_lr_ratio
    )
    tokenizer = config = None
    with problems.collect():
        tokenizer = load_tokenizer(_tokenizer_spec(model, weights))
    with problems.collect():
        config = load_model_config(str(weights.description) if weights else model.model_name or _DEFAULT_MODEL)
        if weights and model.model_name is not None:
            raise UserError(
                f"--model_name {model.model_name} was given with weights from {weights.path}, which bring their own "
                "architecture; leave --model_name out."
            )
        if tokenizer:
            prepare_config(
                config,
                seq_len=model.seq_len,
                vocab_size=tokenizer.vocab_size,
                attn_implementation=model.attn_implementation,
                keep_dropout=model.keep_dropout,
                scratch=weights is None and model.init == "scratch",
            )
    if len(problems) > before or engine is None or tokenizer is None or config is None:
        return None
    return Inputs(world, run, model, directory, engine, tokenizer, config, weights)


def _require_writable(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / f".writable.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"--scratch_dir: cannot write to {directory} ({error.strerror}); give a writable directory."
        ) from error


def _tokenizer_spec(model: ModelFlags, weights: Weights | None) -> str:
    if model.tokenizer:
        return model.tokenizer
    if weights:
        return str(weights.description)
    name = model.model_name or _DEFAULT_MODEL
    if name == "pythia-tiny":  # the only preset that is on no hub
        raise UserError(
            "--model_name pythia-tiny has no tokenizer of its own: give --tokenizer "
            "(python -m data_tools.train_tokenizer makes a small one)."
        )
    return f"EleutherAI/{name}" if is_preset(name) else name


@dataclass(frozen=True)
class PhaseSetup:
    """What a phase contributes to a run.

    Attributes:
        phase, cadence: see the loop.
        sampler, readers: which samples, and how each source's are read.
        first_stage: curriculum stage of a fresh start, 0 for none.
        fingerprints: what a checkpoint must agree with, besides what all phases share.
    """

    phase: Phase
    cadence: Cadence
    sampler: Sampler
    readers: dict[Source, Reader]
    first_stage: int
    fingerprints: dict[str, str]


@dataclass(frozen=True)
class Prepared:
    """A checked run, nothing of it built.

    Attributes:
        all_flags: the parsed flag dataclasses, kept in the run directory.
        sources: of the flags that were given.
        num_workers: loader processes.
        make_setup: builds the phase's part; called once the process group exists, before the model does.
    """

    inputs: Inputs
    all_flags: Sequence[Any]
    sources: dict[str, str]
    num_workers: int
    make_setup: Callable[[], PhaseSetup]


def launch(prepared: Prepared) -> ExitCode:
    """Join the process group, build the run, restore the newest checkpoint, train."""
    inputs = prepared.inputs
    world, flags = inputs.world, inputs.run_flags
    settings = Settings(prepared.all_flags, prepared.sources, inputs.engine)
    if flags.print_config:
        if world.is_main:
            print(settings.shown())
        return ExitCode.FINISHED
    for line in inputs.engine.overrides:
        logger.info(line)
    if flags.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    with ExitStack() as stack:
        stream = stack.enter_context(Stream(prepared.num_workers, take_device(world)))
        # Its time-out is so long that the watchdog comes first, and explains.
        init_distributed(world, timeout_s=2 * max(LONG_S, flags.hang_timeout_s))
        check_num_nodes(world, flags.num_nodes)
        stop = StopRequests(inputs.run_directory, world.is_main, device_of(world))
        watchdog = stack.enter_context(supervision(world, flags.hang_timeout_s))
        on_main(world, lambda: stack.enter_context(run_lock(inputs.run_directory)))
        try:
            train(_build_run(inputs, prepared.make_setup(), settings, stream, stop, watchdog))
            return ExitCode.FINISHED
        except StopTraining as stopped:
            stop.consume()
            logger.warning("stopped at a checkpoint or before the first step: %s", stopped)
            return stopped.exit_code


def _build_run(
    inputs: Inputs, setup: PhaseSetup, settings: Settings, stream: Stream, stop: StopRequests, watchdog: Watchdog
) -> Run:
    world, layout, flags = inputs.world, inputs.engine.layout, inputs.run_flags
    directory = inputs.run_directory / "checkpoints"
    resume = flags.resume_from or flags.resume
    chosen = on_main(world, lambda: choose_checkpoint(directory, resume))
    state = fresh_state(inputs, setup)
    stop.check()
    seed_rng(flags.seed, world.rank)
    if chosen:
        engine, state = _restored(inputs, chosen, state)
        logger.info("resumed from %s at step %d", chosen, state.step)
    else:
        engine = fresh_engine(PackedLM(_initial_model(inputs)), inputs.engine.deepspeed)
    if chosen or resume == "none":
        on_main(world, lambda: set_aside(inputs.run_directory, state.step if chosen else -1))
    on_main(world, lambda: settings.record(inputs.run_directory, world, state.step))
    logger.info(
        "%s: %d ranks × %d accumulation × micro batch %d = global batch %d, seq_len %d, %.1f M parameters",
        setup.phase.name, layout.world_size, layout.grad_accum, layout.micro_batch, layout.global_batch,
        inputs.model_flags.seq_len, sum(_num_elements(p) for p in engine.module.parameters()) / 1e6,
    )  # fmt: skip
    stream.supply(setup.sampler, RankBatchBuilder(setup.readers, layout, world.rank))
    return Run(
        world=world,
        layout=layout,
        schedule=inputs.engine.schedule,
        cadence=setup.cadence,
        engine=engine,
        stream=stream,
        phase=setup.phase,
        state=state,
        checkpoints=Checkpoints(
            directory,
            world,
            describe=lambda target: save_description(target, inputs.model_config, inputs.tokenizer),
            keep_last=flags.keep_last,
            keep_every=flags.keep_every,
            sync=flags.sync_save,
            committed=state.step,
        ),
        directory=inputs.run_directory,
        stop=stop,
        watchdog=watchdog,
        skip_nonfinite=flags.skip_nonfinite,
    )


def _restored(inputs: Inputs, chosen: Path, current: TrainState) -> tuple[Engine, TrainState]:
    """An engine and state restored from a checkpoint, whatever layout saved it. Refusals come before any change."""
    world, flags = inputs.world, inputs.run_flags
    saved = read_state(chosen)
    state = adapted_state(saved, current, chosen, strict_layout=flags.strict_layout, accepted=flags.accept_change or ())
    model = PackedLM(build_model(inputs.model_config, flags.seed))  # its weights are about to be replaced
    return restored_engine(model, inputs.engine.deepspeed, chosen, saved, current, world), state


def fresh_state(inputs: Inputs, setup: PhaseSetup) -> TrainState:
    """The state before the first step; a checkpoint is compared with it."""
    layout = inputs.engine.layout
    return TrainState(
        seed=inputs.run_flags.seed,
        world_size=layout.world_size,
        micro_batch=layout.micro_batch,
        grad_accum=layout.grad_accum,
        global_batch=layout.global_batch,
        zero_stage=inputs.engine.deepspeed.get("zero_optimization", {}).get("stage", 0),
        precision=precision(inputs.engine.deepspeed),
        stage=setup.first_stage,
        fingerprints=setup.fingerprints
        | common_fingerprints(inputs.engine, inputs.model_config, inputs.tokenizer, inputs.model_flags.seq_len),
        versions=versions(),
    )


def _initial_model(inputs: Inputs) -> PreTrainedModel:
    if inputs.weights:
        return model_with_weights(inputs.weights, inputs.model_config)
    if inputs.model_flags.init == "pretrained":
        return load_model(inputs.model_flags.model_name or f"EleutherAI/{_DEFAULT_MODEL}", inputs.model_config)
    return build_model(inputs.model_config, inputs.run_flags.seed)


def _num_elements(parameter: torch.Tensor) -> int:
    return getattr(parameter, "ds_numel", parameter.numel())  # ZeRO-3 leaves empty tensors that know their size
