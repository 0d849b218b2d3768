"""Which keys of DeepSpeed's JSON training takes, and why it refuses the others.

Every key that DeepSpeed reads is in one of the two tables: no key is without an effect. A test compares them with
DeepSpeed. What values a key may have is checked in `json_checks`.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from data_tools.base.command_line import did_you_mean
from data_tools.base.errors import Problems

# By block; "" is the top of the JSON. The parameters of an optimizer and of a schedule depend on their type.
ACCEPTED: dict[str, frozenset[str]] = {
    block: frozenset(keys.split())
    for block, keys in {
        "": """train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps optimizer scheduler
            gradient_clipping bf16 fp16 data_types communication_data_type zero_optimization activation_checkpointing
            zero_allow_untested_optimizer comms_logger flops_profiler tensorboard wandb csv_monitor comet
            wall_clock_breakdown memory_breakdown log_level""",
        "optimizer": "type params",
        "bf16": "enabled immediate_grad_update",
        "fp16": """enabled loss_scale initial_scale_power loss_scale_window hysteresis consecutive_hysteresis
            min_loss_scale""",
        "data_types": "grad_accum_dtype",
        "zero_optimization": """stage contiguous_gradients reduce_scatter reduce_bucket_size
            use_multi_rank_bucket_allreduce round_robin_gradients allgather_bucket_size overlap_comm offload_param
            offload_optimizer sub_group_size parameter_alignment leaf_module stage3_prefetch_bucket_size
            stage3_param_persistence_threshold stage3_model_persistence_threshold stage3_max_live_parameters
            stage3_max_reuse_distance stage3_use_all_reduce_for_fetch_params stage3_allgather_sequential
            memory_efficient_linear log_trace_cache_warnings enable_sanity_checks""",
        "activation_checkpointing": "every",
        "zero_optimization.offload_param": "device pin_memory",
        "zero_optimization.offload_optimizer": "device pin_memory",
        "zero_optimization.leaf_module": "classes names name_suffixes",
        "comms_logger": "enabled prof_all prof_ops verbose debug",
        "flops_profiler": "enabled recompute_fwd_factor profile_step module_depth top_modules detailed output_file",
        "tensorboard": "enabled output_path job_name",
        "csv_monitor": "enabled output_path job_name",
        "wandb": "enabled group team project",
        "comet": """enabled samples_log_interval project workspace api_key experiment_name experiment_key online
            mode""",
    }.items()
}
KNOWN_KEYS = ACCEPTED[""]


class _Refused(NamedTuple):
    """Keys of one block, or the whole of it, that are refused for one reason.

    Attributes:
        anyway: the value that describes what happens in any case, which may be given.
    """

    block: str
    keys: str
    reason: str
    instead: str = "leave it out"
    anyway: Any = None


_ZERO, _OFFLOADED = "zero_optimization", ("zero_optimization.offload_optimizer", "zero_optimization.offload_param")
_ACTIVATIONS = "activation_checkpointing"
_REMOVED = "this version of DeepSpeed no longer has it"
_IN_FP32 = "gradients are summed in fp32, which no scaling could protect further"
_ROUNDS = "it rounds values that training keeps or sends, and no resume compares it"
_WHOLE_MODEL = "every rank trains whole samples with the whole model"
_OWN_CHECKPOINTS = "ds-train writes and reads its checkpoints itself, for any number of ranks and any ZeRO stage"
_CPU_ADAM = "DeepSpeed's Adam for CPUs does not resume bitwise"
_NO_NVME = "it serves NVMe, from which no checkpoint resumes here"

_TABLE = (
    # What trains another model, or another way.
    _Refused("", "prescale_gradients", _IN_FP32, anyway=False),
    _Refused("", "gradient_predivide_factor", _IN_FP32, anyway=1.0),
    _Refused("", "gradient_allreduce_op", "a loss is divided by the weights of all ranks' samples", anyway="mean"),
    _Refused("", "managed_gradient_accumulation", "samples decide how many forwards a step has", anyway=True),
    _Refused("", "torch_autocast", "no resume compares it", "set bf16.enabled or fp16.enabled"),
    _Refused("", "bfloat16", "it is an older name of bf16", "set bf16.enabled"),
    _Refused("", "autotuning", "it chooses batch sizes by trial", "set --micro_batch, and see ds_train.preflight"),
    _Refused(_ZERO, "zenflow", "it updates some weights later than others"),
    _Refused(
        _ZERO, "compute_grad_norm", "without it a gradient that is not finite would be applied", anyway=True
    ),
    _Refused("bf16", "check_grad_overflow", "without it a gradient that is not finite would be applied", anyway=True),
    _Refused("bf16", "bf16_master_weights_and_grads bf16_optimizer_states", _ROUNDS, anyway=False),
    _Refused("fp16", "fp16_master_weights_and_grads auto_cast", _ROUNDS, anyway=False),
    _Refused(
        _ZERO, "zero_quantized_weights zero_quantized_nontrainable_weights zero_quantized_gradients", _ROUNDS,
        anyway=False,
    ),
    _Refused("data_types", "buffer_dtype", "it would round rotary frequencies, which damages long positions",
             anyway="fp32"),
    _Refused("data_types", "param_dtype", "bf16.enabled and fp16.enabled decide"),
    _Refused("data_types", "keep_in_fp32_modules", "buffers are kept in fp32 anyway", anyway="auto"),
    # Parallelism.
    _Refused(
        "",
        """sequence_parallel_size data_parallel_size seq_parallel_communication_data_type tensor_parallel
        expert_parallel use_data_before_expert_parallelism pipeline""",
        _WHOLE_MODEL,
        "set zero_optimization.stage 3 where it does not fit",
    ),
    _Refused(_ZERO, "zero_hpz_partition_size", "no test resumes the second shares of weights that it keeps", anyway=1),
    _Refused(
        _ZERO,
        "stage3_module_granularity_threshold module_granularity_threshold",
        "DeepSpeed's backward fails where the whole model is below it",
        "name modules in leaf_module",
        anyway=0,
    ),
    # Data, checkpoints and reports, which are ds-train's own.
    _Refused("", "data_efficiency dataloader_drop_last", "the phases choose the samples"),
    _Refused("", "checkpoint datastates_ckpt", _OWN_CHECKPOINTS),
    _Refused(_ZERO, "elastic_checkpoint pipeline_loading_checkpoint", _OWN_CHECKPOINTS, anyway=False),
    _Refused(_ZERO, "load_from_fp32_weights", _OWN_CHECKPOINTS, anyway=True),
    _Refused(
        _ZERO,
        """stage3_gather_16bit_weights_on_model_save gather_16bit_weights_on_model_save
        stage3_gather_fp16_weights_on_model_save""",
        _OWN_CHECKPOINTS,
        "use python -m ds_train.export",
        anyway=False,
    ),
    _Refused("", "steps_per_print", "the log reports progress", "give --log_every"),
    _Refused("", "timers", "it waits for the GPU twice in each forward", "see tokens_per_second in the log"),
    _Refused("", "dump_state", "RUN/deepspeed.json holds the JSON in effect", "set log_level info", anyway=False),
    # What only another program could use.
    _Refused(_ACTIVATIONS, "partition_activations", "each rank holds whole layers", "use a smaller micro batch"),
    _Refused(
        _ACTIVATIONS,
        "cpu_checkpointing",
        "inputs of layers stay on the device",
        "use a smaller micro batch, or offload the optimizer",
    ),
    _Refused(
        _ACTIVATIONS,
        "contiguous_memory_optimization",
        "it is for divided activations",
        "set PYTORCH_ALLOC_CONF=expandable_segments:True",
    ),
    _Refused(_ACTIVATIONS, "number_checkpoints", "every N-th layer is one", "use every"),
    _Refused(_ACTIVATIONS, "synchronize_checkpoint_boundary", "it would only wait"),
    _Refused(_ACTIVATIONS, "profile", "nothing is profiled there", "use wall_clock_breakdown or flops_profiler"),
    _Refused("", "compile", "layers are compiled, not the engine", "give --compile"),
    _Refused("", "hybrid_engine weight_quantization", "it serves inference"),
    _Refused("", "disable_python_gc", "nobody would free objects that refer to one another", anyway=False),
    _Refused("", "zero_force_ds_cpu_optimizer", "the JSON names the optimizer, no program hands one over"),
    _Refused("", "disable_allgather vocabulary_size", "DeepSpeed does nothing with it"),
    _Refused("optimizer", "legacy_fusion", "it belongs to fp16 without ZeRO, which is refused", anyway=False),
    _Refused(_ZERO, "allgather_partitions", "DeepSpeed always gathers partitions", anyway=True),
    _Refused(_ZERO, "override_module_apply", "no weights are initialized while they are sharded", anyway=True),
    _Refused(_ZERO, "ignore_unused_parameters", "parameters without a gradient are no error here", anyway=True),
    _Refused(_ZERO, "save_muon_momentum_buffer_in_memory", _NO_NVME, anyway=False),
    _Refused("", "aio", _NO_NVME),
    *(_Refused(block, "nvme_path buffer_count", _NO_NVME) for block in _OFFLOADED),
    _Refused(_OFFLOADED[0], "pipeline_read pipeline_write fast_init", _NO_NVME, anyway=False),
    _Refused(_OFFLOADED[1], "buffer_size max_in_cpu", _NO_NVME),
    _Refused(_OFFLOADED[0], "ratio", "no checkpoint holds the optimizer's states of the rest", anyway=1.0),
    _Refused(_OFFLOADED[0], "super_offload", _CPU_ADAM, anyway=False),
    _Refused(_OFFLOADED[0], "cpuadam_cores_perc", _CPU_ADAM),
    # What DeepSpeed has replaced or removed.
    _Refused(_ZERO, "cpu_offload", "it is an older name", 'set offload_optimizer {"device": "cpu"}'),
    _Refused(_ZERO, "cpu_offload_param", "it is an older name", 'set offload_param {"device": "cpu"}'),
    _Refused(_ZERO, "cpu_offload_use_pin_memory", "it is an older name", "set offload_optimizer.pin_memory"),
    _Refused(
        _ZERO,
        """prefetch_bucket_size param_persistence_threshold model_persistence_threshold max_live_parameters
        max_reuse_distance use_all_reduce_for_fetch_params allgather_sequential""",
        "it is a name inside DeepSpeed",
        "write stage3_ before it",
    ),
    _Refused("", "elasticity", _REMOVED, "resume with other ranks without it"),
    _Refused("", "amp", _REMOVED, "set bf16.enabled or fp16.enabled"),
    _Refused(
        "",
        """nebula compression_training quantize_training sparse_gradients eigenvalue sparse_attention graph_harvesting
        curriculum_learning progressive_layer_drop""",
        _REMOVED,
    ),
    _Refused(_ZERO, "legacy_stage1", _REMOVED, anyway=False),
    _Refused(_ZERO, "mics_shard_size mics_hierarchical_params_gather zeropp_loco_param", _REMOVED),
)  # fmt: skip
REFUSED: dict[str, dict[str, _Refused]] = {}
for _entry in _TABLE:
    REFUSED.setdefault(_entry.block, {}).update(dict.fromkeys(_entry.keys.split(), _entry))

# See `read_at`. DeepSpeed has an optimizer of its own for ZeRO 1 in bf16, unless it is offloaded.
_READ_AT = {
    "contiguous_gradients": "123",
    "reduce_scatter": "123",
    "reduce_bucket_size": "123",
    "use_multi_rank_bucket_allreduce": "12",
    "allgather_bucket_size": "b12",
    "overlap_comm": "123",
    "parameter_alignment": "12",
    "round_robin_gradients": "12",
    "offload_optimizer": "b123",
} | dict.fromkeys(
    """offload_param sub_group_size leaf_module memory_efficient_linear log_trace_cache_warnings enable_sanity_checks
    """.split(),
    "3",
)


def blocks(config: dict[str, Any], name: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """The blocks of a JSON whose keys are listed here, with their names."""
    yield name, config
    for key, value in config.items():
        dotted = f"{name}.{key}" if name else key
        if dotted in ACCEPTED and isinstance(value, dict):
            yield from blocks(value, dotted)


def accepted_part(name: str, block: dict[str, Any]) -> dict[str, Any]:
    """A block without the keys that training does not take, in the blocks inside it, too."""
    below = {key: f"{name}.{key}" for key in ACCEPTED[name]}
    return {
        key: accepted_part(below[key], value) if isinstance(value, dict) and below[key] in ACCEPTED else value
        for key, value in block.items()
        if key in below
    }


def check_keys(config: dict[str, Any], problems: Problems) -> None:
    """Report keys that are refused or unknown."""
    for name, block in blocks(config):
        refused = REFUSED.get(name, {})
        for key in sorted(set(block) - ACCEPTED[name]):
            dotted = f"{name}.{key}" if name else key
            if key not in refused:
                known = ACCEPTED[name]
                hint = did_you_mean(key, {*known, *refused}, f"; known keys: {', '.join(sorted(known))}.")
                problems.add(f"DeepSpeed JSON key {dotted!r} is not known{hint}")
            elif not _is_same(block[key], refused[key].anyway):
                problems.add(f"{dotted} is refused: {refused[key].reason}; {refused[key].instead}.")


def _is_same(value: Any, other: Any) -> bool:
    """Whether two values of a JSON are equal; 1 and true are not."""
    return isinstance(value, bool) == isinstance(other, bool) and other is not None and value == other


def read_at(key: str) -> str:
    """Where a key of the ZeRO block has an effect: at ZeRO 1 in bf16 ("b"), at other ZeRO 1 ("1"), 2 and 3."""
    return _READ_AT.get(key, "3" if key.startswith("stage3_") else "b123")


def keys_without_effect(config: dict[str, Any]) -> Iterator[str]:
    """Keys of the ZeRO block that the ZeRO stage in effect does not read."""
    zero = config.get(_ZERO, {})
    stage, is_offloaded = zero.get("stage", 0), "offload_optimizer" in zero
    effective = "b" if stage == 1 and config.get("bf16", {}).get("enabled") and not is_offloaded else str(stage)
    for key in zero:
        if key != "stage" and effective not in read_at(key):
            yield f"{_ZERO}.{key}"
