"""The command line that all commands share: help that shows defaults, one message for a mistake, ``--debug``."""

import argparse
import copy
import difflib
import math
import re
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from data_tools.base.errors import DEBUG, UserError
from data_tools.base.kinds import described, is_of_kind
from data_tools.base.version import SHOWN

_HOME = re.compile(r"^(--\w+=|)(~(?=/|$).*)$")
_HELP_COLUMN = 36  # most flags leave room for their help in the same line


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Shows each flag by one name, and its default where there is one that the text does not mention."""

    def __init__(self, prog: str, **kwargs: Any) -> None:
        super().__init__(prog, max_help_position=_HELP_COLUMN, **kwargs)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        shown = copy.copy(action)
        long = [name for name in action.option_strings if name.startswith("--")]
        shown.option_strings = [name for name in action.option_strings if name not in long[1:]]
        if action.nargs == "?" and action.const is True:  # a switch
            shown.nargs = 0
        return super()._format_action_invocation(shown)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        empty = (None, False, argparse.SUPPRESS)
        has_none = action.required or action.default == [] or any(action.default is none for none in empty)
        return text if has_none or "(default" in text else f"{text} (default: %(default)s)"


class CommandParser(argparse.ArgumentParser):
    """A parser that reports mistakes as `UserError`, with a suggestion for an unknown flag."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", HelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("prog", _program())
        super().__init__(*args, **kwargs)
        self.add_argument(DEBUG, action="store_true", help="show the traceback of an error")
        add_version(self)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removesuffix('.')}. See --help.")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        given = given_arguments(args)
        refuse_unknown_flags(given, _flags(self, given))
        return super().parse_args(given, namespace)


def add_version(parser: argparse.ArgumentParser) -> None:
    """Add ``--version``, which every command has."""
    parser.add_argument("--version", action="version", version=SHOWN, help="print the version of ds-train and exit")


def given_arguments(argv: Sequence[str] | None = None) -> list[str]:
    """The arguments, by default the program's own, with ``~`` expanded; shells leave it in ``--flag=~/x``.

    Raises:
        UserError: an argument, or the current directory, is not UTF-8; no JSON or log could hold such a name.
    """
    given = sys.argv[1:] if argv is None else argv
    try:
        here = str(Path.cwd())
    except OSError:  # it was deleted; whole paths do without
        here = ""
    for text in (here, *given):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UserError(f"{text!a} is not UTF-8 here; rename it, or set LC_ALL=C.UTF-8 if it is.") from None
    return [_HOME.sub(lambda found: found[1] + str(Path(found[2]).expanduser()), argument) for argument in given]


_named: list[str] = []


def name_program(name: str) -> None:
    """Set the name that usage texts show, where one program runs another's command."""
    _named[:] = [name]


def _program() -> str:
    """How this command was started."""
    if _named:
        return _named[0]
    spec = sys.modules["__main__"].__spec__
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec else Path(sys.argv[0]).name


def _flags(parser: argparse.ArgumentParser, given: Sequence[str]) -> list[str]:
    """The flags of a parser, and of the command that the arguments name, if it has commands."""
    found: list[str] = []
    for action in parser._actions:
        found += action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            named = [command for name, command in action.choices.items() if name in given]
            found += [flag for command in named or action.choices.values() for flag in _flags(command, given)]
    return found


def refuse_unknown_flags(given: Iterable[str], known: Sequence[str]) -> None:
    """Raise for the first flag that is unknown or empty. Call it before parsing, whose message would name no remedy."""
    name = "an argument"
    for argument in given:
        if argument == "" or argument.endswith("="):
            raise UserError(f"{argument.rstrip('=') or name} is empty; was a variable not set? Give a value.")
        name = argument.split("=")[0] if argument.startswith("-") else "an argument"
        if name.startswith("--") and name not in known:
            raise UserError(f"unknown flag {name}{did_you_mean(name, known)} See --help.")


@dataclass(frozen=True)
class of_kind:  # noqa: N801 (argparse calls it as a function)
    """A number of a kind (see `kinds`), for argparse."""

    kind: str

    def __call__(self, text: str) -> int | float:
        try:
            number = int(text) if self.kind.startswith("whole") else float(text)
        except ValueError:
            number = math.nan
        if not is_of_kind(number, self.kind):
            raise argparse.ArgumentTypeError(f"expected {described(self.kind)}, got {text!r}")
        return number


natural = of_kind("whole number in [0, 1e15]")
positive = of_kind("whole number in [1, 1e15]")
any_seed = of_kind("whole number in [-9e18, 9e18]")
length = of_kind("whole number in [2, 1e7]")  # of a sequence, in tokens
fraction = of_kind("number in [0, 1]")


# What other trainers call our flags and keys.
_OTHER_NAMES = {
    "learning_rate": "lr",
    "num_warmup_steps": "warmup_steps",
    "max_grad_norm": "grad_clip",
    "gradient_accumulation_steps": "grad_accum",
    "per_device_train_batch_size": "micro_batch",
    "batch_size": "global_batch",
    "train_batch_size": "global_batch",
    "max_length": "seq_len",
    "total_steps": "max_steps",
    "max_steps": "total_steps",
    "block_size": "seq_len",
    "output_dir": "scratch_dir",
    "save_steps": "save_every",
    "logging_steps": "log_every",
    "dataloader_num_workers": "num_workers",
    "resume_from_checkpoint": "resume",
    "model_name_or_path": "model_name",
}


def did_you_mean(name: str, known: Collection[str], otherwise: str = ".", cutoff: float = 0.6) -> str:
    """The end of a sentence about an unknown name: the known name that is most like it, else ``otherwise``.

    Args:
        known: names, with leading dashes if ``name`` has them.
        cutoff: least similarity of the names, from 0 (anything) to 1 (equal).
    """
    dashes = name[: len(name) - len(name.lstrip("-"))]
    others = {other: dashes + ours for other, ours in _OTHER_NAMES.items() if dashes + ours in known}
    names = others | {ours.removeprefix(dashes): ours for ours in known}
    near = difflib.get_close_matches(name.removeprefix(dashes), names, n=1, cutoff=cutoff)
    return f"; did you mean {names[near[0]]}?" if near else otherwise
