"""The settings of runs, read from their directories, and the differences between them."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from data_tools.base.errors import UserError
from data_tools.runs.logs import Row

DEFAULT_TOKENIZER = "EleutherAI/pythia-160m"  # that of all Pythia models
Settings = dict[str, str]
_DEEPSPEED = "deepspeed."
_COMMIT_DIGITS = 10  # enough to distinguish commits
# Keys of the DeepSpeed JSON that hold the value of a flag that is not given.
_FLAGS_IN_JSON = {
    "global_batch": "train_batch_size", "micro_batch": "train_micro_batch_size_per_gpu",
    "grad_accum": "gradient_accumulation_steps", "lr": "optimizer.params.lr",
    "warmup_steps": "scheduler.params.warmup_num_steps", "weight_decay": "optimizer.params.weight_decay",
    "grad_clip": "gradient_clipping", "zero_stage": "zero_optimization.stage",
    "min_lr_ratio": "scheduler.params.cos_min_ratio", "decay_steps": "scheduler.params.decay_num_steps",
}  # fmt: skip
_IGNORED = ("run_name", "deepspeed_config")  # the name heads the column; the JSON in effect is shown itself


def read_settings(directory: Path, launches: Sequence[Row]) -> Settings:
    """Read the flags of RUN/run.yaml, the DeepSpeed JSON in effect, and ranks and versions of the last launch.

    Raises:
        UserError: a file cannot be read or has another form.
    """
    flags, effective = load_settings(directory / "run.yaml"), load_settings(directory / "deepspeed.json")
    last = launches[-1] if launches else {}
    commit, *changes = last.get("git", "").split(" ", 1)
    git = " ".join([commit[:_COMMIT_DIGITS], *changes])
    ran_on = {"ranks": last.get("ranks"), "git": git or None, **last.get("versions", {})}
    in_json = dict(flat(effective))
    of_flags = {name: in_json.get(key) for name, key in _FLAGS_IN_JSON.items()} | last.get("defaults", {})
    return {
        **{
            name: _text(of_flags.get(name) if value is None else value)
            for name, value in flags.items()
            if name not in _IGNORED
        },
        **{_DEEPSPEED + name: _text(value) for name, value in in_json.items()},
        **{name: str(value) for name, value in ran_on.items() if value is not None},
    }


def tokenizer_of_runs(scratch_dir: Path | None) -> str | None:
    """The tokenizer of the runs below a scratch directory; None if none of them names one.

    Raises:
        UserError: they name several.
    """
    run_files = sorted(scratch_dir.glob("*/run.yaml")) if scratch_dir else []
    flags = {path.parent.name: load_settings(path) for path in run_files}
    given = {run: of_run.get("tokenizer") or of_run.get("model_name") for run, of_run in flags.items()}
    named = {run: str(name) for run, name in given.items() if name and not str(name).startswith("pythia-")}
    if len(set(named.values())) > 1:
        listed = ", ".join(f"{run} {name}" for run, name in named.items())
        raise UserError(f"the runs in {scratch_dir} have different tokenizers ({listed}); choose with --tokenizer.")
    return next(iter(named.values()), None)


def flags_of_run(directory: Path, phase: str | None) -> dict[str, str | list[str]]:
    """The flags of a run as text or texts, with the batch of its DeepSpeed JSON and its model's tokenizer.

    Args:
        phase: which phase the run must be of; None for either.

    Raises:
        UserError: this is no run, or one of the other phase.
    """
    flags = load_settings(directory / "run.yaml")
    if not flags:
        raise UserError(f"--run {directory} has no run.yaml; give the directory of a run.")
    found = "pretrain" if "total_steps" in flags else "pptrain"
    if phase not in (None, found):
        raise UserError(f"--run {directory} is a run of {found}; give one of {phase}.")
    flags["global_batch"] = load_settings(directory / "deepspeed.json").get("train_batch_size")
    if not flags.get("tokenizer") and (model := flags.get("model_name")):
        flags["tokenizer"] = f"EleutherAI/{model}" if str(model).startswith("pythia-") else model
    given = {name: value for name, value in flags.items() if value is not None}
    return {name: value if isinstance(value, list) else str(value) for name, value in given.items()}


def differing(runs: Sequence[Settings]) -> dict[str, list[str]]:
    """The settings in which runs differ: setting → its value in each run ("–" where it has none).

    A flag that the run's phase does not have is not a difference; an absent key of the DeepSpeed JSON is one.
    """
    names = dict.fromkeys(name for settings in runs for name in settings)
    values = {name: [settings.get(name, "–") for settings in runs] for name in names}
    return {
        name: of_runs
        for name, of_runs in values.items()
        if len({value for value, settings in zip(of_runs, runs, strict=True) if _knows(settings, name)}) > 1
    }


def _knows(settings: Settings, name: str) -> bool:
    return name in settings or (name.startswith(_DEEPSPEED) and any(key.startswith(_DEEPSPEED) for key in settings))


def load_settings(path: Path) -> dict[str, Any]:
    """A YAML or JSON file of settings; none where there is no file.

    Raises:
        UserError: it has another form.
    """
    if not path.exists():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no settings; expected names with values.")
    return content


def flat(mapping: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the names and values of nested mappings, names joined by dots."""
    for name, value in mapping.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{below}", deeper) for below, deeper in flat(value))
        else:
            yield name, value


def _text(value: Any) -> str:
    return "not given" if value is None else json.dumps(value) if isinstance(value, bool | list) else str(value)
