"""A validator for the words of JSON schema that the product's schemas use; an unknown word is an error."""

from typing import Any

_TYPES: dict[str, Any] = {
    "object": dict, "array": list, "string": str, "boolean": bool, "null": type(None), "number": (int, float),
    "integer": int,
}  # fmt: skip
_NOTES = {"$schema", "title", "description"}


def faults(value: Any, schema: dict[str, Any], place: str = "") -> list[str]:
    """What of a value does not fit, as texts that begin with its place; none if it is valid."""
    found: list[str] = []
    for word, given in schema.items():
        if word not in _NOTES:
            found += _CHECKS[word](value, given, schema, place)
    return found


def _is_type(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    return isinstance(value, _TYPES[name]) or (name == "integer" and isinstance(value, float) and value.is_integer())


def _type(value: Any, given: Any, _: dict, place: str) -> list[str]:
    names = [given] if isinstance(given, str) else given
    return [] if any(_is_type(value, name) for name in names) else [f"{place}: {value!r} is none of {names}"]


def _properties(value: Any, given: dict, _: dict, place: str) -> list[str]:
    if not isinstance(value, dict):
        return []
    return [
        fault
        for name, inner in given.items()
        if name in value
        for fault in faults(value[name], inner, f"{place}/{name}")
    ]


def _additional(value: Any, given: Any, schema: dict, place: str) -> list[str]:
    if not isinstance(value, dict):
        return []
    more = [name for name in value if name not in schema.get("properties", {})]
    if given is False:
        return [f"{place}/{name} is unknown" for name in more]
    return [fault for name in more for fault in faults(value[name], given, f"{place}/{name}")]


def _any_of(value: Any, given: list[dict], _: dict, place: str) -> list[str]:
    """Nothing if an alternative fits, else what is wrong with each."""
    found = [faults(value, one, place) for one in given]
    return [] if [] in found else [fault for one in found for fault in one]


def _compared(is_right: Any) -> Any:
    def check(value: Any, given: Any, _: dict, place: str) -> list[str]:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return [] if not is_number or is_right(value, given) else [f"{place}: {value} is beyond {given}"]

    return check


def _of_list(check: Any) -> Any:
    return lambda value, given, _, place: check(value, given, place) if isinstance(value, list) else []


_CHECKS: dict[str, Any] = {
    "type": _type,
    "enum": lambda value, given, _, place: [] if value in given else [f"{place}: {value!r} is none of {given}"],
    "properties": _properties,
    "additionalProperties": _additional,
    "propertyNames": lambda value, given, _, place: [
        fault for name in (value if isinstance(value, dict) else ()) for fault in faults(name, given, f"{place}/{name}")
    ],
    "required": lambda value, given, _, place: [f"{place}/{name} is missing" for name in given if name not in value],
    "minProperties": lambda value, given, _, place: (
        [f"{place} is empty"] if isinstance(value, dict) and len(value) < given else []
    ),
    "anyOf": _any_of,
    "items": _of_list(lambda value, given, place: [fault for one in value for fault in faults(one, given, place)]),
    "minItems": _of_list(lambda value, given, place: [] if len(value) >= given else [f"{place} is empty"]),
    "uniqueItems": _of_list(lambda value, _, place: [] if len({*value}) == len(value) else [f"{place} repeats"]),
    "minimum": _compared(lambda value, given: value >= given),
    "exclusiveMinimum": _compared(lambda value, given: value > given),
    "maximum": _compared(lambda value, given: value <= given),
    "exclusiveMaximum": _compared(lambda value, given: value < given),
}
