"""Resumes a checkpoint in any layout: a resumed run may change what decides speed, not what decides the trajectory."""

import json
import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_tools.base.errors import UserError
from ds_train.checkpoints.state import INITIAL_WEIGHTS, TrainState

logger = logging.getLogger(__name__)

LAYOUT = ("world_size", "zero_stage", "micro_batch", "grad_accum")
GENERATOR_EXAMPLES = "generator_examples"  # fingerprint of what an external generator gives
ONE_A_ROW = "one a row"  # a fingerprint: documents that end to end would influence one another
_FORMERLY = {  # before there was this fingerprint
    "answer_spaces": "2",  # of tokenizers like Llama 2's
    "transfer": "all",
}
_OF_OPTIMIZER = ("freeze", "no_decay")  # fingerprints of flags by which an optimizer's states are arranged
_HASH, _HASH_DIGITS = re.compile("[0-9a-f]{64}"), 12


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
    if changes:
        logger.warning("layout changed: %s. Global batches, samples and schedule stay the same.", ", ".join(changes))
    if saved.step and not saved.flops:
        logger.warning("%s has no count of FLOPs and device hours: both count from step %d on", checkpoint, saved.step)
    layout = {name: getattr(current, name) for name in (*LAYOUT, "seed", "global_batch", "precision")}
    return replace(saved, **layout, fingerprints=current.fingerprints, versions=current.versions)


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
