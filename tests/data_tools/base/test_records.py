"""Dataclasses out of JSON: exact types, intervals, one message."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from data_tools.base.records import Natural, Positive, as_record, read_record


@dataclass(frozen=True)
class Item:
    size: Natural


@dataclass(frozen=True)
class Box:
    name: str
    count: Positive
    share: float
    items: dict[str, Item]
    notes: tuple[str, ...] = ()
    source: dict[str, Any] = field(default_factory=dict)


GOOD = b'{"name": "a", "count": 2, "share": 1, "items": {"x": {"size": 3}}, "notes": ["n"], "later": 1}'


def test_nested_dataclasses_and_defaults() -> None:
    assert read_record(Box, GOOD) == Box("a", 2, 1.0, {"x": Item(3)}, ("n",))
    assert as_record(Item, {"size": 3}) == Item(3)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"a"', "1", "^name: .*valid string, got 1$"),
        ('"count": 2', '"count": "2"', "^count: .*valid integer, got '2'$"),
        ('"count": 2', '"count": true', "^count: .*valid integer"),
        ('"count": 2', '"count": 0', "^count: .*greater than or equal to 1"),
        ('"count": 2', f'"count": 1{"0" * 16}', "^count: .*less than or equal to"),
        ('"count": 2, ', "", "^count: Field required"),
        ("3", "-3", r"^items\.x\.size: "),
        ('{"size": 3}', "[]", r"^items\.x: "),
        ('["n"]', '"n"', "^notes: "),
        ('"name"', '"nam"', "^name: Field required"),
        (GOOD.decode(), "[]", "^Input should be an object"),
        (GOOD.decode(), "[" * 100_000, "recursion limit"),
        (GOOD.decode(), "", "Invalid JSON"),
    ],
)
def test_other_types_are_named(old: str, new: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_record(Box, GOOD.decode().replace(old, new).encode())
