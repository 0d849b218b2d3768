"""Exports a checkpoint as a Hugging Face directory."""

import logging
import sys
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from data_tools.base.errors import UserError, reason_of
from data_tools.base.files import whole_directory
from data_tools.corpus.tokenizer import TextTokenizer, load_tokenizer
from ds_train.checkpoints.weights import checkpoint_weights, find_weights, saved_seq_len
from ds_train.model.causal_lm import DTYPES, load_model_config, model_without_weights
from ds_train.ranks.entry import set_up_logging
from ds_train.ranks.world import world_from_env

logger = logging.getLogger(__name__)


def export(checkpoint: str, out: Path, dtype: str) -> None:
    """Write a step or run directory's weights, configuration and tokenizer into ``out``, whole or not at all.

    Args:
        dtype: fp32 or bf16.
    """
    set_up_logging(world_from_env())
    if not sys.stderr.isatty():
        disable_progress_bar()  # transformers' own
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty directory; nothing is overwritten. Give another name.")
    weights = find_weights(checkpoint)
    if not weights.is_checkpoint:
        raise UserError(f"{weights.path} is a Hugging Face directory already; there is nothing to export.")
    config = load_model_config(str(weights.description))
    tokenizer = load_tokenizer(str(weights.description))
    seq_len = saved_seq_len(weights)
    assert seq_len, "every checkpoint records it"
    settle_config(config, tokenizer.eos_id, seq_len)
    model, state = _model_and_state(weights.path, config, DTYPES[dtype])
    _write(out, model, state, tokenizer, seq_len)
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    report_tokenizer(tokenizer)
    logger.info("exported %s (%.1f M parameters, %s) to %s", weights.path, parameters, dtype, out)


def report_tokenizer(tokenizer: TextTokenizer) -> None:
    """Say which tokens the original tokenizer adds to a text and the exported one does not."""
    if added := tokenizer.added_tokens:
        logger.info("the tokenizer added %s to each text; training did not, so the export does not", " ".join(added))


def settle_config(config: PretrainedConfig, eos_id: int, seq_len: int) -> None:
    """Set what generation and evaluation by other programs need."""
    config.use_cache = True  # off in training, but generation needs it
    config.eos_token_id = eos_id
    # Harnesses use all positions of the config, but those beyond seq_len were never trained. Plain rotary positions do
    # not depend on this number; a table of learned positions has its size, so it stays.
    if (getattr(config, "rope_parameters", None) or {}).get("rope_type") == "default":
        config.max_position_embeddings = seq_len


def _model_and_state(
    checkpoint: Path, config: PretrainedConfig, dtype: torch.dtype
) -> tuple[PreTrainedModel, dict[str, torch.Tensor]]:
    """A model without storage, whose class knows how to save it, and the weights to save."""
    model = model_without_weights(config, dtype)
    state = checkpoint_weights(checkpoint)
    if differing := sorted(set(state) ^ set(model.state_dict())):
        raise UserError(f"{checkpoint}: its weights do not fit its own config.json (differing: {differing[:4]} …).")
    # Tied weights are recognised by their common storage, so convert each storage once.
    converted = {t.data_ptr(): t.to(dtype) for t in state.values() if t.is_floating_point()}
    return model, {name: converted.get(tensor.data_ptr(), tensor) for name, tensor in state.items()}


def _write(
    out: Path, model: PreTrainedModel, state: dict[str, torch.Tensor], tokenizer: TextTokenizer, seq_len: int
) -> None:
    try:
        with whole_directory(out) as partial:  # an empty directory gives way
            model.save_pretrained(partial, state_dict=state)
            tokenizer.save(partial, max_length=seq_len, as_trained=True)
            for path in partial.iterdir():
                path.chmod(partial.stat().st_mode & 0o666)  # safetensors makes its files private
    except OSError as error:
        raise UserError(f"cannot write {out} ({reason_of(error)}).") from error
