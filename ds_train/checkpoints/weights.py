"""Finds and loads model weights to start from or to evaluate: a checkpoint of ours, or a Hugging Face directory."""

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path

import torch
import xxhash
from transformers import PretrainedConfig, PreTrainedModel

from data_tools.base.command_line import did_you_mean
from data_tools.base.errors import UserError
from data_tools.base.transfers import Transfer
from ds_train.checkpoints.manifest import (
    HUGGING_FACE_CONFIG,
    MANIFEST,
    FindDamage,
    damage_in,
    defect_of,
    file_entries,
    file_entry,
    newest_usable,
    step_directories,
)
from ds_train.checkpoints.save import DESCRIPTION, read_state
from ds_train.checkpoints.saved_partitions import SavedPartitions
from ds_train.checkpoints.state import InitialWeights
from ds_train.model.causal_lm import empty_model, load_model

logger = logging.getLogger(__name__)

_NO_MAX_LENGTH = 10**9  # tokens; transformers writes 1e30 for an unknown length
_WRAPPER = "causal_lm."  # where PackedLM holds the Hugging Face model


@dataclass(frozen=True)
class Weights:
    """The origin of weights.

    Attributes:
        path: a complete step directory, or a Hugging Face directory.
        is_checkpoint: whether it is a step directory.
        asked: arguments of the `find_weights` that found them.
    """

    path: Path
    is_checkpoint: bool
    asked: tuple[str, Path | None] | None = field(default=None, compare=False)

    @property
    def description(self) -> Path:
        """Directory with config.json and the tokenizer."""
        return self.path / DESCRIPTION if self.is_checkpoint else self.path


def find_weights(spec: str, run_directory: Path | None = None, find_damage: FindDamage = damage_in) -> Weights:
    """Resolve ``latest`` (of ``run_directory``), a step directory, a run directory or a Hugging Face directory.

    Args:
        find_damage: checks the content of a checkpoint's files.

    Raises:
        UserError: there is no complete checkpoint, or the path holds none of these.
    """
    if spec == "latest" and run_directory:
        how = "finish a pptrain run there, name another with --pptrain_run, or give --pptrain_checkpoint PATH or none"
        return Weights(_newest(run_directory, how, find_damage), True, (spec, run_directory))
    path = Path(spec)
    is_model, is_step = (path / HUGGING_FACE_CONFIG).exists(), path.name.startswith("step_")
    if is_model and is_step and not (path / MANIFEST).exists():
        logger.info("%s is no checkpoint of this program but a Hugging Face model: its weights are used", path)
        return Weights(path, False)
    if is_step or (path / MANIFEST).exists():
        if defect := defect_of(path, find_damage):
            raise UserError(f"checkpoint {path}: {defect}. Give a complete step directory.")
        return Weights(path, True, (spec, run_directory))
    if (path / "checkpoints").is_dir():
        newest = _newest(path, "train it up to a checkpoint, or name another", find_damage)
        return Weights(newest, True, (spec, run_directory))
    if is_model:
        return Weights(path, False)
    kinds = "a step directory, e.g. RUN/checkpoints/step_00000200, a run directory or a Hugging Face directory"
    if path.exists():
        raise UserError(f"{path} is not a checkpoint; give {kinds}.")
    words = ("latest", "none") if run_directory else ()
    raise UserError(f"checkpoint {path} is missing{did_you_mean(spec, words, f'; give {kinds}.')}")


def verified(weights: Weights, find_damage: FindDamage) -> Weights:
    """The weights, found again with a check of their content: of an older checkpoint of the run if that is damaged."""
    return find_weights(*weights.asked, find_damage) if weights.asked else weights


def record_of(weights: Weights) -> InitialWeights:
    """What a run that starts from weights records about them. Reads a Hugging Face model whole, for its hash."""
    path = weights.path.absolute()
    if weights.is_checkpoint:
        state = read_state(path)
        run = "" if path.parent.name != "checkpoints" else str(path.parents[1])
        return InitialWeights(str(path), run, state.step, state.stage, file_entry(path / MANIFEST).xxh3_128)
    files = [*sorted(path.glob("*.safetensors")), *sorted(path.glob("*.bin"))]
    hashes = "".join(entry.xxh3_128 for entry in file_entries(files, f"hashing {path}"))
    return InitialWeights(str(path), hash=xxhash.xxh3_128_hexdigest(hashes.encode()))


def place_of(spec: str, run_directory: Path) -> str:
    """The path that ``--pptrain_checkpoint`` means today, which need not be usable; "" for none."""
    if spec == "none":
        return ""
    path = run_directory if spec == "latest" else Path(spec).absolute()
    return str(next(iter(step_directories(path / "checkpoints")), path))


def _newest(run_directory: Path, fix: str, find_damage: FindDamage) -> Path:
    newest = newest_usable(run_directory / "checkpoints", find_damage)
    if newest is None:
        raise UserError(f"{run_directory} has no complete checkpoint; {fix}.")
    state = read_state(newest)
    if not state.finished:
        stages = state.fingerprints.get("max_stage")
        end = f"the curriculum was at stage {state.stage} of {stages}" if stages else "training was not at its end"
        logger.warning("%s: at step %s %s", newest, f"{state.step:,}", end)
    return newest


def model_with_weights(weights: Weights, config: PretrainedConfig) -> PreTrainedModel:
    """A model holding the weights in fp32."""
    if not weights.is_checkpoint:
        return load_model(str(weights.path), config)
    model = empty_model(config)
    source = SavedPartitions(weights.path, read_state(weights.path))
    num_bytes = sum(tensor.nbytes for tensor in model.state_dict().values())
    with Transfer(f"loading the weights of {weights.path}", num_bytes):
        source.fill({_WRAPPER + name: tensor for name, tensor in model.state_dict().items()})
    return model


def checkpoint_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The trained weights of a checkpoint of any ZeRO stage, by the model's names: the fp32 ones of the optimizer.

    Frozen weights are in the precision of the training.
    """
    state = SavedPartitions(checkpoint, read_state(checkpoint)).weights()
    return {name.removeprefix(_WRAPPER): tensor for name, tensor in state.items()}


def saved_seq_len(weights: Weights) -> int | None:
    """The sequence length that weights were trained with; None for a Hugging Face directory that does not record it.

    A Hugging Face directory has it in its tokenizer's ``model_max_length``, which our exports set.
    """
    if weights.is_checkpoint:
        return json.loads(read_state(weights.path).fingerprints["seq_len"])
    path = weights.path / "tokenizer_config.json"
    length = json.loads(path.read_text(encoding="utf-8")).get("model_max_length") if path.exists() else None
    return int(length) if isinstance(length, int | float) and 0 < length < _NO_MAX_LENGTH else None
