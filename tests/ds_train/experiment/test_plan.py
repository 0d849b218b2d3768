"""The experiment as steps: that its conditions differ in what is compared and nothing else, and what is refused."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_tools import build_data_splits, build_pretrain
from data_tools.base.errors import UserError
from data_tools.runs.intervals import wilson_interval
from ds_train import evaluate
from ds_train.checkpoints.state import TrainState
from ds_train.config.flags import parse_flags
from ds_train.config.trainer_flags import GROUPS
from ds_train.experiment import __main__
from ds_train.experiment.conditions import CONDITIONS, PPTRAIN, evaluation_file, result_table
from ds_train.experiment.plan import Experiment
from ds_train.experiment.steps import Step
from tests.support.launching import REPOSITORY

SHIPPED = sorted((REPOSITORY / "ds_configs" / "experiments").glob("*.yaml"))
A, B, C = (condition.run for condition in CONDITIONS)
CONFIG = {
    "splits": {"max_input_size": 24, "max_lookahead": 4, "seed": 1},
    "tokenizer": "some/tokenizer",
    "training": {"model_name": "pythia-14m", "seq_len": 128, "lr": 1e-3, "deepspeed_config": {"train_batch_size": 8}},
    "pptrain": {"max_steps": 100},
    "pretrain": {
        "global_batch": 8, "total_steps": 50, "mixin_percent": 0.3, "mixin_schedule": "linear", "mixin_end": 0.1,
    },
}  # fmt: skip

TRAINING = {"model_name": "pythia-14m", "seq_len": 128, "lr": 1e-3}  # with the shipped JSON


def write(directory: Path, **changed: Any) -> Path:
    """CONFIG with some sections replaced; None leaves one out."""
    path = directory / "config.yaml"
    sections = {name: value for name, value in {**CONFIG, **changed}.items() if value is not None}
    path.write_text(yaml.safe_dump(sections))
    return path


def steps(config: Path, launcher: str = "start {}") -> dict[str, Step]:
    """Steps by command and the name of what they leave."""
    planned = Experiment(config, Path("/scratch"), launcher.split()).steps()
    return {f"{step.cache_key.split()[0]} {step.product.stem}": step for step in planned}


def flags(step: Step) -> dict[str, Any]:
    """All flags that a trainer's step gives it, and the defaults of the others."""
    phase = step.command[1]
    parsed, _ = parse_flags(*GROUPS[phase], description="", argv=list(step.command[2:]))
    return {item.name: getattr(group, item.name) for group in parsed for item in fields(group)}


def differing(one: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {name: (one[name], other[name]) for name in one if one[name] != other[name]}


def test_conditions_differ_in_what_is_compared_only(tmp_path: Path) -> None:
    found = steps(write(tmp_path))
    a, b, c = (flags(found[f"pretrain {run}"]) for run in (A, B, C))
    assert differing(a, c) == {
        "run_name": (A, C), "pptrain_checkpoint": (f"/scratch/{PPTRAIN}", "none"), "model_name": (None, "pythia-14m"),
    }  # fmt: skip
    assert differing(b, c) == {
        "run_name": (B, C), "mixin_percent": (0.0, 0.3), "mixin_schedule": ("constant", "linear"),
        "mixin_end": (None, 0.1),
    }  # fmt: skip
    assert (c["lr"], c["total_steps"], json.loads(c["deepspeed_config"])) == (1e-3, 50, {"train_batch_size": 8})


def test_pptrain_is_what_a_starts_from(tmp_path: Path) -> None:
    found = steps(write(tmp_path))
    pptrain, c = flags(found["pptrain pptrain"]), flags(found[f"pretrain {C}"])
    assert pptrain["max_steps"] == 100
    assert set(differing({name: pptrain[name] for name in pptrain if name in c}, c)) == {
        "run_name", "global_batch", "eval_every",
    }  # fmt: skip


def test_order_and_records(tmp_path: Path) -> None:
    config = write(tmp_path, evaluate={"micro_batch": 3})
    one, other = (steps(config, launcher) for launcher in ("start {}", "srun -n 2 python ds_train/{}.py"))
    assert list(one) == [
        "build_data_splits mis24_look4_seed1", "build_pretrain c4_packed", "pptrain pptrain",
        *(f"pretrain {run}" for run in (A, B, C)), *(f"evaluate {run}" for run in (PPTRAIN, A, B, C)),
        "plot_run report",
    ]  # fmt: skip
    assert [step.cache_key for step in one.values()] == [step.cache_key for step in other.values()]
    assert one[f"evaluate {A}"].command[:2] == ["start", "evaluate"]
    assert "--micro_batch=3" in one[f"evaluate {A}"].command
    assert other[f"pretrain {A}"].command[:5] == ["srun", "-n", "2", "python", "ds_train/pretrain.py"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs(path: Path) -> None:
    """Each command takes the flags that it is given; the pack holds what B reads."""
    found = steps(path)
    parsers = {
        "build_data_splits": build_data_splits.parse, "build_pretrain": build_pretrain.parse,
        "evaluate": evaluate.parse,
    }  # fmt: skip
    parsed = {}
    for name, step in found.items():
        command = name.split()[0]
        if command in parsers:
            parsed[command] = parsers[command](list(step.command[2 if command == "evaluate" else 3 :]))
    c = flags(found[f"pretrain {C}"])
    pack = parsed["build_pretrain"]
    assert set(parsed) == set(parsers) and flags(found["pptrain pptrain"])["seed"] == c["seed"] == 1337
    assert pack.num_blocks == c["total_steps"] * c["global_batch"]
    assert (pack.seq_len, pack.tokenizer) == (c["seq_len"], c["tokenizer"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"trainig": {}}, "'trainig' is no section; did you mean training?"),
        ({"pretrain": {"totl_steps": 1}}, "pretrain: 'totl_steps' is no flag; did you mean total_steps?"),
        ({"training": {"total_steps": 1}}, "training: 'total_steps' is no flag"),
        ({"pptrain": {"lr": "fast"}}, "config.yaml: pptrain: argument --lr: invalid float value: 'fast'"),
        ({"pretrain": {"run_name": "x"}}, "pretrain: run_name is set by the experiment itself"),
        ({"pretrain": {}}, "global_batch is missing"),
        ({"tokenizer": None}, "tokenizer is missing"),
        ({"tokenizer": {"vocab_size": 300}}, "tokenizer needs documents to be trained on"),
        ({"corpus": {}, "pack": {"source": "x"}}, "both choose the documents"),
        ({"splits": {"max_input_size": 24}}, "max_lookahead, seed missing"),
        ({"training": 3}, "training is 3, expected flags"),
        ({"evaluate": {"micro_batch": 0}}, "--micro_batch: expected a whole number"),
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
        ({"pack": {"val_blocks": -1}}, r"pack: .*--val_blocks: expected a whole number"),
        ({"corpus": {"documents": 0}}, r"corpus: .*--documents: expected a whole number"),
        (
            {"corpus": {}, "tokenizer": {"vocab_size": 9}},
            r"tokenizer: .*--vocab_size: expected a whole number in \[257",
        ),
        ({"training": TRAINING | {"lr": -1}}, r"--lr is -1"),
        ({"training": TRAINING | {"seq_len": 0}}, r"--seq_len is 0"),
        ({"training": TRAINING | {"micro_batch": 3}}, r"pptrain: global batch 32 is not"),
        (
            {"training": TRAINING | {"deepspeed_config": {"optimiser": {}}}},
            r"'optimiser' is not known; did you mean optimizer",
        ),
        ({"training": TRAINING | {"model_name": "pythia-15m"}}, r"pptrain: .*pythia-15m"),
        ({"pptrain": {"start_stage": 5}}, r"pptrain: --start_stage 5 is beyond the last stage 4"),
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


def test_a_dry_run_shows_all_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main([str(write(tmp_path, training=TRAINING)), str(tmp_path / "scratch"), "--dry_run"]) == 0
    assert capsys.readouterr().out.count("\n# ") == 11
    assert not (tmp_path / "scratch").exists()


def test_a_launcher_without_a_place_for_the_phase(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--launcher 'deepspeed' has no \{\}"):
        __main__.main([str(write(tmp_path)), str(tmp_path / "scratch"), "--launcher", "deepspeed"])
    assert not (tmp_path / "scratch").exists()


def write_outcome(scratch: Path, run: str, states: dict[Path, TrainState], num_right: int, **values: Any) -> None:
    """An evaluation file, and what its checkpoint is to hold."""
    checkpoint = scratch / run / "checkpoints" / "step_00000050"
    state = {"seed": 1, "world_size": 1, "micro_batch": 1, "grad_accum": 1, "global_batch": 1, "zero_stage": 1}
    states[checkpoint] = TrainState(**state, precision="fp32", fingerprints={"max_stage": "64"}, **values)
    low, high = wilson_interval(num_right, 200)
    report = {"checkpoint": str(checkpoint), "num_examples": 200, "c4_loss": 4.25, "accuracy_any": num_right / 200}
    report |= {"accuracy_any_low": low, "accuracy_any_high": high}
    evaluation_file(scratch, run).parent.mkdir(exist_ok=True)
    evaluation_file(scratch, run).write_text(json.dumps(report))


def test_result_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states: dict[Path, TrainState] = {}
    write_outcome(tmp_path, PPTRAIN, states, 100, step=1200, tokens=5000, mixin_tokens=5000, stage=7)
    for number, run in enumerate((A, B, C)):
        write_outcome(tmp_path, run, states, 40 * number, step=50, tokens=1000, mixin_tokens=20 * number)
    monkeypatch.setattr("ds_train.checkpoints.save.read_state", states.__getitem__)
    lines = result_table(tmp_path).splitlines()
    assert [line.split()[0] for line in lines[1:5]] == ["A", "B", "C", "A"]
    assert lines[1].split("mix")[1].split() == "4.2500 0.0000 0.0000 … 0.0188 1,200 + 50 5,000 + 1,000 0.0%".split()
    assert lines[3].split("mix")[1].split() == "4.2500 0.4000 0.3346 … 0.4692 50 1,000 4.0%".split()
    assert lines[5].startswith("Test accuracy: any valid answer, 200 problems")
    assert lines[7] == "The pre-pretraining ended in stage 7 of 64."
