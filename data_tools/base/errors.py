"""One clear message for bad input: what is wrong, what was given, what was expected, how to fix it."""

import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DEBUG = "--debug"
_INTERRUPTED, _BROKEN_PIPE = 128 + 2, 128 + 13  # a shell's codes for SIGINT and SIGPIPE


class UserError(ValueError):
    """An input or request of the user that cannot be used. The message says how to fix it."""


def user_message(error: BaseException) -> str | None:
    """One line for an expected error, None for a bug."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        return f"the package {error.name} is not installed; bash launch/install.sh installs all that is needed."
    if isinstance(error, OSError) and error.args:
        return file_problem(error)
    return None


def reason_of(error: OSError) -> str:
    """Why a file operation failed; some errors of Python's own and of libraries have a text and no number."""
    return error.strerror or str(error) or type(error).__name__


def file_problem(error: OSError, path: Path | None = None) -> str:
    """Which file operation failed and why: ``path: reason``; ``path`` counts where the error names none."""
    name = error.filename or path
    return f"{name}: {reason_of(error)}" if name else reason_of(error)


def first_line(error: BaseException) -> str:
    """The kind of an error that a library raised, and the first line of its text."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def report(message: str) -> None:
    """Print an error that is being handled, with its traceback if ``--debug`` was given."""
    if DEBUG in sys.argv:
        traceback.print_exc()
    print(f"error: {message}", file=sys.stderr, flush=True)


def run_command(main: Callable[[], int | None]) -> None:
    """Run a command's ``main`` and exit with its code. An expected error is one message and exit code 1."""
    try:
        code = main() or 0
        sys.stdout.flush()
    except KeyboardInterrupt:
        report("interrupted.")
        code = _INTERRUPTED
    except BrokenPipeError:  # the reader (head, less) has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = _BROKEN_PIPE
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        report(message)
        code = 1
    sys.exit(code)


class Problems:
    """Messages about bad input, gathered before anything expensive starts."""

    def __init__(self) -> None:
        self._messages: list[str] = []

    def __len__(self) -> int:
        return len(self._messages)

    def add(self, message: str) -> None:
        self._messages.append(message)

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Record a ``UserError`` raised inside the block, and continue after it."""
        try:
            yield
        except UserError as error:
            self.add(str(error))

    def raise_if_any(self) -> None:
        """Raise one ``UserError`` with all messages."""
        if len(self._messages) == 1:
            raise UserError(self._messages[0])
        if self._messages:
            listed = "".join(f"\n  {number}. {message}" for number, message in enumerate(self._messages, 1))
            raise UserError(f"{len(self._messages)} problems:{listed}")


def is_number(value: Any) -> bool:
    """Whether a value is a finite int or float; JSON's true and NaN are not."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return is_whole or (isinstance(value, float) and math.isfinite(value))
