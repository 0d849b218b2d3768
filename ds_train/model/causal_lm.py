"""Builds or loads a Hugging Face causal LM for packed, layout-independent training."""

import copy
import logging
from importlib.resources import as_file, files
from pathlib import Path

import torch
from huggingface_hub import is_offline_mode, try_to_load_from_cache
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from data_tools.base.errors import UserError, first_line
from data_tools.base.hub import how_to_fetch
from data_tools.corpus.tokenizer import TextTokenizer, is_path

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # by the names of precisions
_PRESETS = files("ds_configs") / "models"


def preset_names() -> list[str]:
    """Model presets shipped with the package, usable without a hub."""
    return sorted(entry.name.removesuffix(".json") for entry in _PRESETS.iterdir() if entry.name.endswith(".json"))


def is_preset(name: str) -> bool:
    return name in preset_names()


def hub_id(name: str) -> str:
    """Where weights and tokenizer of a preset are published; any other name stands for itself."""
    if not is_preset(name):
        return name
    return f"Qwen/{name.capitalize().removesuffix('b')}B" if name.startswith("qwen") else f"EleutherAI/{name}"


def load_model_config(name: str) -> PretrainedConfig:
    """The configuration of a preset, a local directory or a hub id; of a model that takes images too, its text part.

    Raises:
        UserError: nothing of that name can be loaded, or it is no causal LM.
    """
    try:
        if is_preset(name):
            with as_file(_PRESETS / f"{name}.json") as path:
                return AutoConfig.from_pretrained(path)
        if name.startswith(("pythia-", "qwen3-")):  # a misspelt preset; a query to the hub would be long and in vain
            raise ValueError("no preset of that name")
        if is_path(name) and not Path(name).exists():
            raise ValueError("there is no such directory")
        config = AutoConfig.from_pretrained(name)
    except Exception as error:  # of a dozen kinds: files, the hub, JSON, values that a class refuses
        raise UserError(
            f"--model_name {name}: no such preset ({', '.join(preset_names())}), and not loadable as a local directory "
            f"or hub id ({first_line(error)}). Without a network use a preset or a directory with config.json."
            f"{'' if is_path(name) else ' ' + how_to_fetch(name)}"
        ) from error
    return causal_lm_config(config, name)


def causal_lm_config(config: PretrainedConfig, name: str) -> PretrainedConfig:
    """The configuration of the causal LM in a model: itself, or its text part.

    Args:
        name: how the user named it.

    Raises:
        UserError: there is none.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"--model_name {name}: {config.model_type} is an encoder-decoder; give a causal language model."
        )
    text = config.get_text_config(decoder=True)
    if type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(
            f"--model_name {name}: transformers has no causal language model of type {text.model_type}; give another."
        )
    if text is not config:
        logger.warning("%s: only its text part, %s, is used", name, text.model_type)
    return text


def prepare_config(
    config: PretrainedConfig,
    *,
    seq_len: int,
    vocab_size: int,
    keep_dropout: bool,
    scratch: bool,
) -> PretrainedConfig:
    """Adapt a model configuration to training, its attention apart; the log reports each change.

    Args:
        config: changed in place.
        seq_len: longest document.
        vocab_size: the tokenizer's largest id + 1.
        keep_dropout: leave dropout on, which makes the trajectory depend on the layout.
        scratch: weights will be random, so position tables may grow.

    Raises:
        UserError: the tokenizer has more ids than the model, or documents are longer than its positions.
    """
    if vocab_size > config.vocab_size:
        raise UserError(
            f"the tokenizer has {vocab_size} ids but the model only {config.vocab_size}; use the model's own tokenizer "
            "or a model with a vocabulary at least as large."
        )
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and 0 < positions < seq_len:  # XLNet's -1: there is no limit
        if not scratch and not _has_rotary_positions(config):
            raise UserError(
                f"--seq_len {seq_len} is beyond the {positions} learned positions of the pretrained model; "
                f"use at most {positions}, or --init scratch."
            )
        logger.warning("max_position_embeddings raised from %d to seq_len %d", positions, seq_len)
        config.max_position_embeddings = seq_len
    if not keep_dropout:
        for name in [n for n, value in vars(config).items() if _is_dropout(n) and value]:
            if not name.startswith("classifier"):  # it belongs to a head that no causal LM has
                logger.warning(
                    "%s %s set to 0: dropout would depend on the layout (--keep_dropout)", name, vars(config)[name]
                )
            setattr(config, name, 0.0)
    else:
        logger.warning("--keep_dropout: the trajectory depends on the number of ranks and the micro batch")
    config.use_cache = False
    return config


def _is_dropout(name: str) -> bool:
    return "dropout" in name or name.endswith("drop")  # GPT-2's attn_pdrop, OPT's layerdrop


def _has_rotary_positions(config: PretrainedConfig) -> bool:
    return any(getattr(config, name, None) for name in ("rope_parameters", "rope_theta", "rotary_pct", "rope_scaling"))


def build_model(config: PretrainedConfig, seed: int) -> PreTrainedModel:
    """A model with random fp32 weights, which depend on the seed only, not on rank or layout.

    Raises:
        UserError: transformers cannot build it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _finish(_from_config(config))


def empty_model(
    config: PretrainedConfig, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> PreTrainedModel:
    """A model with room for weights, whose values are arbitrary; its buffers have theirs.

    Nothing is drawn. In host memory no page of the weights is used before they are written.

    Raises:
        UserError: transformers cannot build it.
    """
    with no_init_weights():
        model = _from_config(config)
    model.tie_weights()
    for parameter in model.parameters():
        parameter.data = torch.empty_like(parameter, dtype=dtype, device=device)
    return _finish(model)


def _from_config(config: PretrainedConfig) -> PreTrainedModel:
    try:
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except Exception as error:  # whatever a class makes of its configuration, or of a missing package
        raise UserError(f"a model of type {config.model_type} cannot be built ({first_line(error)}).") from error


def model_without_weights(config: PretrainedConfig, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model on the meta device: modules, names and shapes. It needs no package of its attention."""
    config = copy.deepcopy(config)
    config._attn_implementation = "eager"
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def load_model(directory_or_hub_id: str, config: PretrainedConfig) -> PreTrainedModel:
    """A Hugging Face model with its pretrained weights in fp32.

    Raises:
        UserError: they cannot be loaded, or are not all there: transformers would draw the rest at random.
    """
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            directory_or_hub_id, config=config, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # of the file's library too, e.g. safetensors' own
        raise UserError(f"weights of {directory_or_hub_id} cannot be loaded: {first_line(error)}") from error
    if missing := sorted(found["missing_keys"]):
        raise UserError(
            f"weights of {directory_or_hub_id}: {len(missing)} of the {config.model_type} model's are not there "
            f"({', '.join(missing[:3])} …); give a directory whose weights fit its config.json."
        )
    return _finish(model)


def check_weights_are_here(name: str) -> None:
    """Check that pretrained weights need no download where none is allowed (``HF_HUB_OFFLINE``).

    Raises:
        UserError: they do.
    """
    if is_path(name) or Path(name).exists() or not is_offline_mode():
        return
    config = try_to_load_from_cache(name, "config.json")
    names = [path.name for path in Path(config).parent.iterdir()] if isinstance(config, str) else []
    if not any(name.endswith((".safetensors", ".bin")) for name in names):
        raise UserError(f"weights of {name} are not here, and HF_HUB_OFFLINE is set. {how_to_fetch(name)}")


def _finish(model: PreTrainedModel) -> PreTrainedModel:
    if not getattr(model.config, "use_cache", True):
        model.generation_config.use_cache = True  # exported models should generate at speed
    return model.train()


def cast_parameters(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Convert parameters only: a cast of the module would damage rotary frequencies."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def save_description(directory: Path, config: PretrainedConfig, tokenizer: TextTokenizer) -> None:
    """Write config.json and the tokenizer beside weights, so that a checkpoint can be used without its run."""
    config.save_pretrained(directory)
    tokenizer.save(directory)
