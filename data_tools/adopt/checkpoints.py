"""Checkpoints of Accelerate and of the Trainer become Hugging Face directories, from which both phases can start."""

import json
import re
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from data_tools.adopt.plan import Adoption, Options, take
from data_tools.base.errors import UserError
from data_tools.base.files import write_json
from data_tools.base.foreign import WEIGHT_FILES, read_object
from data_tools.corpus.tokenizer import TextTokenizer, load_tokenizer

_PRESETS = files("ds_configs") / "models"
_DESCRIPTIONS = ("*.json", "*.txt", "*.model", "*.jinja")  # configurations and tokenizers
_TRAINING_STATES = {"trainer_state.json", "train_state.json"}
_SIZES = {"num_hidden_layers": ("n_layer", "num_layers"), "hidden_size": ("n_embd", "d_model")}  # and other names
_LAYER = re.compile(r"\.(\d+)\.")


def plan_checkpoint(source: Path, options: Options) -> Adoption:
    """Check that weights and configuration belong together.

    Raises:
        UserError: there is no configuration, or the weights are cut or of another shape.
    """
    weights = sorted(path for pattern in WEIGHT_FILES for path in source.glob(pattern))
    described = [path for pattern in _DESCRIPTIONS for path in source.glob(pattern) if path not in weights]
    described = [path for path in described if path.name not in _TRAINING_STATES]
    config = read_object(source / "config.json") or _config_of(options.model_name, source)
    for path in weights:
        if path.suffix == ".safetensors":
            _check(path, _shapes(path), config)
    tokenizer = load_tokenizer(options.tokenizer) if options.tokenizer else None
    run = source.parent.parent if source.parent.name == "checkpoints" else source.parent
    target = options.scratch_dir / "adopted" / f"{run.name}_{source.name}"
    usage = f"Give pretrain --pptrain_checkpoint {target}"
    if not tokenizer and not any(path.name.startswith("tokenizer") for path in described):
        usage += " and --tokenizer: it holds none"
    fill = partial(_fill, weights, described, config, tokenizer, options.copy)
    return Adoption(source, target, fill, f"{usage}. Weights only: optimizer and data order start anew.")


def _fill(
    weights: list[Path],
    described: list[Path],
    config: dict[str, Any],
    tokenizer: TextTokenizer | None,
    copy: bool,
    directory: Path,
) -> None:
    for path in [*weights, *described]:
        if not (tokenizer and "token" in path.name):
            take(path, directory, copy)
    if not (directory / "config.json").exists():
        write_json(directory / "config.json", config)
    if tokenizer:
        tokenizer.save(directory)


def _config_of(model_name: str | None, source: Path) -> dict[str, Any]:
    if model_name is None:
        raise UserError(f"{source} holds weights without a config.json: give --model_name (a preset, directory or id).")
    if (_PRESETS / f"{model_name}.json").is_file():
        return json.loads((_PRESETS / f"{model_name}.json").read_text())
    path = Path(model_name) / "config.json"
    if not path.is_file() and model_name.count("/") == 1:
        from huggingface_hub import hf_hub_download  # here: local files need no hub client

        try:
            path = Path(hf_hub_download(model_name, "config.json"))
        except Exception as error:  # the client raises a dozen kinds, by cause and version
            raise UserError(
                f"--model_name {model_name}: no config.json from the Hub ({type(error).__name__})."
            ) from None
    if config := read_object(path):
        return config
    raise UserError(f"--model_name {model_name}: no such preset, and {path} is not there. Expected a configuration.")


def _shapes(path: Path) -> dict[str, list[int]]:
    """Name and shape of every tensor in a file of safetensors, by its header."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, path.stat().st_size)))
        header.pop("__metadata__", None)
        end = 8 + length + max(tensor["data_offsets"][1] for tensor in header.values())
        shapes = {name: list(tensor["shape"]) for name, tensor in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise UserError(f"{path} is no file of safetensors ({type(error).__name__}). Copy it again.") from None
    if end != path.stat().st_size:
        raise UserError(f"{path} has {path.stat().st_size:,} bytes, expected {end:,}. Copy it again.")
    return shapes


def _check(path: Path, shapes: dict[str, list[int]], config: dict[str, Any]) -> None:
    """Refuse weights that cannot be of a model: its vocabulary and width, and its number of layers, must occur."""
    sizes = {name: next((config[n] for n in (name, *other) if n in config), None) for name, other in _SIZES.items()}
    expected = [config.get("vocab_size"), sizes["hidden_size"]]
    embeddings = [shape for name, shape in shapes.items() if "embed" in name and len(shape) == 2]
    num_layers = 1 + max((int(match[1]) for name in shapes if (match := _LAYER.search(name))), default=-1)
    problem = None
    if embeddings and expected not in embeddings:
        problem = f"embeddings of the shapes {embeddings}, its configuration {expected}"
    elif "-of-" not in path.name and num_layers and sizes["num_hidden_layers"] not in (None, num_layers):
        problem = f"{num_layers} layers, its configuration {sizes['num_hidden_layers']}"
    if problem:
        raise UserError(f"{path} has {problem}: give the right --model_name.")
