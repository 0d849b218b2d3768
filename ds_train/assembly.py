"""From flags to a run: everything is checked first, then built. Shared by both phases."""

import hashlib
import json
import logging
import os
import platform
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

import ds_train
from data_tools.errors import UserError
from data_tools.files import write_json
from data_tools.tokenizer import TextTokenizer, load_tokenizer
from ds_train.checkpoint import Checkpoints, load, read_state
from ds_train.distributed import World, init_distributed, on_main, world_from_env
from ds_train.ds_config import EngineConfig, default_json, resolve_engine_config
from ds_train.elastic import adapted_state, convert_to_universal, needs_universal
from ds_train.engine import Engine, build_engine
from ds_train.flags import ModelFlags, OverrideFlags, RunFlags
from ds_train.global_rng import seed_rng
from ds_train.loop import Cadence, ExitCode, Phase, Run, train
from ds_train.losses import PackedLM
from ds_train.manifest import choose_checkpoint, set_aside
from ds_train.model import build_model, is_preset, load_model, load_model_config, prepare_config, save_description
from ds_train.problems import Problems
from ds_train.readers import Reader
from ds_train.run_lock import run_lock
from ds_train.samplers import Sampler, Source
from ds_train.state import TrainState
from ds_train.stream import RankBatchBuilder, Stream
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
    total_steps: int | None,
    min_lr_ratio: float | None = None,
    weights: Weights | None = None,
) -> Inputs | None:
    """Check and load what both phases share; None when something is wrong (said in ``problems``)."""
    before = len(problems)
    world = world_from_env()
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
    path = Path(overrides.deepspeed_config) if overrides.deepspeed_config else default_json(phase)
    engine = resolve_engine_config(
        path, overrides, problems, world_size=world.size, total_steps=total_steps, min_lr_ratio=min_lr_ratio
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
    return f"EleutherAI/{name}" if is_preset(name) else name


@dataclass(frozen=True)
class PhaseSetup:
    """What a phase contributes to a run.

    Attributes:
        phase, cadence: see the loop.
        sampler, readers: which samples, and how each source's are read.
        num_workers: loader processes.
        first_stage: curriculum stage of a fresh start, 0 for none.
        fingerprints: what a checkpoint must agree with, besides what all phases share.
    """

    phase: Phase
    cadence: Cadence
    sampler: Sampler
    readers: dict[Source, Reader]
    num_workers: int
    first_stage: int
    fingerprints: dict[str, str]


def launch(inputs: Inputs, all_flags: Sequence[Any], make_setup: Callable[[], PhaseSetup]) -> ExitCode:
    """Join the process group, build the run, restore the newest checkpoint, train.

    Args:
        all_flags: the parsed flag dataclasses, kept in the run directory.
        make_setup: builds the phase's part; called once the process group exists, before the model does.
    """
    world, flags = inputs.world, inputs.run_flags
    for line in inputs.engine.overrides:
        logger.info(line)
    if flags.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    init_distributed(world)
    with ExitStack() as stack:
        on_main(world, lambda: stack.enter_context(run_lock(inputs.run_directory)))
        return train(_build_run(inputs, make_setup(), all_flags))


def _build_run(inputs: Inputs, setup: PhaseSetup, all_flags: Sequence[Any]) -> Run:
    world, layout, flags = inputs.world, inputs.engine.layout, inputs.run_flags
    directory = inputs.run_directory / "checkpoints"
    resume = flags.resume_from or flags.resume
    chosen = on_main(world, lambda: choose_checkpoint(directory, resume))
    state = _fresh_state(inputs, setup)
    seed_rng(flags.seed, world.rank)
    if chosen:
        engine, state = _restored(inputs, chosen, state)
        logger.info("resumed from %s at step %d", chosen, state.step)
    else:
        engine = build_engine(PackedLM(_initial_model(inputs)), inputs.engine.deepspeed)
    if chosen or resume == "none":
        on_main(world, lambda: set_aside(inputs.run_directory, state.step if chosen else -1))
    on_main(world, lambda: _record_configuration(inputs, all_flags))
    logger.info(
        "%s: %d ranks × %d accumulation × micro batch %d = global batch %d, seq_len %d, %.1f M parameters",
        setup.phase.name, layout.world_size, layout.grad_accum, layout.micro_batch, layout.global_batch,
        inputs.model_flags.seq_len, sum(_num_elements(p) for p in engine.module.parameters()) / 1e6,
    )  # fmt: skip
    builder = RankBatchBuilder(setup.readers, layout, world.rank)
    return Run(
        world=world,
        layout=layout,
        schedule=inputs.engine.schedule,
        cadence=setup.cadence,
        engine=engine,
        stream=Stream(setup.sampler, builder, setup.num_workers, engine.device),
        phase=setup.phase,
        state=state,
        checkpoints=Checkpoints(
            directory,
            world,
            describe=lambda target: save_description(target, inputs.model_config, inputs.tokenizer),
            keep_last=flags.keep_last,
            keep_every=flags.keep_every,
        ),
        directory=inputs.run_directory,
        skip_nonfinite=flags.skip_nonfinite,
    )


def _restored(inputs: Inputs, chosen: Path, current: TrainState) -> tuple[Engine, TrainState]:
    """An engine and state restored from a checkpoint, whatever layout saved it. Refusals come before any change."""
    world, flags = inputs.world, inputs.run_flags
    saved = read_state(chosen)
    state = adapted_state(saved, current, chosen, strict_layout=flags.strict_layout, accepted=flags.accept_change or ())
    model = PackedLM(build_model(inputs.model_config, flags.seed))  # its weights are about to be replaced
    config = inputs.engine.deepspeed
    if not needs_universal(saved, current):
        engine = build_engine(model, config)
        load(engine, chosen, saved, world)
        return engine, state
    universal = on_main(world, lambda: convert_to_universal(chosen))
    engine = build_engine(model, config | {"checkpoint": config.get("checkpoint", {}) | {"load_universal": True}})
    load(engine, universal, saved, world)
    on_main(world, lambda: shutil.rmtree(universal))
    return engine, state


def _fresh_state(inputs: Inputs, setup: PhaseSetup) -> TrainState:
    layout = inputs.engine.layout
    return TrainState(
        seed=inputs.run_flags.seed,
        world_size=layout.world_size,
        micro_batch=layout.micro_batch,
        grad_accum=layout.grad_accum,
        global_batch=layout.global_batch,
        zero_stage=inputs.engine.deepspeed.get("zero_optimization", {}).get("stage", 0),
        precision=_precision(inputs.engine.deepspeed),
        stage=setup.first_stage,
        fingerprints=setup.fingerprints | _common_fingerprints(inputs),
        versions=_versions(),
    )


def _precision(config: dict[str, Any]) -> str:
    return next((name for name in ("bf16", "fp16") if config.get(name, {}).get("enabled")), "fp32")


def _initial_model(inputs: Inputs) -> PreTrainedModel:
    if inputs.weights:
        return model_with_weights(inputs.weights, inputs.model_config)
    if inputs.model_flags.init == "pretrained":
        return load_model(inputs.model_flags.model_name or f"EleutherAI/{_DEFAULT_MODEL}", inputs.model_config)
    return build_model(inputs.model_config, inputs.run_flags.seed)


def _num_elements(parameter: torch.Tensor) -> int:
    return getattr(parameter, "ds_numel", parameter.numel())  # ZeRO-3 leaves empty tensors that know their size


def _common_fingerprints(inputs: Inputs) -> dict[str, str]:
    model = json.dumps(inputs.model_config.to_diff_dict(), sort_keys=True, default=str)
    config = inputs.engine.effective
    return {
        "optimizer": _hyper_parameters(config["optimizer"]),
        "schedule": str(inputs.engine.schedule),
        "gradient_clipping": str(float(config.get("gradient_clipping", 0.0))),
        "seq_len": str(inputs.model_flags.seq_len),
        "tokenizer": inputs.tokenizer.fingerprint,
        "model": hashlib.sha256(model.encode()).hexdigest(),
    }


def _hyper_parameters(optimizer: dict[str, Any]) -> str:
    """Type and parameters of the JSON's optimizer, without those that choose an implementation."""
    implementation = ("torch_adam", "fused", "foreach")
    params = {name: value for name, value in optimizer.get("params", {}).items() if name not in implementation}
    return json.dumps({"type": optimizer["type"], **params}, sort_keys=True)


def _versions() -> dict[str, str]:
    import deepspeed
    import transformers

    packages = {"ds_train": ds_train, "torch": torch, "deepspeed": deepspeed, "transformers": transformers}
    return {"python": platform.python_version()} | {name: str(p.__version__) for name, p in packages.items()}


def _record_configuration(inputs: Inputs, all_flags: Sequence[Any]) -> None:
    """Keep the effective JSON and flags beside the logs."""
    write_json(inputs.run_directory / "deepspeed.json", inputs.engine.effective)
    write_json(inputs.run_directory / "flags.json", {k: v for flags in all_flags for k, v in asdict(flags).items()})
