"""The memory that a run takes on a rank, and the largest micro batch that fits into it."""

from bisect import bisect_right
from dataclasses import replace

import torch
from transformers import PretrainedConfig

from data_tools.base.errors import UserError
from ds_train.checkpoints.host_memory import total_host_bytes
from ds_train.config.deepspeed_json import EngineConfig
from ds_train.model.causal_lm import model_without_weights
from ds_train.model.footprint import BUCKET, GIB, HOST_RUNTIME, ModelShape, RankMemory, model_shape, predict
from ds_train.model.parts import without_decay
from ds_train.ranks.collectives import device_of, gather_objects, uses_gpus
from ds_train.ranks.world import World

_USABLE = 0.95  # of a device: a prediction is not exact, and freed memory is in pieces


def rank_memory(
    engine: EngineConfig,
    config: PretrainedConfig,
    shape: ModelShape,
    seq_len: int,
    *,
    stage: int,
    on_cpu: bool,
    one_document_a_row: bool,
) -> RankMemory:
    """Predicted memory of a rank if this run were at ZeRO stage ``stage``."""
    layout, zero = engine.layout, {**engine.zero, "stage": stage}
    if on_cpu:  # pages of a bucket that gradients never reach take no memory there
        zero["reduce_bucket_size"] = min(int(zero.get("reduce_bucket_size", BUCKET)), shape.num_parameters)
    memory = predict(
        shape,
        zero,
        half=engine.is_half,
        num_ranks=layout.world_size,
        row_tokens=seq_len * (1 if one_document_a_row else layout.micro_batch),
        num_rows=layout.micro_batch if one_document_a_row else 1,
        attention=config._attn_implementation,
        recompute_every=engine.recompute_every,
        group_sizes=_group_sizes(config, engine.no_decay),
    )
    return replace(memory, runtime=HOST_RUNTIME) if on_cpu else memory


def _group_sizes(config: PretrainedConfig, no_decay: tuple[str, ...]) -> list[int]:
    """Elements of the parameters with and without weight decay; empty where all have it."""
    if not no_decay:
        return []
    model = model_without_weights(config)
    without = without_decay(model, no_decay)
    sizes = [0, 0]
    for name, parameter in model.named_parameters():
        sizes[name in without] += parameter.numel()
    return sizes


def fitting(
    engine: EngineConfig, config: PretrainedConfig, seq_len: int, world: World, *, one_document_a_row: bool
) -> EngineConfig:
    """The engine's configuration with the largest micro batch that is predicted to fit, if it is to be chosen.

    No forward is larger than all samples of a rank.

    Raises:
        UserError: not even one full sample fits.
    """
    if not engine.is_micro_batch_open:
        return engine
    shape, available = model_shape(config), _available(world)
    on_cpu = world.gpu_bytes is None and not uses_gpus()

    def taken(micro_batch: int) -> int:
        memory = rank_memory(
            replace(engine, layout=replace(engine.layout, micro_batch=micro_batch)),
            config,
            shape,
            seq_len,
            stage=engine.zero_stage,
            on_cpu=on_cpu,
            one_document_a_row=one_document_a_row,
        )
        return memory.device + (memory.host if on_cpu else 0)

    sizes = range(1, engine.layout.samples_of_largest_rank + 1)
    size = bisect_right(sizes, _USABLE * available, key=taken)
    if not size:
        raise UserError(
            f"--micro_batch auto: one sample of {seq_len} tokens is predicted to take {taken(1) / GIB:,.1f} of the "
            f"{available / GIB:,.1f} GiB of a rank, more than {_USABLE:.0%}; use --activation_checkpointing, a higher "
            "--zero_stage or more ranks, or give --micro_batch 1 to try all the same."
        )
    return engine.with_micro_batch(
        size, f"predicted to take {taken(size) / GIB:,.1f} of the {available / GIB:,.1f} GiB of a rank"
    )


def _available(world: World) -> float:
    """Bytes of this rank's device. On CPUs all ranks count as if they shared this node."""
    if world.gpu_bytes is not None:
        return world.gpu_bytes
    if uses_gpus():
        return torch.cuda.get_device_properties(device_of(world)).total_memory
    return total_host_bytes() / world.size


def check_same_micro_batch(micro_batch: int) -> None:
    """Refuse ranks that chose, or read, different micro batches. Collective."""
    sizes = gather_objects(micro_batch)
    if len({*sizes}) > 1:
        smallest = min(sizes)
        other = max(sizes)
        raise UserError(
            f"the micro batch is {smallest} on rank {sizes.index(smallest)}, but {other} on rank {sizes.index(other)}: "
            f"their GPUs, or their files, differ. Give --micro_batch {smallest}."
        )
