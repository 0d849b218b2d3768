"""Every flag has a role, and what follows from roles: fingerprints, run files, audit."""

from dataclasses import MISSING, Field, fields

import pytest

from data_tools.base.errors import UserError
from ds_train.audit import _is_neutral
from ds_train.checkpoints.state import TrainState
from ds_train.config.flags import AT_START, compared_values, is_compared, parse_flags, role_of
from ds_train.config.json_checks import KNOWN_KEYS
from ds_train.config.run_file import as_run_file
from ds_train.config.trainer_flags import GROUPS
from tests.support.paths import REPOSITORY

FLAGS = [(phase, item) for phase, groups in GROUPS.items() for group in groups for item in fields(group)]
EVERY_FLAG = pytest.mark.parametrize(("phase", "item"), FLAGS, ids=[f"{phase}-{item.name}" for phase, item in FLAGS])
# What phases compare besides the values of flags: contents of files, by hash.
OF_CONTENTS = {"splits", "generator", "max_stage", "pack"}


def _fingerprints_of_the_source() -> set[str]:
    """Names that `common_fingerprints` gives; `test_elastic.py` holds that each refuses a resume."""
    source = (REPOSITORY / "ds_train/run/fingerprints.py").read_text()
    return {name for name in ("optimizer", "schedule", "tokenizer", "model", "seq_len") if f'"{name}":' in source}


@EVERY_FLAG
def test_its_effect_is_compared_where_it_says(phase: str, item: Field) -> None:
    role, through, json_key = role_of(item), item.metadata["through"], item.metadata["json_key"]
    assert role in ("trajectory", "speed", "record", "launch")
    if role != "trajectory":
        assert through is None
    elif through:
        state = {field.name for field in fields(TrainState)}
        assert through in {AT_START, *state, *OF_CONTENTS, *_fingerprints_of_the_source()}
    if json_key:
        assert json_key.split(".")[0] in KNOWN_KEYS
    assert is_compared(item) == (role == "trajectory" and not through and not json_key)


@EVERY_FLAG
def test_run_files_hold_all_but_what_concerns_one_start(phase: str, item: Field) -> None:
    all_flags, sources = parse_flags(*GROUPS[phase], description="", argv=["--scratch_dir", "/data"])
    text = as_run_file(all_flags, {}, sources, remarks=[])
    is_there = f"\n{item.name}:" in text
    assert is_there == (role_of(item) != "launch")


@EVERY_FLAG
def test_audit_shows_what_decides_a_trajectory(phase: str, item: Field) -> None:
    is_shown = not _is_neutral(item)
    assert not is_shown or role_of(item) == "trajectory"
    assert is_shown or not is_compared(item)


def test_saving_and_logging_are_no_differences() -> None:
    neutral = {item.name for _, item in FLAGS if _is_neutral(item)}
    assert {"sync_save", "log_every", "keep_last", "run_name", "num_workers", "lr"} <= neutral
    assert not {"seed", "seq_len", "mixin_percent", "curr_window", "train_answer"} & neutral


@pytest.mark.parametrize(
    ("phase", "names"),
    [
        ("pptrain", "train_answer accuracy curr_window curr_threshold curr_check_every stage_step"),
        ("pretrain", "total_steps mixin_percent mixin_schedule mixin_end mixin_pack mixin_loss"),
    ],
)
def test_checkpoints_of_before_have_the_same_fingerprints(phase: str, names: str) -> None:
    """A new one needs a former value, or no checkpoint of before resumes."""
    all_flags, _ = parse_flags(*GROUPS[phase], description="", argv=["--scratch_dir", "/data"])
    found = {name: value for flags in all_flags for name, value in compared_values(flags).items()}
    assert sorted(found) == sorted(names.split())
    own = next(flags for flags in all_flags if type(flags).__name__.lower() == f"{phase}flags")
    assert found == {name: str(getattr(own, name)) for name in names.split()}


def test_values_are_of_the_fields_kinds() -> None:
    argv = "--scratch_dir /d --seed 7 --sync_save --keep-last 2 --hang_timeout_s 5 --accept_change lr seed".split()
    (run, *_), sources = parse_flags(*GROUPS["pptrain"], description="", argv=[*argv, "--deterministic", "false"])
    assert (run.seed, run.sync_save, run.keep_last, run.hang_timeout_s) == (7, True, 2, 5.0)
    assert run.accept_change == ["lr", "seed"] and run.deterministic is False and run.resume == "auto"
    assert sources["seed"] == "command line"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--seed", "x"], "invalid int value: 'x'"),
        (["--sync_save", "perhaps"], "expected true or false, got 'perhaps'"),
        (["--init", "random"], "invalid choice: 'random'"),
        (["--accuracy"], "expected one argument"),
        (["stray"], "unrecognized arguments: stray"),
        (["--lerning_rate", "1"], "unknown flag --lerning_rate; did you mean --lr"),
    ],
)
def test_bad_values_are_one_message(argv: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_flags(*GROUPS["pptrain"], description="", argv=["--scratch_dir", "/data", *argv])


def test_only_the_scratch_directory_must_be_given() -> None:
    assert {item.name for _, item in FLAGS if item.default is MISSING} == {"scratch_dir"}
    with pytest.raises(UserError, match="required: --scratch_dir"):
        parse_flags(*GROUPS["pretrain"], description="", argv=[])
