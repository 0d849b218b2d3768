"""Checks a DeepSpeed JSON: kinds of values, and combinations that would fail or break a promise later.

DeepSpeed ignores unknown top-level keys, and reports other mistakes only while it builds the engine.
"""

from typing import Any

from data_tools.base.errors import Problems, is_number
from data_tools.base.kinds import complaint, is_of_kind
from ds_train.config.json_keys import accepted_part, check_keys
from ds_train.config.optimizers import check_optimizer

_BLOCKS = """optimizer optimizer.params scheduler scheduler.params bf16 fp16 data_types zero_optimization
    activation_checkpointing comms_logger flops_profiler tensorboard wandb csv_monitor comet""".split()
_SWITCH, _NOT_NEGATIVE = "true or false", "number in [0, 1e9]"
_KINDS = {
    "activation_checkpointing.every": "whole number in [0, 1e9]",
    "gradient_clipping": _NOT_NEGATIVE,
    "log_level": "debug | info | warning | error | critical",
} | dict.fromkeys("zero_allow_untested_optimizer wall_clock_breakdown memory_breakdown".split(), _SWITCH)


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
    """Report keys that training does not take, and values of the wrong kind."""
    check_keys(config, problems)
    for name, model in _block_models().items():
        if name in config:
            _check_block(name, accepted_part(name, config[name]), model, problems)
    _check_flops_profiler(config.get("flops_profiler", {}), problems)
    check_optimizer(config, problems)
    for name, kind in _KINDS.items():
        block, key = _place(config, name)
        if key in block and not is_of_kind(block[key], kind):
            problems.add(complaint(name, block[key], kind))
    for key in ("offload_optimizer", "offload_param"):
        offload = config.get("zero_optimization", {}).get(key)
        if isinstance(offload, dict) and offload.get("device") == "nvme":
            problems.add(f"zero_optimization.{key}.device is 'nvme', from which no checkpoint resumes here; use 'cpu'.")
    if config.get("comms_logger", {}).get("verbose") and config.get("log_level") not in ("info", "debug"):
        problems.add("comms_logger.verbose is true, but DeepSpeed prints it at log_level info only; set that, too.")


def check_precision(config: dict[str, Any], overrides: list[str], problems: Problems) -> None:
    """Report precisions that cannot work, and make gradients add up in fp32, which adds to ``overrides``."""
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


def _check_flops_profiler(block: dict[str, Any], problems: Problems) -> None:
    """Report values that are not of the types of DeepSpeed's defaults: it has no model of this block."""
    from deepspeed.profiling.config import DeepSpeedFlopsProfilerConfig

    kinds = {"profile_step": "whole number in [1, 1e9]", "module_depth": "whole number in [-1, 1e9]"}
    for key, default in vars(DeepSpeedFlopsProfilerConfig({})).items():
        kind = _SWITCH if isinstance(default, bool) else "text" if default is None else _NOT_NEGATIVE
        if key in block and not is_of_kind(block[key], kinds.get(key, kind)):
            problems.add(complaint(f"flops_profiler.{key}", block[key], kinds.get(key, kind)))


def _check_block(key: str, block: dict[str, Any], model: Any, problems: Problems) -> None:
    from pydantic import ValidationError

    try:
        read = model(**block)
    except ValidationError as error:
        for detail in error.errors():
            where = ".".join([key, *map(str, detail["loc"])])
            # DeepSpeed's list of ZeRO stages has the last one twice.
            reason = "expected 0, 1, 2 or 3" if where == "zero_optimization.stage" else detail["msg"]
            problems.add(f"{where} is {detail['input']!r}: {reason}")
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
