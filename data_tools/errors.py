"""One clear message for bad input: what is wrong, what was given, what was expected, how to mend it."""

import sys
from collections.abc import Callable


class UserError(ValueError):
    """Something the user gave or asked for cannot be used; the message says what to do about it."""


def run_command(main: Callable[[], int | None]) -> None:
    """Run a command's ``main`` and exit with its code; a ``UserError`` becomes a message and exit code 1."""
    try:
        code = main() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        code = 1
    sys.exit(code)
