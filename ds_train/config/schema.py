"""JSON schemas of files that hold flags: editors complete and check them while they are written."""

import argparse
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from data_tools.base.command_line import of_kind
from data_tools.base.kinds import schema_of
from ds_train.config.json_keys import KNOWN_KEYS
from ds_train.config.trainer_flags import GROUPS

Schema = dict[str, Any]
DIALECT = "https://json-schema.org/draft/2020-12/schema"
_TEXT: Schema = {"type": ["string", "number", "boolean"]}  # a name such as 007 is text as it is written
_DEEPSPEED = {"type": ["string", "object", "null"], "propertyNames": {"enum": sorted(KNOWN_KEYS)}}


def run_file_schema() -> Schema:
    """The schema of a run file: the flags of one of the trainers, each with its help text."""
    phases = [{"title": phase, **mapping_of(flags_of_phase(phase))} for phase in GROUPS]
    return {"$schema": DIALECT, "title": "run file of ds-train (--config)", "anyOf": phases}


def mapping_of(properties: Mapping[str, Schema], required: Iterable[str] = ()) -> Schema:
    """A mapping with these names and no others."""
    schema = {"type": "object", "additionalProperties": False, "properties": dict(properties)}
    return schema | ({"required": [*required]} if required else {})


def flags_of_phase(phase: str, without: Collection[str] = ("config", "debug")) -> dict[str, Schema]:
    """The flags of a trainer by name. A value that is left empty is the default."""
    found = {}
    for group in GROUPS[phase]:
        hints = get_type_hints(group)
        for item in fields(group):
            if item.name not in without:
                value = (
                    _DEEPSPEED
                    if item.name == "deepspeed_config"
                    else _of_type(hints[item.name], item.metadata["within"])
                )
                found[item.name] = value | {"description": item.metadata["help"].replace("%%", "%")}
    return found


def flags_of_parser(parser: argparse.ArgumentParser, without: Collection[str] = ()) -> dict[str, Schema]:
    """The flags of a command that take values, by name. Switches are for command lines only."""
    found = {}
    for action in parser._actions:
        name = next((name.removeprefix("--") for name in action.option_strings if name.startswith("--")), "")
        if name and name not in without and action.nargs != 0 and action.help != argparse.SUPPRESS:
            found[name] = _one_or_many(_of_action(action), action.nargs in ("+", "*")) | {
                "description": (action.help or "") % {"default": action.default}
            }
    return found


def _of_action(action: argparse.Action) -> Schema:
    if action.choices:
        return {"enum": [*action.choices]}
    if isinstance(action.type, of_kind):
        return schema_of(action.type.kind)
    return {"type": "number"} if action.type in (int, float) else _TEXT


def _of_type(hint: Any, within: str | None) -> Schema:
    """The schema of a field's type and interval, or of nothing."""
    is_union = get_origin(hint) not in (None, list, Literal)
    kinds = [kind for kind in (get_args(hint) if is_union else [hint]) if kind is not NoneType]
    is_list = get_origin(kinds[0]) is list
    one, *words = (_of_plain_type(get_args(kind)[0] if is_list else kind, within) for kind in kinds)
    return _one_or_many({"anyOf": [one, *words]} if words else one, is_list)


def _of_plain_type(kind: Any, within: str | None) -> Schema:
    if get_origin(kind) is Literal:
        return {"enum": [*get_args(kind)]}
    if kind is bool:
        return {"type": "boolean"}
    if kind is str:
        return _TEXT
    return schema_of(f"{'whole ' if kind is int else ''}number in {within}")


def _one_or_many(one: Schema, is_list: bool) -> Schema:
    many = [{"type": "array", "items": one}] if is_list else []
    return {"anyOf": [one, *many, {"type": "null"}]}
