"""Resumes a checkpoint in any layout: a resumed run may change what decides speed, not what decides the trajectory."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from enum import Enum, auto
from pathlib import Path
from typing import Any

from data_tools.base.errors import UserError
from ds_train.checkpoints.full_state import engine_with_full_state, load_frozen
from ds_train.checkpoints.save import load
from ds_train.checkpoints.state import INITIAL_WEIGHTS, TrainState
from ds_train.ranks.collectives import gather_objects, on_main
from ds_train.ranks.world import World
from ds_train.step.engine import Engine, build_engine
from ds_train.step.losses import PackedLM

logger = logging.getLogger(__name__)

UNIVERSAL = ".universal"  # in a run directory: DeepSpeed's layout-free copy of a checkpoint while it is loaded
LAYOUT = ("world_size", "zero_stage", "micro_batch", "grad_accum")
GENERATOR_EXAMPLES = "generator_examples"  # fingerprint of what an external generator gives
ONE_A_ROW = "one a row"  # a fingerprint: documents that end to end would influence one another
_FORMERLY = {  # before there was this fingerprint
    "answer_spaces": "2",  # of tokenizers like Llama 2's
    "transfer": "all",
}
_OF_OPTIMIZER = ("freeze", "no_decay")  # fingerprints of flags by which an optimizer's states are arranged
_HASH, _HASH_DIGITS = re.compile("[0-9a-f]{64}"), 12
_WHAT_WORKS = "any ZeRO stage at any number of ranks into any other in fp32 and bf16; in fp16 not from or to ZeRO 0"


class LoadMethod(Enum):
    """How a checkpoint is loaded into an engine."""

    DIRECT = auto()  # by DeepSpeed, as it was written
    UNIVERSAL = auto()  # through DeepSpeed's universal format
    FULL_STATE = auto()  # through full fp32 tensors: another kind of ZeRO stage


def adapted_state(
    saved: TrainState,
    current: TrainState,
    checkpoint: Path,
    *,
    strict_layout: bool,
    accepted: Collection[str],
    former: Mapping[str, str] | None = None,
) -> TrainState:
    """The saved state, adapted to the current layout.

    Args:
        saved: the checkpoint's state.
        current: the state that a fresh start of this launch would have.
        strict_layout: refuse a changed layout too.
        accepted: names of trajectory settings that may change nevertheless (``--accept_change``).
        former: fingerprints that an older checkpoint may lack, with their values at its time.

    Raises:
        UserError: a setting changed that may not.
    """
    _refuse_other_trajectory(saved, current, checkpoint, accepted, _FORMERLY | dict(former or {}))
    changes = [
        f"{name} {getattr(saved, name)} → {getattr(current, name)}"
        for name in LAYOUT
        if getattr(saved, name) != getattr(current, name)
    ]
    if changes and strict_layout:
        raise UserError(f"{checkpoint}: the layout changed ({', '.join(changes)}), and --strict_layout refuses that.")
    if load_method(saved, current) is None:
        raise UserError(
            f"{checkpoint} was saved with ZeRO {saved.zero_stage} and cannot be resumed with ZeRO "
            f"{current.zero_stage}. What works: {_WHAT_WORKS}. Resume with --zero_stage {saved.zero_stage}, or start "
            "another run from its weights (an export keeps them, not the optimizer)."
        )
    if changes:
        logger.warning("layout changed: %s. Global batches, samples and schedule stay the same.", ", ".join(changes))
    if saved.step and not saved.flops:
        logger.warning("%s has no count of FLOPs and device hours: both count from step %d on", checkpoint, saved.step)
    layout = {name: getattr(current, name) for name in (*LAYOUT, "seed", "global_batch", "precision")}
    return replace(saved, **layout, fingerprints=current.fingerprints, versions=current.versions)


def load_method(saved: TrainState, current: TrainState) -> LoadMethod | None:
    """How the checkpoint can be loaded in the current layout; None where it cannot."""
    stages = {saved.zero_stage, current.zero_stage}
    if len(stages) == 1 and (saved.world_size == current.world_size or stages == {0}):
        return LoadMethod.DIRECT
    if len(stages) == 1 or stages == {1, 2}:
        return LoadMethod.UNIVERSAL
    # ZeRO 0 in fp16 stores its fp32 weights in a form that nothing else reads; bf16 does not run at ZeRO 0.
    return None if 0 in stages and saved.precision == "fp16" else LoadMethod.FULL_STATE


def _refuse_other_trajectory(
    saved: TrainState, current: TrainState, checkpoint: Path, accepted: Collection[str], former: Mapping[str, str]
) -> None:
    pairs = {name: (getattr(saved, name), getattr(current, name)) for name in ("seed", "global_batch", "precision")}
    before = _known_fingerprints(saved, current)
    for name in sorted(set(before) | set(current.fingerprints)):
        pairs[name] = (before.get(name, former.get(name, "nothing")), current.fingerprints.get(name, "nothing"))
    sums = pairs.pop("gradient_sums")
    if sums[0] != sums[1]:
        logger.warning(
            "gradients were summed over ranks in %s until step %d, and now are in %s", sums[0], saved.step, sums[1]
        )
    if pairs.pop("documents", None) == ("nothing", ONE_A_ROW):
        logger.warning(
            "documents of a micro-batch influenced one another until step %d, and now have a row each", saved.step
        )
    if unknown := sorted(set(accepted) - set(pairs) - {INITIAL_WEIGHTS}):  # which concerns fresh starts
        raise UserError(f"--accept_change {' '.join(unknown)}: no such setting; it takes {', '.join(sorted(pairs))}.")
    differing = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    for name in (name for name in _OF_OPTIMIZER if name in differing):  # which cannot be accepted
        raise UserError(
            f"{checkpoint} has optimizer states for another --{name} ({_change(*differing[name])}). Use the saved one, "
            f"or start another run from its weights (--pptrain_checkpoint {checkpoint} --run_name NEW)."
        )
    for name in sorted(set(differing) & set(accepted)):
        logger.warning("--accept_change %s: %s; the trajectory is another one", name, _change(*differing[name]))
    refused = {name: pair for name, pair in differing.items() if name not in accepted}
    if refused:
        listed = "; ".join(f"{name}: {_change(*pair)}" for name, pair in refused.items())
        raise UserError(
            f"{checkpoint} belongs to another trajectory ({listed}). Use the saved settings, start another run with "
            f"--run_name, or give --accept_change {' '.join(refused)}."
        )


def _known_fingerprints(state: TrainState, current: TrainState) -> dict[str, str]:
    """The fingerprints of a checkpoint. One that is older than a fingerprint gets the value of its time.

    What its time did not know is taken to be as it is now, and compared from now on.
    """
    over_ranks = state.precision if state.world_size > 1 else "fp32"  # DeepSpeed's default
    unknown = {name: current.fingerprints[name] for name in (GENERATOR_EXAMPLES,) if name in current.fingerprints}
    return {"gradient_sums": over_ranks} | unknown | state.fingerprints


def _change(old: Any, new: Any) -> str:
    """Describe a changed setting: the keys that differ for JSON objects, shortened hashes, else both values."""
    if all(isinstance(value, str) and _HASH.fullmatch(value) for value in (old, new)):
        return f"saved another one, with hash {old[:_HASH_DIGITS]} …, now {new[:_HASH_DIGITS]} …"
    try:
        before, after = json.loads(old), json.loads(new)
    except (TypeError, ValueError):
        before = after = None
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return f"saved {old}, now {new}"
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return ", ".join(f"{name} saved {before.get(name)}, now {after.get(name)}" for name in names)


def convert_to_universal(checkpoint: Path, target: Path) -> None:
    """Write DeepSpeed's universal copy of a checkpoint, which is only read, into a new directory.

    Raises:
        UserError: DeepSpeed failed; nothing is left.
    """
    logger.info("converting %s to DeepSpeed's universal format in %s", checkpoint, target)
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    launcher_variables = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    target.mkdir(parents=True)
    done = subprocess.run(
        [*command, "--input_folder", str(checkpoint), "--output_folder", str(target)],
        env={name: value for name, value in os.environ.items() if name not in launcher_variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode != 0:
        reason = next(iter(done.stdout.strip().splitlines()[-1:]), f"exit code {done.returncode}")
        raise UserError(
            f"DeepSpeed could not convert {checkpoint} for another layout in {target.parent} ({reason}). Is that disk "
            "full? Else resume in the layout that the checkpoint was saved with."
        )


@contextmanager
def _universal_copy(checkpoint: Path, scratch: Path, world: World) -> Iterator[Path]:
    """The universal copy of a checkpoint, as long as the block lasts. Collective.

    Checkpoints are never written into: they may belong to another run, which may be resuming from them too.

    Args:
        scratch: a directory of this run; what a killed conversion left there is removed.
    """
    target = scratch / checkpoint.name  # DeepSpeed writes a file of its own beside it

    def convert() -> None:
        shutil.rmtree(scratch, ignore_errors=True)
        convert_to_universal(checkpoint, target)

    try:
        on_main(world, convert)
        yield target
        gather_objects(None)  # all ranks have read it
    finally:
        if world.is_main:
            shutil.rmtree(scratch, ignore_errors=True)


def restored_engine(
    model: PackedLM,
    config: dict[str, Any],
    checkpoint: Path,
    saved: TrainState,
    current: TrainState,
    world: World,
    run_directory: Path,
) -> Engine:
    """Build an engine for the current layout and load the checkpoint into it. Collective.

    Args:
        model: its weights are replaced; what is frozen in it was frozen when the checkpoint was saved.
        config: DeepSpeed's JSON.
        checkpoint: of this run or another; only read.
        saved, current: states of the checkpoint and of a fresh start, for which `load_method` is not None.
        run_directory: holds a converted copy during the load.
    """
    method = load_method(saved, current)
    load_frozen(model, checkpoint, saved)
    if method is LoadMethod.DIRECT:
        engine = build_engine(model, config)
        load(engine, checkpoint, saved, world)
        return engine
    is_readable = saved.zero_stage == 0  # tensor by tensor, as it is
    copied = nullcontext(checkpoint) if is_readable else _universal_copy(checkpoint, run_directory / UNIVERSAL, world)
    with copied as source:
        if method is LoadMethod.FULL_STATE:
            return engine_with_full_state(model, config, source, saved, world)
        universal = {"checkpoint": config.get("checkpoint", {}) | {"load_universal": True}}
        engine = build_engine(model, config | universal)
        load(engine, source, saved, world)
        return engine
