"""Fills an engine of any layout with the state of a checkpoint of any other."""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from data_tools.base.errors import UserError
from ds_train.checkpoints.partitions import WEIGHTS, Partition, optimizer_names, partitions_of, round_weights
from ds_train.checkpoints.rank_rng import restore_rng
from ds_train.checkpoints.saved_partitions import SavedPartitions
from ds_train.checkpoints.state import TrainState
from ds_train.ranks.world import World
from ds_train.step.engine import Engine, build_engine, is_plain
from ds_train.step.losses import PackedLM

_COUNTS = ("global_steps", "global_samples", "skipped_steps")  # of DeepSpeed's engine


@torch.no_grad()
def fresh_engine(model: PackedLM, config: dict[str, Any]) -> Engine:
    """Build an engine that starts from the model's fp32 weights.

    DeepSpeed copies its fp32 master weights from already rounded bf16 ones. Early updates are below half a bf16 step,
    so no weight would move; this restores the exact values.
    """
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    engine = build_engine(model, config)

    def read(name: str, start: int, target: torch.Tensor) -> None:
        target.copy_(weights[name].view(-1)[start : start + target.numel()])

    if not is_plain(engine):
        for partition in partitions_of(engine):
            partition.fill(WEIGHTS, partition.weights, read)
    return engine


def load_frozen(model: PackedLM, checkpoint: Path, saved: TrainState) -> None:
    """Give a model's frozen parameters the weights of a checkpoint, whose optimizer states lack them."""
    if frozen := [name for name, parameter in model.named_parameters() if not parameter.requires_grad]:
        weights = SavedPartitions(checkpoint, saved).weights_without_optimizer()
        model.load_state_dict({name: weights[name] for name in frozen}, strict=False)


def load(engine: Engine, checkpoint: Path, saved: TrainState, world: World) -> None:
    """Load the optimizer's weights and states, buffers, counts and this rank's random state. Collective.

    Raises:
        UserError: the optimizer keeps something that only its own layout can take.
    """
    source = SavedPartitions(checkpoint, saved, optimizer_names(engine))
    load_partitions(engine, source)
    states = source.model_states
    for name in _COUNTS:
        setattr(engine, name, states[name])
    for name, buffer in engine.module.named_buffers():
        if name in states["buffer_names"]:
            buffer.copy_(states["module"][name])
    if (scaler := source.loss_scaler) is not None:
        engine.optimizer.loss_scaler = scaler
    restore_rng(saved, world)


@torch.no_grad()
def load_partitions(engine: Engine, source: SavedPartitions) -> None:
    """Fill the partitions of this rank's optimizer, and make the model's weights of them. Collective."""
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
