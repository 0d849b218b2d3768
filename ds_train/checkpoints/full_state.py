"""Weights and optimizer moments in fp32 by parameter name, free of any layout: between ZeRO 0, {1, 2} and 3.

DeepSpeed's universal format loads into the kind of stage that wrote it only. Its files are read here instead, and put
tensor by tensor where an engine of another kind keeps them.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from ds_train.checkpoints.save import restore_rng
from ds_train.checkpoints.state import TrainState
from ds_train.ranks.world import World
from ds_train.step.engine import Engine, build_engine, is_plain
from ds_train.step.losses import PackedLM

_WEIGHTS = "fp32"
_MOMENTS = ("exp_avg", "exp_avg_sq")  # Adam's
FullState = dict[str, dict[str, torch.Tensor]]  # parameter name → fp32, exp_avg, exp_avg_sq


@torch.no_grad()
def fresh_engine(model: PackedLM, config: dict[str, Any]) -> Engine:
    """An engine that starts from the model's fp32 weights.

    DeepSpeed copies its fp32 master weights from already rounded bf16 ones. Early updates are below half a bf16 step,
    so no weight would move; this restores the exact values.
    """
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    engine = build_engine(model, config)
    is_on_disk = (config.get("zero_optimization", {}).get("offload_optimizer") or {}).get("device") == "nvme"
    if not is_plain(engine) and not is_on_disk:
        for name, parameter in engine.module.named_parameters():
            _set(engine, parameter, _WEIGHTS, weights[name].to(engine.device))
    return engine


def engine_with_full_state(
    model: PackedLM, config: dict[str, Any], directory: Path, saved: TrainState, world: World
) -> Engine:
    """An engine that goes on from the full state in ``directory``, whatever ZeRO stage ``config`` asks for."""
    like = dict(model.named_parameters())
    full = {
        name: {kind: value.flatten()[: like[name].numel()].view_as(like[name]) for kind, value in tensors.items()}
        for name, tensors in read_full_state(directory, list(like)).items()  # of ZeRO 3 they are flat
    }
    model.load_state_dict({name: tensors[_WEIGHTS] for name, tensors in full.items()}, strict=False)  # tied: one name
    engine = build_engine(model, config)  # its half-precision weights are made of the model's
    load_full_state(engine, full, num_updates=saved.step - saved.skipped_steps)
    restore_rng(saved, world)
    return engine


def read_full_state(directory: Path, names: list[str]) -> FullState:
    """Read a checkpoint of ZeRO 0 in fp32, or the universal copy of one of another stage; tensors stay on disk.

    Args:
        names: the model's parameters in its order, by which ZeRO 0 numbers them.
    """
    if (directory / "zero").is_dir():
        paths = sorted(path.parent for path in directory.glob(f"zero/*/{_WEIGHTS}.pt"))
        return {path.name: {kind: _tensor(path / f"{kind}.pt") for kind in (_WEIGHTS, *_MOMENTS)} for path in paths}
    saved = torch.load(directory / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=False, mmap=True)
    moments = saved["optimizer"]["state"]
    return {
        name: {_WEIGHTS: saved["module"][name], **{kind: moments[number][kind] for kind in _MOMENTS}}
        for number, name in enumerate(names)
    }


def _tensor(path: Path) -> torch.Tensor:
    loaded = torch.load(path, map_location="cpu", weights_only=False, mmap=True)
    return loaded["param"] if isinstance(loaded, dict) else loaded


@torch.no_grad()
def load_full_state(engine: Engine, full: FullState, *, num_updates: int) -> None:
    """Give the engine's optimizer its fp32 weights and moments.

    Args:
        engine: built around a model that has these weights already.
        num_updates: Adam's step count.
    """
    for name, parameter in engine.module.named_parameters():
        for kind, value in full[name].items():
            _set(engine, parameter, kind, value.to(engine.device))
    for state in _base_optimizer(engine).state.values():
        state["step"] = torch.full_like(torch.as_tensor(state["step"], dtype=torch.float32), num_updates)


def _set(engine: Engine, parameter: torch.nn.Parameter, kind: str, value: torch.Tensor) -> None:
    """Put one full tensor where this rank's optimizer keeps its part of it.

    DeepSpeed's own setters want moments that exist, and before the first step they mostly do not.
    """
    optimizer, num_ranks = engine.optimizer, engine.dp_world_size
    if is_plain(engine):
        target = parameter if kind == _WEIGHTS else _moment(engine, parameter, kind)
        target.copy_(value)
    elif hasattr(parameter, "ds_tensor"):  # ZeRO 3: each rank holds an equal part, the last one padded
        group, first, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
        flat = optimizer.fp32_partitioned_groups_flat[group]
        target = flat if kind == _WEIGHTS else _moment(engine, flat, kind)
        part = F.pad(value.flatten(), (0, -value.numel() % num_ranks)).chunk(num_ranks)[engine.global_rank]
        target.narrow(0, first, length).copy_(part)
    elif mapping := getattr(parameter, "_hp_mapping", None):  # ZeRO 1 and 2: this rank's flat piece has a part of it
        bf16_pieces = getattr(optimizer, "fp32_groups_flat_partition", None)
        flat = (bf16_pieces or optimizer.single_partition_of_fp32_groups)[mapping.param_group_index]
        target = flat if kind == _WEIGHTS else _moment(engine, flat, kind)
        here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
        target.narrow(0, here.start, here.numel).copy_(value.flatten().narrow(0, there.start, there.numel))


def _base_optimizer(engine: Engine) -> torch.optim.Optimizer:
    return engine.optimizer if is_plain(engine) else engine.optimizer.optimizer


def _moment(engine: Engine, key: torch.Tensor, kind: str) -> torch.Tensor:
    """A moment of the base optimizer, which may not have made its state yet."""
    state = _base_optimizer(engine).state[key]
    state.setdefault("step", torch.zeros((), device=key.device))  # where fused Adam wants it
    return state.setdefault(kind, torch.zeros_like(key))
