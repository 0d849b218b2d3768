"""Deletes checkpoints that need not stay. A deletion that fails is one warning and never stops training.

A step directory is renamed ("retired") before its files are deleted, so a deletion that is killed or refused half-way
does not look like a damaged checkpoint. Every save tries again to delete what is left.
"""

import logging
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_tools.base.errors import reason_of
from data_tools.base.files import remove, size_on_disk
from data_tools.base.foreign import form_of
from ds_train.checkpoints.manifest import DELETING, SAVING, retire, step_directories, step_of
from ds_train.checkpoints.state import PFLOP

logger = logging.getLogger(__name__)


KEPT = "KEPT"  # a file that makes its step directory stay, whatever the flags; anybody may add or delete it


@dataclass(frozen=True)
class Milestones:
    """Where a checkpoint is saved and kept forever: at steps, at numbers of PFLOPs, where a stage is mastered."""

    steps: Collection[int] = ()
    pflops: Collection[float] = ()
    stages: Collection[int] = ()

    def __len__(self) -> int:
        return len(self.steps) + len(self.pflops) + len(self.stages)

    def reached(self, step: int, flops_before: int, flops: int, mastered: int | None) -> list[str]:
        """The milestones of one optimizer step, in words.

        Args:
            flops_before, flops: of the run, without and with this step.
            mastered: the stage that it mastered, if any.
        """
        found = [f"step {step:,}"] if step in self.steps else []
        found += [f"{mark:,g} PFLOPs" for mark in self.pflops if flops_before < mark * PFLOP <= flops]
        return found + ([f"stage {mastered} mastered"] if mastered in self.stages else [])


class Retention:
    """Deletes old checkpoints from one directory.

    Args:
        keep_last: number of newest checkpoints to keep; 0 keeps all.
        keep_every: keep checkpoints at steps divisible by this forever; 0: none.
    """

    def __init__(self, directory: Path, keep_last: int, keep_every: int) -> None:
        self._directory, self._keep_last, self._keep_every = directory, keep_last, keep_every
        self._mentioned: set[Path] = set()
        self._reasons: list[str] = []

    def keep_next(self, reasons: Sequence[str]) -> None:
        """Keep the next checkpoint that is committed forever, for these reasons, if there are any."""
        self._reasons += reasons

    def mark(self, saving: Path) -> None:
        """Mark a checkpoint that is about to be committed."""
        if self._reasons:
            (saving / KEPT).write_text("".join(f"{reason}\n" for reason in self._reasons), encoding="utf-8")

    def committed(self) -> None:
        """Delete what need not stay beside the checkpoint that was just committed."""
        self._reasons.clear()
        self.tidy()

    def tidy(self) -> None:
        """Delete older checkpoints, and the leftovers of killed saves and deletions."""
        if self._keep_last:
            for checkpoint in self.older_than_newest(self._keep_last):
                self._try(retire, checkpoint)
        for prefix in (SAVING, DELETING):
            for leftover in self._directory.glob(f"{prefix}*"):
                self._try(remove, leftover)

    def make_room(self, num_bytes: int, *, at_least_one: bool) -> int:
        """Delete oldest checkpoints, but neither the newest nor those that are kept, until ``num_bytes`` are free.

        Deletes none if all of them would not be enough.

        Args:
            at_least_one: the file system has refused to write although it reports room (a quota).

        Returns:
            bytes that are free now.
        """
        free = shutil.disk_usage(self._directory).free
        if free >= num_bytes and not at_least_one:
            return free
        chosen, expected = [], free
        for checkpoint in reversed(self.older_than_newest(1) if self._keep_last else []):
            if not checkpoint.is_symlink():  # a link takes no room
                chosen.append(checkpoint)
                expected += size_on_disk(checkpoint)
            if chosen and expected >= num_bytes:
                logger.warning(
                    "deleting %s: a checkpoint takes about %.2f GiB, and %s has %.2f GiB free",
                    ", ".join(path.name for path in chosen), num_bytes / 2**30, self._directory, free / 2**30,
                )  # fmt: skip
                for path in chosen:
                    self._try(retire, path)
                self.tidy()
                break
        return shutil.disk_usage(self._directory).free

    def older_than_newest(self, count: int) -> list[Path]:
        """Step directories that may be deleted, newest first, without the newest ``count``; none of other programs."""
        older = [path for path in step_directories(self._directory) if not form_of(path)][count:]
        return [path for path in older if not self._is_kept(path)]

    def _is_kept(self, checkpoint: Path) -> bool:
        is_multiple = self._keep_every and step_of(checkpoint) % self._keep_every == 0
        return bool(is_multiple) or (checkpoint / KEPT).exists()

    def _try(self, delete: Callable[[Path], None], path: Path) -> None:
        try:
            delete(path)
        except OSError as error:
            if path not in self._mentioned:
                logger.warning("cannot delete %s (%s); it is tried again at each save", path, reason_of(error))
            self._mentioned.add(path)
