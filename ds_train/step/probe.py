"""A start-up probe through the built model: do its documents leave one another alone, in its precision and kernels?

`model/isolation.py` has chosen rows by a small model of the kind; here the model itself shows that the choice holds.
"""

import logging
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from data_tools.base.errors import UserError, first_line
from data_tools.samples.readers import c4_document
from ds_train.model.isolation import TOLERANCE, Influence, measure_influence, refuse_dependence
from ds_train.ranks.collectives import gather_objects
from ds_train.step.losses import PackedLM
from ds_train.step.micro_batch import pack

logger = logging.getLogger(__name__)

_GPU_ONLY = "flex_attention"


def check_isolation(runner: torch.nn.Module, model: PackedLM, device: torch.device) -> None:
    """Give each document a row of its own if the model turns out to need that. Collective; draws no random numbers.

    Args:
        runner: what runs the model: the engine around it, or the model itself.
        model: changed in place.

    Raises:
        UserError: documents influence one another even so, or the model cannot be run.
    """
    config = model.causal_lm.config
    if config._attn_implementation == _GPU_ONLY and device.type == "cpu":  # it runs this probe, but has no gradients
        raise UserError(f"--attn_implementation {_GPU_ONLY} cannot train on CPUs; leave it out.")
    tolerance = TOLERANCE[next(model.parameters()).dtype]
    was_training = runner.training
    runner.eval()
    try:
        found = _influence(runner, model, device)
        if found.of_others > tolerance and not model.one_document_a_row:
            logger.warning("documents of one row influence one another: each gets a row of its own")
            model.one_document_a_row = True
            found = _influence(runner, model, device)
    except Exception as error:  # whatever a class that was made for other inputs raises
        raise UserError(f"a model of type {config.model_type} cannot run on text ({first_line(error)}).") from error
    runner.train(was_training)
    refuse_dependence(config, found, tolerance)


def _influence(runner: torch.nn.Module, model: PackedLM, device: torch.device) -> Influence:
    """The largest that any rank measures, on every rank."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        found = measure_influence(partial(_logits, runner, model, device), model.causal_lm.config.vocab_size)
    everywhere = gather_objects((found.of_others, found.of_later))
    return Influence(*(max(values) for values in zip(*everywhere, strict=True)))


def _logits(
    runner: torch.nn.Module, model: PackedLM, device: torch.device, documents: Sequence[np.ndarray]
) -> list[torch.Tensor]:
    """The logits of documents that run as one micro-batch; seen from within, as the runner gives losses only."""
    batch = pack([[c4_document(np.append(tokens, 0))] for tokens in documents]).to(device)  # the last one is a target
    seen: list[torch.Tensor] = []
    hook = model.causal_lm.register_forward_hook(lambda *call: seen.append(call[-1].logits))
    try:
        runner(batch)
    finally:
        hook.remove()
    return list(model.rows(batch).in_order(seen[0]).split(batch.lengths))
