"""Moves fp32 weights and optimizer moments, by parameter name, between ZeRO 0, {1, 2} and 3.

DeepSpeed loads its universal format only into the kind of stage that wrote it. This module reads the files itself, and
puts them tensor by tensor into an engine of another kind, through DeepSpeed's setters where they work.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from deepspeed.utils import (
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)

from ds_train.checkpoints.rank_rng import restore_rng
from ds_train.checkpoints.state import TrainState, mapped_file
from ds_train.ranks.world import World
from ds_train.step.engine import Engine, build_engine, is_plain, trained_parameters
from ds_train.step.losses import PackedLM

_WEIGHTS = "fp32"
_MOMENTS = ("exp_avg", "exp_avg_sq")  # Adam's
FullState = dict[str, dict[str, torch.Tensor]]  # parameter name → fp32, exp_avg, exp_avg_sq


@torch.no_grad()
def fresh_engine(model: PackedLM, config: dict[str, Any]) -> Engine:
    """Build an engine that starts from the model's fp32 weights.

    DeepSpeed copies its fp32 master weights from already rounded bf16 ones. Early updates are below half a bf16 step,
    so no weight would move; this restores the exact values.
    """
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    engine = build_engine(model, config)
    if not is_plain(engine):
        for name, parameter in trained_parameters(engine.module).items():
            _set(engine, parameter, weights[name])
    return engine


def load_frozen(model: PackedLM, checkpoint: Path, saved: TrainState) -> None:
    """Give a model's frozen parameters the weights of a checkpoint, whose optimizer states lack them."""
    frozen = {name: parameter for name, parameter in model.named_parameters() if not parameter.requires_grad}
    if not frozen:
        return
    if saved.zero_stage < 3:
        whole = mapped_file(checkpoint / "mp_rank_00_model_states.pt")["module"]
        weights = {name: whole[name] for name in frozen}
    else:
        files = [checkpoint / f"zero_pp_rank_{n}_mp_rank_00_model_states.pt" for n in range(saved.world_size)]
        pieces = [mapped_file(path)["frozen_param_fragments"] for path in files]
        joined = {name: torch.cat([of_rank[name] for of_rank in pieces]) for name in frozen}
        weights = {name: joined[name][: parameter.numel()].view_as(parameter) for name, parameter in frozen.items()}
    model.load_state_dict(weights, strict=False)


def engine_with_full_state(
    model: PackedLM, config: dict[str, Any], directory: Path, saved: TrainState, world: World
) -> Engine:
    """Build an engine that continues from the full state in ``directory``, at the ZeRO stage of ``config``."""
    like = trained_parameters(model)
    full = {
        name: {kind: value.flatten()[: like[name].numel()].view_as(like[name]) for kind, value in tensors.items()}
        for name, tensors in read_full_state(directory, list(like)).items()  # of ZeRO 3 they are flat
    }
    model.load_state_dict({name: tensors[_WEIGHTS] for name, tensors in full.items()}, strict=False)  # tied: one name
    engine = build_engine(model, config)  # it rounds its half-precision weights from the model's
    load_full_state(engine, full, num_updates=saved.step - saved.skipped_steps)
    restore_rng(saved, world)
    return engine


def read_full_state(directory: Path, names: list[str]) -> FullState:
    """Read a checkpoint of ZeRO 0 in fp32, or the universal copy of another stage's; tensors stay on disk.

    Args:
        names: the trained parameters in the optimizer's order, by which ZeRO 0 numbers them; tied ones once.
    """
    if (directory / "zero").is_dir():
        paths = {name: directory / "zero" / name for name in names}  # there is one for each name of a tied one, too
        return {
            name: {kind: _tensor(path / f"{kind}.pt") for kind in (_WEIGHTS, *_MOMENTS)} for name, path in paths.items()
        }
    saved = mapped_file(directory / "mp_rank_00_model_states.pt")
    moments = saved["optimizer"]["state"]
    return {
        name: {_WEIGHTS: saved["module"][name], **{kind: moments[number][kind] for kind in _MOMENTS}}
        for number, name in enumerate(names)
    }


def _tensor(path: Path) -> torch.Tensor:
    loaded = mapped_file(path)
    return loaded["param"] if isinstance(loaded, dict) else loaded


@torch.no_grad()
def load_full_state(engine: Engine, full: FullState, *, num_updates: int) -> None:
    """Load fp32 weights and moments into the engine's optimizer.

    Args:
        engine: built around a model that already has these weights.
        num_updates: Adam's step count.
    """
    _make_optimizer_state(engine, num_updates)
    for name, parameter in trained_parameters(engine.module).items():
        _set(engine, parameter, full[name][_WEIGHTS])
        for moment in _MOMENTS:
            _set(engine, parameter, full[name][moment], moment)


def _make_optimizer_state(engine: Engine, num_updates: int) -> None:
    """Create the moments as the first update would, so that DeepSpeed's setters find them."""
    optimizer = engine.optimizer
    base = optimizer if is_plain(engine) else optimizer.optimizer
    of_zero_3 = getattr(optimizer, "fp32_partitioned_groups_flat", None)  # between updates its groups are empty
    for weights in of_zero_3 or [weights for group in base.param_groups for weights in group["params"]]:
        state = base.state[weights]
        step = state.get("step", torch.zeros((), device=weights.device))  # where fused Adam wants it
        state["step"] = torch.full_like(torch.as_tensor(step, dtype=torch.float32), num_updates)
        for moment in _MOMENTS:
            state.setdefault(moment, torch.zeros_like(weights))
    if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):  # ZeRO 1 and 2 do this after the first update
        optimizer._lazy_init_hp_params_optimizer_state()


def _set(engine: Engine, parameter: torch.nn.Parameter, full: torch.Tensor, moment: str | None = None) -> None:
    """Store this rank's part of a full tensor in its optimizer: as fp32 weights, or as one of their moments."""
    full = full.to(engine.device)
    if is_plain(engine):
        target = engine.optimizer.state[parameter][moment] if moment else parameter
        target.copy_(full)
    elif hasattr(parameter, "ds_id"):
        # ZeRO 3: each rank holds an equal part, the last one padded. DeepSpeed's setter of full tensors does not pad.
        num_ranks = engine.dp_world_size
        part = F.pad(full.flatten(), (0, -full.numel() % num_ranks)).chunk(num_ranks)[engine.global_rank]
        if moment:
            safe_set_local_optimizer_state(parameter, part, moment)
        else:
            safe_set_local_fp32_param(parameter, part)
    elif moment:
        safe_set_full_optimizer_state(parameter, full, moment)
    else:
        safe_set_full_fp32_param(parameter, full)
