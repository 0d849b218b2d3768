"""Flags as fields of dataclasses. The definition of each holds its help text, its role, and where it is compared.

Imports nothing heavy: ``--help`` and mistakes are answered before torch is loaded.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, Field, field, fields
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from data_tools.base.command_line import HelpFormatter, add_version, given_arguments, refuse_unknown_flags
from data_tools.base.errors import Problems, UserError
from data_tools.base.kinds import complaint, is_of_kind
from ds_train.config.run_file import arguments_of

Role = Literal["trajectory", "speed", "record", "launch"]
AT_START = "start"  # see `flag`
COMMAND_LINE = "command line"  # where a flag comes from, if from no file


def flag(
    default: Any,
    help: str,
    role: Role,
    *,
    through: str | None = None,
    json_key: str | None = None,
    within: str | None = None,
    is_path: bool = False,
    bare: Any = None,
) -> Any:
    """Define a dataclass field that is a flag.

    Args:
        role: ``trajectory`` decides what is computed, so a resumed run must have the same; ``speed`` is free to
            change; ``record`` decides what is written down and kept; ``launch`` concerns one start and is not part of
            the run file.
        through: for a trajectory flag that is not compared by value: the fingerprint or the field of TrainState that
            holds its effect, or `AT_START` if only a fresh start reads it.
        json_key: the key of the DeepSpeed JSON that it overrides, and in which it is compared.
        within: the interval that a number must be in, e.g. ``(0, 1]``; every number has one.
        is_path: its value may be a path.
        bare: its value where it is given without one; None: it needs one.
    """
    metadata = {
        "help": help, "role": role, "through": through, "json_key": json_key, "within": within, "is_path": is_path,
        "bare": bare,
    }  # fmt: skip
    return field(default=default, metadata=metadata)


def required(help: str, role: Role, *, is_path: bool = False) -> Any:
    """A flag without a default."""
    return flag(MISSING, help, role, is_path=is_path)


def role_of(item: Field) -> Role:
    return item.metadata["role"]


def is_compared(item: Field) -> bool:
    """Whether two runs of one trajectory must have the same value of this flag."""
    return role_of(item) == "trajectory" and not item.metadata["through"] and not item.metadata["json_key"]


def compared_values(all_flags: Iterable[Any]) -> dict[str, str]:
    """The fingerprints of parsed dataclasses that are simply a flag's value."""
    return {
        item.name: str(getattr(flags, item.name)) for flags in all_flags for item in fields(flags) if is_compared(item)
    }


def former_values(groups: Iterable[type]) -> dict[str, str]:
    """What an absent fingerprint of a flag means: the checkpoint is older than the flag, which then had its default."""
    return {item.name: str(item.default) for group in groups for item in fields(group) if is_compared(item)}


def names_with_role(groups: Iterable[type], *roles: Role) -> set[str]:
    return {item.name for group in groups for item in fields(group) if role_of(item) in roles}


class _Parser(argparse.ArgumentParser):
    """Errors like the rest of the program: one message, exit code 1, printed by rank 0 only."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removesuffix('.')}. See --help.")


def parse_flags(
    *groups: type, description: str, argv: list[str] | None = None
) -> tuple[tuple[Any, ...], dict[str, str]]:
    """Parse the command line, and the run file that it names, into one instance of each dataclass.

    Returns:
        the instances, and the origin of each flag that was given.

    Raises:
        UserError: an unknown flag, a missing one, or a value of the wrong kind.
    """
    given = given_arguments(argv)
    named = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    named.add_argument("--config")
    path = named.parse_known_args(given)[0].config
    from_file = []
    if path:
        from_file = given_arguments(arguments_of(Path(path), flags_known_to(groups)))
        try:
            _parse(groups, description, from_file, are_all=False)
        except UserError as error:
            raise UserError(f"--config {path}: {error}") from None
    sources = dict.fromkeys(_names(from_file), path) | dict.fromkeys(_names(given), COMMAND_LINE)
    return _parse(groups, description, [*from_file, *given]), sources


def flags_known_to(groups: Iterable[type]) -> dict[str, bool]:
    """Names of all flags of these dataclasses, and whether they take several values."""
    return {name: _is_list(hint) for group in groups for name, hint in get_type_hints(group).items()}


def _names(arguments: Sequence[str]) -> list[str]:
    return [argument[2:].split("=")[0].replace("-", "_") for argument in arguments if argument.startswith("--")]


def _parse(groups: Sequence[Any], description: str, arguments: list[str], are_all: bool = True) -> tuple[Any, ...]:
    """Parse arguments into the groups. Unless ``are_all``, required flags may be missing."""
    parser = _Parser(
        description=description,
        prog=Path(sys.argv[0]).name,
        usage="deepspeed ds_train/%(prog)s --scratch_dir DIR [--config YAML] [FLAG …]",
        allow_abbrev=False,
        formatter_class=HelpFormatter,
    )
    for group in groups:
        _add_flags(parser.add_argument_group(group._argument_group_name), group, are_all)
    add_version(parser)
    refuse_unknown_flags(arguments, [*parser._option_string_actions])
    values = vars(parser.parse_args(arguments))
    problems = Problems()
    for item in (item for group in groups for item in fields(group) if item.metadata["within"]):
        given, kind = values[item.name], f"number in {item.metadata['within']}"
        for value in given if isinstance(given, list) else [given]:
            if value is not None and not isinstance(value, str) and not is_of_kind(value, kind):
                problems.add(complaint(f"--{item.name}", value, kind))
    problems.raise_if_any()
    return tuple(group(**{item.name: values[item.name] for item in fields(group)}) for group in groups)


def _add_flags(parser: argparse._ArgumentGroup, group: Any, are_all: bool) -> None:
    hints = get_type_hints(group)
    for item in fields(group):
        is_required = item.default is MISSING
        names = dict.fromkeys((f"--{item.name}", f"--{item.name.replace('_', '-')}"))
        parser.add_argument(
            *names,
            dest=item.name,
            default="" if is_required else item.default,
            required=is_required and are_all,
            help=item.metadata["help"],
            **_argument_kind(hints[item.name]),
            **_if_bare(item.metadata["bare"]),
        )


def _kinds(hint: Any) -> list[Any]:
    """The types of a field, without None; a Literal is one of them."""
    is_union = get_origin(hint) not in (None, list, Literal)
    return [kind for kind in (get_args(hint) if is_union else [hint]) if kind is not NoneType]


def _is_list(hint: Any) -> bool:
    return any(get_origin(kind) is list for kind in _kinds(hint))


def _argument_kind(hint: Any) -> dict[str, Any]:
    """What argparse needs to know of a field's type."""
    kind, *words = _kinds(hint)
    if words:  # a number, or a word instead of it
        return {"type": partial(_number_or_word, kind, get_args(words[0]))}
    if kind is bool:  # a switch; run files set it to true or false
        return {"type": _truth, "nargs": "?", "const": True}
    if get_origin(kind) is Literal:
        return {"choices": get_args(kind)}
    if get_origin(kind) is list:
        return {"nargs": "+", **_argument_kind(get_args(kind)[0])}
    return {"type": kind}


def _if_bare(value: Any) -> dict[str, Any]:
    """What argparse needs to know of a flag that may be given without a value, which then is this one."""
    return {} if value is None else {"nargs": "?", "const": value}


def _number_or_word(number: type, words: Sequence[str], text: str) -> Any:
    if text in words:
        return text
    try:
        return number(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number or {' or '.join(words)}, got {text!r}") from None


def _truth(text: str) -> bool:
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return words[text.lower()]
