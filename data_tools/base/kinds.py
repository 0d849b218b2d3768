"""Kinds of values. A kind is a short text: the check reads it, and the message about a wrong value shows it.

A kind is ``true or false``, ``text``, ``number``, ``number in (0, 1]``, ``whole number in [1, 1e9]`` (intervals in
mathematical notation) or a literal word. `` | `` separates alternatives.
"""

import re
from typing import Any

from data_tools.base.errors import is_number

_NUMBER = re.compile(r"(whole )?number in ([\[(])(\S+), (\S+)([\])])")


def is_of_kind(value: Any, kind: str) -> bool:
    """Whether a value from JSON or a command line is of a kind."""
    return any(_fits(value, alternative) for alternative in kind.split(" | "))


def described(kind: str) -> str:
    """A kind as a message says it."""
    alternatives = kind.split(" | ")
    return " or ".join(f"a {each}" if each.startswith(("number", "whole number")) else each for each in alternatives)


def complaint(name: str, value: Any, kind: str) -> str:
    """The message about a value that is not of its kind."""
    return f"{name} is {value!r}, expected {described(kind)}."


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


def schema_of(kind: str) -> dict[str, Any]:
    """The JSON schema of an interval, such as ``number in (0, 1]``."""
    parts = _NUMBER.fullmatch(kind)
    assert parts, kind
    whole, opening, low, high, closing = parts.groups()
    return {
        "type": "integer" if whole else "number",
        "minimum" if opening == "[" else "exclusiveMinimum": float(low),
        "maximum" if closing == "]" else "exclusiveMaximum": float(high),
    }
