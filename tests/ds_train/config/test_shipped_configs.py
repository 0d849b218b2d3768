"""The shipped DeepSpeed JSON files and model presets hold the users' values and work at every size."""

import json
import logging

import deepspeed
import pytest
import torch
from transformers import AutoModelForCausalLM

from data_tools.base.errors import UserError
from ds_train.config.deepspeed_json import default_json
from ds_train.config.layout import Layout
from ds_train.model.causal_lm import load_model_config, preset_names
from ds_train.model.footprint import model_shape
from tests.support import tiny
from tests.support.engine_configs import resolve_file
from tests.support.launching import read_log, run_all

CONFIGS = default_json("pptrain").parent
SCALES = ("", "_zero2", "_zero3", "_offload")  # of the users' runs; _cpu is for debugging
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


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("p*.json")), ids=lambda path: path.stem)
def test_gradients_are_summed_over_ranks_in_fp32(path):
    assert json.loads(path.read_text())["communication_data_type"] == "fp32"


@pytest.mark.parametrize("world_size", [1, 2, 3, 8, 32])
def test_shipped_json_resolves_at_every_world_size(world_size):
    warmup = {1: 5e-7, 250: 1.25e-4, 999: 4.995e-4, 1000: 5e-4}
    pptrain = resolve_file(default_json("pptrain"), world_size)
    assert pptrain.layout == Layout(world_size, 2, 32) and not pptrain.overrides
    assert {k: pptrain.schedule.lr(k) for k in warmup} == pytest.approx(warmup, rel=1e-12)
    assert pptrain.schedule.lr(1001) == pptrain.schedule.lr(10**6) == 5e-4

    pretrain = resolve_file(default_json("pretrain"), world_size, total_steps=10_000)
    assert pretrain.layout == Layout(world_size, 2, 32) and not pretrain.overrides
    cosine = warmup | {5500: 2.75e-4, 10_000: 5e-5}
    assert {k: pretrain.schedule.lr(k) for k in cosine} == pytest.approx(cosine, rel=1e-12)


@pytest.mark.parametrize("phase", ["pptrain", "pretrain"])
def test_shipped_json_at_other_world_sizes(phase):
    assert resolve_file(default_json(phase), 32, 10_000, micro_batch=1).layout == Layout(32, 1, 32)
    assert resolve_file(default_json(phase), 64, 10_000, global_batch=256).layout == Layout(64, 2, 256)
    with pytest.raises(UserError, match=r"global batch 32.*64 ranks"):
        resolve_file(default_json(phase), 64, 10_000)


@pytest.mark.parametrize("phase", ["pptrain", "pretrain"])
def test_deepspeed_itself_accepts_the_shipped_json(phase, monkeypatch):
    monkeypatch.setattr(logging.getLogger("DeepSpeed"), "disabled", True)
    given = resolve_file(default_json(phase), 1, 10_000).deepspeed
    config = deepspeed.DeepSpeedConfig(given)
    assert (config.train_batch_size, config.gradient_accumulation_steps) == (32, 1)
    assert config.bfloat16_config.enabled and config.zero_optimization_stage == 1
    assert config.grad_accum_dtype == "fp32" and config.scheduler_name is None


PYTHIA_PARAMETERS = {
    "14m": 14_067_712, "31m": 30_494_720, "70m": 70_426_624, "160m": 162_322_944, "410m": 405_334_016,
    "1b": 1_011_781_632, "1.4b": 1_414_647_808, "2.8b": 2_775_208_960, "6.9b": 6_857_302_016, "12b": 11_846_072_320,
}  # fmt: skip


# With the shared embedding counted once, as on Hugging Face's pages of the models.
QWEN3_PARAMETERS = {"0.6b": 596_049_920, "1.7b": 1_720_574_976, "4b": 4_022_468_096, "8b": 8_190_735_360}


@pytest.mark.parametrize(("size", "num_parameters"), QWEN3_PARAMETERS.items())
def test_presets_are_qwen3s_published_sizes(size, num_parameters):
    config = load_model_config(f"qwen3-{size}")
    assert model_shape(config).num_parameters == num_parameters
    assert config.max_position_embeddings == 40_960 and config.rope_parameters["rope_theta"] == 1_000_000
    assert config.head_dim == 128 and config.tie_word_embeddings == (size != "8b")


@pytest.mark.parametrize(("size", "num_parameters"), PYTHIA_PARAMETERS.items())
def test_presets_are_pythias_published_sizes(size, num_parameters):
    config = load_model_config(f"pythia-{size}")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters
    assert config.max_position_embeddings == 2048 and config.rope_parameters["partial_rotary_factor"] == 0.25
    assert config.use_parallel_residual and not config.tie_word_embeddings


def test_every_published_size_is_a_preset():
    pythias = {f"pythia-{size}" for size in (*PYTHIA_PARAMETERS, "tiny")}
    assert set(preset_names()) == pythias | {f"qwen3-{size}" for size in QWEN3_PARAMETERS}


def _without(config: dict, *keys: str) -> dict:
    return {key: value for key, value in config.items() if key not in keys}


def test_files_are_those_the_readme_lists():
    shipped = {path.stem for path in CONFIGS.glob("*.json")}
    assert shipped == {f"{phase}{scale}" for phase in ("pptrain", "pretrain") for scale in (*SCALES, "_cpu")}
    readme = (CONFIGS / "README.md").read_text()
    assert all(f"`*{scale}.json`" in readme for scale in (*SCALES[1:], "_cpu"))


@pytest.mark.parametrize("phase", ["pptrain", "pretrain"])
@pytest.mark.parametrize("scale", SCALES[1:])
def test_another_scale_is_the_same_trajectory(phase, scale):
    """Switching files changes the ZeRO block and nothing else."""
    default, scaled = (json.loads((CONFIGS / f"{phase}{name}.json").read_text()) for name in ("", scale))
    assert _without(scaled, "zero_optimization") == _without(default, "zero_optimization")
    assert scaled["zero_optimization"] != default["zero_optimization"]


@pytest.mark.parametrize("scale", [*SCALES, "_cpu"])
def test_phases_differ_in_the_schedule_only(scale):
    pptrain, pretrain = (
        json.loads((CONFIGS / f"{phase}{scale}.json").read_text()) for phase in ("pptrain", "pretrain")
    )
    assert _without(pptrain, "scheduler") == _without(pretrain, "scheduler")


def test_debugging_keeps_optimizer_and_schedule():
    default, cpu = (json.loads((CONFIGS / f"pretrain{name}.json").read_text()) for name in ("", "_cpu"))
    assert cpu["optimizer"] == default["optimizer"] and cpu["gradient_clipping"] == default["gradient_clipping"]
    assert "bf16" not in cpu
    warmup = {"warmup_num_steps": default["scheduler"]["params"]["warmup_num_steps"]}
    assert cpu["scheduler"]["params"] | warmup == default["scheduler"]["params"]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.json")), ids=lambda path: path.stem)
def test_every_file_passes_our_checks(path):
    resolved = resolve_file(path, 1, 10_000)
    assert not resolved.overrides
    assert (resolved.layout.global_batch, resolved.layout.micro_batch) == ((4, 1) if "_cpu" in path.stem else (32, 2))


@pytest.mark.launch
def test_every_file_trains_and_all_scales_alike(tiny_scratch, tmp_path):
    length = {"pptrain": "--max_steps 2", "pretrain": "--total_steps 4 --stop_step 2 --pptrain_checkpoint none"}
    runs = [
        {
            "phase": phase,
            "argv": [*tiny.flags(tiny_scratch, precision=None), "--run_name", f"shipped_{phase}{scale}",
                     "--num_workers", "0", "--deepspeed_config", str(CONFIGS / f"{phase}{scale}.json"),
                     *length[phase].split()],
            "code": {"pptrain": 0, "pretrain": 86}[phase],
        }
        for phase in length
        for scale in (*SCALES, "_cpu")
    ]  # fmt: skip
    run_all(runs, tmp_path, num_ranks=1)
    for phase in length:
        losses = {
            scale: [row["loss"] for row in read_log(tiny_scratch / f"shipped_{phase}{scale}")]
            for scale in (*SCALES, "_cpu")
        }
        assert {len(values) for values in losses.values()} == {2}
        for scale in SCALES[1:]:
            assert losses[scale] == pytest.approx(losses[""], rel=1e-3), (phase, scale)
