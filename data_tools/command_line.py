"""What the commands have in common: help that shows defaults, one message for a mistake, ``--debug``."""

import argparse
import difflib
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from data_tools.errors import DEBUG, UserError


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Shows a default where there is one and the text does not tell it."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        empty = (None, False, argparse.SUPPRESS)
        has_none = action.required or action.default == [] or any(action.default is none for none in empty)
        return text if has_none or "(default" in text else f"{text} (default: %(default)s)"


class CommandParser(argparse.ArgumentParser):
    """A parser whose complaints are `UserError`, with a suggestion where a flag is unknown."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", HelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)
        self.add_argument(DEBUG, action="store_true", help="show where an error arose (traceback)")

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. See --help.")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        given = sys.argv[1:] if args is None else list(args)
        refuse_unknown_flags(given, _flags(self))
        return super().parse_args(given, namespace)


def _flags(parser: argparse.ArgumentParser) -> list[str]:
    found: list[str] = []
    for action in parser._actions:
        found += action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            found += [flag for command in action.choices.values() for flag in _flags(command)]
    return found


def refuse_unknown_flags(given: Iterable[str], known: Sequence[str]) -> None:
    """Raise for the first flag that is not known: before parsing, which would miss the one that was meant."""
    for argument in given:
        name = argument.split("=")[0]
        if name.startswith("--") and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise UserError(f"unknown flag {name}{f'; did you mean {near[0]}?' if near else '.'} See --help.")


def natural(text: str) -> int:
    """A whole number from 0, for argparse."""
    return _whole_number(text, 0)


def positive(text: str) -> int:
    """A whole number from 1, for argparse."""
    return _whole_number(text, 1)


def _whole_number(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"expected a whole number from {least}, got {text!r}")
    return int(text)
