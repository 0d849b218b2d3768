"""Layers compiled by torch, each for itself: one graph serves all layers of a kind, and rows of any length.

Attention by document stays as it is, since a graph would hold for one list of lengths only.
"""

import logging

import torch
from transformers import AttentionInterface, PreTrainedModel

from data_tools.base.errors import UserError, first_line
from ds_train.model.attention import PACKED, packed_attention
from ds_train.model.recomputation import checkpointable_layers

logger = logging.getLogger(__name__)


def compile_layers(model: PreTrainedModel, device: torch.device, backend: str = "inductor") -> bool:
    """Compile the repeated layers of a model, at their first call; where that fails they run as they are.

    Returns:
        whether it will be tried; a warning says why not.

    Raises:
        UserError: transformers does not mark the layers of this class.
    """
    layers = checkpointable_layers(model)
    if not layers:
        raise UserError(
            f"--compile: a model of type {model.config.model_type} has no layers that transformers marks as such; "
            "leave it out."
        )
    if problem := why_not(device, backend):
        logger.warning("--compile: this machine cannot compile (%s); layers run uncompiled", problem)
        return False
    torch._dynamo.config.suppress_errors = True  # a layer that cannot be compiled runs as it is, with a warning
    AttentionInterface.register(PACKED, torch.compiler.disable(packed_attention))
    for layer in layers:
        layer.compile(dynamic=True, backend=backend)
    return True


def num_compiled(model: PreTrainedModel) -> int:
    """How many layers of a model are compiled."""
    return sum(layer._compiled_call_impl is not None for layer in checkpointable_layers(model))


def why_not(device: torch.device, backend: str = "inductor") -> str:
    """Why nothing can be compiled for a device, for instance for want of a compiler; empty if it can."""
    numbers = torch.ones(8, device=device, requires_grad=True)
    try:
        with torch._dynamo.config.patch(suppress_errors=False):
            torch.compile(_sample, dynamic=True, backend=backend)(numbers).backward()
    except Exception as error:  # of many kinds: no compiler, no Triton, no headers of Python
        return first_line(getattr(error, "inner_exception", error))
    return ""


def _sample(numbers: torch.Tensor) -> torch.Tensor:
    return (numbers.sin() * numbers).sum()
