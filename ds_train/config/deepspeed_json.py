"""Reads the DeepSpeed JSON, applies flags, checks it, and resolves it into an engine configuration."""

import copy
import json
import logging
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from data_tools.base.errors import Problems, UserError
from data_tools.base.files import text_of
from data_tools.base.kinds import complaint, is_of_kind
from ds_train.config.batch import AUTO, BATCH_KEYS, JSON_KEYS, resolve_layout
from ds_train.config.json_checks import check_blocks, check_precision, drop_non_objects
from ds_train.config.json_keys import keys_without_effect
from ds_train.config.layout import Layout
from ds_train.config.schedule import Schedule, schedule_from_block
from ds_train.config.trainer_flags import OverrideFlags

logger = logging.getLogger(__name__)

_LEARNING_RATE = "number in (0, 1e9]"

_NOT_DEEPSPEEDS = ("scheduler", "activation_checkpointing")


@dataclass(frozen=True)
class EngineConfig:
    """The resolved JSON.

    Attributes:
        given: the JSON before overrides.
        effective: the whole JSON with overrides, as saved in the run directory.
        deepspeed: the JSON for DeepSpeed: ``effective`` without what is not left to it, the scheduler (`schedule`
            replaces it) and activation checkpointing (`recompute_every`).
        layout: samples of a rank, and what a forward holds.
        schedule: learning rate of every step.
        overrides: one line for the log for each change by a flag or a rule, and for each key without an effect.
        path: the file that the JSON was read from; empty for text.
        no_decay: kinds of parameters without weight decay.
        is_micro_batch_open: it is still to be chosen by the memory that the model takes; until then it is 1.
    """

    given: dict[str, Any]
    effective: dict[str, Any]
    deepspeed: dict[str, Any]
    layout: Layout
    schedule: Schedule
    overrides: list[str]
    path: str = field(default="", compare=False)
    no_decay: tuple[str, ...] = ()
    is_micro_batch_open: bool = False

    def with_micro_batch(self, size: int, reason: str) -> "EngineConfig":
        """The same with a micro batch that was chosen."""
        layout = replace(self.layout, micro_batch=size)
        return replace(
            self,
            effective={**self.effective, **_batch_sizes(layout)},
            layout=layout,
            overrides=[*self.overrides, f"--micro_batch {AUTO} becomes {size}: {reason}"],
            is_micro_batch_open=False,
        )

    def flag_values(self) -> dict[str, Any]:
        """What the flags that override the JSON amount to, without the accumulation, which follows from the others."""
        values: dict[str, Any] = {"mixed_precision": "no" if self.precision == "fp32" else self.precision}
        for name, json_key in JSON_KEYS.items():
            value: Any = self.effective
            for key in json_key.split(".") if json_key else ():
                value = value.get(key) if isinstance(value, dict) else None
            if isinstance(value, int | float):
                values.setdefault(name, value)
        return {name: value for name, value in values.items() if name != "grad_accum"}

    @property
    def zero(self) -> dict[str, Any]:
        """The ``zero_optimization`` block."""
        return self.deepspeed.get("zero_optimization", {})

    @property
    def recompute_every(self) -> int:
        """Activations of every N-th layer are computed again in the backward; 0: of none."""
        return self.effective.get("activation_checkpointing", {}).get("every", 0)

    @property
    def zero_stage(self) -> int:
        return self.zero.get("stage", 0)

    @property
    def precision(self) -> str:
        """Of weights and activations: bf16, fp16 or fp32."""
        return next((name for name in ("bf16", "fp16") if self.deepspeed.get(name, {}).get("enabled")), "fp32")

    @property
    def is_half(self) -> bool:
        """Whether weights are in bf16 or fp16."""
        return self.precision != "fp32"


def default_json(phase: str) -> Path:
    """The shipped DeepSpeed JSON of a phase."""
    return Path(str(files("ds_configs") / f"{phase}.json"))


def resolve_engine_config(
    source: str,
    flags: OverrideFlags,
    problems: Problems,
    *,
    world_size: int,
    total_steps: int | None,
    min_lr_ratio: float | None = None,
) -> EngineConfig | None:
    """Read the JSON, apply the flags and check everything. Problems are collected, not raised: then returns None.

    Args:
        source: the DeepSpeed JSON's path, or its text.
        flags: command-line overrides.
        world_size: ranks of this launch.
        total_steps: length of the run, for ``"total_num_steps": "auto"``.
        min_lr_ratio: the cosine's floor as a fraction of the base learning rate, if given as a flag.
    """
    # Read the JSON.
    before = len(problems)
    config = layout = schedule = None
    with problems.collect():
        config = _read_json(source)
    if config is None:
        return None
    given = copy.deepcopy(config)
    drop_non_objects(config, problems)

    # Apply the flags, then check the result.
    overrides = _apply_overrides(config, flags, min_lr_ratio, problems)
    check_blocks(config, problems)
    check_precision(config, overrides, problems)
    with problems.collect():
        layout = resolve_layout(config, flags, world_size)
    with problems.collect():
        base_lr = config.get("optimizer", {}).get("params", {}).get("lr")
        if not is_of_kind(base_lr, _LEARNING_RATE):
            raise UserError(complaint("optimizer.params.lr", base_lr, _LEARNING_RATE) + " Set it, or give --lr.")
        schedule = schedule_from_block(config.get("scheduler"), float(base_lr), total_steps)
        if total_steps is not None and 0 < total_steps < schedule.warmup_steps:
            logger.warning(
                "the run ends within its warm-up: %d of %d steps, up to a learning rate of %g instead of %g; "
                "--warmup_steps shortens it",
                total_steps, schedule.warmup_steps, schedule.lr(total_steps), schedule.base_lr,
            )  # fmt: skip
    if len(problems) > before or layout is None or schedule is None:
        return None

    # Write the resolved batch sizes back.
    is_open = flags.micro_batch == AUTO  # then nothing is said yet about what follows from it
    for name, (key, new) in zip(BATCH_KEYS, _batch_sizes(layout).items(), strict=True):
        old = config.get(key, AUTO)
        if old not in (AUTO, new) and not (is_open and name != "global_batch"):
            by_flag = getattr(flags, name) is not None
            overrides.append(f"--{name} {new} overrides {key} {old}" if by_flag else f"{key} {old} becomes {new}")
        config[key] = new
    overrides += [f"{key} has no effect at this ZeRO stage and precision" for key in keys_without_effect(config)]
    path = "" if source.lstrip().startswith("{") else source
    no_decay = tuple(sorted({*(flags.no_decay or ())}))
    return EngineConfig(given, config, _of_engine(config, layout), layout, schedule, overrides, path, no_decay, is_open)


def _batch_sizes(layout: Layout) -> dict[str, int]:
    """The JSON's keys of batch sizes."""
    return {key: getattr(layout, name) for name, key in BATCH_KEYS.items()}


def _of_engine(config: dict[str, Any], layout: Layout) -> dict[str, Any]:
    """What DeepSpeed gets: the JSON's keys without those that are ours, some of them with other values.

    Batch sizes are multiples of one another as it wants them; `train_step` decides about accumulation. Its throughput
    timer would wait for the GPU twice in each forward.
    """
    size = layout.samples_of_largest_rank
    sizes = layout.world_size * size, size, 1
    ours = {**dict(zip(BATCH_KEYS.values(), sizes, strict=True)), "timers": {"throughput": {"enabled": False}}}
    return {key: value for key, value in config.items() if key not in _NOT_DEEPSPEEDS} | ours


def _read_json(source: str) -> dict[str, Any]:
    name = "--deepspeed_config"
    if not source.lstrip().startswith("{"):  # which comes out of a run file
        name = f"{name} {source}"
        source = text_of(Path(source), name)
    try:
        config = json.loads(source, object_pairs_hook=_without_repeats)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} is not valid JSON: {error}.") from error
    if not isinstance(config, dict):
        raise UserError(f"{name} holds a {type(config).__name__}, expected an object of settings.")
    return config


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"the keys {repeated} occur twice in one object; keep one of each.")
    return dict(pairs)


def _apply_overrides(
    config: dict[str, Any], flags: OverrideFlags, min_lr_ratio: float | None, problems: Problems
) -> list[str]:
    """Write the given flags into the JSON; returns one line for each that changed something."""
    overrides: list[str] = []

    def put(flag: str, value: Any, json_key: str | None = None, given: str | None = None) -> None:
        if value is None:
            return
        json_key = json_key or JSON_KEYS[flag]
        *parents, key = json_key.split(".")
        block = config
        for parent in parents:
            block = block.setdefault(parent, {})
        old = block.get(key)
        if old != value and (old or value):  # an absent switch is off
            overrides.append(f"--{flag} {given or value} overrides {json_key} {old!r}")
        block[key] = value

    for name in ("lr", "weight_decay", "grad_clip", "zero_stage", "activation_checkpointing"):
        put(name, getattr(flags, name))
    if flags.wandb == "":
        problems.add("--wandb is empty; give the name of a project.")
    elif flags.wandb:
        config.setdefault("wandb", {})["enabled"] = True
        put("wandb", flags.wandb)
    if precision := flags.mixed_precision:
        for name in (name for name in ("bf16", "fp16") if name == precision or name in config):
            put("mixed_precision", precision == name, f"{name}.enabled", given=precision)
    # The scheduler's keys, if there is a scheduler.
    if "scheduler" in config:
        params = config["scheduler"].setdefault("params", {})
        put("warmup_steps", flags.warmup_steps)
        if flags.lr is not None and params.get("warmup_max_lr", "auto") != "auto":
            put("lr", flags.lr, "scheduler.params.warmup_max_lr")
    elif flags.warmup_steps is not None:
        problems.add("--warmup_steps was given but the JSON has no scheduler block; add one (WarmupLR).")
    kind = config.get("scheduler", {}).get("type")
    if flags.decay_steps is not None and kind in ("WarmupLR", "WarmupStableDecay"):
        put("decay_steps", "WarmupStableDecay", "scheduler.type", given=str(flags.decay_steps))
        put("decay_steps", flags.decay_steps)
    elif flags.decay_steps is not None:
        problems.add(
            f"--decay_steps ends the constant rate of WarmupLR, but scheduler.type is {kind!r}; leave it out, or "
            "give a --deepspeed_config with a constant rate, such as ds_configs/pptrain.json."
        )
    if kind == "WarmupCosineLR":
        put("min_lr_ratio", min_lr_ratio, "scheduler.params.cos_min_ratio")
    elif min_lr_ratio is not None:
        problems.add(f"--min_lr_ratio is the floor of WarmupCosineLR, but scheduler.type is {kind!r}; leave it out.")
    return overrides
