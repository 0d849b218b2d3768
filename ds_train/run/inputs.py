"""The inputs of both phases: flags, JSON, tokenizer and model configuration, checked before anything is built."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from transformers import PretrainedConfig

from data_tools.base.errors import Problems, UserError, reason_of
from data_tools.base.files import existing_parent
from data_tools.base.hub import use_fetched
from data_tools.corpus.tokenizer import TextTokenizer, load_tokenizer
from ds_train.checkpoints.weights import Weights
from ds_train.config.deepspeed_json import EngineConfig, default_json, resolve_engine_config
from ds_train.config.trainer_flags import ModelFlags, OverrideFlags, RunFlags
from ds_train.model.causal_lm import (
    check_weights_are_here,
    hub_id,
    load_model_config,
    model_without_weights,
    prepare_config,
)
from ds_train.model.flash import check_flash
from ds_train.model.isolation import settle_rows
from ds_train.model.recomputation import check_recomputation
from ds_train.model.transfer import AS_IT_IS, Transfer
from ds_train.ranks.world import World, check_num_ranks
from ds_train.run.memory import fitting
from ds_train.training.mlflow_run import check_mlflow
from ds_train.training.monitors import check_monitors, place_monitors
from ds_train.training.profile import profiled_steps

DEFAULT_MODEL = "pythia-160m"


@dataclass(frozen=True)
class CommonInputs:
    """Inputs of both phases, checked and loaded before any process group or model exists."""

    phase: str
    world: World
    run_flags: RunFlags
    model_flags: ModelFlags
    run_directory: Path
    engine: EngineConfig
    tokenizer: TextTokenizer
    model_config: PretrainedConfig
    one_document_a_row: bool  # those of one row would influence one another
    weights: Weights | None  # None: random, or the pretrained ones of model_flags
    transfer: Transfer

    @property
    def has_weights(self) -> bool:
        """Whether a fresh start has other weights than random ones."""
        return self.weights is not None or self.model_flags.init == "pretrained"

    @property
    def defaults(self) -> dict[str, str]:
        """What flags that both phases have stand for where they are not given."""
        model = {} if self.weights else {"model_name": self.model_name}
        return {"run_name": self.run_name, "tokenizer": self.tokenizer.name, **model}

    @property
    def run_name(self) -> str:
        return str(self.run_directory.relative_to(self.run_flags.scratch_dir))

    @property
    def model_name(self) -> str:
        """The model that the weights belong to: a preset, directory or hub id, or its architecture."""
        if self.weights:
            return f"{self.model_config.model_type} of {self.weights.path}"
        return self.model_flags.model_name or DEFAULT_MODEL


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
    transfer: Transfer = AS_IT_IS,
) -> CommonInputs | None:
    """Check and load what both phases share; None after a fault, which is added to ``problems``."""
    before = len(problems)
    use_fetched(run.scratch_dir)
    directory, engine = check_run(
        phase, run, overrides, problems, world=world, total_steps=total_steps, min_lr_ratio=min_lr_ratio
    )

    # Tokenizer and model configuration.
    tokenizer = config = one_document_a_row = None
    with problems.collect():
        tokenizer = load_tokenizer(_tokenizer_spec(model, weights))
    with problems.collect():
        config = load_model_config(str(weights.description) if weights else model.model_name or DEFAULT_MODEL)
        if weights and model.model_name is not None:
            raise UserError(
                f"--model_name {model.model_name} was given with weights from {weights.path}, which determine the "
                "architecture; leave --model_name out."
            )
        if tokenizer:
            prepare_config(
                config,
                seq_len=model.seq_len,
                vocab_size=tokenizer.vocab_size,
                keep_dropout=model.keep_dropout,
                scratch=weights is None and model.init == "scratch",
            )
            if engine:
                check_flash(config, model.attn_implementation, engine.precision)
            one_document_a_row = settle_rows(config, model.attn_implementation, keep_dropout=model.keep_dropout)
            if engine and engine.recompute_every:
                check_recomputation(config)
    if weights is None and model.init == "pretrained":
        with problems.collect():
            check_weights_are_here(hub_id(model.model_name or DEFAULT_MODEL))
    if len(problems) > before or engine is None or tokenizer is None or config is None or one_document_a_row is None:
        return None
    with problems.collect():
        engine = fitting(engine, config, model.seq_len, world, one_document_a_row=one_document_a_row)
    inputs = CommonInputs(
        phase, world, run, model, directory, engine, tokenizer, config, one_document_a_row, weights, transfer
    )
    if transfer != AS_IT_IS:
        transfer.check(model_without_weights(config), problems, has_weights=inputs.has_weights)
    return None if len(problems) > before else inputs


def check_run(
    phase: str,
    run: RunFlags,
    overrides: OverrideFlags,
    problems: Problems,
    *,
    world: World,
    total_steps: int | None,
    min_lr_ratio: float | None = None,
) -> tuple[Path, EngineConfig | None]:
    """Check the run directory and the DeepSpeed JSON, which takes neither data nor a model."""
    # The run directory.
    name = Path(run.run_name or phase)
    directory = Path(run.scratch_dir) / name
    if name.is_absolute() or ".." in name.parts or not name.name or name.parts[0] == "data":
        problems.add(
            f"--run_name {run.run_name} is no directory of runs under --scratch_dir; give a name such as A or A/seed_1."
        )
    else:
        with problems.collect():
            _require_writable(directory)
        if (checkpoints := directory / "checkpoints").exists() and not checkpoints.is_dir():
            problems.add(f"{checkpoints} is not a directory; move it away, or choose another --run_name.")

    with problems.collect():
        check_num_ranks(world, run.num_ranks)
    check_mlflow(run.mlflow, problems)
    if run.profile_steps:
        with problems.collect():
            profiled_steps(run.profile_steps)

    # The DeepSpeed JSON.
    source = overrides.deepspeed_config or str(default_json(phase))
    engine = resolve_engine_config(
        source, overrides, problems, world_size=world.size, total_steps=total_steps, min_lr_ratio=min_lr_ratio
    )
    if engine is not None:
        if run.tf32 and engine.is_half:
            problems.add(
                f"--tf32 is for fp32, but the precision is {engine.precision}; leave it out, or give "
                "--mixed_precision no."
            )
        if run.compile and (engine.zero_stage == 3 or engine.recompute_every):
            other = "ZeRO 3 gathers weights" if engine.zero_stage == 3 else "--activation_checkpointing computes twice"
            problems.add(f"--compile makes a graph of each layer, within which {other}; leave one of them out.")
        check_monitors(engine.deepspeed, problems, is_main=world.is_main)
        place_monitors(engine.deepspeed, directory, str(name))
    return directory, engine


def _require_writable(directory: Path) -> None:
    """Try to write in the directory or the nearest one above it. It is not created: a refused run leaves nothing."""
    try:
        with tempfile.TemporaryFile(dir=existing_parent(directory)):
            pass
    except OSError as error:
        raise UserError(
            f"--scratch_dir: cannot write to {directory} ({reason_of(error)}); give a writable directory."
        ) from error


def _tokenizer_spec(model: ModelFlags, weights: Weights | None) -> str:
    if model.tokenizer:
        return model.tokenizer
    if weights:
        return str(weights.description)
    name = model.model_name or DEFAULT_MODEL
    if name == "pythia-tiny":  # the only preset that is on no hub
        raise UserError(
            "--model_name pythia-tiny has no tokenizer: give --tokenizer "
            "(python -m data_tools.train_tokenizer makes a small one)."
        )
    return hub_id(name)
