"""preflight refuses what the trainer refuses, and predicts what DeepSpeed's engines really hold."""

import dataclasses
import re
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

from data_tools.base.errors import UserError
from data_tools.corpus.tokenizer import load_tokenizer
from data_tools.samples.documents import Document
from data_tools.search.splits import Splits
from ds_train import preflight
from ds_train.checkpoints.manifest import choose_checkpoint
from ds_train.model import footprint as memory
from ds_train.model.causal_lm import build_model, load_model_config
from ds_train.model.footprint import GIB, activations, checkpoint_bytes, model_shape, predict
from ds_train.phases import launch_check, pretrain
from ds_train.phases.evaluation import heldout_examples
from ds_train.ranks.world import World
from ds_train.step.losses import PackedLM
from ds_train.step.micro_batch import pack
from tests.support import tiny
from tests.support.flash_stand_in import install
from tests.support.paths import REPOSITORY
from tests.support.tiny_models import tiny_config

BATCH = "--global_batch 8 --micro_batch 2".split()
FRESH = ["--pptrain_checkpoint", "none"]


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    code = preflight.main(list(argv))
    return code, capsys.readouterr().out


def row(output: str, name: str) -> list[str]:
    """The cells of a row."""
    (line,) = [line for line in output.splitlines() if line.startswith(f"{name}  ")]
    return line.removeprefix(name).split("  ")[1:]


def cells(output: str, name: str) -> list[str]:
    return [cell.strip() for cell in row(output, name) if cell.strip()]


@pytest.fixture
def scratch(tiny_scratch: Path, tmp_path: Path) -> Path:
    for name in ("data", "tokenizer", "model"):
        shutil.copytree(tiny_scratch / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(
    ("limits", "length"),
    [
        ([], []), (["--max_tokens", "5_000_000"], ["at most 0.005 G"]), (["--max_pflops", "1e-3"], ["at most 0.009 G"]),
        (["--max_pflops", "1e-3", "--max_tokens", "5_000_000", "--max_steps", "1"], ["at most 0.000 G"]),
    ],
)  # fmt: skip
def test_limits_bound_the_length_of_a_curriculum(scratch, capsys, limits, length):
    """115,200 FLOPs a token."""
    _, output = run(capsys, "pptrain", *tiny.flags(scratch, precision=None), *BATCH, *limits, "--gpus_per_node", "2")
    assert ("tokens in all" in output) == bool(length) and (not length or cells(output, "tokens in all") == length)


def test_milestones_need_room(scratch, capsys):
    flags = [*tiny.flags(scratch, precision=None), *BATCH, "--keep_steps", "3", "5", "--keep_stages", "all"]
    _, output = run(capsys, "pptrain", *flags, "--gpus_per_node", "2")
    assert "(13 kept, 1 being written)" in output, "the newest 3, of 2 steps and of 8 stages"


def test_pretrain_on_one_and_two_nodes(scratch, capsys):
    flags = [*tiny.flags(scratch, precision=None), *BATCH, *FRESH, "--total_steps", "20"]
    code, output = run(capsys, "pretrain", *flags, "--nodes", "1", "2", "--gpus_per_node", "2")
    assert code == 0 and output.endswith("would start\n")
    assert cells(output, "ranks") == ["2", "4"]
    assert cells(output, "tokens of a forward, at most") == [f"{2 * tiny.SEQ_LEN:,}"] * 2
    assert cells(output, "tokens a step") == [f"{8 * tiny.SEQ_LEN:,}"] * 2
    assert cells(output, "C4 blocks needed / packed") == ["160 / 200"] * 2
    assert cells(output, "warm-up steps") == ["4", "4"]
    assert not torch.distributed.is_initialized() and not list(scratch.glob("*/checkpoints"))


def test_pptrain_says_how_long_the_curriculum_is_at_least(scratch, capsys):
    code, output = run(
        capsys, "pptrain", *tiny.flags(scratch, precision=None), *BATCH, "--gpus_per_node", "1", "--curr_window", "100"
    )
    assert code == 0
    assert cells(output, "stages") == ["8"]
    assert cells(output, "steps to master all, at least") == [f"{8 * 20}"]  # 13 steps fill the window; checked at 20
    assert cells(output, "steps") == ["until finished"]


@pytest.mark.parametrize("where", [[], ["--cpu"]], ids=["gpu", "cpu"])
def test_parts_of_the_memory_sum_to_it_and_the_run_has_a_length(scratch, capsys, where):
    flags = [*tiny.flags(scratch), *BATCH, *FRESH, "--total_steps", "20", "--gpus_per_node", "1", *where]
    code, output = run(capsys, "pretrain", *flags)
    assert code == 0
    total = float(cells(output, "rank memory, ZeRO 1")[0].split()[0])
    parts = [line for line in output.splitlines() if line.startswith("* ")]
    assert len(parts) == 6
    assert sum(float(re.search(r"([\d.]+) GiB", line)[1]) for line in parts) == pytest.approx(total, abs=0.031)
    hours = next(line for line in output.splitlines() if line.startswith("hours"))
    assert re.search(r"unknown on CPUs" if where else r"30% of an H100 SXM's peak +0\.0$", hours)
    assert (0.4 < total < 0.8) if where else (total > 1.5), "a process on a CPU has no CUDA context"
    assert "kept, 1 being written" in output


def test_hours_and_memory_of_a_preset_count_its_attention(scratch, capsys):
    """The heads of Qwen3-0.6B are twice as wide as the model."""
    flags, steps = tiny.flags(scratch, precision=None), 10**7
    flags[flags.index("--model_name") + 1] = "qwen3-0.6b"
    _, output = run(capsys, "pptrain", *flags, *BATCH, "--max_steps", str(steps), "--gpus_per_node", "2")
    assert cells(output, "model, parameters") == ["596.0 M"]

    splits = Splits(next((scratch / "data" / "nl_splits").iterdir()))
    samples = heldout_examples(
        splits.rows("eval"), load_tokenizer(str(scratch / "tokenizer")), seq_len=tiny.SEQ_LEN, subset_size=8, seed=1337
    ).samples
    lengths = [len(document.weights) for sample in samples for document in sample]
    flops = sum(6 * 596_049_920 * length + 6 * 28 * 16 * 128 * length**2 for length in lengths) / len(samples)
    hours = steps * 8 * flops / (2 * 0.3 * 989e12) / 3600
    assert cells(output, "hours, at 30% of an H100 SXM's peak") == [f"at most {hours:,.1f}"]

    of_layer = 8 * 1024 + 4 * 2048 + 3 * (2048 + 1024) + 4 * 3072  # norms, attention, norms of queries and keys, mlp
    kept = 2 * 2 * tiny.SEQ_LEN * (28 * of_layer + 3 * 1024 + 2 * 151_936)
    assert cells(output, "* activations, logits (most)") == [f"{kept / GIB:.2f} GiB"]
    assert "recomputed" not in output
    _, output = run(capsys, "pptrain", *flags, *BATCH, "--gpus_per_node", "2", "--activation_checkpointing", "4")
    kept = 2 * 2 * tiny.SEQ_LEN * (21 * of_layer + 7 * 1024 + 3 * 1024 + 2 * 151_936)
    assert cells(output, "* activations, logits (most)") == [f"{kept / GIB:.2f} GiB"]
    assert cells(output, "recomputed") == ["activations of 7 of 28 layers"]


def test_flash_attention_needs_gpus_but_not_here(scratch, capsys, monkeypatch):
    install(monkeypatch, "flash_attention_2")
    flags = [*tiny.flags(scratch, precision=None), *BATCH, "--attn_implementation", "flash_attention_2"]
    code, output = run(capsys, "pptrain", *flags, "--gpus_per_node", "2")
    assert code == 0 and cells(output, "documents") == ["end to end in one row, none sees another"]
    code, output = run(capsys, "pptrain", *flags, "--gpus_per_node", "2", "--cpu")
    assert code == 1 and "flash_attention_2: it needs a GPU" in output


def test_every_launch_that_cannot_start_is_reported_and_the_others_are_shown(scratch, capsys):
    flags = [*tiny.flags(scratch, precision=None), *BATCH, "--gpus_per_node", "2"]
    code, output = run(capsys, "pptrain", *flags, "--nodes", "1", "3", "8")
    assert code == 1 and output.endswith("would not start\n")
    assert cells(output, "ranks") == ["2", "6"]
    assert "problem (8 × 2): global batch 8" in output


@pytest.mark.parametrize(
    "flags",
    [
        ["--global_batch", "1", "--mixin_percent", "7", "--log_every", "0"],
        ["--total_steps", "1000"],
        ["--seq_len", "128"],
        ["--pack_dir", "/nowhere"],
        ["--deepspeed_config", "/nowhere.json"],
        ["--resume", "/nowhere/step_00000001"],
    ],
)
def test_it_refuses_in_the_trainers_own_words(scratch, capsys, flags):
    given = [*tiny.flags(scratch, precision=None), *BATCH, *FRESH, *flags]
    with pytest.raises(UserError) as refused:
        prepared = pretrain.prepare(given, World(0, 0, 2))
        prepared.make_setup()
        choose_checkpoint(scratch / "pretrain" / "checkpoints", prepared.inputs.run_flags.resume)
    code, output = run(capsys, "pretrain", *given, "--gpus_per_node", "2")
    assert code == 1 and str(refused.value) in output


def test_several_json_files_are_columns(scratch, capsys):
    configs = [str(REPOSITORY / "ds_configs" / f"pptrain{n}.json") for n in ("", "_zero3")]
    code, output = run(
        capsys,
        "pptrain",
        *tiny.flags(scratch, precision=None),
        *BATCH,
        "--gpus_per_node",
        "2",
        "--deepspeed_config",
        *configs,
    )
    assert code == 0
    assert cells(output, "") == ["1 × 2 pptrain", "1 × 2 pptrain_zero3"]
    assert cells(output, "rank memory, ZeRO 3")[1].endswith("*")


def test_too_little_disk_and_too_little_memory_are_problems(scratch, capsys, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(launch_check.shutil, "disk_usage", lambda _: usage(2, 1, 1))
    flags = [*tiny.flags(scratch, precision=None), *BATCH, "--gpus_per_node", "1", "--gpu_memory_gb", "0.1"]
    code, output = run(capsys, "pptrain", *flags)
    assert code == 1
    assert "checkpoints need" in output and "3 kept and one being written" in output
    assert "more than --gpu_memory_gb 0.1" in output


def test_against_deepspeeds_estimators():
    """Its ZeRO 2 counts 2 more bytes a parameter, sharded: half-precision gradients that are reduced away at once."""
    p, n = 10**9, 16
    shape = dataclasses.replace(model_shape(load_model_config("pythia-1b")), num_parameters=p)

    def states(zero: dict) -> int:
        found = predict(shape, zero, half=True, num_ranks=n, row_tokens=1)
        return found.weights + found.gradients + found.optimizer

    _, two = estimate_zero2_model_states_mem_needs(p, num_gpus_per_node=8, num_nodes=2, cpu_offload=False)
    assert two - states({"stage": 2}) == 2 * p // n
    _, three, largest = estimate_zero3_model_states_mem_needs(
        p, 10**8, num_gpus_per_node=8, num_nodes=2, cpu_offload=False, cpu_offload_params=False
    )
    assert three - largest == states({"stage": 3})


def test_defaults_are_deepspeeds():
    defaults = DeepSpeedZeroConfig()
    assert (
        defaults.reduce_bucket_size, defaults.max_live_parameters, defaults.prefetch_bucket_size,
    ) == (memory.BUCKET, memory.MAX_LIVE, memory.PREFETCH)  # fmt: skip


@pytest.mark.parametrize(("architecture", "margin"), [("gpt_neox", 1.02), ("llama", 1.06), ("qwen3", 1.06)])
def test_activations_are_what_autograd_keeps(architecture, margin):
    """Two packed documents in bf16."""
    config = tiny_config(architecture)
    tokens = 254
    model = PackedLM(build_model(config, seed=0)).bfloat16()
    batch = pack([[Document(np.arange(n + 1) % 60, np.ones(n, np.float32))] for n in (100, tokens - 100)])
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(batch)
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values() if tensor.is_floating_point())
    logits_gradient = 2 * tokens * config.vocab_size  # made in backward only
    predicted = activations(model_shape(config), tokens, 2, "sdpa") - logits_gradient
    assert predicted / 1.05 < measured < predicted * margin


def test_pythia_160m_checkpoint_is_what_was_measured():
    """2.2 GB of real files (bf16, ZeRO 1)."""
    num_parameters = model_shape(load_model_config("pythia-160m")).num_parameters
    assert num_parameters == 162_322_944
    assert checkpoint_bytes(num_parameters, stage=1, half=True) == pytest.approx(2.27e9, rel=0.01)


def test_large_model_fits_where_it_should():
    shape = model_shape(load_model_config("pythia-6.9b"))
    device = {
        stage: predict(shape, {"stage": stage}, half=True, num_ranks=64, row_tokens=2048).device / GIB
        for stage in (1, 2, 3)
    }
    assert device[1] > 50 > device[2] > device[3]
