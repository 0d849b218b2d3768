"""A directory that another process holds: a process never keeps itself out."""

import subprocess
import sys
from pathlib import Path

_HOLDER = (
    "import sys, pathlib; from data_tools.base.files import exclusive\n"
    "with exclusive(pathlib.Path(sys.argv[1]), ''): print('held', flush=True); sys.stdin.read()"
)


def holder_of(directory: Path) -> subprocess.Popen:
    """A process that holds the directory; it ends when its standard input does (``communicate()``)."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process
