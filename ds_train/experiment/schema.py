"""JSON schemas for editors: of run files, and of the CONFIG of an experiment."""

from collections.abc import Collection
from typing import Literal

from data_tools import build_data_splits, build_pretrain, fetch_assets, train_tokenizer
from data_tools.base.completion import parser_of
from ds_train import evaluate
from ds_train.config.schema import DIALECT, Schema, flags_of_parser, flags_of_phase, mapping_of, run_file_schema
from ds_train.config.trainer_flags import GROUPS
from ds_train.experiment.conditions import CONDITION_KEYS
from ds_train.experiment.file import SET_HERE


def schema_of(what: Literal["run", "experiment"]) -> Schema:
    return run_file_schema() if what == "run" else experiment_schema()


def experiment_schema() -> Schema:
    """The schema of a CONFIG: its sections, each with the flags of the commands that it is for."""
    both = set.intersection(*({*flags_of_phase(phase)} for phase in GROUPS))
    training = {name: value for name, value in flags_of_phase("pretrain", SET_HERE).items() if name in both}
    own = {phase: _or_empty(flags_of_phase(phase, {*SET_HERE, "seed"})) for phase in GROUPS}
    sections = {
        "splits": _or_empty(flags_of_parser(parser_of(build_data_splits.main), SET_HERE)),
        "corpus": _or_empty(flags_of_parser(parser_of(lambda _: fetch_assets.main(["corpus", "--help"])), SET_HERE)),
        "tokenizer": {
            "anyOf": [
                {"type": "string"},
                _or_empty(flags_of_parser(parser_of(train_tokenizer.main), SET_HERE)),
            ]
        },
        "pack": _or_empty(flags_of_parser(parser_of(build_pretrain.main), SET_HERE)),
        "training": _or_empty(training),
        **own,
        "evaluate": _or_empty(flags_of_parser(parser_of(evaluate.main), SET_HERE)),
        "vary": {**mapping_of(_varied()), "type": ["object", "null"]},
        "conditions": {
            "anyOf": [_names(), {"type": "object", "additionalProperties": _condition(), "minProperties": 1}]
        },
        "seeds": {"type": ["array", "null"], "items": {"type": "integer"}, "minItems": 1, "uniqueItems": True},
    }
    title = {"$schema": DIALECT, "title": "experiment of ds-train (CONFIG of ds_train.experiment)"}
    return title | mapping_of(sections, ["tokenizer"])


def _or_empty(flags: dict[str, Schema]) -> Schema:
    return {**mapping_of(flags), "type": ["object", "null"]}


def _names() -> Schema:
    return {"type": ["array", "null"], "items": {"type": ["string", "number"]}, "minItems": 1}


def _condition() -> Schema:
    """What differs in a condition."""
    text: Schema = {"type": ["string", "number"]}
    keys = {key: _or_empty(flags_of_phase(key, _shared())) if key in GROUPS else text for key in CONDITION_KEYS}
    return {**mapping_of(keys), "type": ["object", "null"]}


def _varied() -> dict[str, Schema]:
    """Flags of pretrain, each with a list of values."""
    flags = flags_of_phase("pretrain", _shared())
    return {
        name: {"type": "array", "items": value, "minItems": 1, "uniqueItems": True} for name, value in flags.items()
    }


def _shared() -> Collection[str]:
    """Flags that no condition may change."""
    return {*SET_HERE, "seed", "seq_len"}
