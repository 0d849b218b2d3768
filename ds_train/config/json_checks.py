"""Checks a DeepSpeed JSON: keys, kinds of values, and combinations that would fail or break a promise later.

DeepSpeed ignores unknown top-level keys, and reports other mistakes only while it builds the engine.
"""

from collections.abc import Collection
from typing import Any

from data_tools.base.command_line import did_you_mean
from data_tools.base.errors import Problems, is_number
from data_tools.base.kinds import complaint, is_of_kind
from ds_train.config.optimizers import check_optimizer

# Top-level keys that mean something here.
KNOWN_KEYS = frozenset(
    """train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps optimizer scheduler gradient_clipping
    bf16 fp16 data_types zero_optimization zero_allow_untested_optimizer zero_force_ds_cpu_optimizer
    communication_data_type activation_checkpointing aio checkpoint comms_logger flops_profiler tensorboard wandb
    csv_monitor comet steps_per_print wall_clock_breakdown memory_breakdown dump_state log_level""".split()
)
_SUMS_IN_FP32 = "gradients are summed in fp32, which no scaling could protect further"
# Keys of DeepSpeed that have no use here, and why.
_WITHOUT_USE = {
    "compile": "the engine is never compiled",
    "prescale_gradients": _SUMS_IN_FP32,
    "gradient_predivide_factor": _SUMS_IN_FP32,
}
# Keys of DeepSpeed's own activation checkpointing, which no model here calls, and what serves instead.
_OF_ITS_CHECKPOINTING = {
    "partition_activations": "each rank holds whole layers, so there is nothing to divide; use a smaller micro batch",
    "cpu_checkpointing": "inputs of layers stay on the device; use a smaller micro batch, or offload the optimizer",
    "contiguous_memory_optimization": "it is for divided activations; set PYTORCH_ALLOC_CONF=expandable_segments:True",
    "number_checkpoints": "every N-th layer is one; use every",
    "synchronize_checkpoint_boundary": "it would only wait; leave it out",
    "profile": "use wall_clock_breakdown or flops_profiler",
}
# Switches that round what training keeps or sends. No fingerprint holds them, so a resume would not notice a change.
_LOSSY = """bf16.bf16_master_weights_and_grads bf16.bf16_optimizer_states fp16.fp16_master_weights_and_grads
    fp16.auto_cast zero_optimization.zero_quantized_weights zero_optimization.zero_quantized_nontrainable_weights
    zero_optimization.zero_quantized_gradients""".split()
_BLOCKS = """optimizer optimizer.params scheduler scheduler.params bf16 fp16 data_types zero_optimization
    activation_checkpointing aio checkpoint comms_logger flops_profiler tensorboard wandb csv_monitor comet""".split()
_SWITCH, _NOT_NEGATIVE = "true or false", "number in [0, 1e9]"
_KINDS = {
    "gradient_clipping": _NOT_NEGATIVE,
    "activation_checkpointing.every": "whole number in [0, 1e9]",
    "steps_per_print": "whole number in [1, 1e18]",
    "log_level": "debug | info | warning | error | critical",
    "checkpoint.tag_validation": "Ignore | Warn | Fail",
    "data_types.param_dtype": "fp32 | bf16 | fp16",
    "data_types.buffer_dtype": "fp32 | bf16 | fp16",
} | dict.fromkeys(
    """zero_allow_untested_optimizer zero_force_ds_cpu_optimizer wall_clock_breakdown memory_breakdown
    dump_state""".split(),
    _SWITCH,
)


def _place(config: dict[str, Any], name: str) -> tuple[dict[str, Any], str]:
    """The block in which a dotted key is, an empty one where there is none, and the key in it."""
    *parents, key = name.split(".")
    block = config
    for parent in parents:
        block = block.get(parent, {})
    return block, key


def drop_non_objects(config: dict[str, Any], problems: Problems) -> None:
    """Report blocks that are not JSON objects and remove them, so that later checks can continue."""
    for name in _BLOCKS:
        block, key = _place(config, name)
        if not isinstance(block.get(key, {}), dict):
            problems.add(f"{name} is {block.pop(key)!r}, expected an object of settings.")


def check_blocks(config: dict[str, Any], problems: Problems) -> None:
    """Report keys that are unknown or of no use here, and values of the wrong kind."""
    for key in sorted(set(config) & set(_WITHOUT_USE)):
        problems.add(f"{key} has no use here: {_WITHOUT_USE[key]}; leave it out.")
    _check_names("", {key: config[key] for key in config if key not in _WITHOUT_USE}, KNOWN_KEYS, problems)
    _check_checkpointing(config.get("activation_checkpointing", {}), problems)
    for key, model in _block_models().items():
        if key in config:
            _check_block(key, config[key], model, problems)
    for key, defaults in _block_defaults().items():
        _check_like(key, config.get(key, {}), defaults, problems)
    check_optimizer(config, problems)
    for name, kind in _KINDS.items():
        block, key = _place(config, name)
        if key in block and not is_of_kind(block[key], kind):
            problems.add(complaint(name, block[key], kind))
    for name in ("bf16.check_grad_overflow", "zero_optimization.compute_grad_norm"):
        block, key = _place(config, name)
        if block.get(key) is False:
            problems.add(f"{name} is false: a gradient that is not finite would be applied; leave it out.")
    for name in _LOSSY:
        block, key = _place(config, name)
        if block.get(key):
            problems.add(f"{name} rounds values that training keeps or sends, and no resume compares it; leave it out.")
    for key in ("offload_optimizer", "offload_param"):
        offload = config.get("zero_optimization", {}).get(key)
        if isinstance(offload, dict) and offload.get("device") == "nvme":
            problems.add(f"zero_optimization.{key}.device is 'nvme', from which no checkpoint resumes here; use 'cpu'.")
    if config.get("zero_optimization", {}).get("elastic_checkpoint"):
        problems.add(
            "zero_optimization.elastic_checkpoint is true: its files are not read here, and those without it resume at "
            "any number of ranks; leave it out."
        )


def _check_checkpointing(block: dict[str, Any], problems: Problems) -> None:
    """Report settings of DeepSpeed's activation checkpointing: only ``every`` is ours, and other keys are unknown."""
    for key in sorted(set(block) & set(_OF_ITS_CHECKPOINTING)):
        problems.add(f"activation_checkpointing.{key} has no use here: {_OF_ITS_CHECKPOINTING[key]}.")
    _check_names("activation_checkpointing", set(block) - set(_OF_ITS_CHECKPOINTING), ("every",), problems)


def check_precision(config: dict[str, Any], overrides: list[str], problems: Problems) -> None:
    """Report precisions that cannot work, and make gradients add up in fp32, which adds to ``overrides``."""
    data_types = config.get("data_types", {})
    _check_names(
        "data_types", data_types, ("grad_accum_dtype", "param_dtype", "buffer_dtype", "keep_in_fp32_modules"), problems
    )
    if data_types.get("buffer_dtype") in ("bf16", "fp16"):
        problems.add(
            f"data_types.buffer_dtype is {data_types['buffer_dtype']!r}: it would round the rotary frequencies, which "
            "damages long positions; leave it out."
        )
    halves = [name for name in ("bf16", "fp16") if config.get(name, {}).get("enabled")]
    if len(halves) > 1:
        problems.add("bf16.enabled and fp16.enabled are both true; enable one.")
    _sum_gradients_in_fp32(config, bool(halves), overrides, problems)
    if halves and config.get("zero_optimization", {}).get("stage", 0) == 0:
        problems.add(
            f"zero_optimization.stage is 0 with {halves[0]}: DeepSpeed cannot accumulate gradients in fp32 there; "
            "use stage 1, 2 or 3, or --mixed_precision no."
        )


def _sum_gradients_in_fp32(
    config: dict[str, Any], half_precision: bool, overrides: list[str], problems: Problems
) -> None:
    """Set the dtypes in which gradients are summed over micro-batches and ranks to fp32, or refuse other ones.

    DeepSpeed's defaults follow the precision of the weights. A sum in half precision depends on how the batch is
    split, and its error grows with the number of ranks: 4e-3 at 8 ranks, 1e-2 at 64. ZeRO 2 also divides in half
    precision by the number of ranks, which rounds unless that is a power of two, where it scatters while it reduces.
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
    zero = config.get("zero_optimization", {})
    if half_precision and zero.get("stage") == 2 and "reduce_scatter" not in zero:
        zero["reduce_scatter"] = False
        overrides.append("zero_optimization.reduce_scatter set to false: it divides gradients in half precision")
    elif half_precision and zero.get("stage") == 2 and zero["reduce_scatter"]:
        problems.add(
            "zero_optimization.reduce_scatter is true with ZeRO 2 in half precision, where it divides gradients by the "
            "number of ranks before they are in fp32; set false or leave it out."
        )


def _check_names(where: str, block: Collection[str], known: Collection[str], problems: Problems) -> None:
    for key in sorted(set(block) - set(known)):
        hint = did_you_mean(key, known, f"; known keys: {', '.join(sorted(known))}.")
        problems.add(f"DeepSpeed JSON key {f'{where}.{key}' if where else key!r} is not known{hint}")


def _block_models() -> dict[str, Any]:
    """DeepSpeed's own pydantic models of the JSON's blocks."""
    from deepspeed.comm.config import CommsLoggerConfig
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
        "comms_logger": CommsLoggerConfig,
    }


def _block_defaults() -> dict[str, dict[str, Any]]:
    """DeepSpeed's defaults of the blocks that it has no model of."""
    from deepspeed.profiling.config import DeepSpeedFlopsProfilerConfig
    from deepspeed.runtime.swap_tensor.aio_config import get_aio_config

    return {
        "aio": get_aio_config({"aio": {}}),
        "flops_profiler": vars(DeepSpeedFlopsProfilerConfig({})),
        "checkpoint": {"tag_validation": "Warn"},
    }


def _check_like(where: str, block: dict[str, Any], defaults: dict[str, Any], problems: Problems) -> None:
    """Report values of a block that are not of the types of its defaults."""
    _check_names(where, block, defaults, problems)
    for key in sorted(set(block) & set(defaults)):
        default = defaults[key]
        kind = _SWITCH if isinstance(default, bool) else "text" if isinstance(default, str | None) else _NOT_NEGATIVE
        if not is_of_kind(block[key], kind):
            problems.add(complaint(f"{where}.{key}", block[key], kind))


def _check_block(key: str, block: dict[str, Any], model: Any, problems: Problems) -> None:
    from pydantic import ValidationError

    try:
        read = model(**block)
    except ValidationError as error:
        for detail in error.errors():
            where = ".".join([key, *map(str, detail["loc"])])
            is_unknown = detail["loc"] and detail["type"] == "extra_forbidden"
            hint = did_you_mean(str(detail["loc"][-1]), model.model_fields, "") if is_unknown else ""
            # DeepSpeed's list of ZeRO stages has the last one twice.
            reason = "expected 0, 1, 2 or 3" if where == "zero_optimization.stage" else detail["msg"]
            problems.add(f"{where} is {detail['input']!r}: {reason}{hint}")
    except (TypeError, OverflowError) as error:
        problems.add(f"{key} cannot be read: {error}.")
    else:
        _check_read_as_given(key, block, read, problems)


def _check_read_as_given(where: str, block: dict[str, Any], read: Any, problems: Problems) -> None:
    """Report text that was read as a switch or a number: DeepSpeed reads "false", and takes "auto" for its default."""
    names = {info.alias or name: name for name, info in type(read).model_fields.items()}
    for key, value in block.items():
        taken = getattr(read, names.get(key, key), None)
        if isinstance(value, dict) and hasattr(taken, "model_fields_set"):
            _check_read_as_given(f"{where}.{key}", value, taken, problems)
        elif isinstance(taken, bool) and not isinstance(value, bool):
            problems.add(complaint(f"{where}.{key}", value, _SWITCH))
        elif is_number(taken) and not is_number(value):
            problems.add(complaint(f"{where}.{key}", value, "number"))
        elif value == "auto" and taken != value:
            problems.add(f"{where}.{key} is 'auto', which nothing resolves here; leave it out or set a value.")
