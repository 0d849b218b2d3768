"""The DeepSpeed JSON with its flags: one resolved configuration, or every problem in one message."""

import json
from typing import Any

import pytest

from data_tools.base.errors import UserError
from ds_train.config.json_keys import KNOWN_KEYS
from ds_train.run.fingerprints import schedule_as_text
from tests.support.engine_configs import BASE, GONE, batch, changed, resolve, resolve_file


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
        ({"activation_checkpointing": 0}, "activation_checkpointing.every", 0),
    ],
)
def test_flags_win_and_are_reported(flags, dotted, value):
    base = BASE | {"activation_checkpointing": {"every": 3}}
    untouched, resolved = resolve(base), resolve(base, **flags)

    def at(config: dict[str, Any]) -> Any:
        for key in dotted.split("."):
            config = config[key]
        return config

    assert at(resolved.effective) == value
    ((name, given),) = flags.items()
    (line,) = [line for line in resolved.overrides if line.startswith(f"--{name} {given}")]
    assert dotted in line and str(at(untouched.effective)) in line  # what was overridden, and its old value


def test_a_project_of_wandb_turns_it_on_and_leaves_the_rest():
    block = {"enabled": False, "team": "us", "project": "theirs"}
    resolved = resolve(BASE | {"wandb": block}, wandb="ours")
    assert resolved.deepspeed["wandb"] == {"enabled": True, "team": "us", "project": "ours"}
    assert "--wandb ours overrides wandb.project 'theirs'" in resolved.overrides
    assert resolve(BASE, wandb="ours").deepspeed["wandb"] == {"enabled": True, "project": "ours"}
    assert resolve(BASE | {"wandb": block}).deepspeed["wandb"] == block
    with pytest.raises(UserError, match="--wandb is empty"):
        resolve(BASE, wandb="")


def test_a_flag_that_says_what_the_json_says_is_no_override():
    same = {"lr": 5e-4, "weight_decay": 0.1, "grad_clip": 1.0, "warmup_steps": 10, "zero_stage": 1,
            "mixed_precision": "bf16", "global_batch": 32, "micro_batch": 2}  # fmt: skip
    assert not [line for line in resolve(BASE, **same).overrides if line.startswith("--")]


def test_a_changed_global_batch_is_reported_though_its_flag_was_not_given():
    overrides = resolve(BASE, micro_batch=4, grad_accum=2).overrides
    assert any("train_batch_size" in line and "32" in line and "8" in line for line in overrides)


def test_effective_json_and_what_deepspeed_gets():
    resolved = resolve(BASE, world_size=2, lr=1e-3)
    batch_keys = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    for config, sizes in ((resolved.effective, [32, 2, 8]), (resolved.deepspeed, [32, 16, 1])):
        assert [config[key] for key in batch_keys] == sizes
        assert config["optimizer"]["params"]["lr"] == 1e-3
        assert config["data_types"]["grad_accum_dtype"] == "fp32"
        json.dumps(config)
    assert "scheduler" not in resolved.deepspeed
    assert resolved.effective["scheduler"] == BASE["scheduler"]


def test_bf16_gradients_add_up_in_fp32_and_it_is_reported():
    assert any("grad_accum_dtype" in line for line in resolve(BASE).overrides)
    assert any("communication_data_type" in line for line in resolve(BASE).overrides)
    stated = changed(("data_types.grad_accum_dtype", "fp32"), ("communication_data_type", "fp32"))
    assert not resolve(stated).overrides
    in_fp32 = resolve(changed(("bf16", GONE)))
    assert "data_types" not in in_fp32.effective and not in_fp32.overrides
    assert {resolve(c).deepspeed["communication_data_type"] for c in (BASE, stated, in_fp32.given)} == {"fp32"}


def test_zero_2_divides_gradients_in_fp32():
    scatters = ("zero_optimization.reduce_scatter", True)
    resolved = resolve(BASE, zero_stage=2)
    assert resolved.deepspeed["zero_optimization"] == {"stage": 2, "reduce_scatter": False}
    assert any("reduce_scatter set to false" in line for line in resolved.overrides)
    with pytest.raises(UserError, match="reduce_scatter is true with ZeRO 2 in half precision"):
        resolve(changed(scatters), zero_stage=2)
    for flags in ({"zero_stage": 3}, {"zero_stage": 2, "mixed_precision": "no"}):
        assert resolve(changed(scatters), **flags).deepspeed["zero_optimization"]["reduce_scatter"] is True


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ([("train_batchsize", 32)], "train_batchsize.*did you mean train_batch_size[?]"),
        ([("gradient_cliping", 1.0)], "gradient_cliping.*did you mean gradient_clipping[?]"),
        ([("zzz", 1)], "zzz.*known keys.*zero_optimization"),
        ([("zero_optimization.stge", 1)], "zero_optimization.stge.*did you mean stage[?]"),
        ([("zero_optimization.overlap_com", True)], "zero_optimization.overlap_com.*did you mean overlap_comm[?]"),
        ([("optimizer.parms", {})], "optimizer.parms.*did you mean params[?]"),
        ([("optimizer.params.weight_decays", 0.1)], "optimizer.params.weight_decays.*did you mean weight_decay[?]"),
        ([("optimizer.params.beta", [0.9, 0.9])], "optimizer.params.beta.*did you mean betas[?]"),
        ([("optimizer.type", "AdamWW")], "optimizer.type.*AdamWW.*did you mean AdamW[?]"),
        ([("optimizer.type", GONE)], "optimizer.type is missing"),
        ([("optimizer", GONE)], "optimizer.type is missing"),
        ([("optimizer.params.lr", GONE)], "optimizer.params.lr"),
        ([("optimizer.params.lr", 0)], "optimizer.params.lr is 0"),
        ([("optimizer.params.lr", "auto")], "optimizer.params.lr is 'auto'"),
        ([("optimizer.params.lr", True)], "optimizer.params.lr is True"),
        ([("optimizer.params.lr", float("nan"))], "optimizer.params.lr is nan"),
        ([("optimizer.params.weight_decay", -0.1)], "optimizer.params.weight_decay is -0.1"),
        ([("optimizer.params.betas", [0.9, 1.5])], "optimizer.params.betas"),
        ([("optimizer.params.betas", [0.9])], "optimizer.params.betas is .0.9., expected two numbers"),
        ([("optimizer.params.adam_w_mode", False)], "adam_w_mode is false, which AdamW does not read"),
        ([("scheduler.params.warmup_steps", 10)], "warmup_steps.*warmup_num_steps"),
        ([("scheduler.type", "Cosine")], "scheduler.type.*Cosine"),
        ([("scheduler.parms", {})], "parms"),
        ([("bf16.enable", True)], "bf16.enable.*did you mean enabled[?]"),
        ([("bf16.enabled", "perhaps")], "bf16.enabled is 'perhaps'"),
        ([("zero_optimization.stage", 4)], "zero_optimization.stage is 4"),
        ([("zero_optimization.stage", 0)], "stage is 0 with bf16"),
        ([("zero_optimization", GONE)], "stage is 0 with bf16"),
        ([("bf16", GONE), ("fp16.enabled", True), ("zero_optimization", GONE)], "stage is 0 with fp16"),
        ([("fp16.enabled", True)], "bf16.*fp16"),
        ([("data_types.grad_acum_dtype", "fp32")], "data_types.grad_acum_dtype.*did you mean grad_accum_dtype[?]"),
        ([("data_types.grad_accum_dtype", "float32")], "grad_accum_dtype is 'float32'.*fp32"),
        ([("data_types.grad_accum_dtype", "bf16"), ("bf16", GONE)], "grad_accum_dtype is 'bf16'.*set fp32"),
        ([("communication_data_type", "bf16")], "communication_data_type is 'bf16'.*set fp32"),
        ([("communication_data_type", 5), ("bf16", GONE)], "communication_data_type is 5.*set fp32"),
        ([("gradient_clipping", -1)], "gradient_clipping is -1"),
        ([("gradient_clipping", "auto")], "gradient_clipping is 'auto'"),
        ([("tensorboard.enabeld", True)], "tensorboard.enabeld.*did you mean enabled[?]"),
    ],
)
def test_unknown_keys_and_bad_values_are_named(changes, named):
    with pytest.raises(UserError, match=named):
        resolve(changed(*changes))


def test_fp32_may_use_stage_0():
    resolved = resolve(changed(("zero_optimization.stage", 0)), mixed_precision="no")
    assert not resolved.effective["bf16"]["enabled"]


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"missing.json.*No such file"):
        resolve_file(tmp_path / "missing.json")
    with pytest.raises(UserError, match="is not a regular file"):
        resolve_file(tmp_path)
    with pytest.raises(UserError, match=r"ds.json is not valid JSON.*line 1"):
        resolve('{"train_batch_size": 32,}')
    with pytest.raises(UserError, match="holds a list"):
        resolve("[]")
    with pytest.raises(UserError, match=r"train_batch_size.*twice"):
        resolve('{"train_batch_size": 32, "train_batch_size": 64}')
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"bytes.json cannot be read \(.*utf-8"):
        resolve_file(tmp_path / "bytes.json")


def test_length_of_the_run_and_the_schedule():
    cosine = ("scheduler", {"type": "WarmupCosineLR", "params": {"warmup_num_steps": 10, "warmup_type": "linear"}})
    auto = changed(cosine, ("scheduler.params.total_num_steps", "auto"))
    assert resolve(auto, total_steps=50).schedule.total_steps == 50
    with pytest.raises(UserError, match=r"total_num_steps 60.*50"):
        resolve(changed(cosine, ("scheduler.params.total_num_steps", 60)), total_steps=50)
    with pytest.raises(UserError, match="total_num_steps"):
        resolve(auto, total_steps=None)


def test_min_lr_ratio_overrides_the_floor():
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


def test_decay_steps_end_a_constant_rate():
    """The former text of a schedule without a decay of its own stays: checkpoints are compared with it."""
    resolved = resolve(BASE, total_steps=50, decay_steps=20)
    assert [resolved.schedule.lr(step) for step in (30, 40, 50)] == pytest.approx([5e-4, 2.5e-4, 0])
    assert resolved.effective["scheduler"]["type"] == "WarmupStableDecay"
    assert "--decay_steps 20 overrides scheduler.type 'WarmupLR'" in resolved.overrides
    params = {"warmup_num_steps": 10, "warmup_type": "linear", "decay_num_steps": 5, "decay_type": "1-sqrt"}
    stable = changed(("scheduler", {"type": "WarmupStableDecay", "params": params}))
    assert resolve(stable, total_steps=50, decay_steps=40).schedule.lr(20) == pytest.approx(5e-4 * 0.5)
    with pytest.raises(UserError, match=r"--decay_steps ends the constant rate .* 'WarmupCosineLR'"):
        resolve(changed(("scheduler.type", "WarmupCosineLR")), total_steps=50, decay_steps=20)
    assert "decay_steps" in schedule_as_text(resolved.schedule)
    assert "decay_steps" not in schedule_as_text(resolve(BASE, total_steps=50).schedule)


def test_the_lr_flag_moves_the_peak_of_the_schedule():
    config = changed(("scheduler.params.warmup_max_lr", 5e-4))
    assert resolve(config, lr=1e-3).schedule.lr(500) == 1e-3
    with pytest.raises(UserError, match=r"warmup_max_lr 0.001.*0.0005"):
        resolve(changed(("scheduler.params.warmup_max_lr", 1e-3)))


def test_warmup_steps_without_a_scheduler_is_an_error():
    assert resolve(changed(("scheduler", GONE))).schedule.lr(1) == 5e-4
    with pytest.raises(UserError, match=r"warmup_steps.*scheduler"):
        resolve(changed(("scheduler", GONE)), warmup_steps=5)


def test_all_problems_are_reported_at_once():
    config = changed(
        ("train_batchsize", 32),
        *batch(33, 0),
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
        "train_batchsize", "train_micro_batch_size_per_gpu is 0", "weight_decays", "optimizer.params.lr is -1",
        "gradient_clipping is -2",
        "zero_optimization.stge", "fp16.enabled", "--min_lr_ratio",
    ):  # fmt: skip
        assert part in message, part
    assert message.startswith("8 problems:")


def test_a_bad_schedule_and_a_bad_batch_are_reported_together():
    with pytest.raises(UserError, match=r"(?s)2 problems.*micro_batch_size_per_gpu is 0.*scheduler.type is 'Nope'"):
        resolve(changed(*batch(33, 0), ("scheduler.type", "Nope")))


def test_flags_correct_the_json_before_it_is_judged():
    config = changed(*batch("auto", 2), ("optimizer.params.lr", "auto"), ("gradient_clipping", "auto"))
    resolved = resolve(config, global_batch=32, lr=1e-3, grad_clip=1.0)
    assert resolved.layout.global_batch == 32 and resolved.schedule.lr(500) == 1e-3


@pytest.mark.parametrize("value", [None, 3, "x", [], [{}], True, {}, {"x": 1}, 2.5, -1, float("inf")])
@pytest.mark.parametrize(
    "dotted",
    [*sorted(KNOWN_KEYS), "optimizer.type", "optimizer.params", "optimizer.params.lr", "optimizer.params.betas",
     "scheduler.type", "scheduler.params", "scheduler.params.warmup_num_steps", "bf16.enabled",
     "data_types.grad_accum_dtype", "zero_optimization.stage"],
)  # fmt: skip
def test_no_value_of_any_kind_ends_in_a_traceback(dotted, value):
    try:
        resolve(changed((dotted, value)), lr=None, warmup_steps=5, mixed_precision="bf16", zero_stage=1)
    except UserError as error:
        assert dotted.split(".")[0] in str(error) or "batch" in str(error)


def test_a_run_that_ends_within_its_warm_up_is_reported(caplog: pytest.LogCaptureFixture):
    resolve(BASE, warmup_steps=10, total_steps=10)
    assert not caplog.text
    resolve(BASE, warmup_steps=10, total_steps=4)
    assert "ends within its warm-up: 4 of 10 steps, up to a learning rate of 0.0002 instead of 0.0005" in caplog.text
