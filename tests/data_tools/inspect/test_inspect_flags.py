"""The flags of ``data_tools.inspect``: the trainers' defaults, and one message where they are wrong."""

import json
from dataclasses import fields

import pytest

from data_tools import build_data_splits
from data_tools.base.errors import UserError
from data_tools.inspect import __main__ as inspect_command
from data_tools.inspect.samples import DEFAULT_MAX_INPUT_SIZE, DEFAULT_MAX_LOOKAHEAD
from data_tools.runs.settings import DEFAULT_TOKENIZER
from ds_train.config.deepspeed_json import default_json
from ds_train.config.trainer_flags import DataFlags, ModelFlags, RunFlags
from ds_train.phases import pptrain, pretrain
from ds_train.run import inputs
from tests.support.tiny_models import tiny_tokenizer


def test_defaults_are_the_trainers():
    parse = inspect_command._parse
    trainers = {f.name: f.default for group in (RunFlags, ModelFlags, DataFlags, pptrain.PPTrainFlags,
                                               pretrain.PretrainFlags) for f in fields(group)}  # fmt: skip
    of_commands = {
        "split": {"mixin_loss", "seq_len"},
        "stream": {"seed", "seq_len", "train_answer", "accuracy", "loss", "answers", "generator"},
        "mixture": {
            "seed",
            "total_steps",
            "mixin_percent",
            "mixin_schedule",
            "mixin_end",
            "mixin_source",
            "mixin_pack",
            "mixin_loss",
            "c4_order",
        },
        "lengths": {"seed", "generator"},
    }
    for command, names in of_commands.items():
        args = vars(parse([command]))
        assert {name: args[name] for name in names} == {name: trainers[name] for name in names}
        if "global_batch" in args:
            assert args["global_batch"] == json.loads(default_json("pretrain").read_text())["train_batch_size"]
    assert f"EleutherAI/{inputs.DEFAULT_MODEL}" == DEFAULT_TOKENIZER
    assert vars(parse(["stream"]))["stage"] == trainers["start_stage"]
    assert vars(parse(["lengths"]))["seq_len"] == [trainers["seq_len"]]
    built = build_data_splits.parse(["--scratch_dir", "x"])
    assert (built.max_input_size, built.max_lookahead) == (DEFAULT_MAX_INPUT_SIZE, DEFAULT_MAX_LOOKAHEAD)


BAD = {
    "index": (["split", "--index", 40], r"--index is 40, but there are 40 rows of eval\.jsonl: expected 0 … 39"),
    "negative index": (["stream", "--index", -1], r"expected a whole number in \[0, 1e15\], got .-1"),
    "count": (["shards", "--count", 0], r"--count: expected a whole number in \[1, 1e15\], got '0'"),
    "one of several seq_lens": (
        ["lengths", "--seq_len", 2048, 1],
        r"--seq_len: expected a whole number in \[2, 1e7\], got '1'",
    ),
    "size": (["lengths", "--max_input_size", 0], r"--max_input_size: expected a whole number in \[1, 1e15\], got '0'"),
    "no synthetic blocks": (["mixture", "--mixin_percent", 0, "--blocks"], r"there are no synthetic blocks"),
    "block": (["shards", "--index", 200], r"there are 200 blocks"),
    "validation block": (["shards", "--validation", "--index", 6], r"there are 6 validation blocks"),
    "sample after the run": (["mixture", "--total_steps", 2, "--index", 64], r"there are 64 samples of the run"),
    "stage": (["stream", "--stage", 9, "--tokenizer", "/nowhere/x.json"], r"stage is 9: expected 1 … 8"),
    "stage of lengths": (["lengths", "--stages", 1, 65], r"stage is 65: expected 1 … 64"),
    "another size": (["stream", "--max_input_size", 384], r"--max_input_size 384 contradicts .*built with 48"),
    "no share": (["mixture", "--mixin_percent", 2], r"--mixin_percent: expected a number in \[0, 1\], got '2'"),
    "no tokenizer": (["stream", "--tokenizer", "/nowhere/tokenizer.json"], r"tokenizer '/nowhere.*no such file"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_message(tiny_scratch, name):
    flags, message = BAD[name]
    given = list(map(str, flags))
    if flags[0] != "lengths":
        given += ["--scratch_dir", str(tiny_scratch)]
    if "--tokenizer" not in given:
        given += ["--tokenizer", str(tiny_scratch / "tokenizer")]
    with pytest.raises(UserError, match=message):
        inspect_command.main(given)


@pytest.mark.parametrize(
    ("command", "message"), [("split", "which splits"), ("shards", "which packed blocks"), ("mixture", "which run")]
)
def test_what_to_look_at_must_be_given(command, message):
    with pytest.raises(UserError, match=message):
        inspect_command.main([command])


def test_the_packs_tokenizer_is_the_default_where_no_run_names_one(tiny_scratch, tmp_path, shown):
    (tmp_path / "data").symlink_to(tiny_scratch / "data")
    pick = ["split", "--scratch_dir", tmp_path, "--show", "tokens"]
    assert shown(*pick) == shown(*pick, "--tokenizer", tiny_scratch / "tokenizer") != ""


def test_another_tokenizer_than_the_packs_is_refused(tiny_scratch, tmp_path):
    tiny_tokenizer().save(tmp_path)
    with pytest.raises(UserError, match="is not the one"):
        inspect_command.main(["shards", "--scratch_dir", str(tiny_scratch), "--tokenizer", str(tmp_path)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [("", r"--run .* has no run\.yaml"), ("seed: 1\n", r"a run of pptrain; give one of pretrain")],
)
def test_a_run_that_cannot_be_shown_is_refused(tmp_path, settings, message):
    if settings:
        (tmp_path / "run.yaml").write_text(settings)
    with pytest.raises(UserError, match=message):
        inspect_command.main(["mixture", "--run", str(tmp_path)])
