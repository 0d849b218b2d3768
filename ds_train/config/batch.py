"""Batch sizes of the JSON and of flags: any two of three determine how a global batch is divided."""

from dataclasses import fields
from typing import Any

from data_tools.base.errors import UserError
from data_tools.base.kinds import complaint, is_of_kind
from ds_train.config.layout import Layout
from ds_train.config.trainer_flags import OverrideFlags

JSON_KEYS: dict[str, str] = {item.name: item.metadata["json_key"] for item in fields(OverrideFlags)}  # by flag
BATCH_KEYS = {name: JSON_KEYS[name] for name in ("global_batch", "micro_batch", "grad_accum")}
AUTO = "auto"  # of a key of the JSON: not given; of --micro_batch: by memory
_SIZE = "whole number in [1, 1e9]"


def resolve_layout(config: dict[str, Any], flags: OverrideFlags, world_size: int) -> Layout:
    """Compute the layout: any two of global batch, micro batch and accumulation fix the third; flags win over JSON.

    Raises:
        UserError: too few of them are known, they contradict one another, or a rank would have no sample.
    """
    given = {name: getattr(flags, name) for name in BATCH_KEYS if getattr(flags, name) is not None}
    in_json = {name: config[key] for name, key in BATCH_KEYS.items() if config.get(key, AUTO) != AUTO}
    if flags.micro_batch == AUTO:  # 1 until the model's memory is known
        if flags.grad_accum is not None:
            raise UserError(
                f"--grad_accum {flags.grad_accum} and --micro_batch {AUTO} both decide how many forwards a step takes; "
                "leave one of them out."
            )
        given["micro_batch"] = 1
        in_json.pop("grad_accum", None)
    for name, value in {**in_json, **given}.items():
        if not isinstance(value, int) or not is_of_kind(value, _SIZE):
            raise UserError(complaint(BATCH_KEYS[name], value, _SIZE))
    values = dict(given) if given else dict(in_json)
    for name, value in in_json.items():
        if len(values) < 2:
            values.setdefault(name, value)
    if len(values) < 2:
        raise UserError(
            f"the batch is not determined: known are {given | in_json or 'none'}; give two of --global_batch, "
            "--micro_batch, --grad_accum, or train_batch_size and train_micro_batch_size_per_gpu in the JSON."
        )
    # What is missing follows from the others. A global batch need not be a multiple of anything.
    micro_batch, grad_accum = values.get("micro_batch", 0), values.get("grad_accum", 0)
    total = values.get("global_batch", world_size * micro_batch * grad_accum)
    layout = Layout(world_size, micro_batch or -(-total // (world_size * grad_accum)), total)
    if total < world_size:
        raise UserError(
            f"global batch {total} leaves some of {world_size} ranks without a sample; use fewer ranks, or "
            f"--global_batch {world_size} or more."
        )
    if len(values) == 3 and layout.grad_accum != grad_accum:
        raise UserError(
            f"global batch {total} on {world_size} ranks with micro_batch {micro_batch} takes {layout.grad_accum} "
            f"forwards of full samples, but grad_accum is {grad_accum}; leave one of the three out."
        )
    return layout
