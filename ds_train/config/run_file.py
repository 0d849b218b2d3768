"""YAML run files: flags of a phase and its DeepSpeed JSON in one file. Each run writes the one that repeats it."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from data_tools.base.command_line import did_you_mean
from data_tools.base.errors import Problems, UserError
from data_tools.base.files import text_of
from ds_train.config.json_keys import KNOWN_KEYS

RUN_FILE = "run.yaml"  # in the run directory
_DEEPSPEED_CONFIG = "deepspeed_config"


class _Int(int):
    """A number whose text is as written in the file: a flag may take it as text, such as the name 007."""

    written: str

    def __str__(self) -> str:
        return self.written


class _Float(float):
    """See `_Int`."""

    written: str

    def __str__(self) -> str:
        return self.written


def _number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> _Int | _Float:
    number = (_Int if node.tag.endswith(":int") else _Float)(node.value)
    number.written = node.value
    return number


class _Loader(yaml.SafeLoader):
    """Reads YAML 1.2's scalars, which include JSON's: ``no`` is text, ``1e-4`` a number.

    Refuses repeated keys, tags, and aliases of lists and mappings, which may contain themselves.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        line = event.start_mark.line + 1
        if getattr(event, "tag", None):
            raise UserError(f"line {line} has the tag {event.tag}; write the value without it.")
        if isinstance(event, yaml.AliasEvent) and isinstance(self.anchors.get(event.anchor), yaml.CollectionNode):
            raise UserError(f"line {line}: *{event.anchor} stands for several values; write them out.")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            name, line = str(self.construct_object(key)), key.start_mark.line + 1
            if name in lines:
                raise UserError(f"{name} is given twice, in lines {lines[name]} and {line}; keep one.")
            lines[name] = line
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {}  # without YAML 1.1's
for _kind, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_pattern})$"), list(_first))
    if _kind in ("int", "float"):
        _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _number)


def arguments_of(path: Path, known: Mapping[str, bool]) -> list[str]:
    """Read a run file as command-line arguments.

    Args:
        known: names of all flags, without dashes, and whether they take several values.

    Raises:
        UserError: the file cannot be read, is not a mapping, or names something that is not a flag.
    """
    where = f"--config {path}"
    flags = {name: takes_several for name, takes_several in known.items() if name not in ("config", "debug")}
    return flags_of(read_mapping(path, where), where, flags)


def read_mapping(path: Path, where: str) -> dict[str, Any]:
    """The content of a YAML file that holds names and values.

    Args:
        where: the file as messages name it.
    """
    text = text_of(path, where)
    try:
        content = yaml.load(text, _Loader)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(f"{where} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{where} holds no flags; expected lines such as 'lr: 3e-4'.")
    return {str(name): value for name, value in content.items()}


def flags_of(values: dict[str, Any], where: str, known: Mapping[str, bool] | None = None) -> list[str]:
    """Names and values as command-line arguments.

    Args:
        where: the origin, for messages.
        known: names of all flags, without dashes, and whether they take several values. None: the command that gets
            them checks the names, and takes true as a flag without a value.

    Raises:
        UserError: names that are not flags (all in one message), or a value that no flag can have.
    """
    if known is not None:
        problems = Problems()
        for name, value in values.items():
            if name not in known:
                hint = f"; DeepSpeed's settings go under {_DEEPSPEED_CONFIG}." if name in KNOWN_KEYS else "."
                problems.add(f"{where}: {name!r} is no flag{did_you_mean(name.lstrip('-'), known, hint)}")
            elif isinstance(value, list) and not known[name]:
                problems.add(f"{where}: {name} is a list, expected one value.")
        problems.raise_if_any()
    return [argument for name, value in values.items() for argument in _arguments(where, name, value, known is None)]


def _arguments(where: str, name: str, value: Any, has_switches: bool) -> Iterator[str]:
    if value is None or value == []:
        return
    if has_switches and isinstance(value, bool):
        yield from [f"--{name}"] if value else []
        return
    if isinstance(value, list):
        yield from (f"--{name}", *map(str, value))
    elif isinstance(value, dict):
        if name != _DEEPSPEED_CONFIG:
            raise UserError(f"{where}: {name} is a mapping, expected one value; only {_DEEPSPEED_CONFIG} nests.")
        yield f"--{name}={json.dumps(value)}"
    else:
        yield f"--{name}={value}"


def as_run_file(
    all_flags: Sequence[Any],
    deepspeed: dict[str, Any],
    sources: dict[str, str],
    *,
    remarks: Sequence[str],
    json_path: str = "",
) -> str:
    """Flags and DeepSpeed JSON as a run file, with the origin of each as a comment.

    Args:
        all_flags: the parsed dataclasses.
        deepspeed: the given JSON, before flags changed it.
        sources: origins of the flags that were given.
        remarks: comment lines for the head of the file.
        json_path: the file that the JSON is from.
    """
    lines = [f"# {remark}" for remark in remarks]
    for group in all_flags:
        lines.append(f"\n# {type(group)._argument_group_name}")
        for item in fields(group):
            if item.metadata["role"] != "launch" and item.name != _DEEPSPEED_CONFIG:
                value = getattr(group, item.name)
                text = "" if value is None else f" {_in_yaml(value)}"
                lines.append(f"{item.name}:{text}  # {sources.get(item.name, 'default')}")
    origin = [sources.get(_DEEPSPEED_CONFIG, "default"), json_path]
    lines.append(f"\n# {': '.join(filter(None, origin))}; flags above win")
    lines.append(_in_yaml({_DEEPSPEED_CONFIG: deepspeed}))
    return "\n".join(lines) + "\n"


def _in_yaml(value: Any) -> str:
    text = yaml.safe_dump(
        value, sort_keys=False, allow_unicode=True, default_flow_style=isinstance(value, list) or None
    )
    return text.removesuffix("\n").removesuffix("\n...")
