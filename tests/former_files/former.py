"""Files of former versions: archives of a scratch directory each, and what continuing it must give.

``version_X.tar.xz`` holds a scratch directory as version X left it. Text files in it name their directory by
`PLACEHOLDER`, as far as no hash covers them. ``expected.json`` holds, by version, how its runs and its unfinished pack
are continued and what that version itself then wrote; see `make.py`.
"""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
EXPECTED = HERE / "expected.json"
PLACEHOLDER = "@SCRATCH@"
EXACT = ("step", "stage", "alpha", "lr", "ledger", "tokens", "c4_count", "mixin_count", "skipped_steps", "num_examples")
LOSSES = ("loss", "c4_loss", "mixin_loss", "heldout_loss", "heldout_c4_loss")


def archive_of(version: str) -> Path:
    """The archive of a version such as 0.1.0."""
    return HERE / f"version_{version.replace('.', '_')}.tar.xz"


def unpack(version: str, directory: Path) -> Path:
    """Unpack a version's archive into a directory, as if it had been written there; returns the scratch directory."""
    with tarfile.open(archive_of(version)) as archive:
        archive.extractall(directory, filter="data")
    replace_in_texts(directory, PLACEHOLDER, str(directory))
    return directory


def replace_in_texts(scratch: Path, old: str, new: str) -> None:
    """Replace words in every text file outside of checkpoints, whose manifests hold hashes."""
    for path in files_of(scratch):
        content = path.read_bytes()
        if path.suffix in (".json", ".jsonl", ".yaml") and "checkpoints" not in path.parts and old.encode() in content:
            path.write_bytes(content.replace(old.encode(), new.encode()))


def files_of(scratch: Path) -> Iterator[Path]:
    """All files of a scratch directory, in a fixed order."""
    return (path for path in sorted(scratch.rglob("*")) if path.is_file())


def placed(arguments: list[str], scratch: Path) -> list[str]:
    """Arguments with the scratch directory in the place of `PLACEHOLDER`."""
    return [argument.replace(PLACEHOLDER, str(scratch)) for argument in arguments]


def continuations(runs: dict[str, dict[str, Any]], scratch: Path, ranks: int) -> list[dict[str, Any]]:
    """Runs on this number of ranks that continue to their end, as `launching.run_all` takes them."""
    return [{"phase": r["phase"], "argv": placed(r["resume"], scratch)} for r in runs.values() if r["ranks"] == ranks]


def comparable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a log without the columns that differ from one repetition to the next."""
    return [{name: value for name, value in row.items() if name in EXACT + LOSSES} for row in rows]


def expected_of(version: str) -> dict[str, Any]:
    """What continuing the files of a version must give."""
    return json.loads(EXPECTED.read_text())[version]
