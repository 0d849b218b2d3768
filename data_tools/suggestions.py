"""What a person may have meant by a name that is not known."""

import difflib
from collections.abc import Collection

# What other trainers call our flags and keys.
_OTHER_NAMES = {
    "learning_rate": "lr",
    "num_warmup_steps": "warmup_steps",
    "max_grad_norm": "grad_clip",
    "gradient_accumulation_steps": "grad_accum",
    "per_device_train_batch_size": "micro_batch",
    "batch_size": "global_batch",
    "train_batch_size": "global_batch",
    "max_length": "seq_len",
    "block_size": "seq_len",
    "output_dir": "scratch_dir",
    "save_steps": "save_every",
    "logging_steps": "log_every",
    "dataloader_num_workers": "num_workers",
    "resume_from_checkpoint": "resume",
    "model_name_or_path": "model_name",
}


def did_you_mean(name: str, known: Collection[str], otherwise: str = ".", cutoff: float = 0.6) -> str:
    """How a sentence about an unknown name ends: with the name that may have been meant, else with ``otherwise``.

    Args:
        known: names, with leading dashes if ``name`` has them.
        cutoff: how alike names must be, from 0 (anything) to 1 (equal).
    """
    dashes = name[: len(name) - len(name.lstrip("-"))]
    others = {dashes + other: dashes + ours for other, ours in _OTHER_NAMES.items() if dashes + ours in known}
    names = others | {ours: ours for ours in known}
    near = difflib.get_close_matches(name, names, n=1, cutoff=cutoff)
    return f"; did you mean {names[near[0]]}?" if near else otherwise
