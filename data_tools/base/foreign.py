"""What other programs left where ours read and write: recognized, never changed, never replaced.

The forms are those of the Accelerate scripts for the same experiment and of Hugging Face's Trainer. What can be used of
them comes into our layout with ``data_tools.adopt``.
"""

import json
from enum import StrEnum
from pathlib import Path
from typing import Any

from data_tools.base.errors import UserError

WEIGHT_FILES = ("model*.safetensors", "pytorch_model*.bin", "*model*.index.json")


class Form(StrEnum):
    """A form of directory that another program writes, in words."""

    SPLITS = "data splits of the Accelerate scripts"
    PACK = "packed blocks of the Accelerate scripts"
    ACCELERATE_CHECKPOINT = "a checkpoint of Accelerate's save_state"
    TRAINER_CHECKPOINT = "a checkpoint of the Hugging Face Trainer"


def form_of(directory: Path) -> Form | None:
    """The form of a directory, None if it is of no other program that is known."""
    meta = read_object(directory / "meta.json")
    if meta.keys() >= {"task", "splits"}:
        return Form.SPLITS
    if meta.keys() >= {"total_blocks", "num_shards", "block_len"}:
        return Form.PACK
    if any(any(directory.glob(pattern)) for pattern in WEIGHT_FILES):
        if (directory / "trainer_state.json").exists():
            return Form.TRAINER_CHECKPOINT
        if (directory / "train_state.json").exists() or any(directory.glob("random_states_*.pkl")):
            return Form.ACCELERATE_CHECKPOINT
    return None


def foreign_note(directory: Path) -> str | None:
    """What a directory of another program is and how to use it, as the end of a sentence about it; else None."""
    form = form_of(directory)
    if form is None:
        return None
    return f"it is {form}. To use it and leave it as it is: python -m data_tools.adopt {directory} --scratch_dir DIR"


def number_of(content: dict[str, Any], name: str, path: Path) -> int:
    """The whole number from 0 that a file of another program holds under a name; UserError for anything else."""
    value = content.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise UserError(f"{path}: expected a whole number as {name}, got {value!r:.80}.")
    return value


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one if there is none."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
