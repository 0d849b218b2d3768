"""A copy of a run elsewhere (any URL that fsspec reads), from which an empty machine can continue.

It has the form of the run directory. A checkpoint is uploaded file by file and its manifest last, and is deleted
manifest first. So a step directory of the mirror which has a manifest is whole, unless it was damaged later; that is
found when it is fetched.
"""

import logging
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path, PurePosixPath

from data_tools.base.errors import UserError, first_line
from data_tools.base.files import remove, sync
from data_tools.base.records import read_record
from data_tools.base.transfers import Transfer, count
from ds_train.checkpoints.manifest import MANIFEST, STEP_NAME, Manifest, defect_of, not_read, saving_name, step_of
from ds_train.checkpoints.retention import KEPT

logger = logging.getLogger(__name__)

_NOT_COPIED = ("checkpoints", "superseded_", "profile")  # beginnings of names; checkpoints have their own way


class Mirror:
    """One run below a URL.

    Args:
        url: of the run's directory: ``s3://…``, ``hf://…``, ``memory://…``, or a path.

    Raises:
        UserError: there is no file system for such a URL here.
    """

    def __init__(self, url: str) -> None:
        import fsspec  # here: runs without a mirror need none

        try:
            self._files, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise UserError(f"--mirror {url}: {first_line(error)}") from None
        self.url, self._root = url, root.rstrip("/")

    def upload(self, checkpoint: Path) -> None:
        """Copy a committed checkpoint; nothing where the mirror has it already.

        Raises:
            Exception: of the file system, by its kind; the mirror then has no such checkpoint.
        """
        content = (checkpoint / MANIFEST).read_bytes()
        if self._manifest(checkpoint.name) == content:
            return
        self._retract(checkpoint.name)  # of an abandoned branch, or of an upload that was killed
        marks = [KEPT] if (checkpoint / KEPT).exists() else []
        for name in (*read_record(Manifest, content).files, *marks):
            self._put(checkpoint / name, self._of_step(checkpoint.name, name))
        self._files.pipe_file(self._of_step(checkpoint.name, MANIFEST), content)

    def upload_records(self, run_directory: Path) -> None:
        """Copy logs, settings, reports: every visible file of a run directory that belongs to no checkpoint."""
        for path in sorted(run_directory.rglob("*")):
            parts = path.relative_to(run_directory).parts
            is_hidden = any(part.startswith(".") for part in parts)
            if path.is_file() and not parts[0].startswith(_NOT_COPIED) and not is_hidden:
                self._put(path, "/".join((self._root, *parts)))

    def prune(self, uploaded: Path, here: Collection[Path], keep_every: int) -> None:
        """Delete checkpoints that the run directory has no more: older ones that need not stay, and abandoned ones.

        Args:
            uploaded: the newest checkpoint that is uploaded. The mirror may have a later one, of the last launch's end.
            here: all checkpoints of the run directory; steps after these were abandoned.
            keep_every: steps divisible by this stay; 0: none.
        """
        last = max(map(step_of, here))
        for name in set(self.step_names()) - {path.name for path in here}:
            step = step_of(Path(name))
            is_kept = (keep_every and step % keep_every == 0) or self._files.exists(self._of_step(name, KEPT))
            if step > last or (step < step_of(uploaded) and not is_kept):
                self._retract(name)

    def is_same(self, checkpoint: Path) -> bool:
        """Whether the mirror's checkpoint of this step is this one, by its manifest."""
        return self._manifest(checkpoint.name) == (checkpoint / MANIFEST).read_bytes()

    def step_names(self) -> list[str]:
        """Names of the step directories with a manifest, newest first."""
        self._files.invalidate_cache()  # another machine may have written
        try:
            found = self._files.ls(f"{self._root}/checkpoints", detail=False)
        except FileNotFoundError:
            return []
        names = [name for path in found if STEP_NAME.fullmatch(name := path.rstrip("/").rpartition("/")[2])]
        whole = [name for name in names if self._files.exists(self._of_step(name, MANIFEST))]
        return sorted(whole, key=lambda name: step_of(Path(name)), reverse=True)

    def fetch_newest(self, run_directory: Path) -> Path | None:
        """Fetch the newest checkpoint that verifies into a run directory, and the records; None if there is none.

        Raises:
            UserError: there are checkpoints, and none is usable.
        """
        names = self.step_names()
        for name in names:
            if defect := self._fetch(name, run_directory / "checkpoints"):
                logger.warning("skipping %s of %s: %s", name, self.url, defect)
            else:
                self._fetch_records(run_directory)
                return run_directory / "checkpoints" / name
        if names:
            raise UserError(
                f"--mirror {self.url} holds {len(names)} checkpoints and none is usable (reasons above). Delete them "
                "there, or give another --mirror."
            )
        return None

    def _fetch_records(self, run_directory: Path) -> None:
        for path in self._files.find(self._root):
            parts = PurePosixPath(path).relative_to(self._root).parts
            if not parts[0].startswith(_NOT_COPIED):
                target = run_directory.joinpath(*parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                self._files.get_file(path, str(target))

    def _fetch(self, name: str, directory: Path) -> str | None:
        """Fetch one checkpoint; why it is not usable, or None."""
        target = directory / name
        saving = directory / saving_name(step_of(target))
        remove(saving)
        saving.mkdir(parents=True)
        try:
            defect = self._download(name, saving) or defect_of(saving)
            if not defect:
                saving.rename(target)
                defect = defect_of(target, not_read)  # now its name says a step, too
                if defect:
                    target.rename(saving)
                else:
                    sync(directory)
        finally:
            remove(saving)
        return defect

    def _download(self, name: str, saving: Path) -> str | None:
        content = self._manifest(name)
        try:
            manifest = read_record(Manifest, content or b"")
        except ValueError as error:
            return f"its {MANIFEST} cannot be read ({error})"
        with Transfer(f"fetching {name}", sum(entry.size for entry in manifest.files.values())):
            for file in manifest.files:
                if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
                    return f"its {MANIFEST} names {file}, which is not below it"
                (saving / file).parent.mkdir(parents=True, exist_ok=True)
                try:
                    self._files.get_file(self._of_step(name, file), str(saving / file))
                except FileNotFoundError:
                    return f"{file} is missing"
                sync(saving / file)
                count((saving / file).stat().st_size)
        with suppress(FileNotFoundError):
            self._files.get_file(self._of_step(name, KEPT), str(saving / KEPT))
        (saving / MANIFEST).write_bytes(content or b"")
        sync(saving / MANIFEST)
        return None

    def _manifest(self, name: str) -> bytes | None:
        try:
            return bytes(self._files.cat_file(self._of_step(name, MANIFEST)))
        except FileNotFoundError:
            return None

    def _retract(self, name: str) -> None:
        self._files.invalidate_cache()
        with suppress(FileNotFoundError):
            self._files.rm_file(self._of_step(name, MANIFEST))
        with suppress(FileNotFoundError):
            self._files.rm(self._of_step(name), recursive=True)

    def _put(self, source: Path, target: str) -> None:
        self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
        self._files.put_file(str(source), target)

    def _of_step(self, *names: str) -> str:
        return "/".join((self._root, "checkpoints", *names))
