"""Model weights to start from or to evaluate: of a checkpoint of ours, or of a Hugging Face directory."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from data_tools.errors import UserError
from ds_train.checkpoint import DESCRIPTION, MANIFEST, complete_checkpoints, defect_of, read_state
from ds_train.model import build_model, load_model

logger = logging.getLogger(__name__)

_WRAPPER = "causal_lm."  # where PackedLM holds the Hugging Face model


@dataclass(frozen=True)
class Weights:
    """Where weights come from.

    Attributes:
        path: a complete step directory, or a Hugging Face directory.
        is_checkpoint: which of the two.
    """

    path: Path
    is_checkpoint: bool

    @property
    def description(self) -> Path:
        """Directory with config.json and the tokenizer."""
        return self.path / DESCRIPTION if self.is_checkpoint else self.path


def find_weights(spec: str, run_directory: Path | None = None) -> Weights:
    """Resolve ``latest`` (of ``run_directory``), a step directory, a run directory or a Hugging Face directory.

    Raises:
        UserError: there is no complete checkpoint, or nothing of the kind at the path.
    """
    if spec == "latest":
        assert run_directory is not None
        return Weights(_newest(run_directory), True)
    path = Path(spec)
    if (path / MANIFEST).exists() or path.name.startswith("step_"):
        if defect := defect_of(path):
            raise UserError(f"checkpoint {path}: {defect}. Give a complete step directory.")
        return Weights(path, True)
    if (path / "checkpoints").is_dir():
        return Weights(_newest(path), True)
    if (path / "config.json").exists():
        return Weights(path, False)
    state = (
        "is neither a step directory, a run directory nor a Hugging Face directory" if path.exists() else "is missing"
    )
    raise UserError(f"checkpoint {path} {state}; give one of these, e.g. RUN/checkpoints/step_00000200.")


def _newest(run_directory: Path) -> Path:
    complete = complete_checkpoints(run_directory / "checkpoints")
    if not complete:
        raise UserError(
            f"{run_directory} has no complete checkpoint; finish a pptrain run there, name another with --pptrain_run, "
            "or give --pptrain_checkpoint PATH or none."
        )
    if not read_state(complete[-1]).finished:
        logger.warning("%s: the curriculum of this checkpoint had not finished", complete[-1])
    return complete[-1]


def model_with_weights(weights: Weights, config: PretrainedConfig) -> PreTrainedModel:
    """A model holding the weights in fp32."""
    if not weights.is_checkpoint:
        return load_model(str(weights.path), config)
    model = build_model(config, seed=0)
    model.load_state_dict(checkpoint_weights(weights.path))
    return model


def checkpoint_weights(checkpoint: Path) -> dict[str, Any]:
    """The module's state dict; below ZeRO-3 rank 0 saved it whole, under ZeRO-3 DeepSpeed gathers the shards."""
    whole = checkpoint / "mp_rank_00_model_states.pt"
    if whole.exists():
        state = torch.load(whole, map_location="cpu", weights_only=False, mmap=True)["module"]
    else:
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        state = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
    return {name.removeprefix(_WRAPPER): tensor for name, tensor in state.items()}


def saved_seq_len(weights: Weights) -> int | None:
    """The sequence length a checkpoint was trained with; None for a Hugging Face directory."""
    if not weights.is_checkpoint:
        return None
    return json.loads(read_state(weights.path).fingerprints["seq_len"])
