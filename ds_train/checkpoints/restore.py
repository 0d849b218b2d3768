"""Fills an engine of any layout: with the weights that a run starts from, or a checkpoint of any other layout."""

import gc
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from data_tools.base.errors import UserError
from data_tools.base.transfers import Transfer
from ds_train.checkpoints.partitions import (
    WEIGHTS,
    Partition,
    changed_weights,
    optimizer_names,
    partitions_of,
    round_weights,
    set_weights,
)
from ds_train.checkpoints.rank_rng import restore_rng
from ds_train.checkpoints.saved_partitions import SavedPartitions
from ds_train.checkpoints.state import TrainState
from ds_train.ranks.world import World
from ds_train.step.engine import Engine, build_engine, is_plain
from ds_train.step.losses import PackedLM

_TENSORS_OF_ADAM = 3  # fp32 weights and two moments
_COUNTS = ("global_steps", "global_samples", "skipped_steps")  # of DeepSpeed's engine


@torch.no_grad()
def fresh_engine(model: PackedLM, config: dict[str, Any], source: PackedLM | None) -> Engine:
    """Build an engine that starts from the fp32 weights of rank 0's ``source``. Collective.

    DeepSpeed would copy its fp32 master weights from already rounded bf16 ones. Early updates are below half a bf16
    step, so no weight would move. The weights travel one after another: only rank 0 holds all of them in fp32.

    Args:
        model: with arbitrary weights (`empty_model`), which are replaced.
        source: the model to start from; None on all ranks but rank 0.
    """
    engine = build_engine(model, config)
    places = defaultdict(list)
    for partition in [] if is_plain(engine) else partitions_of(engine):
        partition.weights.zero_()  # its padding, too
        for piece in partition.pieces:
            places[piece.name].append((partition, piece))
    weights, buffers = (dict(source.named_parameters()), dict(source.named_buffers())) if source else ({}, {})
    with changed_weights(engine):
        for name, parameter in engine.module.named_parameters():
            shape = getattr(parameter, "ds_shape", parameter.shape)
            whole = _of_rank_0(weights.get(name), torch.empty(shape, dtype=torch.float32, device=engine.device))
            for partition, piece in places[name]:
                partition.part(piece).copy_(whole.view(-1)[piece.in_parameter :][: piece.length])
            set_weights(engine, parameter, whole)
        for name, buffer in engine.module.named_buffers():
            buffer.copy_(
                _of_rank_0(buffers.get(name), torch.empty(buffer.shape, dtype=buffer.dtype, device=buffer.device))
            )
    return engine


def _of_rank_0(own: torch.Tensor | None, received: torch.Tensor) -> torch.Tensor:
    """Rank 0's tensor, in memory that all ranks provide. Collective."""
    if own is not None:
        received.copy_(own)
    dist.broadcast(received.view(-1).view(torch.uint8), src=0)
    return received


def load(engine: Engine, checkpoint: Path, saved: TrainState, world: World) -> None:
    """Load weights, the optimizer's states, buffers, counts and this rank's random state. Collective.

    Raises:
        UserError: the optimizer keeps something that only its own layout can take.
    """
    source = SavedPartitions(checkpoint, saved, optimizer_names(engine))
    states = source.model_states
    frozen = {name: p for name, p in engine.module.named_parameters() if not p.requires_grad}
    num_bytes = _TENSORS_OF_ADAM * sum(partition.weights.nbytes for partition in partitions_of(engine))
    with Transfer(f"loading {checkpoint}", num_bytes), changed_weights(engine):
        load_partitions(engine, source)
        if frozen:  # the optimizer has none of them
            weights = source.weights_without_optimizer()
            for name, parameter in frozen.items():
                set_weights(engine, parameter, weights[name])
    for name in _COUNTS:
        setattr(engine, name, states[name])
    for name, buffer in engine.module.named_buffers():
        if name in states["buffer_names"]:
            buffer.copy_(states["module"][name])
    if (scaler := source.loss_scaler) is not None:
        engine.optimizer.loss_scaler = scaler
    restore_rng(saved, world)
    # Mapped files would keep the space of a checkpoint that is deleted to make room.
    del source, states
    gc.collect()


@torch.no_grad()
def load_partitions(engine: Engine, source: SavedPartitions) -> None:
    """Fill the partitions of this rank's optimizer, and make the trained weights of them. Collective."""
    for number, partition in enumerate(partitions_of(engine)):
        partition.fill(WEIGHTS, partition.weights, partial(source.read, WEIGHTS))
        twin = source.twin_of(partition, engine.global_rank, number)
        like = twin or (source.partition_with(partition.pieces[0]) if partition.pieces else None)
        partition.state.clear()
        if like is None:  # padding alone, in another layout
            continue
        for key, value in like.state.items():
            partition.state[key] = _restored(key, value, partition, like, source, is_twin=twin is not None)
        for key in set(like.group) - set(partition.group):  # what the optimizer counts; not hyper-parameters
            partition.group[key] = like.group[key]
    round_weights(engine)


def _restored(
    key: str, saved: Any, partition: Partition, like: Partition, source: SavedPartitions, *, is_twin: bool
) -> Any:
    """A state of a partition: put together of slices, or copied if it is one number or the layout is the same."""
    if not isinstance(saved, torch.Tensor):
        return saved
    if saved.dim() and saved.numel() == like.size_of(key):
        is_shaped_like_weights = partition.size_of(key) == partition.weights.numel()
        shape = partition.weights.shape if is_shaped_like_weights else (partition.size_of(key),)
        made = torch.empty(shape, dtype=saved.dtype, device=partition.weights.device)
        partition.fill(key, made, partial(source.read, key))
        return made
    if saved.dim() and not is_twin:
        raise UserError(
            f"the optimizer's {key} has no number for each weight, so that another layout cannot take it over. "
            "Resume with the ranks and the ZeRO stage that the checkpoint was saved with."
        )
    is_on_device = saved.dim() or partition.group.get("fused") or partition.group.get("capturable")
    return saved.to(partition.weights.device if is_on_device else "cpu", copy=True)
