"""Every command answers bad arguments with one message that names them, before it reads or writes anything."""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from data_tools.base.errors import UserError, user_message
from data_tools.search.splits import find_data_dir
from ds_train.checkpoints.manifest import step_directories
from ds_train.ranks.world import World, rendezvous

# Commands with arguments that are good, and their flags that take numbers; {s} is an empty directory.
INSPECT, TRAINER = "data_tools.inspect.__main__", "--scratch_dir {s} --print_config"
NUMBERS = {
    "data_tools.build_data_splits --scratch_dir {s}": "max_input_size max_lookahead seed eval_size test_size workers",
    "data_tools.build_pretrain --scratch_dir {s} --source {s}": "seq_len total_steps num_blocks val_blocks seed",
    "data_tools.train_tokenizer --corpus {s} --out {s}/t": "documents extra_rows vocab_size",
    "data_tools.fetch_assets corpus --out {s}/c": "documents",
    f"{INSPECT} stream --scratch_dir {{s}}": "stage index count seed",
    f"{INSPECT} mixture --scratch_dir {{s}}": "global_batch total_steps mixin_end",
    "ds_train.evaluate {s} --scratch_dir {s}": "seq_len num_examples micro_batch num_ranks",
    "ds_train.audit {s} {s}": "loss_tolerance",
    "ds_train.preflight pptrain --scratch_dir {s}": "nodes gpus_per_node gpu_memory_gb",
    f"ds_train.pptrain {TRAINER}": "seed curr_window",
    f"ds_train.pretrain {TRAINER}": "total_steps mixin_percent",
}
BAD_NUMBERS = ("-99999999999999999999", "99999999999999999999", "nan", "x", "")
# Other mistakes, and what the message says.
MISTAKES = {
    "data_tools.build_data_splits": "--scratch_dir",
    "data_tools.build_data_splits --scratch_dir {s} --sed 1": "--sed; did you mean --seed",
    "data_tools.build_data_splits --scratch_dir {s} 7": "7",
    "data_tools.build_data_splits --scratch_dir {s} --generator none:G": "none",
    "data_tools.build_data_splits --scratch_dir {s} --generator none": "none",
    "data_tools.build_pretrain": "--scratch_dir .* or --pack_dir",
    "data_tools.build_pretrain --scratch_dir {s} --num_blocks 2 --total_steps 3": "give one",
    "data_tools.build_pretrain --scratch_dir {s} --skip_bad 1": "give --source",
    "data_tools.build_pretrain --scratch_dir {s} --tokenizer /no/such/t": "/no/such/t",
    "data_tools.build_pretrain --scratch_dir {s} --max_steps 3": "did you mean --total_steps",
    "data_tools.train_tokenizer --corpus /nowhere --out {s}/t": "/nowhere",
    "data_tools.train_tokenizer --corpus {s} --out=": "--out is empty",
    "data_tools.fetch_assets": "asset",
    "data_tools.fetch_assets model --out {s}/x": "model",
    "data_tools.adopt.__main__ {s} --scratch_dir {s}": "{s}",
    "data_tools.adopt.__main__ /nowhere --scratch_dir {s}": "/nowhere",
    "data_tools.plot_run {s} --out {s}/report": r"train\.jsonl",
    "data_tools.plot_run {s} --out=": "--out is empty",
    "data_tools.plot_run": "RUN",
    "data_tools.plot_run {s} {s}": "given twice|same",
    "data_tools.plot_run {s} --names a b": "--names",
    "data_tools.summarize_run": "nothing to summarize",
    "data_tools.summarize_run {s}": r"train\.jsonl|no logs",
    "data_tools.summarize_run --evaluation /nowhere.json": r"--evaluation /nowhere\.json",
    f"{INSPECT}": "COMMAND",
    f"{INSPECT} steam": "'steam'",
    f"{INSPECT} stream --blocks": "--blocks",
    f"{INSPECT} stream --stge 3": "--stge; did you mean --stage",
    f"{INSPECT} split --scratch_dir {{s}} --split tets": "tets",
    f"{INSPECT} shards --scratch_dir {{s}}": "no packed blocks",
    f"{INSPECT} split --scratch_dir {{s}}": "no data splits",
    f"{INSPECT} stream --scratch_dir {{s}} --color pink": "pink",
    "ds_train.evaluate latest --scratch_dir {s}": "checkpoint latest is missing",
    "ds_train.evaluate {s} --scratch_dir {s}": "is not a checkpoint",
    "ds_train.evaluate {s}/step_00000007 --scratch_dir {s}": "it does not exist",
    "ds_train.evaluate {s}": "--scratch_dir",
    "ds_train.evaluate {s} --scratch_dir {s} --split mixin": "mixin",
    "ds_train.evaluate {s} --scratch_dir {s} --output {s}": "--output",
    "ds_train.evaluate {s} --scratch_dir {s} --output=": "--output is empty",
    "ds_train.export {s} {s}/out": "is not a checkpoint",
    "ds_train.export {s}": "OUT",
    "ds_train.export latest {s}/out": "latest",
    "ds_train.export {s} {s}/out --dtype fp8": "fp8",
    "ds_train.audit {s}": "RUN",
    "ds_train.audit {s} /nowhere": r"train\.jsonl",
    "ds_train.preflight": "phase",
    "ds_train.preflight finetune --scratch_dir {s}": "finetune",
    "ds_train.preflight pptrain --scratch_dir {s}": "no data splits",
    "ds_train.preflight pptrain --scratch_dir {s} --deepspeed_config /nowhere.json": r"/nowhere\.json",
    "ds_train.experiment.__main__ /nowhere.yaml {s}": r"/nowhere\.yaml",
    "ds_train.experiment.__main__ {s}": "DIR",
    "ds_train.pptrain": "--scratch_dir",
    f"ds_train.pptrain {TRAINER}": "no data splits",
    f"ds_train.pptrain {TRAINER} stray": "stray",
    f"ds_train.pptrain {TRAINER} -lr 3": "-lr",
    f"ds_train.pptrain {TRAINER} --total_steps 3": "did you mean --max_steps",
    f"ds_train.pptrain {TRAINER} --run_name ..": r"--run_name \.\.",
    f"ds_train.pptrain {TRAINER} --config /nowhere.yaml": r"/nowhere\.yaml",
    f"ds_train.pptrain {TRAINER} --accuracy best": "best",
    f"ds_train.pptrain {TRAINER} --model_name /no/such/model": "/no/such/model: .*there is no such directory",
    f"ds_train.pptrain {TRAINER} --model_name no/such/": "no/such/: .*there is no such directory",
    f"ds_train.pptrain {TRAINER} --model_name pythia-160": "pythia-160: no such preset",
    f"ds_train.pptrain {TRAINER} --tokenizer ./t.json": r"\./t\.json",
    f"ds_train.pptrain {TRAINER} --deepspeed_config {{s}}": "--deepspeed_config .* not a regular file",
    f"ds_train.pretrain {TRAINER} --max_steps 3": "did you mean --total_steps",
    f"ds_train.pretrain {TRAINER} --mixin_schedule steep": "steep",
    f"ds_train.pretrain {TRAINER} --pptrain_checkpoint lates": "did you mean latest",
    f"ds_train.pretrain {TRAINER}": "no complete checkpoint",
}


def _refused(command: str, directory: Path) -> str:
    """The message that a command ends with; it must leave the directory empty."""
    module, *arguments = command.format(s=directory).split()
    output = StringIO()
    with pytest.raises((UserError, OSError)) as raised, redirect_stdout(output):
        if importlib.import_module(module).main(arguments) == 1:  # preflight lists what it found
            raise UserError(output.getvalue())
    assert not list(directory.rglob("*"))
    return user_message(raised.value) or ""


@pytest.mark.parametrize(
    ("command", "flag"), [(command, flag) for command, flags in NUMBERS.items() for flag in flags.split()]
)
def test_numbers_that_mean_nothing(command: str, flag: str, tmp_path: Path) -> None:
    for value in BAD_NUMBERS:
        assert f"--{flag}" in _refused(f"{command} --{flag}={value}", tmp_path), value


@pytest.mark.parametrize("command", MISTAKES)
def test_mistakes(command: str, tmp_path: Path) -> None:
    message = _refused(command, tmp_path)
    expected = MISTAKES[command].format(s=tmp_path)
    with pytest.raises(UserError, match=f"(?s){expected}"):
        raise UserError(message)


def test_there_are_enough() -> None:
    numbers = sum(len(flags.split()) for flags in NUMBERS.values()) * len(BAD_NUMBERS)
    assert numbers + len(MISTAKES) >= 150


@contextmanager
def _as_nobody() -> Iterator[None]:
    """A user to whom permissions mean something."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("look", [lambda path: find_data_dir(path.parents[1]), step_directories])
def test_an_unreadable_directory_is_not_an_empty_one(look, tmp_path: Path) -> None:
    directory = tmp_path / "data" / "nl_splits"
    directory.mkdir(parents=True)
    directory.chmod(0)
    for above in (*tmp_path.parents[:2], tmp_path, directory.parent):
        above.chmod(0o755)
    with _as_nobody(), pytest.raises(PermissionError) as error:
        look(directory)
    directory.chmod(0o755)
    assert user_message(error.value) == f"{directory}: Permission denied"


@pytest.mark.parametrize("port", ["0", "-1", "65536", "x", ""])
def test_ports_out_of_range(port: str) -> None:
    with pytest.raises(UserError, match="MASTER_PORT is "):
        rendezvous(World(0, 0, 1), {"MASTER_PORT": port})
