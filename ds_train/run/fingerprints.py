"""Fingerprints that a resumed checkpoint must match (each phase adds its own), and the versions that wrote it."""

import hashlib
import json
import platform
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

import ds_train
from data_tools.corpus.tokenizer import TextTokenizer
from ds_train.config.deepspeed_json import EngineConfig
from ds_train.config.schedule import Schedule


def common_fingerprints(
    engine: EngineConfig, model_config: PretrainedConfig, tokenizer: TextTokenizer, seq_len: int
) -> dict[str, str]:
    """Hyper-parameters, model and tokenizer as text, to be compared and shown."""
    model = json.dumps(model_config.to_diff_dict(), sort_keys=True, default=str)
    config = engine.effective
    return {
        "optimizer": _hyper_parameters(config["optimizer"]),
        "schedule": schedule_as_text(engine.schedule),
        "no_decay": " ".join(engine.no_decay) or "nothing",
        "gradient_clipping": str(float(config.get("gradient_clipping", 0.0))),
        "gradient_sums": config["communication_data_type"],
        "seq_len": str(seq_len),
        "tokenizer": tokenizer.fingerprint,
        **({"answer_spaces": "1"} if tokenizer.prepends_space else {}),
        "model": hashlib.sha256(model.encode()).hexdigest(),
    }


def schedule_as_text(schedule: Schedule) -> str:
    values = asdict(schedule)
    if not schedule.decay_steps:  # as it was before there were any
        del values["decay_steps"]
    return json.dumps(values, sort_keys=True)


def _hyper_parameters(optimizer: dict[str, Any]) -> str:
    """Type and parameters of the JSON's optimizer, without those that only select an implementation."""
    implementation = ("torch_adam", "fused", "foreach")
    params = {name: value for name, value in optimizer.get("params", {}).items() if name not in implementation}
    return json.dumps({"type": optimizer["type"], **params}, sort_keys=True)


def versions() -> dict[str, str]:
    """Versions of the packages that decide results."""
    import deepspeed
    import transformers

    packages = {"ds_train": ds_train, "torch": torch, "deepspeed": deepspeed, "transformers": transformers}
    return {"python": platform.python_version()} | {name: str(p.__version__) for name, p in packages.items()}


def git_state() -> str:
    """The commit of this program's repository, and whether files differ from it; empty outside a repository."""
    root = Path(ds_train.__file__).parents[1]
    if not (root / ".git").exists():
        return ""

    def git(*arguments: str) -> str:
        # Without optional locks: one that a kill leaves behind would stop the owner's next commit.
        command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + (" with uncommitted changes" if changed else "")
    except (OSError, subprocess.SubprocessError):  # no git here, or a repository owned by another user
        return ""
