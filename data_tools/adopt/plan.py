"""One directory to be adopted, and how its files get into ours: by links, or copied."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Adoption:
    """A directory of another program that has been checked.

    Attributes:
        source: what there is; it is only read.
        target: the directory of ours that is made of it.
        fill: writes the content of ``target`` into the empty directory that it is given.
        usage: how to use it, as a sentence.
    """

    source: Path
    target: Path
    fill: Callable[[Path], None]
    usage: str


@dataclass(frozen=True)
class Options:
    """What the user gave beside the source."""

    scratch_dir: Path
    copy: bool
    tokenizer: str | None
    model_name: str | None


def take(file: Path, directory: Path, copy: bool) -> None:
    """Put a file of the source into a directory of ours under its own name."""
    target = directory / file.name
    if copy:
        shutil.copyfile(file, target)
    else:
        target.symlink_to(file.resolve())


def beside(target: Path, source: Path) -> Path:
    """``target``, or where that is the source itself, a name beside it."""
    return target.with_name(f"{target.name}_adopted") if target.resolve() == source.resolve() else target
