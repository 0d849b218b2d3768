"""Bad values for every flag and every key of the DeepSpeed JSON: refused in one message that names them, or heeded."""

import copy
import inspect
import random
from collections.abc import Iterator
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from data_tools.base.errors import UserError
from data_tools.base.kinds import is_of_kind
from ds_train.config.flags import parse_flags
from ds_train.config.json_keys import ACCEPTED
from ds_train.config.run_file import read_mapping
from ds_train.config.trainer_flags import GROUPS
from tests.support.engine_configs import BASE, resolve

JUNK = (
    "x", "auto", "false", "", True, False, -1, 0, 1.5, 1e300, float("nan"), 10**400, None, [], [1], {}, {"a": 1},
)  # fmt: skip


def _keys() -> Iterator[tuple[str, ...]]:
    """Every key that is checked here, from the top of the JSON."""
    for block, keys in sorted(ACCEPTED.items()):
        yield from ((*block.split("."), key) if block else (key,) for key in sorted(keys))
    of_adam = [*inspect.signature(torch.optim.AdamW).parameters, "torch_adam", "adam_w_mode", "bias_correction"]
    yield from (("optimizer", "params", name) for name in of_adam)
    of_warmup = ("warmup_num_steps", "warmup_type", "warmup_min_lr", "warmup_max_lr")
    yield from (("scheduler", "params", name) for name in of_warmup)


def _changed(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    config = copy.deepcopy(BASE)
    block = config
    for parent in path[:-1]:
        block = block.setdefault(parent, {})
    block[path[-1]] = value
    return config


def test_every_key_of_the_json_takes_its_values_or_names_itself() -> None:
    cases = [(path, value) for path in _keys() for value in JUNK]
    refused = 0
    for path, value in random.Random(0).sample(cases, 600):
        try:
            resolve(_changed(path, value))
        except UserError as error:
            refused += 1
            assert any(part in str(error) for part in path), (path, value, str(error))
    assert refused > 400


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("bf16", "enabled"), "false"), (("bf16", "enabled"), "auto"), (("zero_optimization", "stage"), "auto"),
        (("zero_optimization", "reduce_bucket_size"), "auto"), (("optimizer", "params", "maximize"), True),
        (("optimizer", "params", "amsgrad"), "x"), (("scheduler", "params", "warmup_min_lr"), 1.0),
        (("zero_optimization", "offload_optimizer"), {"device": "nvme", "nvme_path": "/disk"}),
        (("zero_optimization", "elastic_checkpoint"), True), (("compile",), {"enabled": True}),
        (("activation_checkpointing",), {"partition_activations": True}), (("aio",), {"block": 1}),
        (("checkpoint",), {"load_universal": True}), (("flops_profiler",), {"enabled": "yes"}),
        (("gradient_predivide_factor",), 2.0), (("prescale_gradients",), True), (("steps_per_print",), "x"),
        (("wall_clock_breakdown",), 1), (("log_level",), "loud"), (("communication_data_type",), 7),
        (("bf16", "bf16_optimizer_states"), True), (("zero_optimization", "zero_quantized_gradients"), True),
        (("zero_allow_untested_optimizer",), "true"),
    ],
)  # fmt: skip
def test_no_value_silently_means_another_run(path: tuple[str, ...], value: Any) -> None:
    with pytest.raises(UserError, match=path[-1]):
        resolve(_changed(path, value))


@pytest.mark.parametrize("phase", GROUPS)
def test_numbers_outside_their_interval_are_refused_by_name(phase: str) -> None:
    names = [item.name for group in GROUPS[phase] for item in fields(group) if item.metadata["within"]]
    for name, value in product(names, ("-99999999999999999999", "99999999999999999999", "nan", "inf", "x")):
        with pytest.raises(UserError, match=rf"--{name}\b"):
            parse_flags(*GROUPS[phase], description="", argv=["--scratch_dir", "s", f"--{name}={value}"])


def test_every_number_has_an_interval() -> None:
    for groups in GROUPS.values():
        for item in (item for group in groups for item in fields(group)):
            is_number = "int" in str(item.type) or "float" in str(item.type)
            assert is_number == bool(item.metadata["within"]), item.name


@pytest.mark.parametrize("argument", ["--scratch_dir=", "--run_name="])
def test_an_empty_value_is_refused(argument: str) -> None:
    with pytest.raises(UserError, match="is empty; was a variable not set"):
        parse_flags(*GROUPS["pptrain"], description="", argv=["--scratch_dir", "s", argument])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: !!int abc", "line 1 has the tag"),
        ("lr: !!python/object/apply:os.system [ls]", "line 1 has the tag"),
        ("a: &a [*a]", r"\*a stands for several values"),
        ("a: &a [x, x]\nb: [*a, *a]", r"line 2: \*a stands for several values"),
        (f"seed: {'9' * 5000}", "4300 digits"),
        ("? [a, b]\n: 1", "unhashable key"),
        (f"a: {'[' * 20_000}", "not valid YAML"),
    ],
)
def test_run_files_that_stand_for_something_else(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_mapping(tmp_path / "run.yaml", "--config")


@pytest.mark.parametrize(
    ("value", "kind", "fits"),
    [
        (1, "number in (0, 1]", True), (0, "number in (0, 1]", False), (True, "number in (0, 1]", False),
        (1.5, "whole number in [1, 2]", False), (2.0, "whole number in [1, 2]", True), ("auto", "auto | text", True),
        (10**400, "number in [0, 1e9]", False), (float("inf"), "number", False), (None, "true or false", False),
    ],
)  # fmt: skip
def test_kinds(value: Any, kind: str, fits: bool) -> None:
    assert is_of_kind(value, kind) == fits
