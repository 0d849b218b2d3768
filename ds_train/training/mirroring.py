"""Keeps a run's mirror up to date beside training, and starts from it where this machine has no checkpoint.

Only rank 0 does: a run directory is on a disk that all ranks share. An upload that fails never stops training; the next
checkpoint tries again, with whatever is then the newest.
"""

import logging
from pathlib import Path

from data_tools.base.errors import UserError, first_line
from ds_train.checkpoints.manifest import NEWEST, step_directories, step_of
from ds_train.checkpoints.mirror import Mirror
from ds_train.training.errands import Errands

logger = logging.getLogger(__name__)


class Mirroring:
    """The mirror of one run directory. Without a mirror it does nothing.

    Args:
        mirror: of this run.
        every: steps divisible by this are uploaded, and the last one.
        keep_every: of these steps, those divisible by this are never deleted there; 0: none.
    """

    def __init__(
        self, mirror: Mirror | None = None, directory: Path = Path(), every: int = 1, keep_every: int = 0
    ) -> None:
        self._mirror, self._directory = mirror, directory
        self._every, self._keep_every = every, keep_every
        self._known: set[str] = set()  # step directories of the mirror that this launch found or made
        self._errands = Errands("--mirror")

    def fetch(self, resume: str) -> None:
        """Fetch the newest checkpoint with logs and settings, unless this machine has checkpoints.

        Args:
            resume: what the run is to continue from, see `choose_checkpoint`.

        Raises:
            UserError: the mirror cannot be read, or holds what this launch would not continue.
        """
        if self._mirror is None:
            return
        try:
            there = self._mirror.step_names()
            self._refuse_other_course(self._mirror, there, resume)
            self._known = set(there)
            if there and not self._steps_here():
                logger.info("fetched %s from %s", self._mirror.fetch_newest(self._directory), self._mirror.url)
        except UserError:
            raise
        except Exception as error:  # of any file system's own kinds
            raise UserError(
                f"--mirror {self._mirror.url} cannot be read ({first_line(error)}). Check the URL, the network and "
                "your rights there, or leave --mirror out."
            ) from error
        self.committed()  # what a launch that was killed did not upload any more

    def committed(self) -> None:
        """Upload the newest checkpoint that is due, beside training."""
        if self._mirror:
            self._errands.add(lambda: self._upload(self._every))

    def end(self, longest_s: float) -> None:
        """Upload the last checkpoint, and wait until that is done, but not for longer than this."""
        if self._mirror:
            self._errands.add(lambda: self._upload(1))
            self._errands.wait(longest_s)

    def _steps_here(self) -> list[Path]:
        return step_directories(self._directory / "checkpoints")

    def _refuse_other_course(self, mirror: Mirror, there: list[str], resume: str) -> None:
        here = {path.name: path for path in self._steps_here()}
        if not there:
            return
        name, another = f"--mirror {mirror.url} holds {there[0]}", "Give another --mirror or --run_name"
        if resume == "none" or (not here and resume not in NEWEST):
            raise UserError(f"{name} of a run of this name, which --resume {resume} would not continue. {another}.")
        if here and there[0] > max(here) and resume in NEWEST:
            raise UserError(
                f"{name}, which is newer than {max(here)} here: the run continued elsewhere. {another}, or move "
                f"{self._directory} away, so that the run continues from the mirror."
            )
        common = next((step for step in there if step in here), None)
        if common and resume in NEWEST and not mirror.is_same(here[common]):
            raise UserError(
                f"--mirror {mirror.url} and {self._directory} have different checkpoints {common}: they are of two "
                f"runs, or one is damaged. {another}, or delete one of the two."
            )

    def _upload(self, every: int) -> None:
        here = self._steps_here()
        due = [path for path in here if step_of(path) % every == 0]
        if self._mirror is None or not due:
            return
        if strangers := set(self._mirror.step_names()) - self._known:
            logger.error(
                "another process writes to --mirror %s, which has %s now: nothing more is uploaded from here. Training "
                "continues", self._mirror.url, max(strangers),
            )  # fmt: skip
            self._mirror = None
            return
        newest = due[0]
        self._mirror.upload_records(self._directory)
        self._known.add(newest.name)
        self._mirror.upload(newest)
        self._mirror.prune(newest, here, self._keep_every)
