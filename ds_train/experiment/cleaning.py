"""Thins the finished runs of a grid: the last checkpoint of each stays, and those that are kept forever."""

from data_tools.base.errors import UserError
from data_tools.base.files import size_on_disk
from data_tools.base.text_table import aligned, pluralize
from data_tools.runs.settings import load_settings
from ds_train.checkpoints.retention import Retention
from ds_train.config.run_file import RUN_FILE
from ds_train.experiment.plan import Experiment
from ds_train.model.footprint import GIB


def clean(experiment: Experiment, *, is_dry_run: bool = False) -> None:
    """Ask, then delete the other checkpoints of all runs that are done; logs and reports stay.

    Args:
        is_dry_run: show what would be deleted, and neither ask nor delete.

    Raises:
        UserError: nobody answers.
    """
    runs = [step.run for step in experiment.steps() if step.run and experiment.records.is_done(step)]
    thinned, rows, total = [], [], 0
    for run in runs:
        keep_every = load_settings(run / RUN_FILE).get("keep_every") or 0
        retention = Retention(run / "checkpoints", keep_last=1, keep_every=int(keep_every))
        if older := retention.older_than_newest(1):
            thinned.append(retention)
            size = sum(map(size_on_disk, older))
            rows.append([str(run), pluralize(len(older), "checkpoint"), f"{size / GIB:,.2f} GiB"])
            total += size
    if not rows:
        print("no finished run has a checkpoint that could go")
        return
    print(aligned(rows))
    if is_dry_run:
        return
    try:
        answer = input(f"Delete these, {total / GIB:,.2f} GiB? The last one of each run stays. [y/N] ")
    except EOFError:
        raise UserError("--clean asks before it deletes, and nobody answered; nothing was deleted.") from None
    if answer.strip().lower() not in ("y", "yes"):
        print("nothing was deleted")
        return
    for retention in thinned:
        retention.tidy()
    print(f"deleted: {total / GIB:,.2f} GiB")
