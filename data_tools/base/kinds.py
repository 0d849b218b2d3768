"""What a value may be, in words that serve as its check and in its message.

A kind is ``true or false``, ``text``, ``number``, ``number in (0, 1]``, ``whole number in [1, 1e9]`` (intervals as
mathematics writes them) or a word that is meant itself; alternatives are separated by `` | ``.
"""

import re
from typing import Any

from data_tools.base.errors import is_number

_NUMBER = re.compile(r"(whole )?number in ([\[(])(\S+), (\S+)([\])])")


def is_of_kind(value: Any, kind: str) -> bool:
    """Whether a value, as JSON or a command line gives it, is of a kind."""
    return any(_fits(value, alternative) for alternative in kind.split(" | "))


def complaint(name: str, value: Any, kind: str) -> str:
    """The sentence about a value that is not of its kind."""
    return f"{name} is {value!r}, expected {kind.replace(' | ', ' or ')}."


def _fits(value: Any, kind: str) -> bool:
    if kind == "true or false":
        return isinstance(value, bool)
    if kind == "text":
        return isinstance(value, str)
    if kind == "number":
        return is_number(value)
    parts = _NUMBER.fullmatch(kind)
    if not parts:
        return value == kind
    whole, opening, low, high, closing = parts.groups()
    if not is_number(value) or (whole and value != int(value)):
        return False
    above = float(low) < value or (opening == "[" and float(low) == value)
    below = value < float(high) or (closing == "]" and float(high) == value)
    return above and below
