"""A branch: a new run that continues the whole state of another run's checkpoint, with a decay of its learning rate.

A run at a constant rate and its branches give the loss at several lengths, each after a whole schedule, for little more
than the price of the longest. Optimizer and position in the data continue, so the samples are those that the first run
had or would have had next.
"""

import json
import math
from dataclasses import replace
from pathlib import Path

from data_tools.base.errors import UserError
from ds_train.checkpoints.manifest import FindDamage, defect_of, not_read, step_directories, step_of
from ds_train.checkpoints.state import TrainState
from ds_train.checkpoints.weights import Weights, record_of
from ds_train.config.phase_flags import PretrainFlags
from ds_train.config.schedule import Schedule
from ds_train.config.trainer_flags import RunFlags

_CHANGED = ("schedule", "total_steps")  # fingerprints in which a branch differs from its origin


def branch_point(flags: PretrainFlags) -> Path | None:
    """The step directory that a fresh start of the run continues; None if it is no branch."""
    return Path(flags.branch_from).absolute() if flags.branch_from else None


def with_length_of_branch(flags: PretrainFlags, decay_steps: int | None, is_length_given: bool) -> PretrainFlags:
    """The flags with the length that a branch has: up to its checkpoint, and its decay.

    Args:
        is_length_given: whether ``total_steps`` must agree with it.

    Raises:
        UserError: the flags do not fit a branch.
    """
    origin = branch_point(flags)
    if origin is None:
        return flags
    if decay_steps is None:
        raise UserError("--branch_from needs --decay_steps, the number of steps in which the learning rate decays.")
    if flags.mixin_schedule != "constant":
        raise UserError(
            f"--branch_from changes the length of the run, and with it the synthetic share at each step of "
            f"--mixin_schedule {flags.mixin_schedule}; a branch needs a constant share."
        )
    total_steps = step_of(origin) + decay_steps
    if is_length_given and flags.total_steps != total_steps:
        raise UserError(
            f"--total_steps {flags.total_steps}: a branch of step {step_of(origin):,} with --decay_steps {decay_steps} "
            f"ends at step {total_steps:,}; leave --total_steps out."
        )
    return replace(flags, total_steps=total_steps)


def check_branch(run: RunFlags, flags: PretrainFlags, run_directory: Path) -> None:
    """Check the checkpoint to branch from. It is not needed any more once the run has checkpoints.

    Raises:
        UserError: it is this run's or not usable. Its files are not read yet.
    """
    origin = branch_point(flags)
    if origin is None:
        return
    if origin.is_relative_to(run_directory.absolute()):
        raise UserError(f"--branch_from {origin} belongs to the run in {run_directory}; give another --run_name.")
    is_fresh = run.resume == "none" or not step_directories(run_directory / "checkpoints")
    if is_fresh and not run.resume_from:
        refuse_damaged(origin, not_read)


def refuse_damaged(origin: Path, find_damage: FindDamage) -> None:
    """Refuse a checkpoint to branch from that is not usable.

    Args:
        find_damage: checks the content of its files.
    """
    if defect := defect_of(origin, find_damage):
        raise UserError(f"--branch_from {origin}: {defect}. Give a complete step directory.")


def branched(saved: TrainState, current: TrainState, checkpoint: Path) -> TrainState:
    """The state of a checkpoint of another run, with this run's schedule and length.

    Raises:
        UserError: the other run was of pptrain, or up to the checkpoint had other learning rates than this schedule.
    """
    if "pack" not in saved.fingerprints:
        raise UserError(f"--branch_from {checkpoint} is of pptrain; give a step directory of pretrain.")
    before, after = (Schedule(**json.loads(state.fingerprints["schedule"])) for state in (saved, current))
    for step in range(1, saved.step + 1):
        if not math.isclose(before.lr(step), after.lr(step), rel_tol=1e-9):
            raise UserError(
                f"--branch_from {checkpoint}: its run had the learning rate {before.lr(step):g} at step {step} "
                f"({before}), and this one's schedule has {after.lr(step):g} there ({after}). Branch from a run at a "
                "constant rate, before it decays, with the same rate and warm-up."
            )
    return replace(
        saved,
        fingerprints=saved.fingerprints | {name: current.fingerprints[name] for name in _CHANGED},
        branched_from=record_of(Weights(checkpoint, True)),
        finished=False,
        evaluation_pending=True,  # the first row of the branch's evaluations is the point where it begins
    )
