"""The DeepSpeed JSON with its flags: one resolved configuration, or every problem in one message."""

import copy
import json
import logging
from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch
from transformers import AutoModelForCausalLM

from data_tools.errors import UserError
from ds_train.config_checks import KNOWN_KEYS
from ds_train.ds_config import EngineConfig, default_json, resolve_engine_config
from ds_train.flags import OverrideFlags
from ds_train.layout import Layout
from ds_train.model import load_model_config, preset_names
from ds_train.problems import Problems

BASE: dict[str, Any] = {
    "train_batch_size": 32,
    "train_micro_batch_size_per_gpu": 2,
    "optimizer": {"type": "AdamW", "params": {"lr": 5e-4, "betas": [0.9, 0.999], "weight_decay": 0.1}},
    "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 10, "warmup_type": "linear"}},
    "gradient_clipping": 1.0,
    "bf16": {"enabled": True},
    "zero_optimization": {"stage": 1},
}
GONE = object()


def changed(*changes: tuple[str, Any]) -> dict[str, Any]:
    """BASE with dotted keys set, or taken out for GONE."""
    config = copy.deepcopy(BASE)
    for dotted, value in changes:
        *parents, key = dotted.split(".")
        block = config
        for parent in parents:
            block = block.setdefault(parent, {})
        if value is GONE:
            block.pop(key, None)
        else:
            block[key] = copy.deepcopy(value)
    return config


def batch(global_batch: Any = GONE, micro_batch: Any = GONE, grad_accum: Any = GONE) -> list[tuple[str, Any]]:
    return [
        ("train_batch_size", global_batch),
        ("train_micro_batch_size_per_gpu", micro_batch),
        ("gradient_accumulation_steps", grad_accum),
    ]


@pytest.fixture
def resolve(tmp_path):
    """Resolve a JSON given as an object or as text; a UserError where there are problems."""

    def run(config: Any, *, world_size=1, total_steps=None, min_lr_ratio=None, **flags) -> EngineConfig:
        path = tmp_path / "ds.json"
        path.write_text(config if isinstance(config, str) else json.dumps(config))
        return resolve_file(path, world_size, total_steps, min_lr_ratio, **flags)

    return run


def resolve_file(path: Path, world_size=1, total_steps=None, min_lr_ratio=None, **flags) -> EngineConfig:
    problems = Problems()
    resolved = resolve_engine_config(
        path, OverrideFlags(**flags), problems, world_size=world_size, total_steps=total_steps,
        min_lr_ratio=min_lr_ratio,
    )  # fmt: skip
    problems.raise_if_any()
    assert resolved is not None
    return resolved


@pytest.mark.parametrize("world_size", [1, 2, 8])
@pytest.mark.parametrize(
    ("in_json", "flags", "micro_batch", "grad_accum_at_one_rank"),
    [
        # any two of three in the JSON
        (batch(32, 2), {}, 2, 16),
        (batch(32, grad_accum=4), {}, None, 4),
        (batch(micro_batch=2, grad_accum=4), {}, 2, None),
        (batch(32, 2, "auto"), {}, 2, 16),
        # any two of three on the command line
        (batch(), {"global_batch": 64, "micro_batch": 4}, 4, 16),
        (batch(), {"global_batch": 64, "grad_accum": 2}, None, 2),
        (batch(), {"micro_batch": 4, "grad_accum": 2}, 4, None),
        # flags win over the JSON
        (batch(32, 2), {"global_batch": 64, "micro_batch": 4}, 4, 16),
        (batch(32, 2), {"micro_batch": 4, "grad_accum": 2}, 4, None),
        (batch(32, 2), {"micro_batch": 4}, 4, 8),
        (batch(32, 2), {"global_batch": 64}, 2, 32),
        (batch(32, 2, 2), {"micro_batch": 4}, 4, 8),
        (batch(micro_batch=2, grad_accum=4), {"global_batch": 64}, 2, 32),
    ],
)
def test_any_two_of_three_fix_the_third(resolve, in_json, flags, micro_batch, grad_accum_at_one_rank, world_size):
    layout = resolve(changed(*in_json), world_size=world_size, **flags).layout
    given = {key: value for key, value in in_json if isinstance(value, int)}
    global_batch = flags.get("global_batch", given.get("train_batch_size"))
    if {"micro_batch", "grad_accum"} <= set(flags) or global_batch is None:
        micro = flags.get("micro_batch", given.get("train_micro_batch_size_per_gpu"))
        accumulation = flags.get("grad_accum", given.get("gradient_accumulation_steps"))
        assert layout == Layout(world_size, micro, accumulation)
    elif micro_batch is None:
        assert layout == Layout(
            world_size, global_batch // grad_accum_at_one_rank // world_size, grad_accum_at_one_rank
        )
    else:
        assert layout == Layout(world_size, micro_batch, grad_accum_at_one_rank // world_size)
        assert layout.global_batch == global_batch


def test_all_three_may_be_given_when_they_agree(resolve):
    assert resolve(changed(*batch(32, 2, 4)), world_size=4).layout == Layout(4, 2, 4)
    assert resolve(BASE, world_size=4, global_batch=48, micro_batch=3, grad_accum=4).layout == Layout(4, 3, 4)


@pytest.mark.parametrize(
    ("in_json", "world_size", "flags", "named"),
    [
        (batch(32, 3), 1, {}, "global batch 32.*micro_batch 3.*1, 2, 4, 8, 16, 32"),
        (batch(32, 2), 3, {}, "global batch 32.*3 ranks"),
        (batch(32, 2), 64, {}, "global batch 32.*64 ranks.*128"),
        (batch(32, 2, 4), 8, {}, "global batch 32.*micro_batch 2.*grad_accum 4"),
        (batch(32, 2), 1, {"global_batch": 33}, "global batch 33.*micro_batch 2"),
        (batch(32), 1, {}, "batch is not determined.*global_batch.*32"),
        (batch(), 1, {}, "batch is not determined"),
        (batch(), 1, {"micro_batch": 2}, "batch is not determined.*micro_batch.*2"),
        (batch(0, 2), 1, {}, "train_batch_size is 0"),
        (batch(32, -2), 1, {}, "train_micro_batch_size_per_gpu is -2"),
        (batch(32, 2.5), 1, {}, "train_micro_batch_size_per_gpu is 2.5"),
        (batch("32", 2), 1, {}, "train_batch_size is '32'"),
        (batch(True, 2), 1, {}, "train_batch_size is True"),
        (batch(None, 2), 1, {}, "train_batch_size is None"),
        (batch([32], 2), 1, {}, "train_batch_size is .32."),
        (batch(32, 2), 1, {"micro_batch": 0}, "micro_batch.* is 0"),
    ],
)
def test_batches_that_cannot_be_are_named(resolve, in_json, world_size, flags, named):
    with pytest.raises(UserError, match=named):
        resolve(changed(*in_json), world_size=world_size, **flags)


@pytest.mark.parametrize(
    ("flags", "dotted", "value"),
    [
        ({"lr": 1e-3}, "optimizer.params.lr", 1e-3),
        ({"weight_decay": 0.0}, "optimizer.params.weight_decay", 0.0),
        ({"grad_clip": 0.5}, "gradient_clipping", 0.5),
        ({"warmup_steps": 7}, "scheduler.params.warmup_num_steps", 7),
        ({"zero_stage": 2}, "zero_optimization.stage", 2),
        ({"mixed_precision": "no"}, "bf16.enabled", False),
        ({"global_batch": 64}, "train_batch_size", 64),
        ({"micro_batch": 4}, "train_micro_batch_size_per_gpu", 4),
    ],
)
def test_flags_win_and_are_reported(resolve, flags, dotted, value):
    untouched, resolved = resolve(BASE), resolve(BASE, **flags)

    def at(config: dict[str, Any]) -> Any:
        for key in dotted.split("."):
            config = config[key]
        return config

    assert at(resolved.effective) == value
    ((name, given),) = flags.items()
    (line,) = [line for line in resolved.overrides if line.startswith(f"--{name} {given}")]
    assert dotted in line and str(at(untouched.effective)) in line  # what was overridden, and its old value


def test_a_flag_that_says_what_the_json_says_is_no_override(resolve):
    same = {"lr": 5e-4, "weight_decay": 0.1, "grad_clip": 1.0, "warmup_steps": 10, "zero_stage": 1,
            "mixed_precision": "bf16", "global_batch": 32, "micro_batch": 2}  # fmt: skip
    assert not [line for line in resolve(BASE, **same).overrides if line.startswith("--")]


def test_a_changed_global_batch_is_reported_though_its_flag_was_not_given(resolve):
    overrides = resolve(BASE, micro_batch=4, grad_accum=2).overrides
    assert any("train_batch_size" in line and "32" in line and "8" in line for line in overrides)


def test_effective_json_and_what_deepspeed_gets(resolve):
    resolved = resolve(BASE, world_size=2, lr=1e-3)
    batch_keys = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    for config in (resolved.effective, resolved.deepspeed):
        assert [config[key] for key in batch_keys] == [32, 2, 8]
        assert config["optimizer"]["params"]["lr"] == 1e-3
        assert config["data_types"]["grad_accum_dtype"] == "fp32"
        json.dumps(config)
    assert "scheduler" not in resolved.deepspeed
    assert resolved.effective["scheduler"] == BASE["scheduler"]


def test_bf16_gradients_add_up_in_fp32_and_it_is_said(resolve):
    assert any("grad_accum_dtype" in line for line in resolve(BASE).overrides)
    assert not resolve(changed(("data_types.grad_accum_dtype", "fp32"))).overrides
    assert "data_types" not in resolve(changed(("bf16", GONE))).effective


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ([("train_batchsize", 32)], "train_batchsize.*did you mean 'train_batch_size'"),
        ([("gradient_cliping", 1.0)], "gradient_cliping.*did you mean 'gradient_clipping'"),
        ([("zzz", 1)], "zzz.*known keys.*zero_optimization"),
        ([("zero_optimization.stge", 1)], "zero_optimization.stge.*did you mean 'stage'"),
        ([("zero_optimization.overlap_com", True)], "zero_optimization.overlap_com.*did you mean 'overlap_comm'"),
        ([("optimizer.parms", {})], "optimizer.parms.*did you mean 'params'"),
        ([("optimizer.params.weight_decays", 0.1)], "optimizer.params.weight_decays.*did you mean 'weight_decay'"),
        ([("optimizer.params.beta", [0.9, 0.9])], "optimizer.params.beta.*did you mean 'betas'"),
        ([("optimizer.type", "AdamWW")], "optimizer.type.*AdamWW.*did you mean 'AdamW'"),
        ([("optimizer.type", GONE)], "optimizer.type is missing"),
        ([("optimizer", GONE)], "optimizer.type is missing"),
        ([("optimizer.params.lr", GONE)], "optimizer.params.lr"),
        ([("optimizer.params.lr", 0)], "optimizer.params.lr is 0"),
        ([("optimizer.params.lr", "auto")], "optimizer.params.lr is 'auto'"),
        ([("optimizer.params.lr", True)], "optimizer.params.lr is True"),
        ([("optimizer.params.lr", float("nan"))], "optimizer.params.lr is nan"),
        ([("optimizer.params.weight_decay", -0.1)], "optimizer.params.weight_decay is -0.1"),
        ([("optimizer.params.betas", [0.9, 1.5])], "optimizer.params.betas"),
        ([("scheduler.params.warmup_steps", 10)], "warmup_steps.*warmup_num_steps"),
        ([("scheduler.type", "Cosine")], "scheduler.type.*Cosine"),
        ([("scheduler.parms", {})], "parms"),
        ([("bf16.enable", True)], "bf16.enable.*did you mean 'enabled'"),
        ([("bf16.enabled", "perhaps")], "bf16.enabled is 'perhaps'"),
        ([("zero_optimization.stage", 4)], "zero_optimization.stage is 4"),
        ([("zero_optimization.stage", 0)], "stage is 0 with bf16"),
        ([("zero_optimization", GONE)], "stage is 0 with bf16"),
        ([("fp16.enabled", True)], "bf16.*fp16"),
        ([("data_types.grad_acum_dtype", "fp32")], "data_types.grad_acum_dtype.*did you mean 'grad_accum_dtype'"),
        ([("data_types.grad_accum_dtype", "float32")], "grad_accum_dtype is 'float32'.*fp32"),
        ([("data_types.buffer_dtype", "bf16")], "buffer_dtype.*rotary"),
        ([("gradient_clipping", -1)], "gradient_clipping is -1"),
        ([("gradient_clipping", "auto")], "gradient_clipping is 'auto'"),
        ([("tensorboard.enabeld", True)], "tensorboard.enabeld.*did you mean 'enabled'"),
    ],
)
def test_unknown_keys_and_bad_values_are_named(resolve, changes, named):
    with pytest.raises(UserError, match=named):
        resolve(changed(*changes))


def test_fp32_may_use_stage_0(resolve):
    resolved = resolve(changed(("zero_optimization.stage", 0)), mixed_precision="no")
    assert not resolved.effective["bf16"]["enabled"]


def test_files_that_cannot_be_read(resolve, tmp_path):
    with pytest.raises(UserError, match=r"missing.json.*No such file"):
        resolve_file(tmp_path / "missing.json")
    with pytest.raises(UserError, match="Is a directory"):
        resolve_file(tmp_path)
    with pytest.raises(UserError, match=r"ds.json is not valid JSON.*line 1"):
        resolve('{"train_batch_size": 32,}')
    with pytest.raises(UserError, match="holds a list"):
        resolve("[]")
    with pytest.raises(UserError, match=r"train_batch_size.*twice"):
        resolve('{"train_batch_size": 32, "train_batch_size": 64}')
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not valid JSON"):
        resolve_file(tmp_path / "bytes.json")


def test_length_of_the_run_and_the_schedule(resolve):
    cosine = ("scheduler", {"type": "WarmupCosineLR", "params": {"warmup_num_steps": 10, "warmup_type": "linear"}})
    auto = changed(cosine, ("scheduler.params.total_num_steps", "auto"))
    assert resolve(auto, total_steps=50).schedule.total_steps == 50
    with pytest.raises(UserError, match=r"total_num_steps 60.*50"):
        resolve(changed(cosine, ("scheduler.params.total_num_steps", 60)), total_steps=50)
    with pytest.raises(UserError, match="total_num_steps"):
        resolve(auto, total_steps=None)


def test_min_lr_ratio_overrides_the_floor(resolve):
    cosine = changed(
        ("scheduler", {"type": "WarmupCosineLR",
                       "params": {"warmup_num_steps": 10, "warmup_type": "linear", "cos_min_ratio": 0.1}})
    )  # fmt: skip
    assert resolve(cosine, total_steps=50).schedule.lr(50) == pytest.approx(5e-5)
    resolved = resolve(cosine, total_steps=50, min_lr_ratio=0.2)
    assert resolved.schedule.lr(50) == pytest.approx(1e-4)
    assert any(line.startswith("--min_lr_ratio 0.2") and "0.1" in line for line in resolved.overrides)
    assert resolve(cosine, total_steps=50, min_lr_ratio=0.0).schedule.lr(50) == pytest.approx(0, abs=1e-12)
    for bad in (-0.1, 1.1):
        with pytest.raises(UserError, match=f"cos_min_ratio is {bad}"):
            resolve(cosine, total_steps=50, min_lr_ratio=bad)
    with pytest.raises(UserError, match=r"min_lr_ratio.*WarmupLR"):
        resolve(BASE, total_steps=50, min_lr_ratio=0.2)


def test_the_lr_flag_moves_the_peak_of_the_schedule(resolve):
    config = changed(("scheduler.params.warmup_max_lr", 5e-4))
    assert resolve(config, lr=1e-3).schedule.lr(500) == 1e-3
    with pytest.raises(UserError, match=r"warmup_max_lr 0.001.*0.0005"):
        resolve(changed(("scheduler.params.warmup_max_lr", 1e-3)))


def test_warmup_steps_without_a_scheduler_is_an_error(resolve):
    assert resolve(changed(("scheduler", GONE))).schedule.lr(1) == 5e-4
    with pytest.raises(UserError, match=r"warmup_steps.*scheduler"):
        resolve(changed(("scheduler", GONE)), warmup_steps=5)


def test_all_problems_are_told_at_once(resolve):
    config = changed(
        ("train_batchsize", 32),
        *batch(33, 2),
        ("optimizer.params.weight_decays", 1),
        ("optimizer.params.lr", -1),
        ("gradient_clipping", -2),
        ("zero_optimization.stge", 3),
        ("fp16.enabled", True),
    )
    with pytest.raises(UserError) as caught:
        resolve(config, min_lr_ratio=0.5)
    message = str(caught.value)
    for part in (
        "train_batchsize", "global batch 33", "weight_decays", "optimizer.params.lr is -1", "gradient_clipping is -2",
        "zero_optimization.stge", "fp16.enabled", "--min_lr_ratio",
    ):  # fmt: skip
        assert part in message, part
    assert message.startswith("8 problems:")


def test_a_bad_schedule_and_a_bad_batch_are_told_together(resolve):
    with pytest.raises(UserError, match=r"(?s)2 problems.*global batch 33.*scheduler.type is 'Nope'"):
        resolve(changed(*batch(33, 2), ("scheduler.type", "Nope")))


def test_flags_mend_the_json_before_it_is_judged(resolve):
    config = changed(*batch(33, 2), ("optimizer.params.lr", "auto"), ("gradient_clipping", "auto"))
    resolved = resolve(config, global_batch=32, lr=1e-3, grad_clip=1.0)
    assert resolved.layout.global_batch == 32 and resolved.schedule.lr(500) == 1e-3


@pytest.mark.parametrize("value", [None, 3, "x", [], [{}], True, {}, {"x": 1}, 2.5, -1, float("inf")])
@pytest.mark.parametrize(
    "dotted",
    [*sorted(KNOWN_KEYS), "optimizer.type", "optimizer.params", "optimizer.params.lr", "optimizer.params.betas",
     "scheduler.type", "scheduler.params", "scheduler.params.warmup_num_steps", "bf16.enabled",
     "data_types.grad_accum_dtype", "zero_optimization.stage"],
)  # fmt: skip
def test_no_value_of_any_kind_ends_in_a_traceback(resolve, dotted, value):
    try:
        resolve(changed((dotted, value)), lr=None, warmup_steps=5, mixed_precision="bf16", zero_stage=1)
    except UserError as error:
        assert dotted.split(".")[0] in str(error) or "batch" in str(error)


def test_known_keys_occur_in_deepspeed():
    """A key that DeepSpeed does not read would be silently ignored."""
    sources = Path(deepspeed.__file__).parent
    text = "".join(
        path.read_text()
        for folder in ("runtime", "monitor", "comm", "profiling", "utils")
        for path in (sources / folder).rglob("*.py")
    )
    assert [key for key in KNOWN_KEYS if f'"{key}"' not in text and f"'{key}'" not in text] == []


OPTIMIZER = {"lr": 5e-4, "betas": [0.9, 0.999], "eps": 1e-6, "weight_decay": 0.1}


@pytest.mark.parametrize("phase", ["pptrain", "pretrain"])
def test_shipped_json_holds_the_users_values(phase):
    config = json.loads(default_json(phase).read_text())
    assert (config["train_batch_size"], config["train_micro_batch_size_per_gpu"]) == (32, 2)
    assert "gradient_accumulation_steps" not in config  # follows from the number of ranks
    assert config["optimizer"]["type"] == "AdamW"
    assert {key: config["optimizer"]["params"][key] for key in OPTIMIZER} == OPTIMIZER
    assert config["gradient_clipping"] == 1.0
    assert config["bf16"]["enabled"] is True and config["zero_optimization"]["stage"] == 1


@pytest.mark.parametrize("world_size", [1, 2, 4, 8, 16])
def test_shipped_json_resolves_at_every_dividing_world_size(world_size):
    warmup = {1: 5e-7, 250: 1.25e-4, 999: 4.995e-4, 1000: 5e-4}
    pptrain = resolve_file(default_json("pptrain"), world_size)
    assert pptrain.layout == Layout(world_size, 2, 16 // world_size) and not pptrain.overrides
    assert {k: pptrain.schedule.lr(k) for k in warmup} == pytest.approx(warmup, rel=1e-12)
    assert pptrain.schedule.lr(1001) == pptrain.schedule.lr(10**6) == 5e-4

    pretrain = resolve_file(default_json("pretrain"), world_size, total_steps=10_000)
    assert pretrain.layout == Layout(world_size, 2, 16 // world_size) and not pretrain.overrides
    cosine = warmup | {5500: 2.75e-4, 10_000: 5e-5}
    assert {k: pretrain.schedule.lr(k) for k in cosine} == pytest.approx(cosine, rel=1e-12)


@pytest.mark.parametrize("phase", ["pptrain", "pretrain"])
def test_shipped_json_at_other_world_sizes(phase):
    assert resolve_file(default_json(phase), 32, 10_000, micro_batch=1).layout == Layout(32, 1, 1)
    assert resolve_file(default_json(phase), 64, 10_000, global_batch=256).layout == Layout(64, 2, 2)
    for world_size in (3, 64):
        with pytest.raises(UserError, match=f"global batch 32.*{world_size} ranks"):
            resolve_file(default_json(phase), world_size, 10_000)


@pytest.mark.parametrize("phase", ["pptrain", "pretrain"])
def test_deepspeed_itself_accepts_the_shipped_json(phase, monkeypatch):
    monkeypatch.setattr(logging.getLogger("DeepSpeed"), "disabled", True)
    given = resolve_file(default_json(phase), 1, 10_000).deepspeed
    config = deepspeed.DeepSpeedConfig(given)
    assert (config.train_batch_size, config.gradient_accumulation_steps) == (32, 16)
    assert config.bfloat16_config.enabled and config.zero_optimization_stage == 1
    assert config.grad_accum_dtype == "fp32" and config.scheduler_name is None


PYTHIA_PARAMETERS = {
    "14m": 14_067_712, "31m": 30_494_720, "70m": 70_426_624, "160m": 162_322_944, "410m": 405_334_016,
    "1b": 1_011_781_632, "1.4b": 1_414_647_808, "2.8b": 2_775_208_960, "6.9b": 6_857_302_016, "12b": 11_846_072_320,
}  # fmt: skip


@pytest.mark.parametrize(("size", "num_parameters"), PYTHIA_PARAMETERS.items())
def test_presets_are_pythias_published_sizes(size, num_parameters):
    config = load_model_config(f"pythia-{size}")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters
    assert config.max_position_embeddings == 2048 and config.rope_parameters["partial_rotary_factor"] == 0.25
    assert config.use_parallel_residual and not config.tie_word_embeddings


def test_every_pythia_is_a_preset():
    assert set(preset_names()) == {f"pythia-{size}" for size in (*PYTHIA_PARAMETERS, "tiny")}
