"""One trainer per run directory: a lock that the kernel releases when its holder dies."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_tools.base.errors import UserError

_NAME = ".lock"


@contextmanager
def run_lock(run_directory: Path) -> Iterator[None]:
    """Create the run directory and hold its lock inside the block.

    It is a POSIX record lock, which loader workers do not inherit: they may outlive a killed trainer by some seconds.

    Raises:
        UserError: another process holds it.
    """
    run_directory.mkdir(parents=True, exist_ok=True)
    with (run_directory / _NAME).open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise UserError(
                f"{run_directory} is in use by {file.read().strip() or 'another process'}; wait for it to end, stop "
                "it, or start another run with --run_name."
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
