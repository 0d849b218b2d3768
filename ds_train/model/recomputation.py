"""Activation checkpointing: layers keep only their inputs, and the backward computes the rest of them once more.

It is transformers' own, of every layer or of every N-th, without reentrance: a checkpoint that reenters autograd loses
the gradients of what a layer gets by keyword (Gemma 3n), and those of all layers above frozen embeddings. ZeRO 3 needs
the early stop, torch's default: once all activations are there, the recomputation ends within the last product, before
DeepSpeed's hook after that would release weights whose gradient is about to be computed.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from data_tools.base.errors import UserError, first_line
from ds_train.model.rows import DocumentRows, RowReader
from ds_train.model.small_config import VOCAB_SIZE, one_thread, small_model

_LENGTHS = (21, 9)  # tokens of the documents that a small model is tried on


def recomputed_layers(num_layers: int, every: int) -> range:
    """The numbers of the layers whose activations are not kept: every N-th from the first; none for 0."""
    return range(0, num_layers, every) if every else range(0)


def checkpointable_layers(model: PreTrainedModel) -> list[GradientCheckpointingLayer]:
    """The layers of a model that transformers can checkpoint, in order."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def num_recomputed(model: PreTrainedModel) -> int:
    """How many layers of a model keep only their inputs."""
    return sum(layer.gradient_checkpointing for layer in checkpointable_layers(model))


def checkpoint_activations(model: PreTrainedModel, every: int) -> None:
    """Let every N-th layer keep only its input in training; 0 changes nothing."""
    if not every:
        return
    # The second is the name in older versions, which have no choice of layers.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    layers = checkpointable_layers(model)
    recomputed = recomputed_layers(len(layers), every)
    for number, layer in enumerate(layers):
        layer.gradient_checkpointing = number in recomputed


@one_thread()
def check_recomputation(config: PretrainedConfig) -> None:
    """Try on a small model of this configuration whether recomputed layers give the gradients of kept ones, bitwise.

    Raises:
        UserError: they do not, or transformers cannot checkpoint the layers of this class.
    """
    try:
        problem = _problem(config)
    except Exception as error:  # whatever a class that was made for other inputs raises
        problem = first_line(error)
    if problem:
        raise UserError(
            f"--activation_checkpointing: a model of type {config.model_type} cannot recompute its activations "
            f"({problem}); leave it out, and use a smaller --micro_batch or --zero_stage 3 to need less memory."
        )


def _problem(config: PretrainedConfig) -> str:
    """Why a model cannot be checkpointed; empty if it can."""
    model = small_model(config, attention="eager")
    layers = checkpointable_layers(model)
    if not model.supports_gradient_checkpointing or not layers:
        return "transformers has no checkpointing for its layers"
    expected = _gradients(model)
    checkpoint_activations(model, every=1)
    recomputed: set[nn.Module] = set()
    for layer in layers:
        layer._gradient_checkpointing_func = partial(_noted, recomputed, layer, layer._gradient_checkpointing_func)
    found = _gradients(model)
    if kept := len(layers) - len(recomputed):
        return f"{kept} of its {len(layers)} layers are not called in a way that allows it"
    is_same = found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    return "" if is_same else "its gradients would change"


def _noted(recomputed: set[nn.Module], layer: nn.Module, checkpoint: Callable[..., Any], *args: Any) -> Any:
    recomputed.add(layer)
    return checkpoint(*args)


def _gradients(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The gradients of some loss over documents in rows of their own, with the same random numbers each time."""
    documents = [np.arange(1, length + 1, dtype=np.int64) % VOCAB_SIZE for length in _LENGTHS]
    rows = DocumentRows.end_to_end(documents).one_in_each()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        RowReader(model).logits(rows).square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()  # which drops them, so that the next ones are others
    return gradients
