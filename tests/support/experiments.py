"""Experiments: a small CONFIG with changes, and the grid that it defines."""

from pathlib import Path
from typing import Any

import yaml

from ds_train.experiment.conditions import chosen
from ds_train.experiment.file import ExperimentFile
from ds_train.experiment.plan import Experiment
from ds_train.experiment.sizes import Spent
from ds_train.model.flops import TrainingFlops
from tests.support.paths import REPOSITORY

SHIPPED = sorted((REPOSITORY / "ds_configs" / "experiments").glob("*.yaml"))
CONFIG = {
    "splits": {"max_input_size": 24, "max_lookahead": 4, "seed": 1},
    "tokenizer": "some/tokenizer",
    "training": {"model_name": "pythia-14m", "seq_len": 128, "lr": 1e-3, "deepspeed_config": {"train_batch_size": 8}},
    "pptrain": {"max_steps": 100},
    "pretrain": {
        "global_batch": 8, "total_steps": 50, "mixin_percent": 0.3, "mixin_schedule": "linear", "mixin_end": 0.1,
        "eval_every": 10,
    },
}  # fmt: skip
TRAINING = {"model_name": "pythia-14m", "seq_len": 128, "lr": 1e-3}  # with the shipped JSON
# 1,000 steps of 16 examples of 32 tokens.
PPTRAINED = Spent(1000, 16 * 1000 * 32, 16 * 1000 * 32 * 1e-7, 16, TrainingFlops(10**8, 0))


def write(directory: Path, **changed: Any) -> Path:
    """CONFIG with some sections replaced; None leaves one out."""
    path = directory / "config.yaml"
    sections = {name: value for name, value in {**CONFIG, **changed}.items() if value is not None}
    path.write_text(yaml.safe_dump(sections))
    return path


def experiment(
    config: Path, scratch: Path, launcher: str = "start {}", conditions: list[str] | None = None
) -> Experiment:
    """The grid of a config, or these conditions of it."""
    file = ExperimentFile(config, scratch)
    return Experiment(file, scratch, launcher.split(), chosen(file.conditions, conditions), file.seeds)
