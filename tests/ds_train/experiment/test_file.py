"""Experiment files: what is shipped, and which mistakes are named before anything is built."""

from pathlib import Path
from typing import Any

import pytest

from data_tools.base.errors import UserError
from ds_train.experiment import __main__
from ds_train.experiment.conditions import BUILT_IN
from ds_train.experiment.file import ExperimentFile
from ds_train.experiment.steps import Step
from tests.support.experiments import CONFIG, TRAINING, experiment, write

ALL = [*BUILT_IN]


def steps(config: Path, launcher: str = "start {}", conditions: list[str] | None = None) -> dict[str, Step]:
    """Steps by name."""
    return {step.name: step for step in experiment(config, Path("/scratch"), launcher, conditions).steps()}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"trainig": {}}, "'trainig' is no section; did you mean training?"),
        ({"pretrain": {"totl_steps": 1}}, "pretrain: 'totl_steps' is no flag; did you mean total_steps?"),
        ({"training": {"total_steps": 1}}, "training: 'total_steps' is no flag"),
        ({"pptrain": {"lr": "fast"}}, "config.yaml: pptrain: argument --lr: invalid float value: 'fast'"),
        ({"pretrain": {"branch_from": "x"}}, "pretrain: branch_from is set by the experiment itself"),
        ({"pretrain": {"run_name": "x"}}, "pretrain: run_name is set by the experiment itself"),
        ({"pretrain": {"seed": 2}}, "pretrain: seed is shared by all runs; give it under training"),
        ({"pretrain": {}}, "global_batch is missing"),
        ({"pretrain": CONFIG["pretrain"] | {"eval_every": 50}}, "eval_every 50 gives one evaluation in 50 steps"),
        ({"tokenizer": None}, "tokenizer is missing"),
        ({"tokenizer": {"vocab_size": 300}}, "tokenizer needs documents to be trained on"),
        ({"corpus": {}, "pack": {"source": "x"}}, "both choose the documents"),
        ({"splits": {"max_input_size": 24}}, "max_lookahead, seed missing"),
        ({"training": 3}, "training is 3, expected flags"),
        ({"evaluate": {"micro_batch": 0}}, "--micro_batch: expected a whole number"),
        ({"seeds": [1, 1]}, "seeds is [1, 1], expected different whole numbers"),
        ({"seeds": 3}, "seeds is 3, expected"),
        ({"seeds": [1], "training": TRAINING | {"seed": 2}}, "training: seed is given beside seeds"),
        ({"training": TRAINING | {"seed": "one"}}, "training: seed is 'one', expected a whole number"),
        ({"conditions": ["A", "E"]}, "there is no condition E; there are A, B, C, D, B+, N"),
        ({"conditions": ["A", "B", "A"]}, "conditions has A twice"),
        ({"conditions": {"E": None}}, "condition E: like is missing"),
        ({"tokenizer": "/no/tokenizer"}, "tokenizer is /no/tokenizer: no such file or directory"),
        ({"conditions": {"x": {"like": "Z"}}}, "there is no condition Z; there are A, B, C, D, B+, N"),
        ({"conditions": {"x": {"lik": "A"}}}, "condition x: 'lik' is nothing that a condition has; did you mean like?"),
        ({"conditions": {"data": {"like": "A"}}}, "condition 'data' has no name for its directory"),
        ({"conditions": {"a/b": {"like": "A"}}}, "condition 'a/b' has no name for its directory"),
        ({"conditions": {"x": {"like": "B", "pretrain": {"mixin_percent": 1}}}}, "mixin_percent is given, but B reads"),
        ({"conditions": {"x": {"like": "B", "pptrain": {"lr": 1}}}}, "pptrain is given, but B starts from random"),
        ({"conditions": {"x": {"like": "A", "pretrain": {"seed": 1}}}}, "condition x: pretrain: seed is shared"),
        ({"conditions": {"x": {"like": "A", "pretrain": {"lrr": 1}}}}, "condition x: pretrain: 'lrr' is no flag"),
        ({"conditions": 3}, "conditions are 3, expected names"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        steps(write(tmp_path, **changed))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"splits": CONFIG["splits"] | {"eval_sise": 9}},
            r"splits: unknown flag --eval_sise; did you mean --eval_size",
        ),
        ({"pack": {"val_blocks": 0}}, r"pack: val_blocks is 0, and conditions are compared by their loss"),
        ({"pack": {"val_blocks": -1}}, r"pack: .*--val_blocks: expected a whole number"),
        ({"corpus": {"documents": 0}}, r"corpus: .*--documents: expected a whole number"),
        (
            {"corpus": {}, "tokenizer": {"vocab_size": 9}},
            r"tokenizer: .*--vocab_size: expected a whole number in \[257",
        ),
        ({"training": TRAINING | {"lr": -1}}, r"--lr is -1"),
        ({"training": TRAINING | {"seq_len": 0}}, r"--seq_len is 0"),
        ({"training": TRAINING | {"micro_batch": 0}}, r"--micro_batch is 0"),
        (
            {"training": TRAINING | {"deepspeed_config": {"optimiser": {}}}},
            r"'optimiser' is not known; did you mean optimizer",
        ),
        ({"training": TRAINING | {"model_name": "pythia-15m"}}, r"pptrain: .*pythia-15m"),
        ({"pptrain": {"start_stage": 5}}, r"pptrain: --start_stage 5 is beyond the last stage 4"),
        (
            {"pptrain": {"answers": "shuffled", "global_batch": 9, "micro_batch": 3}},
            r"pptrain: --answers shuffled: .*9",
        ),
        ({"pptrain": {"max_lookahead": 5}}, r"pptrain: --max_lookahead 5 contradicts"),
        ({"pretrain": CONFIG["pretrain"] | {"mixin_end": None}}, r"pretrain: .*linear needs --mixin_end"),
        ({"pretrain": CONFIG["pretrain"] | {"transfer": ["blocks"]}}, r"pretrain: .*need weights to start from"),
    ],
)
def test_a_dry_run_checks_what_every_command_will(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    """Among them what the trainers would only find after the documents are packed."""
    config = write(tmp_path, **({"training": TRAINING} | changed))
    for flags in (["--dry_run"], []):
        with pytest.raises(UserError, match=message):
            __main__.main([str(config), str(tmp_path / "scratch"), *flags])
    assert not (tmp_path / "scratch").exists()


def test_a_flag_is_varied_in_the_conditions_that_it_concerns(tmp_path: Path) -> None:
    config = write(tmp_path, vary={"lr": ["1e-4", 5e-4], "mixin_percent": [0.1, 0.2], "init": ["scratch"]},
                   pretrain={"global_batch": 8, "total_steps": 50, "eval_every": 10})  # fmt: skip
    found = {one.name: one for one in ExperimentFile(config, tmp_path).chosen(["A", "B"])}
    assert list(found) == [
        "A/lr=1e-4,mixin_percent=0.1", "A/lr=1e-4,mixin_percent=0.2",
        "A/lr=0.0005,mixin_percent=0.1", "A/lr=0.0005,mixin_percent=0.2",
        "B/init=scratch,lr=1e-4", "B/init=scratch,lr=0.0005",
    ]  # fmt: skip
    one = found["A/lr=0.0005,mixin_percent=0.2"]
    assert (
        one.flags["pretrain"] == {"lr": 5e-4, "mixin_percent": 0.2} and one.origin == "A" and one.pptrain == "pptrain"
    )
    assert one.title == "A pre-pretrained, C4 + mix, lr=0.0005, mixin_percent=0.2"


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        ([1], r"vary is \[1\], expected flags of pretrain"),
        ({"lr": 1e-3}, "vary: lr is 0.001, expected a list of different values"),
        ({"lr": []}, "expected a list of different values"),
        ({"deepspeed_config": ["a/b", "a_b"]}, "expected a list of different values"),
        ({"seed": [1, 2]}, "vary: seed is shared by all runs"),
        ({"pack_dir": ["x"]}, "vary: pack_dir is set by the experiment itself"),
        ({"total_steps": [10, 20]}, "pretrain: total_steps is given, and vary has it too"),
    ],
)
def test_what_cannot_be_varied(vary: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        ExperimentFile(write(tmp_path, vary=vary), tmp_path)


def test_a_condition_cannot_have_its_own_value_of_what_is_varied(tmp_path: Path) -> None:
    config = write(tmp_path, vary={"lr": [1, 2]}, conditions={"B": {"pretrain": {"lr": 3}}})
    with pytest.raises(UserError, match="condition B: pretrain: lr is given, and vary has it too"):
        ExperimentFile(config, tmp_path).chosen()
