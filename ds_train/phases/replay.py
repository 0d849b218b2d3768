"""Reads when another run of pptrain was promoted, for one that is to train the same samples at the same steps."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from data_tools.base.errors import UserError
from data_tools.runs.logs import RunLogs
from ds_train.checkpoints.manifest import step_directories
from ds_train.checkpoints.save import read_state
from ds_train.phases.curriculum import Replay

_NUM_SHOWN = 5  # stages in a message


def read_replay(run: Path, stages: Sequence[int]) -> Replay:
    """The promotions of a run, finished or not.

    Args:
        run: its directory.
        stages: of this run's curriculum, in order.

    Raises:
        UserError: it is no run of pptrain, or trained other stages.
    """
    try:
        logs = RunLogs.read(run, run.name)
    except UserError as error:
        raise UserError(f"--replay_run {run}: {error}") from None
    if "stage" not in logs.evaluations:
        raise UserError(f"--replay_run {run} has no stages; give a run of pptrain.")
    trained = [int(stage) for stage in dict.fromkeys([*logs.mastered[:, 0], logs.evaluations["stage"][-1]])]
    if trained != stages[: len(trained)]:
        raise UserError(
            f"--replay_run {run} trained the stages {_listed(trained)}, and this run's are {_listed(stages)}; give the "
            "--start_stage and --stage_step of that run."
        )
    return Replay(tuple(logs.mastered_at.astype(int).tolist()), logs.last_step)


def check_same_data(run: Path, seed: int, global_batch: int, fingerprints: Mapping[str, str]) -> None:
    """Refuse a run that saw other samples at its steps than this one will see, as its newest checkpoint records.

    Args:
        fingerprints: what decides samples besides seed and global batch. The run may lack some, being older.

    Raises:
        UserError: it saw others, or has no checkpoint.
    """
    newest = next(iter(step_directories(run / "checkpoints")), None)
    if newest is None:
        raise UserError(f"--replay_run {run} has no checkpoint, which records what data the run saw.")
    saved = read_state(newest)
    theirs = {"seed": str(saved.seed), "global_batch": str(saved.global_batch), **saved.fingerprints}
    ours = {"seed": str(seed), "global_batch": str(global_batch), **fingerprints}
    if differing := [name for name in ours if theirs.get(name, ours[name]) != ours[name]]:
        listed = "; ".join(f"{name} {theirs[name]} there, {ours[name]} here" for name in differing)
        raise UserError(f"--replay_run {run} saw other data ({listed}); use the same settings.")


def _listed(stages: Sequence[int]) -> str:
    """The first stages of a list, in words."""
    return " ".join(map(str, stages[:_NUM_SHOWN])) + (" …" if len(stages) > _NUM_SHOWN else "")
