"""Experiments: a small CONFIG with changes, and the grid that it defines."""

from pathlib import Path
from typing import Any

import yaml

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
    return Experiment(file, scratch, launcher.split(), file.chosen(conditions), file.seeds)


def write_tiny_experiment(path: Path, scratch: Path, **changed: Any) -> Path:
    """A CONFIG of runs that train in seconds; of a tiny scratch directory it uses tokenizer, model and documents.

    Args:
        changed: sections, whose flags are added to those here.
    """
    sections: dict[str, Any] = {
        "splits": {
            "max_input_size": 48, "max_lookahead": 8, "seed": 12345, "workers": 1, "eval_size": 40, "test_size": 60,
            "mixin_size": 150,
        },
        "tokenizer": str(scratch / "tokenizer"),
        "pack": {"source": str(scratch / "documents.jsonl"), "val_blocks": 4, "workers": 1},
        "training": {
            "model_name": str(scratch / "model"), "seq_len": 256, "mixed_precision": "no", "lr": 5e-3,
            "warmup_steps": 4, "eval_subset_size": 8, "log_every": 1, "num_workers": 0,
        },
        "pptrain": {"max_steps": 60, "global_batch": 8, "micro_batch": 4},
        "pretrain": {
            "total_steps": 40, "global_batch": 4, "micro_batch": 2, "mixin_percent": 0.3, "eval_every": 10,
        },
    }  # fmt: skip
    for name, value in changed.items():
        sections[name] = {**sections.get(name, {}), **value} if isinstance(value, dict) else value
    path.write_text(yaml.safe_dump(sections))
    return path
