"""Bad input is one clear error before any process group or model exists, and the exit code is not 0."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as dist

from data_tools.base.errors import UserError
from ds_train.config.flags import parse_flags
from ds_train.config.trainer_flags import ModelFlags, RunFlags
from ds_train.phases import pptrain, pretrain
from tests.support import tiny
from tests.support.launching import launch
from tests.support.paths import REPOSITORY

BATCH = "--global_batch 8 --micro_batch 4".split()


@pytest.fixture
def scratch(tiny_scratch: Path, tmp_path: Path) -> Path:
    """A copy of the tiny scratch directory's data that a test may damage."""
    for name in ("data", "tokenizer", "model"):
        shutil.copytree(tiny_scratch / name, tmp_path / name)
    return tmp_path


def _splits(scratch: Path) -> Path:
    return next((scratch / "data" / "nl_splits").iterdir())


def _edit_meta(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _json_with(scratch: Path, **changes: object) -> list[str]:
    path = scratch / "deepspeed.json"
    shipped = REPOSITORY / "ds_configs" / "pptrain.json"
    path.write_text(json.dumps(json.loads(shipped.read_text()) | changes))
    return ["--deepspeed_config", str(path)]


def _no_data(scratch: Path) -> list[str]:
    shutil.rmtree(scratch / "data" / "nl_splits")
    return []


def _two_splits(scratch: Path) -> list[str]:
    shutil.copytree(_splits(scratch), _splits(scratch).with_name("another"))
    return []


def _half_written_splits(scratch: Path) -> list[str]:
    (_splits(scratch) / "meta.json").unlink()
    return ["--data_dir", str(_splits(scratch))]


def _empty_eval(scratch: Path) -> list[str]:
    (_splits(scratch) / "eval.jsonl").write_text("")
    return []


def _other_tokenizer(scratch: Path) -> list[str]:
    path = scratch / "tokenizer" / "tokenizer.json"
    value = json.loads(path.read_text())
    value["model"]["vocab"]["another"] = max(value["model"]["vocab"].values()) + 1
    path.write_text(json.dumps(value))
    return []


def _short_shard(scratch: Path) -> list[str]:
    shard = scratch / "data" / "c4_packed" / "shard_00000.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    return []


def _small_model(scratch: Path) -> list[str]:
    _edit_meta(scratch / "model" / "config.json", vocab_size=8)
    return []


def _cannot_recompute(scratch: Path) -> list[str]:
    _edit_meta(scratch / "model" / "config.json", model_type="gpt_neox_japanese")
    return ["--activation_checkpointing"]


def _file_in_place_of_run(scratch: Path) -> list[str]:
    (scratch / "run_dir").write_text("")
    return ["--run_name", "run_dir"]


def _given(*flags: str) -> Callable[[Path], list[str]]:
    return lambda scratch: list(flags)


BOTH_PHASES = {
    "no data": (_no_data, r"no data splits under .*build_data_splits"),
    "several data directories": (_two_splits, r"2 data splits.*--data_dir.*--data_dir"),
    "half-written data directory": (_half_written_splits, r"has no meta\.json"),
    "missing data directory": (_given("--data_dir", "/nowhere"), r"--data_dir /nowhere"),
    "empty eval.jsonl": (_empty_eval, r"eval\.jsonl holds no examples"),
    "batch without a size": (_given("--grad_accum", "0"), r"--grad_accum is 0"),
    "unknown JSON key": (lambda s: _json_with(s, gradient_cliping=1.0), r"'gradient_cliping'.*gradient_clipping"),
    "unknown ZeRO key": (lambda s: _json_with(s, zero_optimization={"stages": 1}), r"zero_optimization\.stages"),
    "missing JSON": (_given("--deepspeed_config", "/nowhere.json"), r"/nowhere\.json cannot be read"),
    "missing tokenizer": (_given("--tokenizer", "/nowhere/tokenizer.json"), r"/nowhere/tokenizer\.json"),
    "unknown model": (_given("--model_name", "/nowhere/model"), r"--model_name /nowhere/model.*pythia-160m"),
    "model smaller than tokenizer": (_small_model, r"tokenizer has \d+ ids but the model only 8"),
    "activations that are always kept": (_cannot_recompute, r"gpt_neox_japanese cannot recompute its activations"),
    "compiled layers and ZeRO 3": (_given("--compile", "--zero_stage", "3"), r"within which ZeRO 3 gathers weights"),
    "compiled layers, computed twice": (
        _given("--compile", "--activation_checkpointing"),
        r"--compile makes a graph of each layer, within which --activation_checkpointing computes twice",
    ),
    "attention of a package": (
        _given("--attn_implementation", "flash_attention_2", "--mixed_precision", "bf16"),
        r"--attn_implementation flash_attention_2: the package flash-attn is not installed",
    ),
    "unwritable scratch": (_file_in_place_of_run, r"--scratch_dir: cannot write to .*run_dir"),
    "run name with a path": (_given("--run_name", "../b"), r"--run_name ../b"),
    "run among the data": (_given("--run_name", "data/a"), r"--run_name data/a is no directory of runs"),
    "missing checkpoint": (_given("--resume", "/nowhere/step_00000001"), r"--resume /nowhere/step_00000001"),
}
PPTRAIN = {
    "unknown generator module": (_given("--generator", "no_such_module:Generator"), r"no_such_module"),
    "unknown generator class": (_given("--generator", "json:Nothing"), r"module 'json' has no 'Nothing'"),
    "task of other generators": (_given("--generator_task", "dfs"), r"built-in generator has no task 'dfs'"),
    "option of other generators": (
        _given("--generator_options", "max_prefix_vertices=3"),
        r"built-in generator has no option max_prefix_vertices, and takes max_edges",
    ),
    "first stage without an edge": (_given("--generator_options", "max_edges=4"), r"allows no edge.*stage 2 of 8"),
    "contradicting max_lookahead": (_given("--max_lookahead", "9"), r"--max_lookahead 9 contradicts.*built with 8"),
    "replay of nothing": (
        _given("--curriculum", "replay"),
        r"--curriculum replay and --replay_run RUN need each other",
    ),
    "run that is not replayed": (_given("--replay_run", "/nowhere"), r"need each other; give both, or neither"),
    "replay of no run": (
        _given("--curriculum", "replay", "--replay_run", "/nowhere"),
        r"--replay_run /nowhere: .*cannot be read",
    ),
    "first stage without a curriculum": (
        _given("--curriculum", "none", "--start_stage", "2"),
        r"none trains stage 8 only, but --start_stage is 2",
    ),
    "half a pair of answers": (
        _given("--answers", "shuffled", "--global_batch", "9", "--micro_batch", "3"),
        r"--answers shuffled: .*a global batch of 9 would end within a pair; use an even one",
    ),
    "threshold": (_given("--curr_threshold", "98"), r"--curr_threshold is 98\.0, expected a number in \(0, 1\]"),
    "start stage": (_given("--start_stage", "9"), r"--start_stage 9"),
    "seq_len too small": (_given("--seq_len", "16"), r"longer than --seq_len 16"),
}
PRETRAIN = {
    "mixin_percent": (_given("--mixin_percent", "2"), r"--mixin_percent is 2\.0.*\[0, 1\]"),
    "negative mixin_percent": (_given("--mixin_percent", "-0.1"), r"--mixin_percent is -0\.1"),
    "schedule without end": (_given("--mixin_schedule", "linear"), r"--mixin_end"),
    "short shard": (_short_shard, r"shard_00000\.bin has .* bytes, expected"),
    "no pack": (_given("--pack_dir", "/nowhere"), r"/nowhere does not exist.*build_pretrain"),
    "other seq_len than the pack": (_given("--seq_len", "128"), r"--seq_len 128.*packed for seq_len 256"),
    "other tokenizer than the pack": (_other_tokenizer, r"is not the one .* was packed with"),
    "pack too small": (_given("--total_steps", "1000"), r"needs \d+ C4 blocks but .* holds 200.*--allow_repeat"),
    "misspelt latest": (_given("--pptrain_checkpoint", "lates"), r"checkpoint lates is missing; did you mean latest"),
    "missing weights": (
        _given("--pptrain_checkpoint", "/nowhere"),
        r"/nowhere is missing; give a step directory",
    ),
    "no weights": (_given("--pptrain_checkpoint", "/"), r"^/ is not a checkpoint; give a step directory"),
    "no pptrain checkpoint": (_given("--pptrain_checkpoint", "latest"), r"no complete checkpoint"),
}
CASES = [
    pytest.param(phase, damage, message, id=f"{phase}: {name}")
    for phase, cases in (("pptrain", BOTH_PHASES | PPTRAIN), ("pretrain", BOTH_PHASES | PRETRAIN))
    for name, (damage, message) in cases.items()
]
MAINS = {"pptrain": pptrain.main, "pretrain": pretrain.main}
LENGTH = {"pptrain": ["--max_steps", "2"], "pretrain": "--total_steps 2 --pptrain_checkpoint none".split()}
# These need what only rank 0 prepares, and are found right after the process group exists.
LATE = ("unknown generator class", "pack too small", "seq_len too small", "missing checkpoint")


@pytest.mark.parametrize(("phase", "damage", "message"), CASES)
def test_one_clear_error(
    scratch: Path, phase: str, damage: Callable[[Path], list[str]], message: str, request: pytest.FixtureRequest
) -> None:
    arguments = [*tiny.flags(scratch, precision=None), *BATCH, *LENGTH[phase], *damage(scratch)]
    with pytest.raises(UserError, match=f"(?s){message}"):
        MAINS[phase](arguments)
    if not any(name in request.node.name for name in LATE):
        assert not dist.is_initialized()
    else:
        dist.destroy_process_group()
    assert not (scratch / phase).exists()


def test_all_problems_are_reported_at_once(scratch: Path) -> None:
    flags = [
        *tiny.flags(scratch, precision=None),
        "--global_batch",
        "9",
        "--micro_batch",
        "4",
        "--mixin_percent",
        "7",
        "--lr",
        "-1",
    ]
    with pytest.raises(UserError) as error:
        pretrain.main([*flags, "--total_steps", "0", "--log_every", "0", "--pptrain_checkpoint", "none"])
    for part in ("4 problems", "--mixin_percent is 7", "--lr is -1", "--total_steps is 0", "--log_every is 0"):
        assert part in str(error.value)


@pytest.mark.parametrize("flag", ["--learning_rate", "--max_step", "--global_batch=eight"])
def test_unknown_flags_and_wrong_kinds(scratch: Path, flag: str) -> None:
    with pytest.raises(UserError, match=flag.split("=")[0]):
        pptrain.main([*tiny.flags(scratch, precision=None), flag, "1"])


@pytest.mark.launch
def test_exit_code_and_one_message_through_the_launcher(scratch: Path) -> None:
    flags = [*tiny.flags(scratch, precision=None), *BATCH, "--lr", "-1"]
    done = launch("ds_train/pptrain.py", *flags, num_ranks=2, through_launcher=True)
    assert done.returncode == 1
    assert done.stdout.count("error: --lr is -1") == 1
    assert "Traceback" not in done.stdout


def test_help_tells_each_default_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_flags(RunFlags, ModelFlags, description="", argv=["--help"])
    output = " ".join(capsys.readouterr().out.split())
    for words in ("(default: 1337)", "0: none (default: 0)", "500 for pretrain) --", "(default: auto)"):
        assert words in output
    assert "None" not in output and "False" not in output
