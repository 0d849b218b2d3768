"""The engine that a run starts with: it has initial weights, or the state of a checkpoint."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ds_train.checkpoints.restore import fresh_engine, load
from ds_train.checkpoints.resume import adapted_state
from ds_train.checkpoints.save import read_state
from ds_train.checkpoints.state import InitialWeights, TrainState
from ds_train.checkpoints.verification import with_all_ranks
from ds_train.checkpoints.weights import Weights, model_with_weights, record_of, verified
from ds_train.config.flags import former_values
from ds_train.config.trainer_flags import GROUPS
from ds_train.model.causal_lm import DTYPES, build_model, empty_model, hub_id, load_model
from ds_train.model.parts import without_decay
from ds_train.model.recomputation import checkpoint_activations
from ds_train.ranks.collectives import device_of, on_main
from ds_train.run.branch import branched, refuse_damaged
from ds_train.run.inputs import DEFAULT_MODEL, CommonInputs
from ds_train.run.record import refuse_other_weights
from ds_train.step.engine import Engine, build_engine
from ds_train.step.losses import PackedLM


def fresh_start(inputs: CommonInputs) -> tuple[Engine, InitialWeights]:
    """An engine with initial weights, and what these are. Collective."""
    if inputs.weights:  # "latest" may mean a later checkpoint to a rank that looked later: that run may still train
        inputs = replace(inputs, weights=with_all_ranks(inputs.world, partial(verified, inputs.weights)))
    origin = on_main(inputs.world, lambda: _checked_origin(inputs))
    sources: list[PackedLM] = []  # rank 0 has one
    on_main(inputs.world, lambda: sources.append(_wrapped(inputs, _initial_model(inputs))))
    return fresh_engine(_empty_model(inputs), inputs.engine.deepspeed, next(iter(sources), None)), origin


def restored_start(
    inputs: CommonInputs, chosen: Path, current: TrainState, is_branch: bool
) -> tuple[Engine, TrainState]:
    """Engine and state of a checkpoint of any layout. Refuses before it changes anything. Collective."""
    world, flags = inputs.world, inputs.run_flags
    if is_branch:
        with_all_ranks(world, partial(refuse_damaged, chosen))
    saved = read_state(chosen)
    if is_branch:
        saved = branched(saved, current, chosen)
    state = adapted_state(
        saved, current, chosen, strict_layout=flags.strict_layout, accepted=flags.accept_change or (),
        former=former_values(GROUPS[inputs.phase]),
    )  # fmt: skip
    engine = build_engine(_empty_model(inputs), inputs.engine.deepspeed)
    load(engine, chosen, saved, world)
    return engine, state


def _empty_model(inputs: CommonInputs) -> PackedLM:
    """The model, with room for its weights: on this rank's device, or in host memory where ZeRO 3 will cut them."""
    device = torch.device("cpu") if inputs.engine.zero_stage == 3 else device_of(inputs.world)
    return _wrapped(inputs, empty_model(inputs.model_config, DTYPES[inputs.engine.precision], device))


def _wrapped(inputs: CommonInputs, causal_lm: PreTrainedModel) -> PackedLM:
    inputs.transfer.freeze(causal_lm)
    checkpoint_activations(causal_lm, inputs.engine.recompute_every)
    no_decay = without_decay(causal_lm, inputs.engine.no_decay)
    return PackedLM(causal_lm, one_document_a_row=inputs.one_document_a_row, no_decay=no_decay)


def _checked_origin(inputs: CommonInputs) -> InitialWeights:
    """What a fresh start starts from, unless its directory records a run that started from other weights."""
    model, weights = inputs.model_flags, inputs.weights
    name = model.model_name or f"EleutherAI/{DEFAULT_MODEL}"
    if weights is None and model.init == "pretrained" and Path(name).is_dir():
        weights = Weights(Path(name), False)
    if weights:
        origin = record_of(weights)
    elif model.init == "pretrained":
        origin = InitialWeights(name, hash=getattr(inputs.model_config, "_commit_hash", None) or "")
    else:
        origin = InitialWeights()
    refuse_other_weights(inputs.run_directory, origin, inputs.run_flags.accept_change or ())
    return origin


def _initial_model(inputs: CommonInputs) -> PreTrainedModel:
    fresh = partial(build_model, inputs.model_config, inputs.run_flags.seed)
    if not inputs.has_weights:
        return fresh()
    if inputs.weights:
        source = model_with_weights(inputs.weights, inputs.model_config)
    else:
        source = load_model(hub_id(inputs.model_flags.model_name or DEFAULT_MODEL), inputs.model_config)
    return inputs.transfer.initial_model(source, fresh)
