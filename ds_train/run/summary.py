"""The summary of a run, printed at its start."""

from pathlib import Path

import torch
from transformers import PretrainedConfig

from data_tools.base.text_table import pluralize
from ds_train.checkpoints.state import TrainState
from ds_train.model.attention import describe_attention
from ds_train.model.causal_lm import model_without_weights
from ds_train.model.compilation import num_compiled
from ds_train.model.footprint import GIB, ModelShape, model_shape
from ds_train.model.parts import without_decay
from ds_train.model.recomputation import num_recomputed
from ds_train.run.inputs import CommonInputs
from ds_train.run.memory import rank_memory
from ds_train.step.engine import Engine
from ds_train.training.phase import PhaseParts


def startup_summary(
    inputs: CommonInputs, setup: PhaseParts, engine: Engine, state: TrainState, chosen: Path | None
) -> str:
    """The run as lines of a name and a description.

    Args:
        chosen: the checkpoint that the run resumes from, None for a fresh start.
    """
    layout = inputs.engine.layout
    shape, one_document_a_row = model_shape(inputs.model_config), engine.module.one_document_a_row
    tokens, forward_tokens = (n * inputs.model_flags.seq_len for n in (layout.global_batch, layout.micro_batch))
    rows = {
        "run": f"{inputs.run_directory}, seed {inputs.run_flags.seed}",
        "starts": starting_point(inputs, state.step, chosen),
        **_parts(inputs, chosen),
        "model": f"{inputs.model_name}, {shape.num_parameters:,} parameters",
        "layout": f"global batch {layout.global_batch:,} over {pluralize(layout.world_size, 'rank')}; ZeRO "
        f"{inputs.engine.zero_stage}, {inputs.engine.precision}",
        "a forward": f"at most {forward_tokens:,} tokens, {layout.micro_batch} × seq_len",
        "device": _device(engine.device),
        "a step": f"at most {tokens:,} tokens, {layout.global_batch:,} × seq_len {inputs.model_flags.seq_len:,}",
        "learning rate": str(inputs.engine.schedule),
        **_decay(inputs),
        **setup.summary,
        "documents": describe_rows(inputs.model_config, one_document_a_row),
        **describe_recomputation(num_recomputed(engine.module.causal_lm), shape),
        "kernels": _kernels(inputs, engine),
        "memory of a rank": _memory(inputs, shape, engine.device, one_document_a_row),
    }
    width = max(map(len, rows))
    return "\n".join([setup.phase.name, *(f"  {name:<{width}}  {value}" for name, value in rows.items())])


def describe_rows(config: PretrainedConfig, one_document_a_row: bool) -> str:
    """How the model reads documents, in words."""
    if not one_document_a_row:
        return "end to end in one row, none sees another"
    return f"one a row, padded (slower): in one row those of a {config.model_type} would influence one another"


def describe_recomputation(num_layers: int, shape: ModelShape) -> dict[str, str]:
    """A row about the layers whose activations are computed again in the backward, if there are some."""
    return {"recomputed": f"activations of {num_layers} of {shape.num_layers} layers"} if num_layers else {}


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {pluralize(torch.get_num_threads(), 'thread')} a rank"


def starting_point(inputs: CommonInputs, step: int, chosen: Path | None) -> str:
    """The step after which a run starts, and the origin of its weights."""
    if chosen:
        return f"after step {step:,}, from {chosen}"
    if inputs.weights:
        return f"at step 0, from the weights of {inputs.weights.path}"
    if inputs.model_flags.init == "pretrained":
        return f"at step 0, from the pretrained weights of {inputs.model_name}"
    return "fresh, from random weights"


def _parts(inputs: CommonInputs, chosen: Path | None) -> dict[str, str]:
    """What a fresh start takes over from its initial weights and what not, and what any start freezes."""
    names = [
        *(["copied", "fresh"] if inputs.has_weights and not chosen else []),
        *(["frozen"] if inputs.transfer.frozen else []),
    ]
    described = inputs.transfer.describe(model_without_weights(inputs.model_config)) if names else {}
    return {name: described[name] for name in names}


def _decay(inputs: CommonInputs) -> dict[str, str]:
    """The weight decay, where it differs among parameters."""
    if not (kinds := inputs.engine.no_decay):
        return {}
    without = without_decay(model_without_weights(inputs.model_config), kinds)
    decay = inputs.engine.effective["optimizer"].get("params", {}).get("weight_decay")
    return {"weight decay": f"{decay}, but none for {', '.join(kinds)}: {pluralize(len(without), 'tensor')}"}


def _kernels(inputs: CommonInputs, engine: Engine) -> str:
    dtype = next(engine.module.parameters()).dtype
    optimizer = engine.basic_optimizer
    fused = "fused " if optimizer.defaults.get("fused") else ""
    compiled = "; layers compiled" if num_compiled(engine.module.causal_lm) else ""
    products = "; products in TF32" if inputs.run_flags.tf32 and engine.device.type == "cuda" else ""
    return (
        f"{describe_attention(inputs.model_config, engine.device, dtype)}; cross entropy in chunks; "
        f"{fused}{type(optimizer).__name__}{products}{compiled}"
    )


def _memory(inputs: CommonInputs, shape: ModelShape, device: torch.device, one_document_a_row: bool) -> str:
    """The predicted memory; on a GPU also how much it has."""
    on_cpu = device.type != "cuda"
    predicted = rank_memory(
        inputs.engine,
        inputs.model_config,
        shape,
        inputs.model_flags.seq_len,
        stage=inputs.engine.zero_stage,
        on_cpu=on_cpu,
        one_document_a_row=one_document_a_row,
    ).device
    if on_cpu:
        return f"about {predicted / GIB:,.2g} GiB with rows of full length"
    total = torch.cuda.get_device_properties(device).total_memory
    return f"about {predicted / GIB:,.1f} of {total / GIB:,.1f} GiB with rows of full length"
