"""The schema of experiment files: the shipped ones are valid, and mistakes are found."""

from pathlib import Path
from typing import Any

import pytest

from data_tools.base.errors import UserError
from ds_train.config.run_file import read_mapping
from ds_train.experiment.file import ExperimentFile
from ds_train.experiment.schema import schema_of
from tests.support.json_schema import faults
from tests.support.paths import REPOSITORY

SHIPPED = sorted((REPOSITORY / "ds_configs" / "experiments").glob("*.yaml"))


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return schema_of("experiment")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_files_are_valid(path: Path, schema: dict[str, Any]) -> None:
    assert faults(read_mapping(path, path.name), schema) == []


def test_sections_take_the_flags_of_their_commands(schema: dict[str, Any]) -> None:
    sections = {name: {*section.get("properties", ())} for name, section in schema["properties"].items()}
    assert {"max_lookahead", "eval_size"} <= sections["splits"] and {"documents"} <= sections["corpus"]
    assert {"val_blocks", "source"} <= sections["pack"] and {"num_examples"} <= sections["evaluate"]
    assert {"model_name", "seq_len", "seed"} <= sections["training"] and "mixin_percent" not in sections["training"]
    assert "curr_window" in sections["pptrain"] and not {"seed", "run_name", "scratch_dir"} & sections["pptrain"]


@pytest.mark.parametrize(
    ("lines", "place"),
    [
        ("traning: {lr: 1}", "/traning is unknown"),
        ("splits: {max_lookahed: 8}", "/splits/max_lookahed is unknown"),
        ("splits: 3", "/splits"),
        ("pptrain: {seed: 3}", "/pptrain/seed is unknown"),
        ("training: {scratch_dir: x}", "/training/scratch_dir is unknown"),
        ("vary: {seed: [1, 2]}", "/vary/seed is unknown"),
        ("vary: {lr: 1.0e-4}", "/vary/lr"),
        ("vary: {lr: [1.0, 1.0]}", "/vary/lr repeats"),
        ("seeds: [1, 1]", "/seeds repeats"),
        ("seeds: []", "/seeds is empty"),
        ("conditions: {A: {liek: B}}", "/conditions/A/liek is unknown"),
        ("conditions: {A: {pretrain: {seq_len: 8}}}", "/conditions/A/pretrain/seq_len is unknown"),
    ],
)
def test_mistakes_that_the_experiment_refuses_are_found(
    lines: str, place: str, schema: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"tokenizer: hub/name\n{lines}\n")
    assert place in "\n".join(faults(read_mapping(path, "config"), schema))
    if "lookahed" not in lines:  # which its own command refuses
        with pytest.raises(UserError):
            ExperimentFile(path, tmp_path)


def test_what_is_varied_is_valid(schema: dict[str, Any]) -> None:
    assert faults({"tokenizer": "hub/name", "vary": {"lr": [1e-4, 5e-4], "deepspeed_config": ["a.json"]}}, schema) == []
    assert faults({"tokenizer": "hub/name", "vary": {"lr": ["high"]}}, schema)


def test_a_missing_tokenizer_is_found(schema: dict[str, Any]) -> None:
    assert faults({"seeds": [1]}, schema) == ["/tokenizer is missing"]
