"""Checks a DeepSpeed JSON: keys, kinds of values, and combinations that would fail or break a promise later.

DeepSpeed ignores unknown top-level keys, and reports other mistakes only while it builds the engine.
"""

import inspect
from collections.abc import Callable, Collection
from typing import Any

from data_tools.base.command_line import did_you_mean
from data_tools.base.errors import Problems, is_number

# Top-level keys that have an effect here.
KNOWN_KEYS = frozenset(
    """train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps optimizer scheduler
    gradient_clipping bf16 fp16 data_types zero_optimization zero_allow_untested_optimizer
    zero_force_ds_cpu_optimizer communication_data_type prescale_gradients gradient_predivide_factor
    activation_checkpointing aio checkpoint compile comms_logger flops_profiler tensorboard wandb csv_monitor
    comet steps_per_print wall_clock_breakdown memory_breakdown dump_state log_level""".split()
)
_OBJECTS = (
    ("optimizer",), ("optimizer", "params"), ("scheduler",), ("scheduler", "params"), ("bf16",), ("fp16",),
    ("data_types",), ("zero_optimization",), ("activation_checkpointing",), ("aio",), ("checkpoint",), ("compile",),
    ("comms_logger",), ("flops_profiler",), ("tensorboard",), ("wandb",), ("csv_monitor",), ("comet",),
)  # fmt: skip
_DTYPES = ("fp32", "bf16", "fp16")


def drop_non_objects(config: dict[str, Any], problems: Problems) -> None:
    """Report settings that should be JSON objects and are not, and remove them so that checking can continue."""
    for *parents, key in _OBJECTS:
        block = config
        for parent in parents:
            block = block.get(parent, {})
        if not isinstance(block.get(key, {}), dict):
            problems.add(f"{'.'.join([*parents, key])} is {block.pop(key)!r}, expected an object of settings.")


def check_blocks(config: dict[str, Any], problems: Problems) -> None:
    """Report keys that DeepSpeed does not know and values of the wrong kind."""
    _check_names("", config, KNOWN_KEYS, problems)
    for key, model in _block_models().items():
        if key in config:
            _check_block(key, config[key], model, problems)
    _check_optimizer(config.get("optimizer", {}), problems)
    for block, key in (("bf16", "check_grad_overflow"), ("zero_optimization", "compute_grad_norm")):
        if config.get(block, {}).get(key) is False:
            problems.add(f"{block}.{key} is false: a gradient that is not finite would be applied; leave it out.")
    clip = config.get("gradient_clipping", 0.0)
    if not is_number(clip) or clip < 0:
        problems.add(f"gradient_clipping is {clip!r}, expected a number of at least 0 (0: off).")


def check_precision(config: dict[str, Any], overrides: list[str], problems: Problems) -> None:
    """Report precisions that cannot work, and make gradients add up in fp32, which adds to ``overrides``."""
    data_types = config.get("data_types", {})
    _check_names(
        "data_types", data_types, ("grad_accum_dtype", "param_dtype", "buffer_dtype", "keep_in_fp32_modules"), problems
    )
    for key in ("param_dtype", "buffer_dtype"):
        if data_types.get(key) not in (None, *_DTYPES):
            problems.add(f"data_types.{key} is {data_types[key]!r}, expected one of {', '.join(_DTYPES)}.")
    if data_types.get("buffer_dtype") in ("bf16", "fp16"):
        problems.add(
            f"data_types.buffer_dtype is {data_types['buffer_dtype']!r}: it would round the rotary frequencies, which "
            "damages long positions; leave it out."
        )
    bf16 = bool(config.get("bf16", {}).get("enabled"))
    if bf16 and config.get("fp16", {}).get("enabled"):
        problems.add("bf16.enabled and fp16.enabled are both true; enable one.")
    _sum_gradients_in_fp32(config, bf16 or bool(config.get("fp16", {}).get("enabled")), overrides, problems)
    if bf16 and config.get("zero_optimization", {}).get("stage", 0) == 0:
        problems.add(
            "zero_optimization.stage is 0 with bf16: DeepSpeed cannot accumulate gradients in fp32 there; "
            "use stage 1, 2 or 3, or --mixed_precision no."
        )


def _sum_gradients_in_fp32(
    config: dict[str, Any], half_precision: bool, overrides: list[str], problems: Problems
) -> None:
    """Set the dtypes in which gradients are summed over micro-batches and ranks to fp32, or refuse other ones.

    DeepSpeed's defaults follow the precision of the weights. A sum in half precision depends on how the batch is
    split, and its error grows with the number of ranks: 4e-3 at 8 ranks, 1e-2 at 64.
    """
    accumulate = config.get("data_types", {}).get("grad_accum_dtype")
    reduce = config.get("communication_data_type")
    for name, given in (("data_types.grad_accum_dtype", accumulate), ("communication_data_type", reduce)):
        if given not in (None, "fp32"):
            problems.add(
                f"{name} is {given!r}: only in fp32 is a gradient's sum independent of how the batch is split over "
                "micro-batches and ranks; set fp32 or leave it out."
            )
    if accumulate is None and half_precision:
        config.setdefault("data_types", {})["grad_accum_dtype"] = "fp32"
        overrides.append("data_types.grad_accum_dtype set to fp32: half-precision sums depend on the accumulation")
    if reduce is None:
        config["communication_data_type"] = "fp32"
        if half_precision:
            overrides.append("communication_data_type set to fp32: half-precision sums depend on the number of ranks")


def _check_names(where: str, block: dict[str, Any], known: Collection[str], problems: Problems) -> None:
    for key in sorted(set(block) - set(known)):
        hint = did_you_mean(key, known, f"; known keys: {', '.join(sorted(known))}.")
        problems.add(f"DeepSpeed JSON key {f'{where}.{key}' if where else key!r} is not known{hint}")


def _block_models() -> dict[str, Any]:
    """DeepSpeed's own pydantic models of the JSON's blocks."""
    from deepspeed.monitor.config import CometConfig, CSVConfig, TensorBoardConfig, WandbConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    return {
        "zero_optimization": DeepSpeedZeroConfig,
        "bf16": DeepSpeedBF16Config,
        "fp16": DeepSpeedFP16Config,
        "tensorboard": TensorBoardConfig,
        "wandb": WandbConfig,
        "csv_monitor": CSVConfig,
        "comet": CometConfig,
    }


def _check_block(key: str, block: dict[str, Any], model: Any, problems: Problems) -> None:
    from pydantic import ValidationError

    try:
        model(**block)
    except ValidationError as error:
        for detail in error.errors():
            where = ".".join([key, *map(str, detail["loc"])])
            is_unknown = detail["loc"] and detail["type"] == "extra_forbidden"
            hint = did_you_mean(str(detail["loc"][-1]), model.model_fields, "") if is_unknown else ""
            # DeepSpeed's message lists the last ZeRO stage twice.
            message = "expected 0, 1, 2 or 3" if where == "zero_optimization.stage" else detail["msg"]
            problems.add(f"{where} is {detail['input']!r}: {message}{hint}")


def _check_optimizer(optimizer: dict[str, Any], problems: Problems) -> None:
    _check_names("optimizer", optimizer, ("type", "params", "legacy_fusion"), problems)
    kind, params = optimizer.get("type"), optimizer.get("params", {})
    if kind is None:
        problems.add('optimizer.type is missing; set it, e.g. {"type": "AdamW", "params": {"lr": 5e-4}}.')
        return
    known, params_of_kind = _optimizers()
    if not isinstance(kind, str) or (kind not in known and kind.lower() not in known):
        hint = did_you_mean(str(kind), known, "; use AdamW, or another of DeepSpeed or torch.optim.", cutoff=0.5)
        problems.add(f"optimizer.type is {kind!r}, which DeepSpeed does not know{hint}")
        return
    allowed = params_of_kind(kind)
    if allowed is not None:
        _check_names("optimizer.params", params, allowed, problems)
    for key, (expected, is_right) in _OPTIMIZER_VALUES.items():
        if key in params and not is_right(params[key]):
            problems.add(f"optimizer.params.{key} is {params[key]!r}, expected {expected}.")


_OPTIMIZER_VALUES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "weight_decay": ("a number of at least 0", lambda value: is_number(value) and value >= 0),
    "eps": ("a number of at least 0", lambda value: is_number(value) and value >= 0),
    "betas": (
        "two numbers in [0, 1)",
        lambda value: isinstance(value, list) and len(value) == 2 and all(is_number(b) and 0 <= b < 1 for b in value),
    ),
}


def _optimizers() -> tuple[set[str], Callable[[str], set[str] | None]]:
    """Optimizer names that DeepSpeed resolves, and a function from a name to its parameters (None: unknown)."""
    import torch
    from deepspeed.runtime.config import DEEPSPEED_OPTIMIZERS

    def params_of(kind: str) -> set[str] | None:
        is_adam = kind.lower() in ("adam", "adamw")
        if kind.lower() in DEEPSPEED_OPTIMIZERS and not is_adam:
            return None
        of_torch = set(inspect.signature(torch.optim.AdamW if is_adam else getattr(torch.optim, kind)).parameters)
        of_deepspeed = {"torch_adam", "adam_w_mode", "bias_correction", "fp32_optimizer_states"} if is_adam else set()
        return (of_torch - {"params"}) | of_deepspeed

    classes = inspect.getmembers(torch.optim, lambda entry: inspect.isclass(entry))
    of_torch = {name for name, entry in classes if issubclass(entry, torch.optim.Optimizer)} - {"Optimizer"}
    return of_torch | set(DEEPSPEED_OPTIMIZERS), params_of
