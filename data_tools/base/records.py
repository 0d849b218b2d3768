"""Dataclasses as JSON files hold them, read with their types and intervals checked."""

from functools import cache
from typing import Annotated, Any, TypeVar

from annotated_types import Interval

T = TypeVar("T")

# A Python number is of any size; one that is a count must not start a search or an allocation without an end.
Natural = Annotated[int, Interval(ge=0, le=10**15)]
Positive = Annotated[int, Interval(ge=1, le=10**15)]

_NUM_SHOWN = 3


def read_record(kind: type[T], content: bytes) -> T:
    """The dataclass that a JSON text describes; keys that it does not have are passed over.

    Raises:
        ValueError: it is not JSON, lacks a field without a default, or a value is of another type: text is no number.
    """
    return _checked(kind, "validate_json", content, strict=True)


def as_record(kind: type[T], value: dict[str, Any]) -> T:
    """The dataclass that a mapping of Python values describes, with the same checks."""
    return _checked(kind, "validate_python", value)


def _checked(kind: Any, method: str, value: Any, **options: bool) -> Any:
    from pydantic import ValidationError  # here: it takes a quarter of a second

    try:
        return getattr(_adapter(kind), method)(value, **options)
    except ValidationError as error:
        found = error.errors(include_url=False)
        raise ValueError("; ".join(map(_described, found[:_NUM_SHOWN]))) from None


@cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _described(error: Any) -> str:
    name = ".".join(map(str, error["loc"]))
    is_missing = error["type"] in ("missing", "json_invalid")
    message = f"{name}: {error['msg']}" if name else error["msg"]
    return message if is_missing else f"{message}, got {error['input']!r:.60}"
