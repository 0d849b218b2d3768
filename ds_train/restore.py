"""An engine that goes on from a checkpoint, whatever layout wrote it."""

import shutil
from pathlib import Path
from typing import Any

from ds_train.checkpoint import load
from ds_train.distributed import on_main
from ds_train.elastic import Road, convert_to_universal, road
from ds_train.engine import Engine, build_engine
from ds_train.full_state import engine_with_full_state
from ds_train.losses import PackedLM
from ds_train.ranks import World
from ds_train.state import TrainState


def restored_engine(
    model: PackedLM, config: dict[str, Any], checkpoint: Path, saved: TrainState, current: TrainState, world: World
) -> Engine:
    """Build an engine for the present layout and load the checkpoint into it. Collective.

    Args:
        model: its weights are replaced.
        config: DeepSpeed's JSON.
        saved, current: states of the checkpoint and of a fresh start, between which `road` has found a way.
    """
    way = road(saved, current)
    if way is Road.DIRECT:
        engine = build_engine(model, config)
        load(engine, checkpoint, saved, world)
        return engine
    source = checkpoint if saved.zero_stage == 0 else on_main(world, lambda: convert_to_universal(checkpoint))
    if way is Road.FULL_STATE:
        engine = engine_with_full_state(model, config, source, saved, world)
    else:
        universal = {"checkpoint": config.get("checkpoint", {}) | {"load_universal": True}}
        engine = build_engine(model, config | universal)
        load(engine, source, saved, world)
    if source != checkpoint:
        on_main(world, lambda: shutil.rmtree(source))
    return engine
