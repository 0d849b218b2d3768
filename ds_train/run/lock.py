"""One trainer a run directory: a lock that the kernel drops when its holder dies, however it dies."""

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
    """Make the run directory, and hold it for the length of the block.

    A POSIX record lock: not inherited by loader workers, which may outlive a killed trainer for some seconds.

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
